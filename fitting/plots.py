"""Figures of a fit."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter

from fitting.artifact.laws import JointLaw, Law, NestedLaw, StackedLaw, effective
from fitting.data.observations import Observations
from fitting.diagnostics.optimum import Optimum
from fitting.estimators.accuracy import TaskAccuracy
from fitting.estimators.repetition import LEAST_PASSES
from fitting.fit import Fit
from fitting.selection.choose import ChosenLaw
from training.record import figures, keys, layout

Array = np.ndarray
COLUMNS = 4
PANEL = (4.0, 3.6)  # inches
LEGEND = 8  # entries
MOST_EPOCHS = 100.0
PANELS = 24  # of a figure with one for each validation domain


def predicted_against_observed(result: ChosenLaw, weights: Array, unit: str = keys.NATS) -> Figure:
    """Out-of-fold predictions of each domain and of the objective, one colour per model size."""
    held_out = result.held_out
    panels = [
        ("objective", held_out.losses @ weights, result.predictions @ weights),
        *(
            (name, held_out.losses[:, i], result.predictions[:, i])
            for i, name in enumerate(held_out.val_domains)
        ),
    ]
    figure, axes = figures.grid(len(panels), COLUMNS, PANEL)
    sizes = _few(held_out.n_params)
    for axis, (name, observed, predicted) in zip(axes, panels, strict=True):
        axis.scatter(observed, predicted, s=6, color="lightgrey")
        for size in sizes:
            rows = held_out.n_params == size
            axis.scatter(observed[rows], predicted[rows], s=18, label=f"{size:,.0f} parameters")
        ends = [min(observed.min(), predicted.min()), max(observed.max(), predicted.max())]
        axis.plot(ends, ends, color="grey", linewidth=0.8)
        axis.set_title(f"{name}: mean |error| {np.abs(observed - predicted).mean():.3f}")
        axis.set_xlabel(f"observed loss ({keys.unit_text(unit)})")
        axis.set_ylabel("predicted, mixture left out")
    axes[0].legend(fontsize="small")
    figure.suptitle("Predicted against observed validation loss, each mixture left out in turn")
    return figure


def step_curves(
    observations: Observations,
    law: Law,
    weights: Array,
    target: tuple[float, float],
    unit: str = keys.NATS,
) -> Figure | None:
    """Objective over tokens for each size, observed and fitted, drawn on to the target.

    None where every run has the same one length.
    """
    o = observations
    if np.ptp(o.tokens) == 0:
        return None
    n_target, d_target = target
    figure, axis = figures.panels((8, 5))
    tokens = np.geomspace(o.tokens.min(), max(d_target, o.tokens.max()), 60)
    sizes = np.unique(np.append(_few(o.n_params), n_target))
    axis.scatter(o.tokens, o.losses @ weights, s=4, color="lightgrey")
    for colour, size in zip(_colours(len(sizes)), sizes, strict=True):
        rows = o.n_params == size
        axis.scatter(o.tokens[rows], o.losses[rows] @ weights, s=8, color=colour, alpha=0.6)
        label = f"{size:,.0f} parameters" + ("" if rows.any() else " (target)")
        mean = _mean_over_mixtures(law, o, np.full(len(tokens), size), tokens) @ weights
        axis.plot(tokens, mean, color=colour, label=label)
    axis.axvline(o.tokens.max(), color="grey", linestyle=":", label="longest proxy run")
    axis.set_xscale("log")
    axis.set_xlabel("tokens")
    axis.set_ylabel(f"objective: weighted validation loss ({keys.unit_text(unit)})")
    axis.set_title("Loss over tokens: runs (dots) and the law's mean over the mixtures (lines)")
    axis.legend(fontsize="small")
    return figure


def size_curves(
    observations: Observations,
    law: Law,
    weights: Array,
    target: tuple[float, float],
    unit: str = keys.NATS,
) -> Figure | None:
    """Objective at the end of the runs over model size, and the law on to the target.

    None where there is one size.
    """
    o = observations.rows(observations.last())
    if np.ptp(o.n_params) == 0:
        return None
    n_target, d_target = target
    figure, axis = figures.panels((8, 5))
    sizes = np.geomspace(o.n_params.min(), max(n_target, o.n_params.max()), 40)
    lengths = np.unique([np.median(o.tokens), o.tokens.max(), d_target])
    for colour, length in zip(_colours(len(lengths)), lengths, strict=True):
        rows = o.tokens == length
        axis.scatter(o.n_params[rows], o.losses[rows] @ weights, s=10, color=colour, alpha=0.6)
        label = f"{length:,.0f} tokens" + (" (target)" if length == d_target else "")
        mean = _mean_over_mixtures(law, o, sizes, np.full(len(sizes), length)) @ weights
        axis.plot(sizes, mean, color=colour, label=label)
    axis.axvline(o.n_params.max(), color="grey", linestyle=":", label="largest proxy")
    axis.set_xscale("log")
    ticks = np.unique(np.append(_few(o.n_params), n_target))
    axis.set_xticks(ticks, [EngFormatter(places=0, sep="")(x) for x in ticks])
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("non-embedding parameters")
    axis.set_ylabel(f"objective: weighted validation loss ({keys.unit_text(unit)})")
    axis.set_title("Loss over size: runs' ends (dots) and the law's mean over the mixtures (lines)")
    axis.legend(fontsize="small")
    return figure


def _mean_over_mixtures(law: Law, o: Observations, n_params: Array, tokens: Array) -> Array:
    """The law's losses at each scale, averaged over the fitted mixtures, (scales, V)."""
    each = [law.predict(np.tile(r, (len(tokens), 1)), n_params, tokens) for r in o.mixtures]
    return np.mean(each, axis=0)


