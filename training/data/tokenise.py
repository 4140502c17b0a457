"""Documents → token files: reading, encoding and writing run in parallel and can be resumed.

One thread reads batches of text, a second passes them to the tokenizer, whose own threads encode
them on all cores, and the main thread writes. The output depends on neither the threads nor the
batch size. At intervals the files are flushed, and `progress.json` beside them records their
lengths and how far the source was read. On resuming, anything beyond these lengths is cut off.
"""

import hashlib
import json
import logging
import math
import os
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from tqdm import tqdm

from training.config import Source
from training.data import leaks, sources
from training.data import tokenizer as tokenizers
from training.data.hashing import held_out
from training.record.errors import InputError
from training.record.files import write_json

logger = logging.getLogger("training")

BATCH = 2_000_000  # characters encoded at once
PREFETCHED = 2  # batches read, and batches encoded, ahead of need
SAVE_BYTES = 64_000_000  # of text between two saves of the progress
SAVE_SECONDS = 30.0
PARTS = ("train", "validation")
ENDS = np.dtype("uint64")  # where each document ends, in tokens

T = TypeVar("T")


@dataclass(frozen=True)
class TextBatch:
    """Documents with the names of their domains, and the reading's cursor after them."""

    documents: list[tuple[list[str], str]]
    cursor: sources.Cursor
    fraction: float


def write(
    group: Mapping[str, Source],
    folders: Mapping[str, Path],
    tokenizer: Any,
    fraction: float,
    progress: Path,
    sets: leaks.Index | None = None,
    *,
    drop: bool = True,
    kind: str = sources.DOMAIN,
) -> dict[str, dict[str, Any]]:
    """Write the token files of domains that share a source; returns a summary per domain.

    Training documents that leak into `sets` are counted, and left out if `drop`. A repeated call
    with the same arguments resumes from the file `progress`. Raises InputError as
    `sources.Reading` does.
    """
    saved = json.loads(progress.read_text()) if progress.exists() else {"cursor": {}, "domains": {}}
    reading = sources.Reading(group, sources.Cursor(**saved["cursor"]), kind=kind)
    dtype = tokenizers.dtype_of(tokenizer)
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(closing(_Writer(folder, dtype, saved["domains"].get(name))))
            for name, folder in folders.items()
        }
        record = _Record(progress, writers, reading.cursor())
        stack.callback(record.save)
        bar = stack.enter_context(_bar(group, record.cursor))
        batches = _prefetched(_batches(reading))
        encoded = _prefetched(_encoded(batches, tokenizers.encoder(tokenizer), sets))
        for batch, all_ids, leaked in stack.enter_context(closing(encoded)):
            for (names, text), ids, leaks_into in zip(
                batch.documents, all_ids, leaked, strict=True
            ):
                is_held_out = held_out(text, fraction)
                tokens = np.array([*ids, tokenizer.eos_token_id], dtype=dtype)
                for name in names:
                    if leaks_into and not is_held_out:
                        writers[name].leaked(leaks_into, len(tokens))
                        if drop:
                            continue
                    writers[name].add(tokens, len(text.encode()), is_held_out)
            record.update(batch.cursor)
            show_progress(bar, batch, group)
    _warn_of_skipped(record.cursor)
    skipped = record.cursor.skipped
    return {name: {**w.summary(), "skipped": skipped[name]} for name, w in writers.items()}


def _batches(reading: sources.Reading) -> Iterator[TextBatch]:
    documents, size = list[tuple[list[str], str]](), 0
    for names, text in reading:
        documents.append((names, text))
        size += len(text)
        if size >= BATCH:
            yield TextBatch(documents, reading.cursor(), reading.fraction)
            documents, size = [], 0
    yield TextBatch(documents, reading.cursor(), reading.fraction)


def _encoded(
    batches: Iterable[TextBatch], encode: tokenizers.Encode, sets: leaks.Index | None
) -> Iterator[tuple[TextBatch, Iterable[list[int]], list[dict[str, str]]]]:
    """Each batch with its documents' token ids and the sets that they leak into."""
    for batch in batches:
        texts = [text for _, text in batch.documents]
        leaked = sets.find(texts) if sets else [{} for _ in texts]
        yield batch, encode(texts) if texts else [], leaked


def _prefetched(items: Iterator[T]) -> Generator[T, None, None]:
    """The items; a thread computes the next ones in advance."""
    end: Any = object()
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, items, end) for _ in range(PREFETCHED))
        try:
            while (item := waiting.popleft().result()) is not end:
                yield item
                waiting.append(pool.submit(next, items, end))
        finally:
            pool.shutdown(cancel_futures=True)


