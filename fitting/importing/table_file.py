"""A table in a CSV or Parquet file, with its cells as they are written."""

import csv
import gzip
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from training.record.errors import InputError, first_line

SEPARATORS = (",", ";", "\t")  # or a space, if the header has none of these
UNNAMED = re.compile(
    r"\s*|Unnamed: \d+(\.\d+|_level_\d+)*"
)  # the latter is pandas' name for blanks
MISSING = frozenset(
    ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "-NaN", "-nan", "NULL", "null", "None")
)


@dataclass(frozen=True)
class TableFile:
    """A table, and what was left out of its file.

    The index names each row's place in the file. A column holds numbers (from a Parquet file) or
    texts; a missing cell is NaN.
    """

    path: str
    cells: pd.DataFrame
    left_out: tuple[str, ...] = ()


def read(path: str, texts: Sequence[str] = ()) -> TableFile:
    """The table in a CSV or Parquet file, without blank rows and without an unnamed index.

    In the columns `texts`, only an empty cell is missing. Raises InputError.
    """
    file = Path(path)
    try:
        header, rows, places = _parquet(file) if file.suffix == ".parquet" else _csv(file)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise InputError(
            f"{file.absolute()} cannot be read as a table: {first_line(error)}"
        ) from error
    named, left_out = _named_columns(path, header, rows)
    cells = pd.DataFrame({header[i]: rows.iloc[:, i] for i in named})
    for name in cells:
        cells[name] = _cells(cells[name], {""} if name in texts else MISSING)
    cells.index = pd.Index([f"{path}, {place}" for place in places])
    cells = cells.dropna(how="all")
    if cells.empty:
        raise InputError(f"{path}: it has no rows")
    return TableFile(path, cells, tuple(left_out))


def numbers(cells: pd.Series) -> pd.Series:
    """A column as numbers, NaN where a cell is missing or not a number."""
    if pd.api.types.is_numeric_dtype(cells):
        return pd.Series(cells.to_numpy(float, na_value=np.nan), cells.index)
    valid = pd.to_numeric(cells, errors="coerce").notna()
    return cells.where(valid).astype(float)  # rounded correctly, which to_numeric does not


def _csv(file: Path) -> tuple[list[str], pd.DataFrame, list[str]]:
    """Header, cells and each row's line of a file separated by comma, semicolon, tab or space."""
    opened: Any = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8-sig", newline="") as text:
        separator = _separator(text.readline())
        text.seek(0)
        reader = csv.reader(text, delimiter=separator, skipinitialspace=True, strict=True)
        lines = []
        try:
            lines = [(reader.line_num, row) for row in reader]
        except csv.Error as error:
            raise InputError(f"{file}, line {reader.line_num}: {error}") from error
    if not lines or not any(lines[0][1]):
        raise InputError(f"{file}: its first line must name the columns")
    header, lines = lines[0][1], [(i, row) for i, row in lines[1:] if any(map(str.strip, row))]
    if lines and all(len(row) == len(header) + 1 for _, row in lines):
        extra = not any(row[-1] for _, row in lines)  # a separator at the end of each row
        header = [*header, ""] if extra else ["", *header]  # or row names, which R writes
    for i, row in lines:
        if len(row) != len(header):
            raise InputError(
                f"{file}, line {i}: it has {len(row)} fields and the header {len(header)}; was the "
                "file cut off, or does a field hold the separator?"
            )
    cells = np.array([row for _, row in lines], dtype=object).reshape(-1, len(header))
    return header, pd.DataFrame(cells), [f"line {i}" for i, _ in lines]


def _separator(header: str) -> str:
    counts = [len(next(csv.reader([header], delimiter=s), [])) for s in SEPARATORS]
    return SEPARATORS[int(np.argmax(counts))] if max(counts) > 1 else " "


def _parquet(file: Path) -> tuple[list[str], pd.DataFrame, list[str]]:
    """Header, cells and each row's number; named levels of the index become columns."""
    table = pd.read_parquet(file)
    levels = range(table.index.nlevels)
    index = {i: table.index.get_level_values(i) for i in levels}
    header, columns = [], []
    for i, name in enumerate(table.index.names):
        if name is not None or not isinstance(table.index, pd.RangeIndex):
            header.append("" if name is None else str(name))
            columns.append(pd.Series(index[i]).reset_index(drop=True))
    header += [str(name) for name in table]
    columns += [table.iloc[:, i].reset_index(drop=True) for i in range(table.shape[1])]
    cells = pd.concat(columns, axis=1) if columns else pd.DataFrame()
    return header, cells, [f"row {i + 1}" for i in range(len(table))]


def _named_columns(
    path: str, header: Sequence[str], rows: pd.DataFrame
) -> tuple[list[int], list[str]]:
    """The positions of the named columns, and notes on unnamed columns.

    Unnamed columns before the first named one are an index that pandas or R wrote; empty ones are
    ignored. Raises InputError for any other unnamed column, and for a name that appears twice.
    """
    named: list[int] = []
    left_out: list[str] = []
    for i, name in enumerate(header):
        if not UNNAMED.fullmatch(name):
            if name in [header[j] for j in named]:
                raise InputError(f"{path}: column {name!r} appears twice")
            named.append(i)
        elif not named:
            left_out.append("the index, which has no name")
        elif not rows.iloc[:, i].isin(["", None, np.nan]).all():
            raise InputError(f"{path}: column {i + 1} has no name; name or remove it")
    return named, list(dict.fromkeys(left_out))


def _cells(cells: pd.Series, missing: frozenset[str] | set[str]) -> pd.Series:
    """A numeric column unchanged; any other as texts."""
    kind = pd.api.types
    if kind.is_numeric_dtype(cells) and not (
        kind.is_bool_dtype(cells) or kind.is_complex_dtype(cells)
    ):
        return cells
    texts = cells.astype(object).where(cells.notna(), "").map(str).astype(object)
    return texts.where(~texts.isin(missing), np.nan)
