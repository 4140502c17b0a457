"""Figures of forgetting and learning in continued training."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from optimization.continual.solve import ForgettingCurve
from training.record import figures, keys

Array = np.ndarray
MEASURED = {"fitted": ("o", "0.35"), "check": ("D", "black")}  # kind → marker, colour


def against_share(forgetting: ForgettingCurve, measured: pd.DataFrame) -> Figure:
    """Original and new losses against the proportion of original data.

    `measured` has a row for each run: kind (fitted, check), share, original, new.
    """
    figure, axes = figures.panels((11, 4.6), 1, 2)
    curve, unit = forgetting.curve.sort_values("share"), keys.unit_text(forgetting.predictor.unit)
    for axis, side, before in zip(axes, ("original", "new"), forgetting.before, strict=True):
        axis.plot(curve["share"], curve[side], color="C0", label="law")
        axis.fill_between(
            curve["share"], curve[f"{side}_low"], curve[f"{side}_high"], color="C0", alpha=0.15,
            linewidth=0, label="its 90 % interval",
        )  # fmt: skip
        _measured(axis, measured, "share", side)
        axis.set_xlabel("proportion of original data")
        axis.set_ylabel(f"loss on the {side} data ({unit})")
        axis.set_title(f"{side.capitalize()} data")
        if side == "original":
            axis.axhline(before, color="0.3", linestyle="--", linewidth=1, label="the base")
    for i, answer in enumerate(forgetting.answers):
        if answer.share is None or answer.original is None or answer.new is None:
            continue
        colour, label = f"C{i + 1}", f"critical, +{answer.tolerance:g} {unit}"
        low, high = forgetting.trained
        ends = (answer.share_low or low, high if answer.share_high is None else answer.share_high)
        for axis, value in zip(axes, (answer.original[0], answer.new[0]), strict=True):
            axis.plot(ends, [value] * 2, "|-", color=colour, markersize=10, linewidth=1.5)
            axis.plot(answer.share, value, "*", color=colour, markersize=13, label=label, zorder=5)
        if answer.tolerance:
            axes[0].axhline(
                forgetting.before[0] + answer.tolerance, color=colour, linestyle=":", linewidth=1
            )
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def learnt_against_forgotten(forgetting: ForgettingCurve, measured: pd.DataFrame) -> Figure:
    """New loss against the rise of the original loss; `measured` is as in `against_share`."""
    figure, axis = figures.panels((7, 4.8))
    unit = keys.unit_text(forgetting.predictor.unit)
    forgotten = forgetting.curve["original"] - forgetting.before[0]
    name = "line between the sides" if forgetting.one_dimensional else "frontier"
    axis.plot(forgotten, forgetting.curve["new"], color="C0", label=name)
    moved = measured.assign(forgotten=measured["original"] - forgetting.before[0])
    _measured(axis, moved, "forgotten", "new")
    for i, answer in enumerate(forgetting.answers):
        if answer.original is not None and answer.new is not None:
            axis.plot(
                answer.original[0] - forgetting.before[0], answer.new[0], "*", color=f"C{i + 1}",
                markersize=13, zorder=5,
                label=f"+{answer.tolerance:g}: {answer.share:.3f} original",
            )  # fmt: skip
    axis.axvline(0, color="0.3", linestyle="--", linewidth=1, label="as before")
    axis.set_xlabel(f"forgotten: original loss less the base's ({unit})")
    axis.set_ylabel(f"loss on the new data ({unit})")
    axis.set_title("What is learnt for what is forgotten")
    axis.legend(frameon=False)
    return figure


def _measured(axis: Axes, runs: pd.DataFrame, x: str, y: str) -> None:
    for kind, rows in runs.groupby("kind"):
        marker, colour = MEASURED[str(kind)]
        axis.plot(
            rows[x], rows[y], marker, color=colour, markersize=5, label=f"{kind} run", zorder=4
        )
