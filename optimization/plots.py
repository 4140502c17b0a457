"""Figures of a search and of its proof."""

from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def mixtures(
    compared: Mapping[str, Mapping[str, float]], losses: Mapping[str, Mapping[str, float]]
) -> Figure:
    """Proportions of the compared mixtures and their predicted losses, a bar a mixture."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.5), layout="constrained")
    _bars(left, compared, "proportion", "Mixtures")
    _bars(right, losses, "predicted validation loss (nats/token)", "Predicted at the target")
    lowest = min(min(by_domain.values()) for by_domain in losses.values())
    right.set_ylim(bottom=0.8 * lowest)
    left.legend()
    return figure


def trials(table: pd.DataFrame) -> Figure:
    """The objective of every trial and the best so far."""
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    axis.scatter(table["trial"], table["objective"], s=8, alpha=0.5, label="trial")
    axis.plot(table["trial"], table["objective"].cummin(), color="black", label="best so far")
    axis.set_xlabel("trial")
    axis.set_ylabel("predicted objective (nats/token)")
    axis.set_title("Search over the mixture")
    axis.legend()
    return figure


def proof(
    measured: Mapping[str, Sequence[float]], predicted: Mapping[str, tuple[float, float, float]]
) -> Figure:
    """Measured objective of each mixture (a dot a seed) beside prediction and its interval.

    `predicted` is mixture → (value, low, high).
    """
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for i, (name, (value, low, high)) in enumerate(predicted.items()):
        axis.errorbar(
            i - 0.12, value, [[value - low], [high - value]], fmt="s", color="C0", capsize=4,
            label="predicted, 90 % interval" if i == 0 else None,
        )  # fmt: skip
        axis.scatter(
            [i + 0.12] * len(measured[name]), measured[name], color="C1",
            label="measured, a dot a seed" if i == 0 else None,
        )  # fmt: skip
    axis.set_xticks(range(len(predicted)), list(predicted))
    axis.set_ylabel("objective at the target (nats/token)")
    axis.set_title("Trained target models beside the prediction")
    axis.legend()
    return figure


def loss_curves(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Objective over tokens of the trained target models, name → (tokens, objective)."""
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, (tokens, objective) in curves.items():
        axis.plot(tokens, objective, marker="o", markersize=3, label=name)
    axis.set_xlabel("tokens")
    axis.set_xscale("log")
    axis.set_ylabel("measured objective (nats/token)")
    axis.set_title("Target models while training")
    axis.legend(fontsize="small")
    return figure


def _bars(axis: Axes, groups: Mapping[str, Mapping[str, float]], label: str, title: str) -> None:
    domains = list(next(iter(groups.values())))
    width = 0.8 / len(groups)
    for i, (name, values) in enumerate(groups.items()):
        offset = (i - (len(groups) - 1) / 2) * width
        axis.bar(np.arange(len(domains)) + offset, [values[d] for d in domains], width, label=name)
    axis.set_xticks(range(len(domains)), domains, rotation=30, ha="right")
    axis.set_ylabel(label)
    axis.set_title(title)