def loss_against_proportion(
    observations: Observations, law: Law, weights: Array, unit: str = keys.NATS
) -> Figure | None:
    """Losses and the law over the first domain's proportion, at the largest size and length.

    None unless there are two training domains.
    """
    o = observations.rows(observations.last())
    if len(o.domains) != 2:
        return None
    o = o.rows(o.n_params == o.n_params.max())
    o = o.rows(o.tokens == o.tokens.max())
    size, tokens = o.n_params[0], o.tokens[0]
    first = o.proportions()[:, 0]
    x = np.linspace(first.min(), first.max(), 100)
    ones = np.ones(len(x))
    curves = law.predict(np.column_stack([x, 1 - x]), size * ones, tokens * ones)
    panels = [("objective", o.losses @ weights, curves @ weights)]
    panels += zip(o.val_domains, o.losses.T, curves.T, strict=True)
    figure, axes = figures.grid(min(len(panels), PANELS), COLUMNS, PANEL)
    for axis, (name, losses, curve) in zip(axes, panels, strict=False):
        axis.plot(x, curve, color="grey", label="law")
        axis.scatter(first, losses, s=18, label="runs")
        axis.set_title(name)
        axis.set_xlabel(f"proportion of {o.domains[0]}")
        axis.set_ylabel(f"validation loss ({keys.unit_text(unit)})")
    axes[0].legend(fontsize="small")
    figure.suptitle(
        f"Mixtures of {' and '.join(o.domains)}: {size:,.0f} parameters after {tokens:,.0f} tokens"
    )
    return figure


