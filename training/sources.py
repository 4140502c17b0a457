"""Where documents come from: embedded text, local files or a Hugging Face dataset."""

import glob
import hashlib
import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training import embedded
from training.errors import InputError
from training.settings import Domain

FORMATS = {
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
}
COMPRESSED = {".gz", ".zst", ".bz2", ".xz"}


def documents(name: str, domain: Domain) -> Iterator[str]:
    """The texts of a domain, in a fixed order, up to `max_mb`."""
    left = domain.max_mb * 1e6 if domain.max_mb else float("inf")
    texts = embedded.documents(domain.embedded) if domain.embedded else _rows(name, domain)
    for text in texts:
        if left <= 0:
            return
        left -= len(text.encode("utf-8", "surrogatepass"))
        yield text


def fingerprint(name: str, domain: Domain, digests: Path) -> str:
    """A hash that changes when the domain's documents may have changed.

    Local files count by content; `digests` remembers the hash of each file by its size and
    modification time, so that unchanged files are not read again. A hub dataset counts by its
    name and `revision`.
    """
    content: Any
    if domain.embedded:
        content = [(p.name, p.stat().st_size) for p in embedded.files(domain.embedded)]
    elif domain.files:
        content = _file_digests(_matching_files(name, domain), digests)
    else:
        content = importlib.metadata.version("datasets")
    spec = domain.model_dump(exclude={"files"})
    return hashlib.sha256(json.dumps([spec, content]).encode()).hexdigest()


def _rows(name: str, domain: Domain) -> Iterator[str]:
    """The text column of a domain's rows."""
    values = set()
    empty = True
    for number, row in enumerate(_dataset(name, domain)):
        for column in (domain.text_column, domain.domain_column):
            if column is not None and column not in row:
                raise InputError(
                    f"domain {name!r}: row {number} has no column {column!r}; it has "
                    f"{', '.join(map(repr, row))} (set text_column or domain_column)"
                )
        if domain.domain_column is not None:
            value = str(row[domain.domain_column])
            values.add(value)
            if value != domain.domain_value:
                continue
        text = row[domain.text_column]
        if not isinstance(text, str):
            raise InputError(
                f"domain {name!r}: row {number}, column {domain.text_column!r} holds "
                f"{type(text).__name__}, not text"
            )
        empty = False
        yield text
    if empty and values:
        raise InputError(
            f"domain {name!r}: no row has {domain.domain_column} = {domain.domain_value!r}; "
            f"found: {', '.join(sorted(values)[:20])}"
        )


def _dataset(name: str, domain: Domain) -> Any:
    """The domain's rows as a streaming dataset."""
    import datasets  # slow to import; embedded studies never need it

    datasets.disable_progress_bars()
    try:
        if domain.files:
            paths = [str(p) for p in _matching_files(name, domain)]
            kind = _format(name, paths)
            extra = {"sample_by": domain.sample_by} if kind == "text" else {}
            return datasets.load_dataset(
                kind, data_files=paths, split="train", streaming=True, **extra
            )
        return datasets.load_dataset(
            domain.dataset,
            domain.config,
            split=domain.split,
            revision=domain.revision,
            streaming=True,
        )
    except (OSError, ValueError, ConnectionError) as error:
        raise InputError(f"domain {name!r}: {error}") from error


def _matching_files(name: str, domain: Domain) -> list[Path]:
    patterns = [domain.files] if isinstance(domain.files, str) else domain.files or []
    found: set[Path] = set()
    for pattern in patterns:
        matches = [p for p in map(Path, glob.glob(pattern, recursive=True)) if p.is_file()]
        if not matches:
            raise InputError(f"domain {name!r}: no file matches {pattern}")
        found.update(matches)
    return sorted(found)


def _format(name: str, paths: list[str]) -> str:
    """The `datasets` builder for these files; all must be of one format."""
    kinds = {}
    for path in paths:
        suffixes = [s for s in Path(path).suffixes if s not in COMPRESSED]
        kinds[FORMATS.get(suffixes[-1] if suffixes else "")] = path
    if None in kinds:
        raise InputError(
            f"domain {name!r}: {kinds[None]} is of no known format; known suffixes: "
            f"{', '.join(FORMATS)}, each also with {', '.join(sorted(COMPRESSED))}"
        )
    if len(kinds) > 1:
        raise InputError(f"domain {name!r}: files of one domain must be of one format: {kinds}")
    return str(next(iter(kinds)))


def _file_digests(paths: list[Path], digests: Path) -> list[str]:
    """sha256 of each file, from the store where size and time are unchanged."""
    known = json.loads(digests.read_text()) if digests.exists() else {}
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
    digests.parent.mkdir(parents=True, exist_ok=True)
    digests.write_text(json.dumps(known))
    return result
