"""The figure of a schedule: the mixture over the tokens of a run, planned and drawn."""

from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib.figure import Figure

from training.data.sampling import MixtureSampler

WINDOWS = 40  # in which the drawn tokens are counted


def schedule(sampler: MixtureSampler, domains: Sequence[str], tokens_per_step: int) -> Figure:
    """Proportions over tokens: lines as planned, dots as drawn."""
    steps = len(sampler.counts)
    ends = np.unique(np.linspace(0, steps, min(WINDOWS, steps) + 1).astype(int))
    drawn = np.diff([sampler.drawn(step) for step in ends], axis=0)
    planned = np.diff([sampler.planned(step) for step in range(steps + 1)], axis=0)
    shares = drawn / drawn.sum(axis=1, keepdims=True)
    lines = planned / planned.sum(axis=1, keepdims=True)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
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
