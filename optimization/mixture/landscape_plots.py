"""Figures of the objective around the best mixture: the near-optimal set, and what the answer
depends on."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from training.record import figures, keys, layout
from training.record.figures import Array, Values

PANELS = (
    (2, 2, 4.8),
    (4, 4, 3.4),
    (8, 4, 3.2),
    (15, 5, 2.7),
    (1000, 6, 2.4),
)  # most, columns, inches
FACTORS = {0.5: "weight halved", 2.0: "weight doubled"}


def loss_against_proportions(
    curves: Mapping[str, pd.DataFrame],
    best: Values,
    unit: str = keys.NATS,
) -> Figure:
    """The objective as each domain's proportion moves and the others keep their ratios.

    A curve has `proportion` (rising), `objective`, `low`, `high` and `near`: whether the mixture
    cannot be told from the best one. A curve that rises far above the others is cut off.
    """
    domains = [d for d in figures.largest_first(best) if d in curves]
    columns, side = next((c, s) for most, c, s in PANELS if len(domains) <= most)
    figure, axes = figures.grid(len(domains), columns, (side, 0.9 * side), sharey=True)
    optima, rises, near = [], [], []
    for i, (axis, domain) in enumerate(zip(axes, domains, strict=True)):
        x, y = curves[domain]["proportion"], curves[domain]["objective"]
        optima.append(float(np.interp(best[domain], x, y)))
        rises.append(float(y.max()) - optima[-1])
        near.append(float(y[curves[domain]["near"]].max()) - optima[-1])
        handles = _curve(axis, curves[domain], best[domain], optima[-1])
        axis.set_title(domain, fontsize="medium")
        axis.set_xlabel("proportion" if i + columns >= len(domains) else "")
        axis.set_ylabel("" if i % columns else f"objective ({keys.unit_text(unit)})")
    lowest = min(float(curve["low"].min()) for curve in curves.values())
    span = max(1.3 * float(np.median(rises)), 1.5 * np.nanmax(near), 1e-6)
    axes[0].set_ylim(max(lowest, optima[0] - span) - 0.1 * span, optima[0] + span)
    figure.suptitle("The objective as a domain's proportion moves and the others keep their ratios")
    figures.legend(figure, handles)
    return figure


def _curve(axis: Axes, curve: pd.DataFrame, proportion: float, optimum: float) -> list[Artist]:
    """A curve and its interval; the best mixture's proportion is marked."""
    x = curve["proportion"]
    band = axis.fill_between(
        x, curve["low"], curve["high"], color="C0", alpha=0.2, linewidth=0, label="90 % interval"
    )
    (line,) = axis.plot(x, curve["objective"], color="C0", label="predicted objective")
    (near,) = axis.plot(
        x,
        curve["objective"].where(curve["near"]),
        color="C1",
        linewidth=4,
        alpha=0.6,
        solid_capstyle="round",
        label="cannot be told from the best",
    )
    axis.grid(color="0.92")
    return [line, near, band, *figures.marks(axis, {"best": (proportion, optimum)}, "best mixture")]


def near_optimal(ranges: pd.DataFrame, mixtures: Mapping[str, Values]) -> Figure:
    """The range of each domain's proportion over the near-optimal set.

    `ranges` has `domain`, `lowest` and `highest`. `mixtures` are marked; the first is the best.
    """
    best = next(iter(mixtures.values()))
    by_domain = ranges.set_index("domain")
    domains = figures.largest_first({d: best[d] for d in ranges["domain"]})
    lowest, highest = (by_domain.loc[domains, end].to_numpy(float) for end in ("lowest", "highest"))
    figure, axis = figures.panels((8.5, figures.height(len(domains), 0.3)))
    figures.domain_rows(axis, domains)
    y = np.arange(len(domains))
    bars = axis.barh(
        y,
        highest - lowest,
        0.5,
        lowest,
        color="C0",
        alpha=0.3,
        label="range over the near-optimal set",
    )
    places = {name: ([m[d] for d in domains], y) for name, m in mixtures.items()}
    marks = figures.marks(axis, places)
    right = 1.03 * max(highest.max(), *(max(x) for x, _ in places.values()))
    axis.set_xlim(-0.015 * right, right)
    axis.set_xlabel("proportion of the training tokens")
    axis.set_title("Near-optimal set: mixtures that cannot be told from the best one")
    figures.legend(figure, [bars, *marks])
    return figure


def sensitivity(
    replicates: Array, weights_table: pd.DataFrame, best: Values, unit: str = keys.NATS
) -> Figure:
    """How the optimum moves with the fitted runs and with the weights.

    `replicates` (B, M) are optima by the laws of the bootstrap, columns in the order of `best`.
    `weights_table` has `domain`, `factor` (of its weight), `moved` (the share of tokens by which
    the optimum moves) and `cost` (loss of moving there, by the original weights). An empty
    table has no panel.
    """
    rows = max(len(best), weights_table["domain"].nunique())
    panels = 2 if len(weights_table) else 1
    size = (6.5 * panels, figures.height(rows, 0.3))
    figure, axes = figures.panels(size, 1, panels, squeeze=False)
    left, *others = axes.flat
    handles = _replicates(left, replicates, best)
    for right in others:
        handles += _weights(right, weights_table, unit)
    figures.legend(figure, handles)
    return figure


