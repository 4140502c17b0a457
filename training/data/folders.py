"""The folders of token files: made where they are missing, resumed, moved when they are whole."""

import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from training.config import Domain, Source, Task, Validation
from training.data import leaks, sources, tokenise
from training.data import tasks as task_files
from training.data.hashing import FORMAT, key_of
from training.data.sources import DOMAIN, SET, TASK, AnySource
from training.record.files import write_json

logger = logging.getLogger("training")

MUCH_COMMON = 0.05  # share of a set's passages
DOCUMENTS = 256  # of a set, read at once


@dataclass(frozen=True)
class Fingerprints:
    """What changes when a source may have changed, by the name of its domain, set or task."""

    domains: dict[str, str]
    sets: dict[str, str]
    tasks: dict[str, str]

    @classmethod
    def of(
        cls, domains: Mapping[str, Domain], validation: Validation, workspace: Path
    ) -> "Fingerprints":
        digests = workspace / "digests.json"
        return cls(
            *(
                {name: sources.fingerprint(name, s, digests, kind) for name, s in described.items()}
                for described, kind in (
                    (domains, DOMAIN),
                    (validation.sets, SET),
                    (validation.tasks, TASK),
                )
            )
        )

    @property
    def held_out(self) -> list[tuple[str, str]]:
        """Those of the text that is searched for in the training text."""
        return [*self.sets.items(), *self.tasks.items()]


@dataclass(frozen=True)
class Folders:
    """Token files, made with one tokenizer where they are missing."""

    folder: Path
    tokenizer_key: str
    tokenizer: Any

    def domains(
        self, domains: Mapping[str, Domain], texts: Fingerprints, validation: Validation
    ) -> dict[str, Any]:
        """As `texts`, with the training text searched for that of sets and tasks."""
        searched = validation if texts.held_out else None
        rule = [[validation.decontaminate, texts.held_out]] if searched else []
        return self.texts(domains, texts.domains, validation.fraction, *rule, searched=searched)

    def texts(
        self,
        domains: Mapping[str, Domain],
        texts: Mapping[str, str],
        fraction: float,
        *rule: object,
        searched: Validation | None = None,
        kind: str = DOMAIN,
    ) -> dict[str, Any]:
        """What `domain.json` says of each domain or set."""
        keys = {
            name: key_of([FORMAT, text, self.tokenizer_key, fraction, *rule])
            for name, text in texts.items()
        }
        missing = self._missing(domains, keys)
        index = _index(searched) if searched and missing else None
        drop = searched is not None and searched.decontaminate == "drop"
        for group in sources.groups(missing):
            with self._group(group, keys) as (scratch, folders):
                summaries = tokenise.write(
                    group,
                    folders,
                    self.tokenizer,
                    fraction,
                    scratch / "progress.json",
                    index,
                    drop=drop,
                    kind=kind,
                )
                self._finish(folders, summaries)
        return self._summaries(keys)

    def tasks(self, tasks: Mapping[str, Task], texts: Mapping[str, str]) -> dict[str, Any]:
        """What `domain.json` says of each task."""
        keys = {
            name: key_of([FORMAT, TASK, text, self.tokenizer_key]) for name, text in texts.items()
        }
        for group in sources.groups(self._missing(tasks, keys)):
            with self._group(group, keys) as (_, folders):
                self._finish(folders, task_files.write(group, folders, self.tokenizer))
        return self._summaries(keys)

    def _missing(
        self, described: Mapping[str, AnySource], keys: Mapping[str, str]
    ) -> dict[str, AnySource]:
        for scratch in self.folder.glob("*.partial"):
            _move_finished(scratch)
        names = {key: name for name, key in keys.items() if not _done(self.folder / key)}
        return {name: described[name] for name in names.values()}

    @contextmanager
    def _group(
        self, group: Mapping[str, Source], keys: Mapping[str, str]
    ) -> Iterator[tuple[Path, dict[str, Path]]]:
        """The unfinished folder of sources that are read together, and that of each; moved to
        their places at the end."""
        parts = {name: keys[name] for name in group}
        scratch = self.folder / f"{key_of(parts)}.partial"
        _drop_superseded(scratch, parts.values())
        yield scratch, {name: scratch / key for name, key in parts.items()}
        _move_finished(scratch)

    def _finish(self, folders: Mapping[str, Path], summaries: Mapping[str, Any]) -> None:
        for name, folder in folders.items():
            summary = {"folder": str(self.folder / folder.name), **summaries[name]}
            write_json(folder / "domain.json", summary, indent=1)

    def _summaries(self, keys: Mapping[str, str]) -> dict[str, Any]:
        return {
            name: json.loads((self.folder / key / "domain.json").read_text())
            for name, key in keys.items()
        }


def _index(validation: Validation) -> leaks.Index:
    """The text of the sets and tasks, to be found in training text."""
    index = leaks.Index(_held_out_texts(validation))
    for name, share in index.common.items():
        kind = TASK if name in validation.tasks else SET
        if short := index.short[name]:
            what = "questions" if kind == TASK else "documents"
            logger.warning(
                f"{kind} {name!r}: {short:,} {what} have fewer than {leaks.WORDS} words; they are "
                "looked for as whole documents of the training text, not within them"
            )
        if share > MUCH_COMMON:
            logger.warning(
                f"{kind} {name!r}: {share:.0%} of its passages stand in more than {leaks.COMMON} "
                "of its documents; training text that holds those is not taken for a leak"
            )
    return index


def _held_out_texts(validation: Validation) -> Iterator[tuple[str, list[str]]]:
    """The documents of the sets and questions of the tasks, in batches of one name each."""
    batches: dict[str, list[str]] = {name: [] for name in validation.beside}

    def every() -> Iterator[tuple[str, str]]:
        for group in sources.groups(validation.sets):
            for names, text in sources.Reading(group, kind=SET):
                yield from ((name, text) for name in names)
        for name, question in task_files.questions(validation.tasks):
            yield name, question.text

    with tqdm(desc="reading sets and tasks", unit=" documents", unit_scale=True) as bar:
        for name, text in every():
            bar.update()
            batches[name].append(text)
            if len(batches[name]) == DOCUMENTS:
                yield name, batches[name]
                batches[name] = []
    yield from ((name, texts) for name, texts in batches.items() if texts)


def _done(folder: Path) -> bool:
    return (folder / "domain.json").exists()


def _move_finished(scratch: Path) -> None:
    """Move the complete domains of a group to their final folders."""
    finished = [path.parent for path in scratch.glob("*/domain.json")]
    for path in finished:
        place = scratch.parent / path.name
        shutil.rmtree(place, ignore_errors=True)
        os.replace(path, place)
    if finished:
        shutil.rmtree(scratch)


def _drop_superseded(scratch: Path, keys: Iterable[str]) -> None:
    """Remove leftovers of earlier preparations of these domains, except `scratch`."""
    for key in keys:
        for leftover in scratch.parent.glob(f"*.partial/{key}"):
            if leftover.parent != scratch:
                shutil.rmtree(leftover.parent)
