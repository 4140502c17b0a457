"""A figure of a schedule as planned and as drawn."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from training.data.sampling import MixtureSampler
from training.record import figures

WINDOWS = 40  # intervals in which the drawn tokens are counted


def figure_of(sampler: MixtureSampler, domains: Sequence[str], tokens_per_step: int) -> Figure:
    """Proportions over tokens: planned as lines, drawn as dots."""
    steps = len(sampler.counts)
    ends = np.unique(np.linspace(0, steps, min(WINDOWS, steps) + 1).astype(int))
    drawn = np.diff([sampler.drawn(step) for step in ends], axis=0)
    planned = np.diff([sampler.planned(step) for step in range(steps + 1)], axis=0)
    shares = drawn / drawn.sum(axis=1, keepdims=True)
    lines = planned / planned.sum(axis=1, keepdims=True)
    figure, axis = figures.panels((7, 4.5))
    for i, name in enumerate(domains):
        axis.step(
            np.arange(steps + 1) * tokens_per_step, np.append(lines[:, i], lines[-1, i]),
            where="post", color=f"C{i}", label=name,
        )  # fmt: skip
        middles = (ends[1:] + ends[:-1]) / 2 * tokens_per_step
        axis.plot(middles, shares[:, i], ".", color=f"C{i}", alpha=0.6)
    axis.set_xlabel("tokens")
    axis.set_ylabel("proportion")
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.set_title("The schedule as planned (lines) and as drawn (dots)")
    figure.legend(loc="outside right upper", frameon=False)
    return figure
