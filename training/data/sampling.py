"""The tokens of each training step: drawn by mixture, a function of (seed, step) only."""

import functools
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from training.data.corpus import TokenFiles

Tokens = np.ndarray  # (sequences, sequence_length + 1), int64

BLOCK = 64  # steps whose windows are computed at once
ROUNDS = 6  # of the Feistel network
SUBSET, ORDER = 2, 1  # purpose of a permutation, a part of its key


class MixtureSampler:
    """Batches whose domains follow a mixture exactly in expectation.

    A step's sequences are assigned to domains by systematic sampling, with one uniform number per
    step, so each domain gets the floor or the ceiling of its share. Within a domain the sequences
    are windows of its training tokens, each seen once per epoch in shuffled order. `data_share`
    restricts every run to the same random part of each domain's windows.
    """

    def __init__(
        self,
        domains: Mapping[str, TokenFiles],
        mixture: Mapping[str, float],
        batch_size: int,
        sequence_length: int,
        steps: int,
        seed: int,
        data_share: float = 1.0,
        later: Sequence[tuple[int, Mapping[str, float]]] = (),
    ) -> None:
        """`later` has the phases of a schedule after the first, (first step, mixture) each."""
        self._names = tuple(domains)
        self._tokens = [files.train() for files in domains.values()]
        self._windows = [(len(t) - 1) // sequence_length for t in self._tokens]
        self._seen = [max(1, int(windows * data_share)) for windows in self._windows]
        self._length = sequence_length
        self._seed = seed
        starts, mixtures = zip((0, mixture), *later, strict=True)
        shares = np.array([[m[name] for name in domains] for m in mixtures])
        shares = np.repeat(shares, [b - a for a, b in pairwise([*starts, steps])], axis=0)
        edges = batch_size * np.cumsum(np.pad(shares, ((0, 0), (1, 0))), axis=1)
        edges[:, -1] = batch_size  # exactly, without rounding error
        start = np.random.default_rng([seed, 0]).random((steps, 1))
        self._counts = np.diff(np.floor(edges + start), axis=1).astype(np.int64)
        self._planned = batch_size * np.cumsum(shares, axis=0)
        self._drawn = np.cumsum(self._counts, axis=0)
        self._block = functools.lru_cache(maxsize=2)(self._block_of_starts)

    @property
    def counts(self) -> np.ndarray:
        """Sequences per step and domain, (steps, domains)."""
        return self._counts

    def drawn(self, steps: int) -> np.ndarray:
        """Sequences drawn from each domain in the first `steps` steps, (domains,)."""
        return self._drawn[steps - 1] if steps else np.zeros_like(self._drawn[0])

    def planned(self, steps: int) -> np.ndarray:
        """Expected number of sequences of each domain in the first `steps` steps, (domains,)."""
        return self._planned[steps - 1] if steps else np.zeros_like(self._planned[0])

    def epochs(self, steps: int) -> np.ndarray:
        """Passes of the first `steps` steps over the text that the run may see, (domains,)."""
        return self.drawn(steps) / np.array(self._seen)

    def unique_tokens(self) -> dict[str, int]:
        """The different tokens of each domain that the run may see."""
        return {n: seen * self._length for n, seen in zip(self._names, self._seen, strict=True)}

    def domains(self, step: int) -> np.ndarray:
        """Index of the domain of each sequence of a step, (sequences,)."""
        return np.repeat(np.arange(len(self._tokens)), self._counts[step])

    def batch(self, step: int, rows: slice = slice(None)) -> Tokens:
        """The sequences of a step (from 0); `rows` selects those of one process."""
        starts = self._block(step // BLOCK)[step % BLOCK][rows]
        windows = [
            self._tokens[domain][start : start + self._length + 1]
            for domain, start in zip(self.domains(step)[rows], starts, strict=True)
        ]
        return np.stack(windows).astype(np.int64)

    def _block_of_starts(self, block: int) -> np.ndarray:
        """First token, within its domain, of each sequence of `BLOCK` steps, (steps, sequences)."""
        counts = self._counts[block * BLOCK : (block + 1) * BLOCK]
        starts = np.empty((len(counts), counts[0].sum()), dtype=np.int64)
        columns = np.arange(starts.shape[1])
        ends = np.cumsum(counts, axis=1)
        for domain, (total, windows, seen) in enumerate(
            zip(self._drawn.T, self._windows, self._seen, strict=True)
        ):
            end = ends[:, domain, None]
            mask = (columns >= end - counts[:, domain, None]) & (columns < end)
            first = total[block * BLOCK] - counts[0, domain]
            index = np.arange(first, first + mask.sum())
            starts[mask] = self._window(domain, index, seen, windows) * self._length
        return starts

    def _window(self, domain: int, index: np.ndarray, seen: int, windows: int) -> np.ndarray:
        """Number of the window that each draw of a domain reads; `index` counts a run's draws."""
        epochs, positions = np.divmod(index, seen)
        numbers = np.empty_like(index)
        for epoch in np.unique(epochs):
            in_epoch = epochs == epoch
            numbers[in_epoch] = shuffled(
                positions[in_epoch], seen, (self._seed, ORDER, domain, int(epoch))
            )
        return numbers if seen == windows else shuffled(numbers, windows, (SUBSET, domain))


def shuffled(index: np.ndarray, count: int, key: tuple[int, ...]) -> np.ndarray:
    """The image of each index under a pseudo-random permutation of range(count).

    A Feistel network over the next power of four, applied until the result is inside the range
    (cycle walking: Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). It keeps no
    permutation in memory, whatever the size of the corpus.
    """
    half = np.uint64(((count - 1).bit_length() + 1) // 2 or 1)
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = np.random.default_rng(key).integers(2**64, size=ROUNDS, dtype=np.uint64)
    result = index.astype(np.uint64)
    todo = np.arange(len(result))
    while todo.size:
        left, right = result[todo] >> half, result[todo] & mask
        for round_key in keys:
            mixed = (right ^ round_key) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
        result[todo] = (left << half) | right
        todo = todo[result[todo] >= count]
    return result.astype(np.int64)


def validation_windows(files: TokenFiles, tokens: int, sequence_length: int) -> Tokens:
    """Fixed windows that predict at least `tokens` tokens, spread over the held-out part."""
    held_out, starts = files.validation(), _validation_starts(files, tokens, sequence_length)
    return np.stack([held_out[s : s + sequence_length + 1] for s in starts]).astype(np.int64)


def validation_documents(files: TokenFiles, tokens: int, sequence_length: int) -> np.ndarray:
    """Index of the document in which each validation window starts, (windows,)."""
    starts = _validation_starts(files, tokens, sequence_length)
    return np.searchsorted(files.validation_documents(), starts, side="right")


def _validation_starts(files: TokenFiles, tokens: int, sequence_length: int) -> np.ndarray:
    count = -(-tokens // sequence_length)
    last = files.validation_tokens - sequence_length - 1
    return np.linspace(0, last, count).astype(np.int64)
