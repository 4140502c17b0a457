"""The documents of domains: from embedded text, local files or a Hugging Face dataset.

Domains that differ only in `domain_value` and `max_mb` share one source, which is read once for
all of them. A domain's documents do not depend on the other domains read with it.
"""

import hashlib
import importlib.metadata
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

from training.config import Source
from training.data import embedded, formats, row_reader
from training.data.formats import Row
from training.record.errors import InputError
from training.record.files import write_json

DOMAIN, SET, TASK = "domain", "set", "task"  # what a source is read for
PROBLEMS = 3  # skipped rows that the warning names
ONE_DOCUMENT = 1e-6  # MB; a limit that the first document reaches
CHECK_SECONDS = 10  # time limit for checking one source
VALUES = 20  # values of the domain column that an error lists
AnySource = TypeVar("AnySource", bound=Source)

STORED_ORDER = (  # of a domain's keys in the fingerprints of text that is prepared already
    *("embedded", "dataset", "config", "split", "revision", "text_column"),
    *("domain_column", "domain_value", "on_error", "sample_by", "max_mb"),
)


@dataclass(frozen=True)
class Cursor:
    """How far a source was read, and the counts so far; a reading can resume from it."""

    file: int = 0
    row: int = 0
    bytes: Mapping[str, int] = field(default_factory=dict)
    """UTF-8 bytes of text read for each domain."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Rows skipped per domain; a row of unknown domain counts for every domain that is not yet
    full."""
    problems: Sequence[str] = ()
    """What was wrong with the first skipped rows."""
    values: Sequence[str] = ()
    """The first values of the domain column."""


def groups(domains: Mapping[str, AnySource]) -> list[dict[str, AnySource]]:
    """The domains grouped by source, in their order."""
    by_source: dict[str, dict[str, AnySource]] = {}
    for name, domain in domains.items():
        source = domain.model_dump_json(exclude={"domain_value", "max_mb"})
        own = "" if domain.domain_column else name
        by_source.setdefault(f"{source}{own}", {})[name] = domain
    return list(by_source.values())


def label(names: Iterable[str], kind: str = DOMAIN) -> str:
    """Domains, validation sets or tasks as errors name them."""
    quoted = [repr(name) for name in names]
    return f"{kind}{'s' if len(quoted) > 1 else ''} {', '.join(quoted)}"


class Reading:
    """One pass over the source that a group of domains or tasks shares, starting at a cursor.

    Iteration yields (their names, document or question) in a fixed order and ends when each has its
    `max_mb`. Raises InputError for a source that cannot be read, for a bad row unless `on_error`
    is skip, and at the end for a domain without text.
    """

    def __init__(
        self,
        group: Mapping[str, Source],
        start: Cursor | None = None,
        seconds: float = math.inf,
        kind: str = DOMAIN,
    ) -> None:
        """`seconds` limits the time of the reading."""
        self._kind = kind
        start = start or Cursor()
        self._end = time.monotonic() + seconds
        self._group = group
        self._source = next(iter(group.values()))
        self._owners: dict[str, list[str]] = {}
        for name, domain in group.items():
            for value in domain_values(domain):
                self._owners.setdefault(value, []).append(name)
        self._place = start.file, start.row
        self._bytes = {name: start.bytes.get(name, 0) for name in group}
        self._skipped = {name: start.skipped.get(name, 0) for name in group}
        self._problems = list(start.problems)
        self._seen_values = dict.fromkeys(start.values)
        self.fraction = 0.0
        """Fraction of the source's files read; 0 for a source without files."""

    def cursor(self) -> Cursor:
        """The position after the document that was yielded last."""
        return Cursor(
            *self._place,
            dict(self._bytes),
            dict(self._skipped),
            tuple(self._problems),
            tuple(self._seen_values),
        )

    def __iter__(self) -> Iterator[tuple[list[str], Any]]:
        unfilled = self._unfilled(self._group)
        if not unfilled:
            return
        for row in self._rows():
            if time.monotonic() > self._end:
                return
            names = unfilled
            try:
                if row.problem:
                    raise LookupError(row.problem)
                names = self._named(row, unfilled)
                if not names:
                    continue
                content, size = row_reader.content(row.columns, self._source)
            except LookupError as error:
                self._skip(names, f"{row.place}: {error.args[0]}")
                continue
            if size:
                for name in names:
                    self._bytes[name] += size
                yield names, content
                unfilled = self._unfilled(unfilled)
                if not unfilled:
                    return
        self._refuse_empty()

    def _rows(self) -> Iterator[Row]:
        """The source's rows; updates the place and the fraction."""
        try:
            paths = formats.matching(self._source) if self._source.files else [None]
            ends = list(accumulate(path.stat().st_size if path else 0 for path in paths))
            first, after = self._place
            for file in range(first, len(paths)):
                before = ends[file - 1] if file else 0
                for row in row_reader.read(
                    paths[file], self._source, after if file == first else 0
                ):
                    self._place = file, row.number
                    self.fraction = (before + row.position) / max(ends[-1], 1)
                    yield row
        except InputError as error:
            raise InputError(f"{label(self._group, self._kind)}: {error}") from error

    def _unfilled(self, names: Iterable[str]) -> list[str]:
        """The domains that have not reached their `max_mb`."""
        return [
            name
            for name in names
            if self._bytes[name] < (self._group[name].max_mb or float("inf")) * 1e6
        ]

    def _named(self, row: Row, unfilled: list[str]) -> list[str]:
        """The unfilled domains that a row belongs to."""
        if self._source.domain_column is None:
            return unfilled
        value = str(row_reader.lookup(row.columns, self._source.domain_column))
        if len(self._seen_values) < VALUES:
            self._seen_values[value] = None
        return [name for name in self._owners.get(value, ()) if name in unfilled]

    def _skip(self, names: list[str], problem: str) -> None:
        if self._source.on_error == "refuse":
            raise InputError(
                f"{label(names, self._kind)}: {problem}; fix it, or set on_error: skip to count "
                "such rows and leave them out"
            )
        for name in names:
            self._skipped[name] += 1
        if len(self._problems) < PROBLEMS:
            self._problems.append(problem)

    def _refuse_empty(self) -> None:
        for name, domain in self._group.items():
            if self._bytes[name]:
                continue
            if self._skipped[name]:
                raise InputError(
                    f"{label([name], self._kind)}: no row could be used, {self._skipped[name]:,} "
                    f"were left out; the first: {self._problems[0]}"
                )
            if self._seen_values:
                raise InputError(
                    f"{label([name], self._kind)}: no row has {domain.domain_column} = "
                    f"{' or '.join(map(repr, domain_values(domain)))}; "
                    f"found: {', '.join(sorted(self._seen_values))}"
                )
            what = "questions" if self._kind == TASK else "text"
            raise InputError(f"{label([name], self._kind)}: its source holds no {what}")


