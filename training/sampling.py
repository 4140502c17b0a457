"""Which tokens a step trains on: drawn by mixture, a function of (seed, step) alone."""

from collections.abc import Mapping

import numpy as np

from training.corpus import TokenFiles

Tokens = np.ndarray  # (sequences, sequence_length + 1), int64


class MixtureSampler:
    """Batches whose domains follow a mixture exactly in expectation.

    A step's sequences are dealt to the domains by systematic sampling: one uniform number a
    step, so that each domain gets the floor or the ceiling of its share. Within a domain the
    sequences are windows of its training tokens, each seen once an epoch in a shuffled order.
    """

    def __init__(
        self,
        domains: Mapping[str, TokenFiles],
        mixture: Mapping[str, float],
        batch_size: int,
        sequence_length: int,
        steps: int,
        seed: int,
    ) -> None:
        self._tokens = [files.train() for files in domains.values()]
        self._windows = [(len(t) - 1) // sequence_length for t in self._tokens]
        self._length = sequence_length
        self._seed = seed
        shares = np.array([mixture[name] for name in domains])
        edges = batch_size * np.concatenate([[0.0], np.cumsum(shares)])
        edges[-1] = batch_size  # not a rounding error away from it
        start = np.random.default_rng([seed, 0]).random((steps, 1))
        self._counts = np.diff(np.floor(edges + start), axis=1).astype(np.int64)
        self._before = np.cumsum(self._counts, axis=0) - self._counts
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    @property
    def counts(self) -> np.ndarray:
        """Sequences of each domain in each step, (steps, domains)."""
        return self._counts

    def epochs(self) -> np.ndarray:
        """How often each domain's training tokens are seen by the last step, (domains,)."""
        return self._counts.sum(axis=0) / np.array(self._windows)

    def batch(self, step: int) -> Tokens:
        """The sequences of a step, counted from 0."""
        rows = [
            self._window(domain, self._before[step, domain] + i)
            for domain, count in enumerate(self._counts[step])
            for i in range(count)
        ]
        return np.stack(rows).astype(np.int64)

    def _window(self, domain: int, index: int) -> np.ndarray:
        epoch, position = divmod(int(index), self._windows[domain])
        if (domain, epoch) not in self._orders:
            rng = np.random.default_rng([self._seed, 1, domain, epoch])
            self._orders[domain, epoch] = rng.permutation(self._windows[domain])
        start = int(self._orders[domain, epoch][position]) * self._length
        return self._tokens[domain][start : start + self._length + 1]


def validation_windows(files: TokenFiles, tokens: int, sequence_length: int) -> Tokens:
    """Fixed held-out windows that predict at least `tokens` tokens, spread over the part."""
    held_out = files.validation()
    count = -(-tokens // sequence_length)
    starts = np.linspace(0, len(held_out) - sequence_length - 1, count).astype(np.int64)
    return np.stack([held_out[s : s + sequence_length + 1] for s in starts]).astype(np.int64)
