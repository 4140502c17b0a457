"""Where documents come from: embedded text, local files or a Hugging Face dataset.

Domains that differ only in `domain_value` and `max_mb` share one source, which is read once for
all of them. What a domain gets does not depend on which others are read with it.
"""

import hashlib
import importlib.metadata
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from training.config import Domain
from training.data import embedded, formats, row_reader
from training.data.formats import Row
from training.record.errors import InputError

PROBLEMS = 3  # rows left out that the warning names
ONE_DOCUMENT = 1e-6  # MB that are enough to see that a domain has text
LOOK_SECONDS = 10  # for each source, when one only looks
VALUES = 20  # values of the domain column that an error names


@dataclass(frozen=True)
class Cursor:
    """How far a source was read and what that gave; a reading goes on from it."""

    file: int = 0
    row: int = 0
    bytes: Mapping[str, int] = field(default_factory=dict)
    """UTF-8 bytes of text that each domain got."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Rows left out of each domain; one whose domain cannot be told counts for each that still
    takes rows."""
    problems: Sequence[str] = ()
    """What was wrong with the first of them."""
    values: Sequence[str] = ()
    """The first values of the domain column."""


def groups(domains: Mapping[str, Domain]) -> list[dict[str, Domain]]:
    """The domains by the source that they share, each in the order given."""
    found: dict[str, dict[str, Domain]] = {}
    for name, domain in domains.items():
        source = domain.model_dump_json(exclude={"domain_value", "max_mb"})
        alone = "" if domain.domain_column else name
        found.setdefault(f"{source}{alone}", {})[name] = domain
    return list(found.values())


def label(names: Iterable[str]) -> str:
    """How an error names domains."""
    quoted = [repr(name) for name in names]
    return f"domain{'s' if len(quoted) > 1 else ''} {', '.join(quoted)}"


class Reading:
    """One pass over the source that a group's domains share, from a cursor on.

    Iterating gives each document with the names of its domains, in a fixed order, and ends when
    every domain has its `max_mb`. Raises InputError for what cannot be read, for a bad row unless
    `on_error` is skip, and at the end for a domain that got nothing.
    """

    def __init__(
        self, group: Mapping[str, Domain], start: Cursor | None = None, seconds: float = math.inf
    ) -> None:
        """A reading that ends early after so many seconds."""
        start = start or Cursor()
        self._end = time.monotonic() + seconds
        self._group = group
        self._source = next(iter(group.values()))
        self._owners: dict[str, list[str]] = {}
        for name, domain in group.items():
            for value in _values(domain):
                self._owners.setdefault(value, []).append(name)
        self._place = start.file, start.row
        self._bytes = {name: start.bytes.get(name, 0) for name in group}
        self._skipped = {name: start.skipped.get(name, 0) for name in group}
        self._problems = list(start.problems)
        self._found = dict.fromkeys(start.values)
        self.fraction = 0.0
        """Of the source's files read, 0 where there are no files."""

    def cursor(self) -> Cursor:
        """Where the reading is: after the document that it gave last."""
        return Cursor(
            *self._place,
            dict(self._bytes),
            dict(self._skipped),
            tuple(self._problems),
            tuple(self._found),
        )

    def __iter__(self) -> Iterator[tuple[list[str], str]]:
        hungry = self._hungry(self._group)
        if not hungry:
            return
        for row in self._rows():
            if time.monotonic() > self._end:
                return
            names = hungry
            try:
                if row.problem:
                    raise LookupError(row.problem)
                names = self._named(row, hungry)
                if not names:
                    continue
                text, size = row_reader.text(row.columns, self._source.text_column)
            except LookupError as error:
                self._leave_out(names, f"{row.place}: {error.args[0]}")
                continue
            if text:
                for name in names:
                    self._bytes[name] += size
                yield names, text
                hungry = self._hungry(hungry)
                if not hungry:
                    return
        self._refuse_empty()

    def _rows(self) -> Iterator[Row]:
        """The source's rows; keeps the place and the fraction."""
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
            raise InputError(f"{label(self._group)}: {error}") from error

    def _hungry(self, names: Iterable[str]) -> list[str]:
        """Those that have not got their `max_mb`."""
        return [
            name
            for name in names
            if self._bytes[name] < (self._group[name].max_mb or float("inf")) * 1e6
        ]

    def _named(self, row: Row, hungry: list[str]) -> list[str]:
        """Whose row it is."""
        if self._source.domain_column is None:
            return hungry
        value = str(row_reader.lookup(row.columns, self._source.domain_column))
        if len(self._found) < VALUES:
            self._found[value] = None
        return [name for name in self._owners.get(value, ()) if name in hungry]

    def _leave_out(self, names: list[str], problem: str) -> None:
        if self._source.on_error == "refuse":
            raise InputError(
                f"{label(names)}: {problem}; mend it, or set on_error: skip to count such rows "
                "and leave them out"
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
                    f"{label([name])}: no row could be used, {self._skipped[name]:,} were left "
                    f"out; the first: {self._problems[0]}"
                )
            if self._found:
                raise InputError(
                    f"{label([name])}: no row has {domain.domain_column} = "
                    f"{' or '.join(map(repr, _values(domain)))}; "
                    f"found: {', '.join(sorted(self._found))}"
                )
            raise InputError(f"{label([name])}: its source holds no text")


def look(domains: Mapping[str, Domain]) -> list[str]:
    """Read as much of every local source as gives each of its domains one document.

    Raises InputError as a reading does: for a file or column that is missing, a value that is no
    text, a domain without a row. What was not met in the first seconds of a long source is told.
    """
    notes = []
    for group in groups(domains):
        first = next(iter(group.values()))
        if first.dataset and not Path(first.dataset).is_dir():
            continue
        taste = {n: d.model_copy(update={"max_mb": ONE_DOCUMENT}) for n, d in group.items()}
        reading = Reading(taste, seconds=LOOK_SECONDS)
        for _ in reading:
            pass
        if lacking := [name for name, size in reading.cursor().bytes.items() if not size]:
            notes.append(f"{label(lacking)}: no row in the first {LOOK_SECONDS} s of reading")
    return notes


def documents(name: str, domain: Domain) -> Iterator[str]:
    """The texts of one domain, in a fixed order, up to `max_mb`."""
    return (text for _, text in Reading({name: domain}))


def fingerprint(name: str, domain: Domain, digests: Path) -> str:
    """A hash that changes when the domain's documents may have changed.

    Local files count by content; `digests` remembers the hash of each file by its size and
    modification time, so that unchanged files are not read again. A hub dataset counts by its
    name and `revision`, one in a local folder by its files.
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
        raise InputError(f"{label([name])}: {error}") from error
    spec = domain.model_dump(exclude={"files"})
    return hashlib.sha256(json.dumps([spec, content]).encode()).hexdigest()


def _values(domain: Domain) -> list[str]:
    values = domain.domain_value or []
    return [values] if isinstance(values, str) else list(dict.fromkeys(values))


def _file_digests(paths: list[Path], digests: Path) -> list[str]:
    """sha256 of each file, from the store where size and time are unchanged."""
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
        digests.parent.mkdir(parents=True, exist_ok=True)
        scratch = digests.with_name(f"{digests.name}.{os.getpid()}.partial")
        scratch.write_text(json.dumps(known))
        os.replace(scratch, digests)
    return result