def loss_against_epochs(fit: Fit, unit: str = keys.NATS) -> Figure | None:
    """Objective of the target on the best mixture as one domain has less and less text, of which it
    sees the same number of tokens.

    None if the best mixture has no domain that the runs repeat.
    """
    told, best, law = fit.repetition, fit.best.mixture, fit.law
    assert told is not None
    shown = np.flatnonzero((told.seen >= LEAST_PASSES) & (best > 0))[:PANELS]
    if not len(shown):
        return None
    size, tokens = fit.target.n_params, fit.target.tokens
    epochs = np.geomspace(1, MOST_EPOCHS, 60)
    place = np.tile(best, (len(epochs), 1)), np.full(len(epochs), size)
    new = float((law.predict(best[None], *np.array([[size], [tokens]])) @ fit.weights)[0])
    log_n = np.log(size / told.n0)
    figure, axes = figures.grid(len(shown), COLUMNS, PANEL)
    for axis, j in zip(axes, shown, strict=False):
        scarcity = np.zeros((len(epochs), len(best)))
        scarcity[:, j] = epochs / (best[j] * tokens)

        def objective(values: Array, scarcity: Array = scarcity) -> Array:
            worth = np.exp(values[:-1] - values[-1] * log_n)
            mixtures, effective_tokens = effective(place[0], tokens + 0 * epochs, scarcity, worth)
            return law.predict(mixtures, place[1], effective_tokens) @ fit.weights

        drawn = np.array([objective(values) for values in told.drawn])
        axis.fill_between(epochs, *np.quantile(drawn, [0.05, 0.95], axis=0), alpha=0.25, lw=0)
        axis.plot(epochs, objective(np.append(np.log(told.worth), told.wear)), label="by the law")
        axis.axhline(new, color="grey", linewidth=0.8, label="all text new")
        axis.axvline(told.seen[j], color="grey", linestyle=":", label="most in the runs")
        axis.set_xscale("log")
        axis.set_title(fit.observations.domains[j])
        axis.set_xlabel("passes over its text")
        axis.set_ylabel(f"objective ({keys.unit_text(unit)})")
    axes[0].legend(fontsize="small")
    figure.suptitle(f"What repeated text costs: the best mixture at {tokens:,.0f} tokens")
    return figure


