"""Figures of trained target models."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.record import keys
from training.record.figures import panels

Ends = tuple[float, float, float]  # a prediction, and the lower and upper end of its interval
OFFSET = 0.12  # of the marks from the middle of a mixture's place


def proof(
    measured: Mapping[str, Sequence[float]], predicted: Mapping[str, Ends], unit: str = keys.NATS
) -> Figure:
    """Measured objective of each mixture (one dot per seed) beside its prediction and interval."""
    figure, axis = panels((7, 4.5))
    _predictions(axis, predicted)
    for i, name in enumerate(predicted):
        axis.scatter(
            [i + OFFSET] * len(measured[name]), measured[name], color="C1",
            label="measured, one dot per seed" if i == 0 else None,
        )  # fmt: skip
    axis.set_xticks(range(len(predicted)), list(predicted))
    axis.set_ylabel(f"objective at the target ({keys.unit_text(unit)})")
    axis.set_title("Trained target models beside the prediction")
    axis.legend()
    return figure


def schedule_proof(
    measured: Mapping[str, Sequence[float]], predicted: Mapping[str, Ends], unit: str = keys.NATS
) -> Figure:
    """Measured objective of the constant mixture and the schedule, in the order of `predicted`, one
    line per seed, beside the prediction."""
    figure, axis = panels((7, 4.5))
    _predictions(axis, predicted)
    for j, pair in enumerate(zip(*(measured[name] for name in predicted), strict=True)):
        axis.plot(
            np.arange(len(pair)) + OFFSET, pair, "o-", color="C1", alpha=0.8,
            label="measured, one line per seed" if j == 0 else None,
        )  # fmt: skip
    axis.set_xticks(range(len(predicted)), ["best constant mixture", "schedule"])
    axis.set_xlim(-0.5, len(predicted) - 0.5)
    axis.set_ylabel(f"objective at the end ({keys.unit_text(unit)})")
    axis.set_title("Models trained on both, beside the prediction")
    axis.legend(frameon=False)
    return figure


def _predictions(axis: Axes, predicted: Mapping[str, Ends]) -> None:
    """Draw each prediction and its interval."""
    for i, (value, low, high) in enumerate(predicted.values()):
        axis.errorbar(
            i - OFFSET, value, [[value - low], [high - value]], fmt="s", color="C0", capsize=4,
            label="predicted, 90 % interval" if i == 0 else None,
        )  # fmt: skip


def loss_curves(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], unit: str = keys.NATS
) -> Figure:
    """Objective over tokens of trained target models; `curves` is name → (tokens, objective)."""
    figure, axis = panels((7, 4.5))
    for name, (tokens, objective) in curves.items():
        axis.plot(tokens, objective, marker="o", markersize=3, label=name)
    axis.set_xlabel("tokens")
    axis.set_xscale("log")
    axis.set_ylabel(f"measured objective ({keys.unit_text(unit)})")
    axis.set_title("Target models while training")
    axis.legend(fontsize="small")
    return figure
