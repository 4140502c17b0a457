"""What all figures share: colours and markers by name, rows of domains, legends outside the
data."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from training.record import layout

Array = np.ndarray
Values = Mapping[str, float]  # by domain

STYLES = {
    "best": ("C0", "*"),
    "default": ("C1", "D"),
    "reference": ("C2", "s"),
    "uniform": ("C3", "^"),
    "best observed": ("C4", "P"),
}
OTHER_STYLES = (("C5", "v"), ("C6", "X"), ("C8", "o"), ("C9", "h"))
MARKER_SCALE = {"*": 2.6, "P": 1.2, "X": 1.2}  # scale of markers that cover little area
LEGEND_COLUMNS = 5
ROOT_TICKS = (0.0, 0.01, 0.04, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
MAX_HEIGHT = 26  # inches


def panels(size: tuple[float, float], rows: int = 1, columns: int = 1, **options: Any) -> Any:
    """A figure of this size in inches and its axes, as `Figure.subplots` returns them.

    It has no backend and no window, so nothing needs to close it.
    """
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def styles(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each mixture; names in `STYLES` look the same in every figure."""
    others = cycle(OTHER_STYLES)
    return {name: STYLES.get(name) or next(others) for name in names}


def largest_first(mixture: Values) -> list[str]:
    """The domains of a mixture from the largest proportion to the smallest."""
    return sorted(mixture, key=lambda domain: -mixture[domain])


def height(rows: int, per_row: float) -> float:
    """Height in inches of a figure with rows of domains, including title, axis and legend."""
    return min(max(2.0, rows * per_row) + 1.5, MAX_HEIGHT)


def domain_rows(axis: Axes, domains: Sequence[str]) -> None:
    """One row per domain, the first on top; every second row has a light background."""
    names = layout.short(domains)
    axis.set_yticks(range(len(domains)), [names[domain] for domain in domains])
    axis.set_ylim(len(domains) - 0.5, -0.5)
    for i in range(0, len(domains), 2):
        axis.axhspan(i - 0.5, i + 0.5, color="0.96", zorder=0, linewidth=0)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", color="0.85", linewidth=0.7)
    axis.set_axisbelow(True)


def bars(
    axis: Axes,
    groups: Sequence[tuple[str, Values]],
    colours: Sequence[str],
    domains: Sequence[str],
) -> list[BarContainer]:
    """Draw one bar per group in each domain's row, the first group on top.

    Returns the legend's handles.
    """
    domain_rows(axis, domains)
    offsets = group_offsets(len(groups))
    return [
        axis.barh(
            np.arange(len(domains)) + offset,
            [values[d] for d in domains],
            0.8 / len(groups),
            color=colour,
            label=name,
        )
        for offset, colour, (name, values) in zip(offsets, colours, groups, strict=True)
    ]


def group_offsets(count: int) -> Array:
    """Offsets of the groups within a row of height 1, (count,)."""
    return (np.arange(count) - (count - 1) / 2) * 0.8 / count


def marks(
    axis: Axes, places: Mapping[str, tuple[ArrayLike, ArrayLike]], label: str = "{}"
) -> list[Artist]:
    """Draw a marker per named mixture at name → (x, y), the first on top.

    A white edge separates them from what lies below. Returns the legend's handles.
    """
    handles: list[Artist] = []
    for name, (colour, marker) in reversed(styles(places).items()):
        handles.insert(
            0,
            axis.scatter(
                *places[name], s=45 * MARKER_SCALE.get(marker, 1.0) ** 1.5, color=colour,
                marker=marker, edgecolor="white", linewidth=0.8, zorder=5, label=label.format(name),
            ),
        )  # fmt: skip
    return handles


def root_scale(axis: Axes, highest: float, which: str = "x") -> None:
    """A square-root scale of proportions, from 0 to slightly above the highest one; `which` is x or
    y."""
    ticks = [tick for tick in ROOT_TICKS if tick <= highest]
    limits = (0, 1.03 * highest)
    functions = (lambda x: np.sqrt(np.maximum(x, 0)), np.square)
    if which == "x":
        axis.set_xscale("function", functions=functions)
        axis.set_xticks(ticks)
        axis.set_xlim(limits)
    else:
        axis.set_yscale("function", functions=functions)
        axis.set_yticks(ticks)
        axis.set_ylim(limits)


def legend(
    figure: Figure, handles: Sequence[Artist | BarContainer], columns: int = LEGEND_COLUMNS
) -> None:
    """A legend below the panels."""
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


def grid(
    count: int, columns: int, panel_size: tuple[float, float], *, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, each of this size in inches, and the axes that are used."""
    columns = min(columns, count)
    rows = -(-count // columns)
    size = (panel_size[0] * columns, panel_size[1] * rows)
    figure, axes = panels(size, rows, columns, squeeze=False, sharey=sharey)
    flat = list(axes.flat)
    for axis in flat[count:]:
        axis.remove()
    return figure, flat[:count]
