"""The map of the objective over the mixtures of three domains: a triangle."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Polygon
from matplotlib.tri import Triangulation, TriContourSet

from training.record import figures, keys
from training.record.figures import Array

STEPS = 150  # of the map, on each side of the triangle
LEVELS = 16
CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(3) / 2]])  # of a pure mixture each
TURNS = (60, 0, -60)  # degrees, of the edge with each domain's numbers
NAMES = (("right", (0.03, -0.06)), ("left", (-0.03, -0.06)), ("center", (0.0, 0.04)))
TICKS = (0.2, 0.4, 0.6, 0.8)
FORBIDDEN: dict[str, Any] = {"facecolor": "0.94", "edgecolor": "0.75", "hatch": "////"}


def ternary(
    evaluate: Callable[[Array], Array],
    domains: Sequence[str],
    points: Mapping[str, Sequence[float]],
    fitted: Array | None = None,
    unit: str = keys.NATS,
) -> Figure:
    """The objective over the mixtures of three domains, a contour map on their triangle.

    `evaluate` maps mixtures (n, 3) to the objective (n,), NaN outside the allowed set, which is
    hatched. `points` are named mixtures; `fitted` (m, 3) are the mixtures that the law was fitted
    to. The contour levels are closer together near the minimum.
    """
    mixtures, cells = lattice(STEPS)
    figure, axis = figures.panels((8.5, 7.2))
    values = evaluate(mixtures)
    image = _map(axis, mixtures, cells, values)
    _triangle(axis, domains)
    places = {name: cartesian(np.asarray(point)) for name, point in points.items()}
    handles = figures.marks(axis, {name: (x, y) for name, (x, y) in places.items()})
    if fitted is not None:
        x, y = cartesian(fitted).T
        handles.append(axis.scatter(x, y, s=8, color="black", zorder=4, label="fitted mixtures"))
    if np.isnan(values).any():
        handles.append(Patch(**FORBIDDEN, label="not allowed"))
    figure.suptitle("The predicted objective over the mixtures of three domains")
    if image is not None:
        figure.colorbar(
            image, ax=axis, label=f"objective ({keys.unit_text(unit)})", shrink=0.75,
            format="%.4f", pad=0.02,
        )  # fmt: skip
    figures.legend(figure, handles, columns=4)
    return figure


def _map(axis: Axes, mixtures: Array, cells: Array, values: Array) -> TriContourSet | None:
    """Filled contours of values (n,) over the triangle, without the cells that have a NaN corner.

    None if the map has no cell (the allowed set is a line) or the same value everywhere.
    """
    axis.add_patch(Polygon(CORNERS, **FORBIDDEN, linewidth=0, zorder=0))
    missing = np.isnan(values)
    x, y = cartesian(mixtures).T
    mesh = Triangulation(x, y, cells, mask=missing[cells].any(axis=1))
    inside = values[mesh.get_masked_triangles()]
    if not inside.size or np.ptp(inside) == 0:
        return None
    levels = inside.min() + np.ptp(inside) * np.linspace(0, 1, LEVELS) ** 2
    levels[-1] = inside.max()
    filled = np.where(missing, inside.max(), values)
    image = axis.tricontourf(mesh, filled, levels=levels, cmap="viridis_r")
    axis.tricontour(mesh, filled, levels=levels, colors="white", linewidths=0.4, alpha=0.6)
    return image


def lattice(steps: int) -> tuple[Array, Array]:
    """All mixtures of three domains in multiples of 1/steps, (n, 3), and the small triangles
    between them, as indices (steps², 3)."""
    first, second = np.array([(i, j) for i in range(steps + 1) for j in range(steps + 1 - i)]).T
    mixtures = np.column_stack([first, second, steps - first - second]) / steps
    number = np.full((steps + 2, steps + 2), -1)
    number[first, second] = np.arange(len(first))
    up = np.column_stack(
        [number[first, second], number[first + 1, second], number[first, second + 1]]
    )
    down = np.column_stack(
        [number[first + 1, second], number[first, second + 1], number[first + 1, second + 1]]
    )
    cells = np.vstack([up, down])
    return mixtures, cells[(cells >= 0).all(axis=1)]


def cartesian(mixtures: Array) -> Array:
    """Coordinates on the triangle, (n, 2), of mixtures of three domains, (n, 3)."""
    return np.asarray(mixtures @ CORNERS)


def _triangle(axis: Axes, domains: Sequence[str]) -> None:
    """Draw the edges, the names of the corners, and numbered lines of equal proportion."""
    axis.add_patch(Polygon(CORNERS, fill=False, edgecolor="black", linewidth=1.2, zorder=3))
    centre = CORNERS.mean(axis=0)
    for i, domain in enumerate(domains):
        before, after = CORNERS[i - 1], CORNERS[(i + 1) % 3]
        across = before - after  # along the lines of one proportion of this domain, outwards
        for share in TICKS:
            start = share * CORNERS[i] + (1 - share) * before
            line = np.array([start + 0.02 * across, start - (1 - share) * across])
            axis.plot(*line.T, color="black", linewidth=0.6, alpha=0.4)
            _text(axis, start + 0.05 * across, f"{share:g}", fontsize="small")
        middle = (before + CORNERS[i]) / 2
        place = middle + 0.36 * (middle - centre)
        arrow = f"{domain} →" if TURNS[i] == 0 else f"← {domain}"
        _text(axis, place, arrow, rotation=TURNS[i], rotation_mode="anchor")
        side, shift = NAMES[i]
        _text(axis, CORNERS[i] + shift, domain, ha=side, weight="bold")
    axis.set_aspect("equal")
    axis.set_axis_off()


def _text(axis: Axes, place: Array, text: str, **style: Any) -> None:
    axis.text(place[0], place[1], text, **{"ha": "center", "va": "center", **style})
