"""Training documents that hold text of the validation sets, found while they are read.

A document leaks into a set if both hold the same 13 consecutive words, as in the filter of GPT-3
(Brown et al., arXiv 2005.14165, appendix C), or if it is shorter and equal to a document of the
set. Case, punctuation and spaces do not count; of scripts without spaces each letter is a word.
What stands in more than ten documents of a set is common text, a licence say, and does not count.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from training.record.errors import InputError

Array = np.ndarray

WORDS = 13
COMMON = 10  # documents of a set
MOST = 50_000_000  # words of all sets: bounds the memory to about 2 GB while they are read
LONGEST = 64  # bytes of a word that tell it from others
FILTER_BITS = 28  # of a hash, for a first look that rules out nearly all

_NO_WORD = re.compile(r"[^\w\u0300-\u036f]+")
_UNSPACED = re.compile(r"[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
_RNG = np.random.default_rng(13)
_LETTERS = _RNG.integers(1, 2**64, 256, dtype=np.uint64) | np.uint64(1)
_LETTERS[[b for b in range(128) if not chr(b).isalnum()]] = 0
_BYTES = _RNG.integers(1, 2**64, LONGEST, dtype=np.uint64) | np.uint64(1)  # by place in a word
_PLACES = _RNG.integers(1, 2**64, WORDS, dtype=np.uint64) | np.uint64(1)  # by place in a passage


@dataclass(frozen=True)
class Passages:
    """Hashes of passages: 13 consecutive words each, and whole documents that are shorter."""

    hashes: Array  # uint64, (n,)
    documents: Array  # the document of each, (n,)
    starts: Array  # its first word's place in the plain document, in bytes of UTF-8, (n,)
    short: int = 0  # documents of fewer words than a passage


def passages(texts: Sequence[str]) -> Passages:
    """Every passage of some documents."""
    parts = [_plain(text).encode() + b"\n" for text in texts]
    ends = np.cumsum([len(part) for part in parts])
    letters = _LETTERS[np.frombuffer(b"".join(parts), np.uint8)]
    inside = letters != 0
    begin = inside & ~np.concatenate([[False], inside[:-1]])
    begins = np.flatnonzero(begin)
    if not len(begins):
        none = np.empty(0, np.int64)
        return Passages(none.astype(np.uint64), none, none)
    places = np.flatnonzero(inside)
    spelt = letters[inside]
    first_letter = np.flatnonzero(begin[inside])
    in_word = places - np.repeat(begins, np.diff(np.append(first_letter, len(places))))
    spelt *= _BYTES[np.minimum(in_word, LONGEST - 1, out=in_word)]
    words = np.add.reduceat(spelt, first_letter)
    document = np.searchsorted(ends, begins, side="right")
    counts = np.bincount(document, minlength=len(texts))
    length, first = counts[document], (np.cumsum(counts) - counts)[document]
    in_document = np.arange(len(words)) - first
    padded = np.concatenate([words, np.zeros(WORDS, np.uint64)])
    hashes = padded[: len(words)] * _PLACES[0]
    for k in range(1, WORDS):
        hashes += padded[k : k + len(words)] * _PLACES[k]
    short = np.flatnonzero((in_document == 0) & (length < WORDS))
    for at in short:
        hashes[at] = (words[at : at + length[at]] * _PLACES[: length[at]]).sum()
    taken = in_document + WORDS <= length
    taken[short] = True
    hashes, sizes = hashes[taken], length[taken].clip(max=WORDS).astype(np.uint64)
    hashes ^= hashes >> np.uint64(29)  # the upper bits of a sum know little of the lower ones
    hashes = (hashes + sizes) * np.uint64(0x9E3779B97F4A7C15)
    offset = begins - np.concatenate([[0], ends])[document]
    return Passages(hashes, document[taken], offset[taken], len(short))


def _plain(text: str) -> str:
    """Text in lower case; beyond ASCII, with nothing but words between spaces."""
    if text.isascii():
        return text.lower()
    return _UNSPACED.sub(r" \g<0> ", _NO_WORD.sub(" ", unicodedata.normalize("NFKC", text).lower()))


class Index:
    """The passages of all sets."""

    def __init__(self, batches: Iterable[tuple[str, Sequence[str]]]) -> None:
        """From batches of documents, each of one set; raises InputError for too much text."""
        hashes: dict[str, list[Array]] = {}
        self.short: dict[str, int] = {}  # documents that are found only as a whole
        total = 0
        for name, texts in batches:
            batch = passages(texts)
            pairs = np.stack([batch.documents.astype(np.uint64), batch.hashes], axis=1)
            once = np.unique(pairs, axis=0)[:, 1]  # in a document
            hashes.setdefault(name, []).append(once)
            total += len(batch.hashes)
            self.short[name] = self.short.get(name, 0) + batch.short
            if total > MOST:
                raise InputError(
                    f"validation.sets, validation.tasks: more than {MOST:,} words, too many to "
                    "look for in the training text; limit the largest with max_mb"
                )
        self.sets = list(hashes)
        self.common: dict[str, float] = {}  # share of a set's passages that do not count
        owned = []
        for name, parts in hashes.items():
            own, documents = np.unique(np.concatenate(parts), return_counts=True)
            owned.append(own[documents <= COMMON])
            self.common[name] = 1 - len(owned[-1]) / max(len(own), 1)
        every = np.concatenate([*owned, np.empty(0, np.uint64)])
        owner = np.repeat(np.arange(len(owned)), [len(own) for own in owned])
        order = np.argsort(every, kind="stable")
        self._hashes, self._owners = every[order], owner[order]
        self._filter = np.zeros(2**FILTER_BITS // 8, np.uint8)
        place = self._places(self._hashes)
        np.bitwise_or.at(self._filter, place >> 3, (1 << (place & 7)).astype(np.uint8))

    def find(self, texts: Sequence[str]) -> list[dict[str, str]]:
        """For each document the sets that it leaks into, with the shared words as they begin."""
        found: list[dict[str, str]] = [{} for _ in texts]
        batch = passages(texts)
        place = self._places(batch.hashes)
        maybe = np.flatnonzero((self._filter[place >> 3] >> (place & 7).astype(np.uint8)) & 1)
        first = np.searchsorted(self._hashes, batch.hashes[maybe])
        last = np.searchsorted(self._hashes, batch.hashes[maybe], side="right")
        shared = first < last
        for i, low, high in zip(maybe[shared], first[shared], last[shared], strict=True):
            document = int(batch.documents[i])
            for owner in self._owners[low:high]:
                name = self.sets[owner]
                if name not in found[document]:
                    shown = _plain(texts[document]).encode()[batch.starts[i] :]
                    words = shown.decode(errors="ignore").split()[:WORDS]
                    found[document][name] = " ".join(words)
        return found

    @staticmethod
    def _places(hashes: Array) -> Array:
        return (hashes >> np.uint64(64 - FILTER_BITS)).astype(np.int64)