def _weights(axis: Axes, table: pd.DataFrame, unit: str) -> list[BarContainer]:
    """A bar for each factor and validation domain, with the costs beside the bars."""
    domains = list(table.groupby("domain")["moved"].max().sort_values().index[::-1])
    factors = sorted(table["factor"].unique())
    by_factor = [table[table["factor"] == f].set_index("domain") for f in factors]
    names = [FACTORS.get(f, f"weight × {f:g}") for f in factors]
    groups = [(name, t["moved"].to_dict()) for name, t in zip(names, by_factor, strict=True)]
    greys = np.linspace(0.8, 0.5, len(factors)).astype(str)
    handles = figures.bars(axis, groups, list(greys), domains)
    for bars, rows in zip(handles, by_factor, strict=True):
        costs = [f"{x:.4f}" if x >= 5e-5 else "< 0.0001" for x in rows.loc[domains, "cost"]]
        axis.bar_label(bars, costs, fontsize="x-small", padding=3, color="0.3")
    axis.margins(x=0.12)
    axis.set_xlabel(
        "share of tokens by which the best mixture moves\n"
        f"(numbers: its cost by the given weights, {keys.unit_text(unit)})"
    )
    axis.set_title("When a validation domain's weight is changed")
    return handles


def _replicates(axis: Axes, replicates: Array, best: Values) -> list[Artist | BarContainer]:
    """A box and the replicates as dots for each domain; the best mixture is marked."""
    domains = figures.largest_first(best)
    proportions = replicates[:, [list(best).index(d) for d in domains]]
    figures.domain_rows(axis, domains)
    y = np.arange(len(domains))
    axis.boxplot(
        proportions, positions=y, orientation="horizontal", widths=0.6, manage_ticks=False,
        showfliers=False, patch_artist=True, boxprops={"facecolor": "white", "edgecolor": "0.4"},
        medianprops={"color": "0.2"}, whiskerprops={"color": "0.4"}, capprops={"color": "0.4"},
    )  # fmt: skip
    shift = np.random.default_rng(0).uniform(-0.22, 0.22, proportions.shape)
    places = np.broadcast_to(y, proportions.shape) + shift
    axis.scatter(proportions, places, s=6, color="0.35", alpha=0.45, linewidth=0, zorder=3)
    axis.set_xlabel("proportion of the training tokens")
    axis.set_title("The best mixture by each replicate of the bootstrap")
    return [*figures.marks(axis, {"best": ([best[d] for d in domains], y)}, "best mixture")]


def pull_path(path: pd.DataFrame, chosen: float, unit: str = keys.NATS) -> Figure:
    """Gain over the reference mixture against the deviation from it, as the pull weakens.

    `path` has a row for each strength: `strength`, `divergence` (nats), `objective` and `gain`.
    `chosen` is one of the strengths. It equals the slope of the curve there, because the best
    mixture minimises objective + strength · divergence.
    """
    rows = path.sort_values("divergence")
    figure, axis = figures.panels((7.5, 5))
    axis.plot(
        rows["divergence"], rows["gain"], "o-", color="0.4", label="best at each strength (numbers)"
    )
    _number(axis, rows[~np.isclose(rows["strength"], chosen)])
    at = rows[np.isclose(rows["strength"], chosen)].iloc[0]
    divergence, gain = float(at["divergence"]), float(at["gain"])
    if chosen > 0:
        reach = min(0.25 * rows["divergence"].max(), 0.4 * rows["gain"].max() / chosen)
        ends = np.array([max(divergence - reach, 0), divergence + reach])
        axis.plot(
            ends, gain + chosen * (ends - divergence), "--", color="C0",
            label="slope = strength: gain for a nat of deviation",
        )  # fmt: skip
    figures.marks(axis, {"best": (divergence, gain)}, f"chosen: strength {chosen:g}")
    axis.annotate(
        f"strength {chosen:g}\ngain {gain:.4f}", (divergence, gain), (12, -34),
        textcoords="offset points", color="C0", fontweight="bold",
    )  # fmt: skip
    axis.set_xlabel("deviation from the reference: KL divergence (nats)")
    axis.set_ylabel(f"gain over the reference ({keys.unit_text(unit)})")
    axis.set_title("What leaving the reference mixture gains, along the strengths of the pull")
    axis.grid(color="0.9")
    axis.margins(x=0.06, y=0.18)
    figures.legend(figure, axis.get_legend_handles_labels()[0], columns=2)
    return figure


def _number(axis: Axes, rows: pd.DataFrame) -> None:
    """The strengths at their points, where there is room."""
    room, last = 0.07 * rows["divergence"].max(), -np.inf
    for strength, x, y in zip(rows["strength"], rows["divergence"], rows["gain"], strict=True):
        if x - last > room:
            last = x
            axis.annotate(
                f"{strength:g}", (x, y), (-2, 6), textcoords="offset points", color="0.4",
                ha="right", fontsize="small",
            )  # fmt: skip


def optima_by_scale(table: pd.DataFrame, domains: Sequence[str]) -> Figure:
    """The best mixture at each scale of the proxies and, in the last row, at the target.

    `table` has `n_params`, `tokens` and the proportion of each domain.
    """
    scales = [
        f"{layout.short_count(n)} parameters, {layout.short_count(d)} tokens"
        for n, d in zip(table["n_params"], table["tokens"], strict=True)
    ]
    scales[-1] += " (target)"
    rows = table[list(domains)].to_dict("records")
    colours = [*np.linspace(0.8, 0.35, len(scales) - 1).astype(str), "C0"]
    groups = list(zip(scales, rows, strict=True))
    size = (8.0, figures.height(len(domains), 0.12 + 0.07 * len(scales)))
    figure, axis = figures.panels(size)
    handles = figures.bars(axis, groups, colours, figures.largest_first(rows[-1]))
    axis.set_xlabel("proportion of the training tokens")
    axis.set_title("The best mixture at each proxy scale, and at the target")
    figures.legend(figure, handles, columns=2)
    return figure
