"""Figures of a fit."""

from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fitting.laws import Law
from fitting.table import Observations
from fitting.validate import Validation

Array = np.ndarray
COLUMNS = 4


def predicted_against_observed(result: Validation, weights: Array) -> Figure:
    """Out-of-fold predictions of each domain and of the objective, one colour a model size."""
    held_out = result.held_out
    panels = [
        ("objective", held_out.losses @ weights, result.predictions @ weights),
        *(
            (name, held_out.losses[:, i], result.predictions[:, i])
            for i, name in enumerate(held_out.val_domains)
        ),
    ]
    figure, axes = _grid(len(panels))
    sizes = np.unique(held_out.n_params)
    for axis, (name, observed, predicted) in zip(axes, panels, strict=True):
        for size in sizes:
            rows = held_out.n_params == size
            axis.scatter(observed[rows], predicted[rows], s=18, label=f"{size:,.0f} parameters")
        ends = [min(observed.min(), predicted.min()), max(observed.max(), predicted.max())]
        axis.plot(ends, ends, color="grey", linewidth=0.8)
        axis.set_title(f"{name}: mean |error| {np.abs(observed - predicted).mean():.3f}")
        axis.set_xlabel("observed loss (nats/token)")
        axis.set_ylabel("predicted, mixture left out")
    axes[0].legend(fontsize="small")
    figure.suptitle("Predicted against observed validation loss, each mixture left out in turn")
    return figure


def curves(
    observations: Observations, law: Law, weights: Array, target: tuple[float, float]
) -> Figure:
    """Objective over tokens for each size, observed and fitted, drawn on to the target."""
    o = observations
    n_target, d_target = target
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    tokens = np.geomspace(o.tokens.min(), max(d_target, o.tokens.max()), 60)
    sizes = np.unique(np.append(o.n_params, n_target))
    for colour, size in zip(_colours(len(sizes)), sizes, strict=True):
        rows = o.n_params == size
        axis.scatter(o.tokens[rows], o.losses[rows] @ weights, s=8, color=colour, alpha=0.6)
        mean = np.mean(
            [
                law.predict(np.tile(r, (len(tokens), 1)), np.full(len(tokens), size), tokens)
                for r in o.mixtures
            ],
            axis=0,
        )
        label = f"{size:,.0f} parameters" + ("" if rows.any() else " (target)")
        axis.plot(tokens, mean @ weights, color=colour, label=label)
    axis.axvline(o.tokens.max(), color="grey", linestyle=":", label="longest proxy run")
    axis.set_xscale("log")
    axis.set_xlabel("tokens")
    axis.set_ylabel("objective: weighted validation loss (nats/token)")
    axis.set_title("Loss over tokens: runs (dots) and the law's mean over the mixtures (lines)")
    axis.legend(fontsize="small")
    return figure


def interactions(law: Law, domains: Sequence[str], val_domains: Sequence[str]) -> Figure:
    """The matrix t as a heat map: which training domain lowers which validation loss."""
    slope = law.slope
    side = 1.2 + 0.6 * max(len(domains), len(val_domains))
    figure, axis = plt.subplots(figsize=(side + 1.5, side), layout="constrained")
    limit = np.abs(slope).max() or 1.0
    image = axis.imshow(slope, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axis.set_xticks(range(len(domains)), domains, rotation=45, ha="right")
    axis.set_yticks(range(len(val_domains)), val_domains)
    for (i, j), value in np.ndenumerate(slope):
        axis.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize="small")
    axis.set_xlabel("training domain")
    axis.set_ylabel("validation domain")
    axis.set_title("t: negative (blue) lowers the loss")
    figure.colorbar(image, ax=axis, shrink=0.8)
    return figure


def _grid(panels: int) -> tuple[Figure, list[Axes]]:
    columns = min(COLUMNS, panels)
    rows = -(-panels // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4 * columns, 3.6 * rows), squeeze=False, layout="constrained"
    )
    flat = list(axes.flat)
    for axis in flat[panels:]:
        axis.set_visible(False)
    return figure, flat[:panels]


def _colours(count: int) -> list[tuple[float, ...]]:
    return [plt.get_cmap("viridis")(x) for x in np.linspace(0, 0.9, count)]
