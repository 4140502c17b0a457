"""The rows of any source, and access to their columns."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from training.config import Domain
from training.data import embedded, formats
from training.data.formats import Row
from training.record.errors import InputError, first_line


def read(source: Path | None, domain: Domain, after: int) -> Iterator[Row]:
    """The rows of one file, or of a domain without files, in order, after number `after`.

    Raises InputError, without the domain's name, for a source that cannot be read.
    """
    if source is not None:
        return formats.read(source, domain, after)
    if domain.embedded:
        return _embedded(domain, after)
    return _hub(domain, after)


def lookup(columns: Mapping[str, Any], name: str) -> Any:
    """A column, or a nested key such as `meta.set`; LookupError says what is missing."""
    if name in columns:
        return columns[name]
    value: Any = columns
    keys = name.split(".")
    for depth, key in enumerate(keys):
        inside = isinstance(value, Mapping)
        if inside and key in value:
            value = value[key]
        elif depth:
            holds = ", ".join(map(repr, value)) if inside else formats.type_name(value)
            raise LookupError(f"no {key!r} in column {'.'.join(keys[:depth])!r}; it holds {holds}")
        else:
            raise LookupError(formats.no_column(name, columns))
    return value


def text(columns: Mapping[str, Any], name: str) -> tuple[str, int]:
    """The text in a column and its size in UTF-8 bytes; LookupError says why there is none."""
    value = lookup(columns, name)
    if not isinstance(value, str):
        raise LookupError(f"column {name!r} holds {formats.type_name(value)}, not text")
    try:
        return value, len(value.encode())
    except UnicodeEncodeError as error:
        half = value[error.start].encode("ascii", "backslashreplace").decode()
        raise LookupError(f"column {name!r} holds {half}, half of a surrogate pair") from error


def _embedded(domain: Domain, after: int) -> Iterator[Row]:
    assert domain.embedded is not None
    for number, document in enumerate(embedded.documents(domain.embedded), 1):
        if number > after:
            place = f"embedded {domain.embedded}, document {number}"
            yield Row(number, place, {domain.text_column: document})


def _hub(domain: Domain, after: int) -> Iterator[Row]:
    import datasets  # slow to import, and not needed for files

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
