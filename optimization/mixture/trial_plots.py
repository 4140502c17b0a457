"""Figures of a search: its trials and its result."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, Stroke

from training.record import figures, keys
from training.record.figures import Array, Values

KINDS = {"known": ("C4", "D", 30), "search": ("0.55", "o", 12), "polish": ("C0", "^", 22)}
OTHER_KIND = ("C5", "s", 20)
COLOURED = 0.75  # the share of trials with a colour in the parallel coordinates
FEW = 8  # domains, whose names need little room


def mixtures(
    compared: Mapping[str, Values],
    losses: Mapping[str, Values],
    intervals: Mapping[str, Mapping[str, tuple[float, float]]],
    above: Mapping[str, tuple[float, float]],
    unit: str = keys.NATS,
) -> Figure:
    """Proportions of the compared mixtures, their predicted losses, and what their objectives lie
    above the best mixture's, with 90 % intervals.

    The first three are mixture → domain → value; `losses` and `intervals` are by validation domain.
    `above` has a difference and half the width of its interval. The first mixture is the best.
    """
    best = next(iter(compared))
    domains = figures.largest_first(compared[best])
    val_domains = figures.largest_first(losses[best])
    rows = max(len(domains), len(val_domains))
    size = (15.0, figures.height(rows, 0.12 + 0.07 * len(compared)))
    figure, (left, right, last) = figures.panels(size, 1, 3)
    colours = [colour for colour, _ in figures.styles(compared).values()]
    handles = figures.bars(left, list(compared.items()), colours, domains)
    left.set_xlabel("proportion of the training tokens")
    left.set_title("Mixtures")
    figures.domain_rows(right, val_domains)
    offsets = figures.group_offsets(len(compared))
    for offset, colour, name in zip(offsets, colours, compared, strict=True):
        y = np.arange(len(val_domains)) + offset
        ends = np.array([intervals[name][d] for d in val_domains])
        right.hlines(y, *ends.T, color=colour, linewidth=1.5, alpha=0.6)
        right.scatter([losses[name][d] for d in val_domains], y, s=16, color=colour, zorder=3)
    right.set_xlabel(f"predicted validation loss ({keys.unit_text(unit)})")
    right.set_title("Predicted losses with their 90 % intervals")
    for y, (colour, (value, half)) in enumerate(zip(colours, above.values(), strict=True)):
        last.errorbar(value, y, xerr=half, fmt="o", markersize=5, capsize=3, color=colour)
    last.axvline(0, color="grey", linestyle=":")
    last.set_yticks(range(len(above)), list(above))
    last.invert_yaxis()
    last.set_xlabel(f"objective above the best mixture's ({keys.unit_text(unit)})")
    last.set_title("Differences with their 90 % intervals")
    figures.legend(figure, handles)
    return figure


def trials(table: pd.DataFrame, unit: str = keys.NATS) -> Figure:
    """The objective of every trial by its kind, and the best so far.

    The scale is the square root of the distance from the best, so that late improvements show. A
    trial whose objective is infinite, by a pull away from a domain that it has, is not shown.
    """
    figure, axis = figures.panels((8, 5))
    table = table[~np.isinf(table["objective"])]
    lowest, highest = table["objective"].min(), table["objective"].max()
    for kind, rows in table.groupby("kind", sort=False):
        colour, marker, size = KINDS.get(str(kind), OTHER_KIND)
        axis.scatter(
            rows["trial"], rows["objective"], s=size, color=colour, marker=marker,
            alpha=0.5 if kind == "search" else 0.9, linewidth=0, label=f"{kind} ({len(rows)})",
        )  # fmt: skip
    best = table["objective"].cummin()
    axis.step(table["trial"], best, where="post", color="black", linewidth=1.2, label="best so far")
    if highest > lowest:
        _root_scale(axis, lowest, highest)
    axis.set_xlabel("trial")
    axis.set_ylabel(f"predicted objective ({keys.unit_text(unit)}), √ scale from the best")
    axis.set_title(f"Search over the mixture: the best of {len(table)} trials is {lowest:.4f}")
    axis.grid(color="0.9")
    axis.set_axisbelow(True)
    figures.legend(figure, axis.get_legend_handles_labels()[0])
    return figure


def _root_scale(axis: Axes, lowest: float, highest: float) -> None:
    """A vertical scale by the square root of the distance from the lowest value."""
    axis.set_yscale(
        "function",
        functions=(
            lambda y: np.sign(y - lowest) * np.sqrt(np.abs(y - lowest)),
            lambda root: lowest + np.sign(root) * root**2,
        ),
    )
    span = highest - lowest
    ticks = {lowest: f"{lowest:.4f}"}
    for distance in span * np.linspace(0, 1, 8)[1:] ** 2:
        digits = max(1 - int(np.floor(np.log10(distance))), 0)  # two of the distance
        tick = round(lowest + distance, digits)
        ticks[tick] = f"{tick:.{digits}f}"
    axis.set_yticks(list(ticks), list(ticks.values()))
    axis.set_ylim(lowest - 0.002 * span, highest + 0.06 * span)


def parallel_coordinates(
    table: pd.DataFrame, domains: Sequence[str], best: Values, unit: str = keys.NATS
) -> Figure:
    """The proportions of every trial as a line, coloured by its objective; the best is bold.

    The worst quarter of the trials, and those without an objective, are grey. With many domains
    the scale is a square root, because most proportions are small.
    """
    ordered = figures.largest_first({d: best[d] for d in domains})
    objective = table["objective"].replace(np.inf, np.nan)
    ranked = table.assign(objective=objective).sort_values(
        "objective", ascending=False, na_position="first"
    )
    colours, scale, limit = _by_objective(ranked["objective"].to_numpy(float))
    proportions = ranked[ordered].to_numpy(float)  # (trials, M), the best trial last
    x, many = np.arange(len(ordered)), len(ordered) > FEW
    size = (max(7.5, 3 + 0.42 * len(ordered)), 6.5 if many else 5.0)
    figure, axis = figures.panels(size)
    lines = [np.column_stack([x, row]) for row in proportions]
    axis.add_collection(LineCollection(lines, colors=colours, linewidths=0.8))
    (line,) = axis.plot(
        x, [best[d] for d in ordered], "o-", color="C0", linewidth=2.5, markersize=5,
        path_effects=[Stroke(linewidth=5, foreground="white"), Normal()], label="best mixture",
    )  # fmt: skip
    shown = keys.unit_text(unit)
    grey = Line2D([], [], color="0.75", label=f"worst quarter (above {limit:.4f} {shown})")
    highest = max(proportions.max(), *best.values())
    if many:
        figures.root_scale(axis, highest, "y")
    axis.set_xlim(-0.3, len(ordered) - 0.7)
    axis.set_ylim(0, 1.03 * highest)
    axis.set_xticks(x, ordered, rotation=60 if many else 20, ha="right", rotation_mode="anchor")
    axis.grid(color="0.85")
    axis.set_ylabel("proportion of the training tokens" + (" (√ scale)" if many else ""))
    axis.set_title("Every trial's mixture, one line per trial, coloured by its predicted objective")
    figure.colorbar(scale, ax=axis, label=f"objective ({shown})", pad=0.01)
    figures.legend(figure, [line, grey])
    return figure


def _by_objective(values: Array) -> tuple[Array, ScalarMappable, float]:
    """Colours (n, 4) of objectives (n,), their scale, and the value above which they are grey."""
    limit = float(np.nanquantile(values, COLOURED))
    scale = ScalarMappable(PowerNorm(0.5, np.nanmin(values), limit), "YlOrRd_r")
    colours = scale.to_rgba(values, alpha=0.7)
    return np.where((values <= limit)[:, None], colours, (0.5, 0.5, 0.5, 0.15)), scale, limit


def pareto(
    front: pd.DataFrame,
    objectives: Sequence[str],
    chosen: Mapping[str, Values],
    unit: str = keys.NATS,
) -> Figure:
    """Trials and the Pareto front between objectives, a panel for each pair of them.

    `front` has a row for each trial: a column for each objective, and `on_front`. `chosen` is
    name → objective → value; the first is the chosen point. All objectives are minimised, in one
    unit.
    """
    count = len(objectives) - 1
    side = 6.0 if count == 1 else max(2.6, 8.0 / count)
    size = (side * count + 1, side * count + 0.2)
    figure, axes = figures.panels(size, count, count, squeeze=False, sharex="col", sharey="row")
    for (row, column), axis in zip(np.ndindex(count, count), axes.flat, strict=True):
        if column > row:
            axis.remove()
            continue
        x, y = objectives[column], objectives[row + 1]
        handles = _pair(axis, front, x, y, chosen, line=count == 1)
        if row == count - 1:
            axis.set_xlabel(f"{x} ({keys.unit_text(unit)})")
        if column == 0:
            axis.set_ylabel(f"{y} ({keys.unit_text(unit)})")
    figure.suptitle("What one objective costs in another: trials and their Pareto front")
    figures.legend(figure, handles)
    return figure


def _pair(
    axis: Axes, front: pd.DataFrame, x: str, y: str, chosen: Mapping[str, Values], *, line: bool
) -> list[Artist]:
    """Trials over two objectives; the front is a line if there are only two."""
    on_front = front["on_front"].to_numpy(bool)
    rest, best = front[~on_front], front[on_front].sort_values(x)
    dots = axis.scatter(rest[x], rest[y], s=9, color="0.75", linewidth=0, label="trial")
    (curve,) = axis.plot(
        best[x], best[y], "o-" if line else "o", color="black", markersize=3.5, linewidth=1.2,
        alpha=1.0 if line else 0.6, markeredgewidth=0, label="Pareto front",
    )  # fmt: skip
    axis.grid(color="0.92")
    axis.set_axisbelow(True)
    places = {name: (at[x], at[y]) for name, at in chosen.items()}
    if line:
        name, place = next(iter(places.items()))
        colour = figures.styles([name])[name][0]
        axis.annotate(
            name, place, (-8, -16), textcoords="offset points", color=colour, ha="right",
            fontweight="bold",
        )  # fmt: skip
    return [dots, curve, *figures.marks(axis, places)]
