"""The rows of local files, each with its place, so that whatever is wrong with one can name it."""

import bz2
import glob
import gzip
import io
import itertools
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from training.config import Domain
from training.record.errors import InputError, first_line

KINDS = {
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
}
BUFFER = 2**20  # bytes that a decompressor hands out at once
PARQUET_ROWS = 256  # decoded at once


class Row(NamedTuple):
    """One row of a file or a dataset: its columns, or the problem for which it has none."""

    number: int
    """A reading that starts after this number goes on with the next row."""
    place: str
    columns: Mapping[str, Any]
    problem: str = ""
    position: float = 0
    """Bytes of the file read."""


def matching(domain: Domain) -> list[Path]:
    """The files that a domain's globs match, sorted."""
    patterns = [domain.files] if isinstance(domain.files, str) else domain.files or []
    found: set[Path] = set()
    for pattern in patterns:
        matches = [p for p in map(Path, glob.glob(pattern, recursive=True)) if p.is_file()]
        if not matches:
            raise InputError(f"no file matches {pattern}")
        found.update(matches)
    kinds = {_kind(path): str(path) for path in sorted(found)}
    if len(kinds) > 1:
        raise InputError(f"files of one domain must be of one format: {kinds}")
    return sorted(found)


def read(path: Path, domain: Domain, after: int) -> Iterator[Row]:
    """The rows of a file in order, from number `after` on.

    Raises InputError, without the domain's name, for what cannot be read at all.
    """
    return _READERS[_kind(path)](path, domain, after)


def _kind(path: Path) -> str:
    suffixes = [s for s in path.suffixes if s not in _DECOMPRESSORS]
    kind = KINDS.get(suffixes[-1] if suffixes else "")
    if kind is None:
        raise InputError(
            f"{path} is of no known format; known suffixes: {', '.join(KINDS)}, "
            f"each also with {', '.join(sorted(_DECOMPRESSORS))}"
        )
    if kind == "parquet" and path.suffix != ".parquet":
        raise InputError(f"{path}: a Parquet file is read as it is; unpack it")
    return kind


def _json(path: Path, _: Domain, after: int) -> Iterator[Row]:
    """A JSON object a line; or, in a file whose suffix is .json, one array of objects."""
    if ".json" in path.suffixes:
        first = next((line for _, line, _ in _lines(path, 0) if line.strip()), b"")
        if first.lstrip(b"\xef\xbb\xbf \t").startswith(b"["):
            yield from _array(path, after)
            return
    for number, line, position in _lines(path, after):
        if line.strip():
            columns, problem = _object(line, number)
            yield Row(number, f"{path}:{number}", columns, problem, position)


def _object(line: bytes, number: int) -> tuple[dict[str, Any], str]:
    """The object on a line, or why there is none."""
    try:
        found = json.loads(_decoded(line, number))
    except UnicodeDecodeError as error:
        return {}, _not_utf8(error)
    except json.JSONDecodeError as error:
        return {}, f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
    except (ValueError, RecursionError) as error:
        return {}, f"not JSON that can be read: {error}"
    return (found, "") if isinstance(found, dict) else ({}, f"{type_name(found)}, not an object")


def _array(path: Path, after: int) -> Iterator[Row]:
    data, size = _whole(path)
    try:
        items = json.loads(_decoded(data, 1))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    for index, item in enumerate(items[after:], after):
        good = isinstance(item, dict)
        problem = "" if good else f"{type_name(item)}, not an object"
        position = size * (index + 1) / len(items)
        yield Row(index + 1, f"{path}, item {index}", item if good else {}, problem, position)


def _decoded(data: bytes, number: int) -> str:
    """Text; a file may begin with a byte order mark."""
    return data.decode("utf-8-sig" if number == 1 else "utf-8")


def _parquet(path: Path, domain: Domain, after: int) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = [c for c in (domain.text_column, domain.domain_column) if c is not None]
    number = after
    try:
        with pq.ParquetFile(path) as file:
            leaves = [file.schema.column(i).path for i in range(len(file.schema))]
            for name in wanted:
                if not any(leaf == name or leaf.startswith(f"{name}.") for leaf in leaves):
                    raise InputError(f"{path}: {no_column(name, leaves)}")
            bytes_per_row = path.stat().st_size / max(file.metadata.num_rows, 1)
            for number, columns in _parquet_rows(file, wanted, after):
                place = f"{path}, row {number - 1}"
                yield Row(number, place, columns, position=number * bytes_per_row)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, f"row {number - 1}" if number else "its start", error) from error


