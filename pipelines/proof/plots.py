"""Figures of trained target models."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from training.record.figures import panels


def proof(
    measured: Mapping[str, Sequence[float]], predicted: Mapping[str, tuple[float, float, float]]
) -> Figure:
    """Measured objective of each mixture (one dot per seed) beside its prediction and interval.

    `predicted` is mixture → (value, low, high).
    """
    figure, axis = panels((7, 4.5))
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
    """Objective over tokens of trained target models; `curves` is name → (tokens, objective)."""
    figure, axis = panels((7, 4.5))
    for name, (tokens, objective) in curves.items():
        axis.plot(tokens, objective, marker="o", markersize=3, label=name)
    axis.set_xlabel("tokens")
    axis.set_xscale("log")
    axis.set_ylabel("measured objective (nats/token)")
    axis.set_title("Target models while training")
    axis.legend(fontsize="small")
    return figure
