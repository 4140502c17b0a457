"""The rows of any source, and what a column of one holds."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from training.config import Domain
from training.data import embedded, formats
from training.data.formats import Row
from training.record.errors import InputError, first_line


def read(source: Path | None, domain: Domain, after: int) -> Iterator[Row]:
    """The rows of one file, or of a domain that has no files, in order, from number `after` on.

    Raises InputError, without the domain's name, for what cannot be read at all.
    """
    if source is not None:
        return formats.read(source, domain, after)
    if domain.embedded:
        return _embedded(domain, after)
    return _hub(domain, after)


def lookup(columns: Mapping[str, Any], name: str) -> Any:
    """A column, or with `meta.set` the key of a mapping in it; LookupError says what is missing."""
    if name in columns:
        return columns[name]
    found: Any = columns
    keys = name.split(".")
    for depth, key in enumerate(keys):
        inside = isinstance(found, Mapping)
        if inside and key in found:
            found = found[key]
        elif depth:
            holds = ", ".join(map(repr, found)) if inside else formats.type_name(found)
            raise LookupError(f"no {key!r} in column {'.'.join(keys[:depth])!r}; it holds {holds}")
        else:
            raise LookupError(formats.no_column(name, columns))
    return found


def text(columns: Mapping[str, Any], name: str) -> tuple[str, int]:
    """The text in a column and its UTF-8 bytes; LookupError says why there is none."""
    found = lookup(columns, name)
    if not isinstance(found, str):
        raise LookupError(f"column {name!r} holds {formats.type_name(found)}, not text")
    try:
        return found, len(found.encode())
    except UnicodeEncodeError as error:
        half = found[error.start].encode("ascii", "backslashreplace").decode()
        raise LookupError(f"column {name!r} holds {half}, half of a surrogate pair") from error


def _embedded(domain: Domain, after: int) -> Iterator[Row]:
    assert domain.embedded is not None
    for number, document in enumerate(embedded.documents(domain.embedded), 1):
        if number > after:
            place = f"embedded {domain.embedded}, document {number}"
            yield Row(number, place, {domain.text_column: document})


def _hub(domain: Domain, after: int) -> Iterator[Row]:
    import datasets  # slow to import; studies on files never need it

    datasets.disable_progress_bars()
    number = after
    try:
        rows = datasets.load_dataset(
            domain.dataset,
            domain.config,
            split=domain.split,
            revision=domain.revision,
            streaming=True,
        )
        for number, columns in enumerate(rows.skip(after) if after else rows, after + 1):
            yield Row(number, f"{domain.dataset}, row {number - 1}", columns)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        how_far = f" after row {number - 1}" if number else ""
        raise InputError(f"{domain.dataset}{how_far}: {first_line(error)}") from error