def _parquet_rows(file: Any, wanted: list[str], after: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number, counted from 1, and columns of each row after `after`; skips whole row groups."""
    number = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if number + rows <= after:
            number += rows
            continue
        batches = file.iter_batches(PARQUET_ROWS, [group], wanted, use_threads=False)
        for columns in (row for batch in batches for row in batch.to_pylist()):
            number += 1
            if number > after:
                yield number, columns


def _text(path: Path, domain: Domain, after: int) -> Iterator[Row]:
    """Documents, or paragraphs (what blank lines part), or lines."""
    pieces = {"document": _documents, "paragraph": _paragraphs, "line": _text_lines}
    for number, place, data, position in pieces[domain.sample_by](path):
        if number > after:
            columns, problem = {}, ""
            try:
                text = _decoded(data, number).replace("\r\n", "\n")
                columns = {domain.text_column: text}
            except UnicodeDecodeError as error:
                problem = _not_utf8(error)
            yield Row(number, place, columns, problem, position)


_Pieces = Iterator[tuple[int, str, bytes, int]]  # number, place, text, bytes of the file read


def _documents(path: Path) -> _Pieces:
    data, size = _whole(path)
    yield 1, str(path), data, size


def _text_lines(path: Path) -> _Pieces:
    for number, line, position in _lines(path, 0):
        yield number, f"{path}:{number}", line.rstrip(b"\r\n"), position


def _paragraphs(path: Path) -> _Pieces:
    parted = itertools.groupby(_lines(path, 0), lambda line: bool(line[1].strip()))
    for number, lines in enumerate((list(lines) for is_text, lines in parted if is_text), 1):
        data = b"".join(line for _, line, _ in lines).rstrip(b"\r\n")
        yield number, f"{path}:{lines[0][0]}", data, lines[-1][2]


def _lines(path: Path, after: int) -> Iterator[tuple[int, bytes, int]]:
    """Number, text and the end's place in the file, in bytes, of each line after `after`."""
    number = 0
    try:
        with path.open("rb") as raw:
            for number, line in enumerate(_decompressed(raw, path), 1):
                if number > after:
                    yield number, line, raw.tell()
    except _DAMAGE as error:
        raise _damaged(path, f"line {number}", error) from error


def _whole(path: Path) -> tuple[bytes, int]:
    """A file's text and its size on disk."""
    try:
        with path.open("rb") as raw:
            return _decompressed(raw, path).read(), raw.tell()
    except _DAMAGE as error:
        raise _damaged(path, "its start", error) from error


def _decompressed(raw: IO[bytes], path: Path) -> IO[bytes]:
    decompressor = _DECOMPRESSORS.get(path.suffix)
    return io.BufferedReader(decompressor(raw), BUFFER) if decompressor else raw


def _zstd(raw: IO[bytes]) -> Any:
    """Arrow's: a file that was cut short is an error there, an early end in `zstandard`."""
    import pyarrow

    return pyarrow.CompressedInputStream(raw, "zstd")


def _damaged(path: Path, after: str, error: Exception) -> InputError:
    return InputError(
        f"{path}: cannot be read beyond {after}: {first_line(error)} (if the file is damaged or "
        "cut short, get it again)"
    )


def _not_utf8(error: UnicodeDecodeError) -> str:
    byte = error.object[error.start]
    return f"not UTF-8: byte 0x{byte:02x} at column {error.start + 1}"


def no_column(name: str, columns: Iterable[str]) -> str:
    known = ", ".join(map(repr, columns)) or "none"
    return f"no column {name!r}; there are {known} (set text_column or domain_column)"


def type_name(value: object) -> str:
    return "null" if value is None else type(value).__name__


_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError)
_DECOMPRESSORS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".bz2": bz2.open,
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".zst": _zstd,
}
_READERS: dict[str, Callable[[Path, Domain, int], Iterator[Row]]] = {
    "json": _json,
    "parquet": _parquet,
    "text": _text,
}
