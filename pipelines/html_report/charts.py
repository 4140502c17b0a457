"""What all figures of the report share.

Colours are names of variables of `page.css`, so that they follow the reader's colour scheme. A
mixture has one colour and one symbol in every figure.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import plotly.graph_objects as go
from mlflow.entities import Run

from training.record import layout

ROWS = 24  # domains, at most, that a figure shows
ROW = 30  # pixels
NAME = 22  # cells of a name beside an axis
STYLES = {
    "best": ("var(--best)", "star"),
    "default": ("var(--default)", "diamond"),
    "reference": ("var(--reference)", "square"),
    "uniform": ("var(--uniform)", "triangle-up"),
    "best observed": ("var(--observed)", "cross"),
}
OTHERS = (("var(--uniform)", "triangle-up"), ("var(--reference)", "square"))
SYMBOL_SIZES = {"star": 15, "diamond": 10, "square": 9, "triangle-up": 11, "cross": 10}
INK, MUTED, PAPER, BAND = "var(--ink)", "var(--muted)", "var(--paper)", "var(--band)"
FEW_DECADES = 0.9  # an axis of fewer has every tick


@dataclass(frozen=True)
class Chart:
    """A figure and its words; `panels` are several where small ones stand side by side."""

    name: str
    title: str  # what it shows
    caption: str
    alt: str  # the finding in numbers
    panels: tuple[go.Figure, ...]
    source: Run | None  # the run that holds the numbers
    height: int  # pixels


def figure() -> go.Figure:
    """An empty figure, without the fifty lines of plotly's own style."""
    return go.Figure(layout={"template": None})


def height(rows: int, row: int = ROW) -> int:
    """Pixels of a figure with rows, its legend and its axis."""
    return rows * row + 120


def styles(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and symbol of each mixture."""
    others = cycle(OTHERS)
    return {name: STYLES.get(name) or next(others) for name in names}


def marker(style: tuple[str, str]) -> dict[str, Any]:
    """A mixture's symbol, with an edge that parts it from what lies below."""
    colour, symbol = style
    edge = {"color": PAPER, "width": 1}
    return {"color": colour, "symbol": symbol, "size": SYMBOL_SIZES[symbol], "line": edge}


def add_intervals(chart: go.Figure, x: Sequence[float], y: Sequence[str], colours: Sequence[str],
                  low: Sequence[float], high: Sequence[float]) -> None:  # fmt: skip
    """Predictions with their 90 % intervals, a row each; one entry in the legend."""
    chart.add_scatter(
        x=list(x),
        y=list(y),
        error_x={
            "type": "data",
            "array": [b - a for a, b in zip(x, high, strict=True)],
            "arrayminus": [a - b for a, b in zip(x, low, strict=True)],
            "thickness": 2,
            "width": 0,
            "color": MUTED,
        },
        mode="markers",
        marker={"color": list(colours), "symbol": "circle", "size": 11},
        showlegend=False,
        customdata=list(zip(low, high, strict=True)),
        hovertemplate="predicted %{x:.4f}, 90 % from %{customdata[0]:.4f} to %{customdata[1]:.4f}"
        "<extra></extra>",
    )
    chart.add_scatter(
        x=[None],
        y=[y[0]],
        mode="markers+lines",
        marker={"color": MUTED, "symbol": "circle", "size": 10},
        line={"color": MUTED, "width": 2},
        name="predicted, 90 % interval",
    )


def add_measured(
    chart: go.Figure, x: Sequence[float], y: Sequence[str], name: str = "measured", **more: Any
) -> None:
    """Measured values as open circles."""
    chart.add_scatter(
        x=list(x),
        y=list(y),
        mode="markers",
        marker={"color": PAPER, "symbol": "circle", "size": 9, "line": {"color": INK, "width": 2}},
        name=name,
        **{"hovertemplate": "measured %{x:.4f}<extra></extra>", **more},
    )


def row_axis(rows: int) -> dict[str, Any]:
    """An axis of rows, the first on top."""
    return {"range": (rows - 0.5, -0.5), "automargin": True}


def the(mixture: str) -> str:
    """A mixture's name in a sentence."""
    return f"the mixture {mixture}" if " to " in mixture else f"the {mixture} mixture"


def names(domains: Sequence[str]) -> list[str]:
    """The domains as an axis shows them: short, unique, without markup."""
    cut = layout.short(domains, NAME)
    return [plain(cut[d]) for d in domains]


def plain(text: str) -> str:
    """A text that plotly shows as it is: it reads some HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def largest(sizes: Mapping[str, float], most: int = ROWS) -> list[str]:
    """The names of the largest values, as many as a figure shows, in their own order."""
    kept = set(sorted(sizes, key=lambda name: -sizes[name])[:most])
    return [name for name in sizes if name in kept]


def log_axis(low: float, high: float, form: str = "g") -> dict[str, Any]:
    """A logarithmic axis with readable ticks; `form` is `g` or, for counts, `count`."""
    if not 0 < low <= high:
        return {}
    decades = math.log10(high / low)
    digits = range(1, 10) if decades < FEW_DECADES else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [d * 10.0**p for p in powers for d in digits]
    texts = [layout.short_count(t) if form == "count" else f"{t:.6g}" for t in ticks]
    return {"type": "log", "tickvals": ticks, "ticktext": texts}