def interactions(law: Law, observations: Observations, constant: Sequence[str]) -> Figure | None:
    """The matrix t as a heat map: which training domain lowers which validation loss.

    Blank for domains whose proportion never varied; None for a law that has no t.
    """
    if isinstance(law, StackedLaw):  # of its most weighty member that has such a matrix
        weighed = sorted(zip(law.weights, law.laws, strict=True), key=lambda one: -one[0].sum())
        law = next((m for _, m in weighed if isinstance(m, JointLaw | NestedLaw)), law)
    if not isinstance(law, JointLaw | NestedLaw):
        return None
    o = observations
    slope = law.interactions(o.mixtures.mean(axis=0)).copy()
    slope[:, [o.domains.index(name) for name in constant]] = np.nan
    width, height = 2.5 + 0.6 * len(o.domains), 1.8 + 0.42 * len(o.val_domains)
    figure, axis = figures.panels((width, height))
    limit = np.nanmax(np.abs(slope)) or 1.0
    image = axis.imshow(slope, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    axis.set_xticks(range(len(o.domains)), _labels(o.domains), rotation=45, ha="right")
    axis.set_yticks(range(len(o.val_domains)), _labels(o.val_domains))
    for (i, j), value in np.ndenumerate(slope):
        if np.isfinite(value):
            dark = abs(value) > 0.6 * limit
            axis.text(
                *(j, i, f"{value:.1f}"),
                ha="center",
                va="center",
                fontsize="x-small",
                color="white" if dark else "black",
            )
    axis.set_xlabel("training domain")
    axis.set_ylabel("validation domain")
    axis.set_title("t: negative (blue) lowers the loss", fontsize="medium")
    figure.colorbar(image, ax=axis, shrink=0.8)
    return figure


def cross_validation(choice: ChosenLaw) -> Figure:
    """Error on held-out mixtures over the ridge, one line per φ, one panel per form."""
    table = choice.candidates[choice.candidates["method"].isin(("joint", "nested"))]
    forms = list(table.groupby(["method", "terms", "shrinking", "tie"], sort=False))
    figure, axes = figures.grid(max(1, len(forms)), COLUMNS, PANEL, sharey=True)
    for axis, ((method, terms, shrinking, tie), rows) in zip(axes, forms, strict=False):
        powers = sorted(rows["power"].unique())
        for colour, power in zip(_colours(len(powers)), powers, strict=True):
            line = rows[rows["power"] == power].sort_values("ridge")
            label = f"r^{power:g}" if power else "log(r + ε)"
            axis.plot(line["ridge"], line["mixing_error"], "o-", ms=3, color=colour, label=label)
        best = rows[rows["chosen"]]
        axis.plot(best["ridge"], best["mixing_error"], "*", ms=14, color="crimson")
        name = f"{method}, exponents tied over {tie}" + (", shrinking" if shrinking else "")
        axis.set_title(name + (f", {terms} exponentials" if terms > 1 else ""), fontsize="small")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("ridge")
        axis.legend(title="φ(r)", fontsize="x-small")
    axes[0].set_ylabel("rms error between mixtures / spread")
    figure.suptitle("Cross-validation over mixtures (star: chosen)")
    return figure


def laws_compared(choice: ChosenLaw, unit: str = keys.NATS) -> Figure:
    """Error of each law on held-out mixtures and of extrapolation."""
    table = choice.laws.dropna(subset="held_out_rmse").iloc[::-1]
    figure, axis = figures.panels((8, 1.5 + 0.6 * len(table)))
    y = np.arange(len(table))
    kinds = {
        "held_out_rmse": "held-out mixtures",
        "extrapolation_rmse": "largest runs, from smaller and shorter ones",
    }
    for i, (key, label) in enumerate(kinds.items()):
        if table[key].notna().any():
            bars = axis.barh(y + 0.2 - 0.4 * i, table[key], height=0.38, label=label)
            axis.bar_label(bars, fmt="%.4f", fontsize="small", padding=3)
    marks = ["★ " if chosen else "" for chosen in table["chosen"]]
    axis.set_yticks(y, [m + law for m, law in zip(marks, table["law"], strict=True)])
    axis.set_xlabel(f"rms error of the objective ({keys.unit_text(unit)})")
    axis.set_xlim(right=1.15 * float(table[list(kinds)].max(axis=None)))
    axis.set_title("Laws compared (★: chosen)")
    axis.legend(fontsize="small")
    return figure


def optima(domains: Sequence[str], found: Sequence[Optimum]) -> Figure:
    """The best mixture of each proxy size by its runs alone, and of the target by the law."""
    figure, axis = figures.panels((8, 4.5))
    x = np.arange(len(domains))
    width = 0.8 / len(found)
    for i, (colour, best) in enumerate(zip(_colours(len(found)), found, strict=True)):
        target = i == len(found) - 1
        label = f"{best.n_params:,.0f} parameters" + (" (target, the law)" if target else "")
        axis.bar(x - 0.4 + (i + 0.5) * width, best.mixture, width, color=colour, label=label)
    axis.set_xticks(x, _labels(domains), rotation=30, ha="right")
    axis.set_ylabel("proportion")
    axis.set_title("The best mixture by each size's runs alone, and at the target")
    axis.legend(fontsize="small")
    return figure


def _few(values: Array) -> Array:
    """The distinct values, or as many of them, evenly drawn, as a legend takes."""
    distinct = np.unique(values)
    even = np.linspace(0, len(distinct) - 1, min(len(distinct), LEGEND)).round().astype(int)
    return distinct[even]


def _colours(count: int) -> list[tuple[float, ...]]:
    return [matplotlib.colormaps["viridis"](x) for x in np.linspace(0, 0.9, count)]


def _labels(names: Sequence[str]) -> list[str]:
    """Names at an axis, of which long ones would leave the figure no room."""
    cut = layout.short(names)
    return [cut[name] for name in names]


def accuracies(found: Sequence[TaskAccuracy], unit: str = keys.NATS) -> Figure:
    """Accuracy over loss of each task with choices: the evaluations and the curve."""
    figure, axes = figures.grid(len(found), COLUMNS, PANEL)
    for axis, one in zip(axes, found, strict=True):
        axis.scatter(one.losses, one.accuracies, s=10, alpha=0.6, label="evaluations")
        axis.axhline(one.guess.chance, color="grey", linestyle="--", linewidth=0.8, label="chance")
        if one.curve is not None:
            beyond = np.ptp(one.losses) / 3
            losses = np.linspace(one.losses.min() - beyond, one.losses.max(), 200)
            low, high = one.curve.ends(losses, np.zeros(len(losses)))
            axis.plot(losses, one.curve.predict(losses), color="C1", label="fitted")
            axis.fill_between(losses, low, high, color="C1", alpha=0.2, linewidth=0)
        axis.set_title(one.task if one.curve is not None else f"{one.task}: not predicted")
        axis.set_xlabel(f"loss of the answers ({keys.unit_text(unit)})")
        axis.set_ylabel("accuracy")
    axes[0].legend(fontsize="small")
    figure.suptitle("Accuracy of the tasks over the loss of their answers")
    return figure
