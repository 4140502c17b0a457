"""Draws of the bootstrap, and root mean squares."""

import numpy as np

Array = np.ndarray

DRAWS = 40


def draws(mixtures: int, least: int, rng: np.random.Generator) -> Array:
    """How often each draw with replacement takes each of so many mixtures, (draws, m).

    Draws of fewer than `least` distinct mixtures are drawn again.
    """
    counts: list[Array] = []
    while len(counts) < DRAWS:
        drawn = rng.multinomial(mixtures, np.full(mixtures, 1 / mixtures))
        if (drawn > 0).sum() >= least:
            counts.append(drawn.astype(float))
    return np.array(counts)


def rms(values: Array) -> float:
    """Root mean square."""
    return float(np.sqrt((values**2).mean()))