def check(domains: Mapping[str, Source], kind: str = DOMAIN) -> list[str]:
    """Read every local source until each of its domains has one document.

    Raises InputError as `Reading` does: for a missing file or column, a value that is not text, or
    a domain without rows. Returns notes on domains with no row in the first seconds of a source.
    """
    notes = []
    for group in groups(domains):
        first = next(iter(group.values()))
        if first.dataset and not Path(first.dataset).is_dir():
            continue
        samples = {n: d.model_copy(update={"max_mb": ONE_DOCUMENT}) for n, d in group.items()}
        reading = Reading(samples, seconds=CHECK_SECONDS, kind=kind)
        for _ in reading:
            pass
        if missing := [name for name, size in reading.cursor().bytes.items() if not size]:
            notes.append(
                f"{label(missing, kind)}: no row in the first {CHECK_SECONDS} s of reading"
            )
    return notes


def fingerprint(name: str, domain: Source, digests: Path, kind: str = DOMAIN) -> str:
    """A hash that changes when the domain's documents may have changed.

    Local files are hashed by content; the file `digests` caches each hash with the file's size and
    modification time, so unchanged files are not read again. A hub dataset is identified by its
    name and `revision`, a dataset in a local folder by its files.
    """
    content: Any
    folder = Path(domain.dataset or "")
    try:
        if domain.embedded:
            content = [(p.name, p.stat().st_size) for p in embedded.files(domain.embedded)]
        elif domain.files:
            content = _file_digests(formats.matching(domain), digests)
        elif folder.is_dir():
            content = _file_digests(sorted(filter(Path.is_file, folder.rglob("*"))), digests)
        else:
            content = importlib.metadata.version("datasets")
    except (InputError, OSError) as error:
        raise InputError(f"{label([name], kind)}: {error}") from error
    spec = domain.model_dump(exclude={"files"})
    spec = {key: spec.pop(key) for key in STORED_ORDER if key in spec} | spec
    return hashlib.sha256(json.dumps([spec, content]).encode()).hexdigest()


def domain_values(domain: Source) -> list[str]:
    values = domain.domain_value or []
    return [values] if isinstance(values, str) else list(dict.fromkeys(values))


def _file_digests(paths: list[Path], digests: Path) -> list[str]:
    """sha256 of each file, cached in `digests` by size and modification time."""
    known = json.loads(digests.read_text()) if digests.exists() else {}
    before = dict(known)
    result = []
    for path in paths:
        stat = path.stat()
        key = [stat.st_size, stat.st_mtime_ns]
        entry = known.get(str(path))
        if entry is None or entry[:2] != key:
            with path.open("rb") as file:
                entry = [*key, hashlib.file_digest(file, "sha256").hexdigest()]
            known[str(path)] = entry
        result.append(entry[2])
    if known != before:
        write_json(digests, known)
    return result
