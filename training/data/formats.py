"""The rows of local files, each with its place for error messages."""

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

from training.config import Domain, Source
from training.record.errors import InputError, first_line

KINDS = {
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
}
BUFFER = 2**20  # bytes decompressed at once
PARQUET_ROWS = 256  # decoded at once


class Row(NamedTuple):
    """One row of a file or a dataset: its columns, or the problem that prevents reading them."""

    number: int
    """Counted from 1; reading after this number continues with the next row."""
    place: str
    columns: Mapping[str, Any]
    problem: str = ""
    position: float = 0
    """Bytes of the file read so far."""


def matching(domain: Source) -> list[Path]:
    """The files that a domain's globs match, sorted."""
    patterns = [domain.files] if isinstance(domain.files, str) else domain.files or []
    paths: set[Path] = set()
    for pattern in patterns:
        matches = [p for p in map(Path, glob.glob(pattern, recursive=True)) if p.is_file()]
        if not matches:
            raise InputError(f"no file matches {pattern}")
        paths.update(matches)
    kinds = {_kind(path): str(path) for path in sorted(paths)}
    if len(kinds) > 1:
        raise InputError(f"files of one domain must be of one format: {kinds}")
    return sorted(paths)


def read(path: Path, domain: Source, after: int) -> Iterator[Row]:
    """The rows of a file in order, after number `after`.

    Raises InputError, without the domain's name, for a file that cannot be read.
    """
    return _READERS[_kind(path)](path, domain, after)


def _kind(path: Path) -> str:
    suffixes = [s for s in path.suffixes if s not in _DECOMPRESSORS]
    kind = KINDS.get(suffixes[-1] if suffixes else "")
    if kind is None:
        raise InputError(
            f"{path} has an unknown format; known suffixes: {', '.join(KINDS)}, "
            f"each also with {', '.join(sorted(_DECOMPRESSORS))}"
        )
    if kind == "parquet" and path.suffix != ".parquet":
        raise InputError(f"{path}: a compressed Parquet file cannot be read; unpack it")
    return kind


def _json(path: Path, _: Source, after: int) -> Iterator[Row]:
    """One JSON object per line; a file with the suffix .json may be an array of objects instead."""
    if ".json" in path.suffixes:
        first = next((line for _, line, _ in numbered_lines(path, 0) if line.strip()), b"")
        if first.lstrip(b"\xef\xbb\xbf \t").startswith(b"["):
            yield from _array(path, after)
            return
    for number, line, position in numbered_lines(path, after):
        if line.strip():
            columns, problem = _object(line, number)
            yield Row(number, f"{path}:{number}", columns, problem, position)


def _object(line: bytes, number: int) -> tuple[dict[str, Any], str]:
    """The object on a line, and what is wrong with it or an empty text."""
    try:
        value = json.loads(_decoded(line, number))
    except UnicodeDecodeError as error:
        return {}, _not_utf8(error)
    except json.JSONDecodeError as error:
        return {}, f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
    except (ValueError, RecursionError) as error:
        return {}, f"not JSON that can be read: {error}"
    return (value, "") if isinstance(value, dict) else ({}, f"{type_name(value)}, not an object")


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
    """UTF-8 text; the first line may begin with a byte order mark."""
    return data.decode("utf-8-sig" if number == 1 else "utf-8")


def _parquet(path: Path, domain: Source, after: int) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [*domain.columns, *([domain.domain_column] if domain.domain_column else [])]
    number = after
    try:
        with pq.ParquetFile(path) as file:
            leaves = [file.schema.column(i).path for i in range(len(file.schema))]
            for name in names:
                if not any(leaf == name or leaf.startswith(f"{name}.") for leaf in leaves):
                    raise InputError(f"{path}: {no_column(name, leaves)}")
            bytes_per_row = path.stat().st_size / max(file.metadata.num_rows, 1)
            for number, columns in _parquet_rows(file, names, after):
                place = f"{path}, row {number - 1}"
                yield Row(number, place, columns, position=number * bytes_per_row)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, f"row {number - 1}" if number else "its start", error) from error


def _parquet_rows(file: Any, names: list[str], after: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, columns) of each row after `after`; skips whole row groups."""
    number = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if number + rows <= after:
            number += rows
            continue
        batches = file.iter_batches(PARQUET_ROWS, [group], names, use_threads=False)
        for columns in (row for batch in batches for row in batch.to_pylist()):
            number += 1
            if number > after:
                yield number, columns


def _text(path: Path, domain: Source, after: int) -> Iterator[Row]:
    """Documents, paragraphs (separated by blank lines) or lines."""
    if not isinstance(domain, Domain):
        raise InputError(f"{path}: a task is made of columns; give JSONL or Parquet files")
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
    for number, line, position in numbered_lines(path, 0):
        yield number, f"{path}:{number}", line.rstrip(b"\r\n"), position


def _paragraphs(path: Path) -> _Pieces:
    runs = itertools.groupby(numbered_lines(path, 0), lambda line: bool(line[1].strip()))
    for number, lines in enumerate((list(lines) for is_text, lines in runs if is_text), 1):
        data = b"".join(line for _, line, _ in lines).rstrip(b"\r\n")
        yield number, f"{path}:{lines[0][0]}", data, lines[-1][2]


def numbered_lines(path: Path, after: int) -> Iterator[tuple[int, bytes, int]]:
    """(number, text, bytes of the file read so far) of each line after `after`."""
    number = 0
    try:
        with path.open("rb") as raw:
            for number, line in enumerate(_decompressed(raw, path), 1):
                if number > after:
                    yield number, line, raw.tell()
    except _DAMAGE as error:
        raise _damaged(path, f"line {number}", error) from error


def _whole(path: Path) -> tuple[bytes, int]:
    """A file's decompressed content and its size on disk."""
    try:
        with path.open("rb") as raw:
            return _decompressed(raw, path).read(), raw.tell()
    except _DAMAGE as error:
        raise _damaged(path, "its start", error) from error


def _decompressed(raw: IO[bytes], path: Path) -> IO[bytes]:
    decompressor = _DECOMPRESSORS.get(path.suffix)
    return io.BufferedReader(decompressor(raw), BUFFER) if decompressor else raw


def _zstd(raw: IO[bytes]) -> Any:
    """Arrow's decompressor: it raises for a truncated file, where `zstandard` ends silently."""
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
    return f"no column {name!r}; there are {known} (the study's keys that end in _column name them)"


def type_name(value: object) -> str:
    return "null" if value is None else type(value).__name__


_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError)
_DECOMPRESSORS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".bz2": bz2.open,
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".zst": _zstd,
}
_READERS: dict[str, Callable[[Path, Source, int], Iterator[Row]]] = {
    "json": _json,
    "parquet": _parquet,
    "text": _text,
}
