"""Figures of a design: the mixtures proposed for training, and why."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from training.record import figures, keys
from training.record.figures import Array, Values

COLOURS = ("C1", "C2", "C3", "C4", "C5", "C6", "C8", "C9")  # C0 is the best mixture's
COLUMNS = 4  # of the legend
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
JITTER = 0.16  # of the fitted mixtures, in rows


def proposals(fitted: Array, chosen: Mapping[str, Values], domains: Sequence[str]) -> Figure:
    """Each domain's proportions in the fitted mixtures (m, M) and in the proposed ones, in a row.

    `chosen` is name → domain → proportion; `domains` are the columns of `fitted`. The scale is a
    square root, because most proportions are small.
    """
    mean = np.mean([[mixture[d] for d in domains] for mixture in chosen.values()], axis=0)
    ordered = figures.largest_first(dict(zip(domains, mean, strict=True)))
    per_row = 0.3 + 0.02 * len(chosen)
    figure, axis = figures.panels((9.0, figures.height(len(domains), per_row)))
    figures.domain_rows(axis, ordered)
    y = np.arange(len(ordered))
    columns = fitted[:, [list(domains).index(d) for d in ordered]]
    shift = np.random.default_rng(0).uniform(-JITTER, JITTER, columns.shape)
    dots = axis.scatter(
        columns, y + shift, s=7, color="0.55", alpha=0.6, linewidth=0,
        label=f"trained ({len(fitted)} mixtures)",
    )  # fmt: skip
    handles: list[Artist] = [dots]
    offsets = figures.group_offsets(len(chosen))
    for offset, (name, colour, marker) in zip(offsets, _styles(chosen), strict=True):
        x = [chosen[name][d] for d in ordered]
        handles.append(_mark(axis, x, y + offset, colour, marker, name))
    highest = max(columns.max(), *(max(mixture.values()) for mixture in chosen.values()))
    figures.root_scale(axis, highest)
    axis.set_xlabel("proportion of the training tokens (√ scale)")
    axis.set_title("The proposed mixtures, and those that are trained already")
    figures.legend(figure, handles, COLUMNS)
    return figure


def uncertainty(
    objective: Array,
    deviation: Array,
    chosen: Sequence[int],
    names: Sequence[str],
    unit: str = keys.NATS,
) -> Figure:
    """The candidates' predicted objective against its standard deviation, both (n,), in a unit.

    `chosen` are indices of the proposed candidates, `names` their names.
    """
    figure, axis = figures.panels((8.0, 5.5))
    dots = axis.scatter(
        objective, deviation, s=9, color="0.75", linewidth=0,
        label=f"candidate ({len(objective)})",
    )  # fmt: skip
    line = axis.axvline(
        objective.min(), color="0.3", linestyle=":", linewidth=1, label="lowest prediction"
    )
    handles: list[Artist] = [dots, line]
    for index, (name, colour, marker) in zip(chosen, _styles(names), strict=True):
        x, y = objective[index], deviation[index]
        handles.append(_mark(axis, x, y, colour, marker, name, 55))
    axis.set_xlabel(f"predicted objective ({keys.unit_text(unit)})")
    axis.set_ylabel(f"standard deviation of the prediction ({keys.unit_text(unit)})")
    axis.set_title("Where the law is uncertain, and what is proposed")
    axis.grid(color="0.92")
    axis.set_axisbelow(True)
    axis.margins(x=0.05, y=0.08)
    axis.set_ylim(bottom=0)
    figures.legend(figure, handles, COLUMNS)
    return figure


def _styles(names: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Name, colour and marker; the pairs of colour and marker repeat only when all are used."""
    for i, name in enumerate(names):
        yield name, COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]


def _mark(
    axis: Axes, x: ArrayLike, y: ArrayLike, colour: str, marker: str, label: str, size: float = 32
) -> Artist:
    return axis.scatter(
        x, y, s=size, color=colour, marker=marker, edgecolor="white", linewidth=0.6, zorder=6,
        label=label, clip_on=False,
    )  # fmt: skip