class _Writer:
    """Appends to a domain's token files, from the counts of an earlier writer if given."""

    def __init__(self, folder: Path, dtype: str, counts: Mapping[str, Any] | None) -> None:
        counts = counts or {"tokens": [0, 0], "documents": [0, 0], "bytes_held_out": 0}
        self._leaks = {name: dict(leak) for name, leak in counts.get("leaks", {}).items()}
        self._dtype = np.dtype(dtype)
        self._tokens = list(counts["tokens"])  # train, validation
        self._documents = list(counts["documents"])
        self._bytes_held_out = int(counts["bytes_held_out"])
        folder.mkdir(parents=True, exist_ok=True)
        self._ids = [
            _truncated(folder / f"{part}.bin", n * self._dtype.itemsize)
            for part, n in zip(PARTS, self._tokens, strict=True)
        ]
        self._ends = [
            _truncated(folder / f"{part}.idx", n * ENDS.itemsize)
            for part, n in zip(PARTS, self._documents, strict=True)
        ]

    def add(self, tokens: np.ndarray, size: int, is_held_out: bool) -> None:
        """Append a document of `size` bytes of text."""
        part = int(is_held_out)
        self._tokens[part] += len(tokens)
        self._documents[part] += 1
        self._bytes_held_out += size * part
        self._ids[part].write(tokens.tobytes())
        self._ends[part].write(np.array(self._tokens[part], dtype=ENDS).tobytes())

    def leaked(self, sets: Mapping[str, str], tokens: int) -> None:
        """Count a training document of so many tokens that shares these words with these sets."""
        for name, words in sets.items():
            leak = self._leaks.setdefault(name, {"documents": 0, "tokens": 0, "example": words})
            leak["documents"] += 1
            leak["tokens"] += tokens

    def counts(self) -> dict[str, Any]:
        return {
            "leaks": {name: dict(leak) for name, leak in self._leaks.items()},
            "tokens": list(self._tokens),
            "documents": list(self._documents),
            "bytes_held_out": self._bytes_held_out,
        }

    def flush(self) -> None:
        for file in self._ids + self._ends:
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        for file in self._ids + self._ends:
            file.close()

    def summary(self) -> dict[str, Any]:
        """The fields of `TokenFiles` for the finished files."""
        digest = hashlib.sha256()
        for file in self._ids:
            with Path(file.name).open("rb") as finished:
                digest.update(hashlib.file_digest(finished, "sha256").digest())
        return {
            "dtype": self._dtype.name,
            "train_tokens": self._tokens[0],
            "validation_tokens": self._tokens[1],
            "bytes_per_token": self._bytes_held_out / max(self._tokens[1], 1),
            "documents": sum(self._documents),
            "digest": digest.hexdigest()[:16],
            **({"leaks": self._leaks} if self._leaks else {}),
        }


def _truncated(path: Path, size: int) -> IO[bytes]:
    """A file truncated to `size` bytes and opened for appending."""
    file = path.open("ab")
    if file.tell() < size:
        raise InputError(f"{path}: shorter than was recorded; delete {path.parent.parent}")
    file.truncate(size)
    return file


class _Record:
    """The progress after the last complete batch, saved at intervals and at the end."""

    def __init__(self, path: Path, writers: Mapping[str, _Writer], cursor: sources.Cursor) -> None:
        self._path = path
        self._writers = writers
        self.update(cursor, first=True)

    def update(self, cursor: sources.Cursor, *, first: bool = False) -> None:
        """Record that all documents before the cursor are written; save if it is due."""
        self.cursor = cursor
        self._counts = {name: writer.counts() for name, writer in self._writers.items()}
        if first:
            self._mark()
        elif (
            sum(cursor.bytes.values()) >= self._saved_bytes + SAVE_BYTES
            or time.monotonic() >= self._saved_at + SAVE_SECONDS
        ):
            self.save()

    def save(self) -> None:
        for writer in self._writers.values():
            writer.flush()
        progress = {"cursor": asdict(self.cursor), "domains": self._counts}
        write_json(self._path, progress, indent=1)
        self._mark()

    def _mark(self) -> None:
        self._saved_bytes = sum(self.cursor.bytes.values())
        self._saved_at = time.monotonic()


def _bar(group: Mapping[str, Source], cursor: sources.Cursor) -> "tqdm[Any]":
    names = ", ".join(group) if len(group) <= 3 else f"{len(group)} domains"
    return tqdm(
        desc=f"tokenising {names}",
        initial=sum(cursor.bytes.values()),
        unit="B",
        unit_scale=True,
        mininterval=2,
    )


def show_progress(bar: "tqdm[Any]", batch: TextBatch, group: Mapping[str, Source]) -> None:
    """Advance the bar; its total is the sum of the limits, or extrapolated where that is less."""
    done = sum(batch.cursor.bytes.values())
    limit = sum((domain.max_mb or math.inf) * 1e6 for domain in group.values())
    total = min(limit, done / batch.fraction if batch.fraction else math.inf)
    bar.total = max(round(total), done) if math.isfinite(total) else None
    bar.update(done - bar.n)


def _warn_of_skipped(cursor: sources.Cursor) -> None:
    counts = [f"{name} {count:,}" for name, count in cursor.skipped.items() if count]
    if counts:
        logger.warning(
            f"left out (on_error: skip): {', '.join(counts)} rows; the first: "
            + "; ".join(cursor.problems)
        )
