"""The figures of a search."""

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.tri import TriContourSet

from optimization.mixture import landscape_plots, ternary_plot
from optimization.mixture import trial_plots as search_plots
from training.record import figures

Array = np.ndarray


def names(count: int) -> list[str]:
    """Domains with names of up to 20 characters."""
    return [f"domain_{i}_" + "x" * (i * 7 % 12) for i in range(count)]


def simplex_points(count: int, domains: int) -> Array:
    return np.random.default_rng(domains).dirichlet(np.ones(domains), count)


def axes(figure: Figure) -> list[Any]:
    return list(figure.axes)


def search_figures(domains: list[str], val_domains: list[str]) -> dict[str, Figure]:
    """Every figure of a search over the domains, of made-up numbers."""
    rng = np.random.default_rng(0)
    points = simplex_points(60, len(domains))
    known = {
        name: dict(zip(domains, point, strict=True))
        for name, point in zip(figures.STYLES, points, strict=False)
    }
    best = known["best"]
    losses = {name: dict(zip(val_domains, 1 + rng.random(22), strict=False)) for name in known}
    intervals = {
        name: {d: (x - 0.1, x + 0.1) for d, x in of.items()} for name, of in losses.items()
    }
    columns = dict(zip(domains, points.T, strict=True))
    kinds = ["known"] * 5 + ["search"] * 45 + ["polish"] * 10
    trials = pd.DataFrame(
        {"trial": range(60), "kind": kinds, "objective": 2 + rng.random(60)} | columns
    )
    share = np.linspace(0, 0.8, 9)
    y = 2 + (share - 0.3) ** 2
    curve = pd.DataFrame(
        {
            "proportion": share,
            "objective": y,
            "low": y - 0.1,
            "high": y + 0.1,
            "near": y < y.min() + 0.1,
        }
    )
    moved = pd.DataFrame(
        [(d, f, 0.1 * rng.random(), 0.001) for d in val_domains for f in (0.5, 2.0)],
        columns=["domain", "factor", "moved", "cost"],
    )
    ranges = pd.DataFrame(
        {"domain": domains, "lowest": points.min(axis=0), "highest": points.max(axis=0)}
    )
    scales = pd.DataFrame({"n_params": [7e7, 4.1e8, 1e9], "tokens": [3e10, 3e10, 1e11]})
    objectives = pd.DataFrame(rng.random((60, 4)), columns=list("pqrs")).assign(on_front=False)
    divergence = np.linspace(0.1, 1, 5)
    strength = 0.1 / divergence
    path = {"strength": strength, "divergence": divergence, "gain": np.log(1 + divergence)}
    return {
        "mixtures": search_plots.mixtures(
            known, losses, intervals, dict.fromkeys(known, (0.1, 0.2))
        ),
        "trials": search_plots.trials(trials),
        "parallel": search_plots.parallel_coordinates(trials, domains, best),
        "pareto": search_plots.pareto(objectives, list("pqrs"), {"best": dict.fromkeys("pqrs", 0)}),
        "against": landscape_plots.loss_against_proportions(dict.fromkeys(domains, curve), best),
        "near": landscape_plots.near_optimal(ranges, known),
        "sensitivity": landscape_plots.sensitivity(points, moved, best),
        "pull": landscape_plots.pull_path(pd.DataFrame(path), strength[2]),
        "scales": landscape_plots.optima_by_scale(
            scales.assign(**{d: column[:3] for d, column in columns.items()}), domains
        ),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("count", "val_count"), [(2, 1), (3, 22), (30, 22)])
def test_every_name_is_shown_and_no_text_is_cut_or_covered(count: int, val_count: int) -> None:
    domains, val_domains = names(count), [f"{name}_v" for name in names(val_count)]
    for name, figure in search_figures(domains, val_domains).items():
        figure.draw_without_rendering()
        labels = {
            text.get_text()
            for axis in figure.axes
            for text in (*axis.get_xticklabels(), *axis.get_yticklabels(), axis.title)
        }
        if name not in ("trials", "pareto", "pull"):
            assert set(domains) <= labels, name
        if name in ("mixtures", "sensitivity"):
            assert set(val_domains) <= labels, name
        drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert min(drawn.x0, drawn.y0) >= 0, name
        assert drawn.x1 <= width, name
        assert drawn.y1 <= height, name
        legend = figure.legends[0].get_window_extent()
        for axis in axes(figure):
            assert not legend.overlaps(axis.get_tightbbox()), name
            rows = [label.get_window_extent() for label in axis.get_yticklabels()]
            assert not any(a.overlaps(b) for a, b in pairwise(rows)), name


def barycentric(places: Array) -> Array:
    """Mixtures of three domains, (n, 3), at places on the triangle, (n, 2)."""
    corners = ternary_plot.cartesian(np.eye(3))
    first_two = np.linalg.solve((corners[:2] - corners[2]).T, (places - corners[2]).T).T
    return np.column_stack([first_two, 1 - first_two.sum(axis=1)])


def test_the_triangle_is_covered_and_its_lines_carry_their_proportions() -> None:
    mixtures, cells = ternary_plot.lattice(10)
    assert len(mixtures) == 66
    assert len(cells) == 100
    x, y = np.moveaxis(ternary_plot.cartesian(mixtures)[cells], 2, 0)
    area = np.abs(
        (x[:, 1] - x[:, 0]) * (y[:, 2] - y[:, 0]) - (x[:, 2] - x[:, 0]) * (y[:, 1] - y[:, 0])
    )
    np.testing.assert_allclose(area, np.sqrt(3) / 2 / 100)  # none is counted twice or left out
    points = {"best": (0.2, 0.7, 0.1), "default": (0.5, 0.1, 0.4)}
    figure = ternary_plot.ternary(lambda r: r[:, 0], ("a", "b", "c"), points, np.eye(3))
    axis = axes(figure)[0]
    numbers = [text for text in axis.texts if text.get_text().startswith("0.")]
    arrows = [(f"{name} →", f"← {name}") for name in "abc"]
    found = set()
    for line in axis.lines:
        ends = barycentric(np.column_stack(line.get_data()))
        (domain,) = np.flatnonzero(np.isclose(ends[0], ends[1]))
        start = line.get_xydata()[0]
        nearest = min(numbers, key=lambda text: np.linalg.norm(text.get_position() - start))
        assert ends[0, domain] == pytest.approx(float(nearest.get_text()))
        arrow = next(text for text in axis.texts if text.get_text() in arrows[domain])
        place, angle = np.array(arrow.get_position()), np.deg2rad(arrow.get_rotation())
        ahead = (1 if arrow.get_text().endswith("→") else -1) * np.array(
            [np.cos(angle), np.sin(angle)]
        )
        here, there = barycentric(np.array([place, place + 0.1 * ahead]))
        assert there[domain] > here[domain] + 0.05  # the arrow points to where there is more
        edge = np.argmin(here)  # named by the domain that there is none of
        assert there[edge] == pytest.approx(here[edge])
        assert edge == np.argmin(ends[0])  # the numbers stand there too
        found.add((domain, nearest.get_text()))
    assert len(found) == 12
    for name, corner in zip("abc", ternary_plot.cartesian(np.eye(3)), strict=True):
        bold = [t for t in axis.texts if t.get_text() == name and t.get_weight() == "bold"]
        assert np.linalg.norm(np.array(bold[0].get_position()) - corner) < 0.1
    marked = {c.get_label(): barycentric(np.asarray(c.get_offsets())) for c in axis.collections}
    for name, point in points.items():
        np.testing.assert_allclose(marked[name], [point])
    np.testing.assert_allclose(marked["fitted mixtures"], np.eye(3), atol=1e-12)


def test_the_map_is_lowest_at_the_optimum_and_blank_where_nothing_is_allowed() -> None:
    optimum = np.array([0.25, 0.45, 0.3])

    def objective(mixtures: Array) -> Array:
        values = 2 + ((mixtures - optimum) ** 2).sum(axis=1)
        return np.where(mixtures[:, 0] <= 0.4, values, np.nan)

    figure = ternary_plot.ternary(objective, ("a", "b", "c"), {"best": tuple(optimum)})
    bands = next(
        c for c in axes(figure)[0].collections if isinstance(c, TriContourSet) and c.filled
    )
    vertices = [np.asarray(path.vertices) for path in bands.get_paths()]
    paths = [barycentric(places) for places in vertices if len(places)]
    lowest = paths[0]
    np.testing.assert_allclose((lowest.min(axis=0) + lowest.max(axis=0)) / 2, optimum, atol=0.01)
    assert np.abs(lowest - optimum).max() < 0.1
    assert max(path[:, 0].max() for path in paths) == pytest.approx(0.4, abs=1e-9)
    assert min(path[:, 0].min() for path in paths) == pytest.approx(0, abs=1e-9)


def test_an_allowed_set_without_area_leaves_the_map_blank() -> None:
    on_line = lambda r: np.where(np.isclose(r[:, 0], 0.5), r[:, 1], np.nan)  # noqa: E731
    figure = ternary_plot.ternary(on_line, ("a", "b", "c"), {"best": (0.5, 0.0, 0.5)})
    assert len(figure.axes) == 1  # no colour bar
    assert "not allowed" in {text.get_text() for text in figure.legends[0].texts}


def test_each_trial_is_a_line_and_the_worst_quarter_is_grey() -> None:
    domains, points = names(5), simplex_points(41, 5)
    objective = points[:, 0].copy()
    objective[7] = np.nan
    table = pd.DataFrame({"objective": objective} | dict(zip(domains, points.T, strict=True)))
    best = dict(zip(domains, points[np.nanargmin(objective)], strict=True))
    axis = axes(search_plots.parallel_coordinates(table, domains, best))[0]
    (lines,) = axis.collections
    drawn = np.array([segment[:, 1] for segment in lines.get_segments()])  # (trials, M)
    order = [domains.index(label.get_text()) for label in axis.get_xticklabels()]
    matched = [int(np.abs(points[:, order] - row).sum(axis=1).argmin()) for row in drawn]
    assert sorted(matched) == list(range(41))
    np.testing.assert_array_equal(drawn, points[matched][:, order])
    grey = {
        trial for trial, colour in zip(matched, lines.get_colors(), strict=True) if colour[3] < 0.5
    }
    worst = np.argsort(-np.nan_to_num(objective, nan=np.inf))[:11]  # a quarter of 40, and the NaN
    assert grey == set(worst.tolist())
    assert matched[-1] == np.nanargmin(objective)  # on top
    assert list(axis.lines[0].get_ydata()) == sorted(best.values(), reverse=True)


def test_rows_of_domains_hold_their_own_numbers() -> None:
    """Rows are sorted by the best mixture; what belongs to a domain must move with it."""
    domains = ["small", "large", "middle"]
    best = {"small": 0.1, "large": 0.6, "middle": 0.3}
    rows = ["large", "middle", "small"]
    replicates = np.array([[0.1, 0.6, 0.3], [0.2, 0.5, 0.3], [0.05, 0.65, 0.3]])
    moved = pd.DataFrame(
        [
            ("p", 0.5, 0.01, 0.001),
            ("p", 2.0, 0.02, 0.002),
            ("q", 0.5, 0.05, 0.005),
            ("q", 2.0, 0.04, 0),
        ],
        columns=["domain", "factor", "moved", "cost"],
    )
    left, right = landscape_plots.sensitivity(replicates, moved, best).axes
    assert [label.get_text() for label in left.get_yticklabels()] == rows
    dots = np.asarray(left.collections[0].get_offsets())
    for i, domain in enumerate(rows):
        of_row = dots[np.abs(dots[:, 1] - i) < 0.5, 0]
        assert sorted(of_row) == sorted(replicates[:, domains.index(domain)])
    assert [label.get_text() for label in right.get_yticklabels()] == ["q", "p"]
    assert [[bar.get_width() for bar in bars] for bars in right.containers] == [
        [0.05, 0.01],
        [0.04, 0.02],
    ]
    assert [text.get_text() for text in right.texts] == ["0.0050", "0.0010", "< 0.0001", "0.0020"]

    ranges = pd.DataFrame(
        {"domain": domains, "lowest": [0.0, 0.5, 0.2], "highest": [0.2, 0.7, 0.4]}
    )
    default = {"large": 0.2, "small": 0.7, "middle": 0.1}
    axis = landscape_plots.near_optimal(ranges, {"best": best, "default": default}).axes[0]
    ends = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axis.containers[0]]
    np.testing.assert_allclose(ends, [(0.5, 0.7), (0.2, 0.4), (0.0, 0.2)])
    marks = {c.get_label(): np.asarray(c.get_offsets())[:, 0].tolist() for c in axis.collections}
    assert marks == {"best": [0.6, 0.3, 0.1], "default": [0.2, 0.1, 0.7]}

    losses = {"best": {"p": 1.0, "q": 3.0}, "default": {"p": 2.0, "q": 2.5}}
    intervals = {n: {d: (x - 0.1, x + 0.2) for d, x in of.items()} for n, of in losses.items()}
    above = {"best": (0.0, 0.0), "default": (0.02, 0.01)}
    figure = search_plots.mixtures({"best": best, "default": default}, losses, intervals, above)
    left, right, last = axes(figure)
    bars: Any = [line.lines[2][0].get_segments()[0][:, 0].tolist() for line in last.containers]
    np.testing.assert_allclose(bars, [[0.0, 0.0], [0.01, 0.03]])
    assert [tick.get_text() for tick in last.get_yticklabels()] == ["best", "default"]
    widths = [[bar.get_width() for bar in bars] for bars in left.containers]
    assert widths == [[0.6, 0.3, 0.1], [0.2, 0.1, 0.7]]
    lines, values = right.collections[0], right.collections[1]
    np.testing.assert_allclose(np.asarray(values.get_offsets())[:, 0], [3.0, 1.0])
    np.testing.assert_allclose([s[:, 0] for s in lines.get_segments()], [(2.9, 3.2), (0.9, 1.2)])


def test_the_front_is_a_line_through_its_own_points() -> None:
    front = pd.DataFrame({"p": [3.0, 1.0, 2.0, 3.5], "q": [1.0, 3.0, 2.0, 3.5]})
    front["on_front"] = [True, True, True, False]
    axis = search_plots.pareto(front, ("p", "q"), {"best": {"p": 2.0, "q": 2.0}}).axes[0]
    np.testing.assert_array_equal(axis.lines[0].get_xydata(), [(1, 3), (2, 2), (3, 1)])
    assert [text.get_text() for text in axis.texts] == ["best"]
    assert axis.get_xlabel() == "p (nats/token)"


def test_curves_show_the_best_proportion_and_what_is_near_optimal() -> None:
    share = np.linspace(0, 1, 101)
    curves = {
        d: pd.DataFrame(
            {"proportion": share, "objective": y, "low": y - 0.1, "high": y + 0.1, "near": y < 2.05}
        )
        for d, y in (("a", 2 + (share - 0.3) ** 2), ("b", 2 + (share - 0.7) ** 2))
    }
    best = {"a": 0.3, "b": 0.7}
    figure = landscape_plots.loss_against_proportions(curves, best)
    assert [axis.get_title() for axis in figure.axes] == ["b", "a"]
    for axis in figure.axes:
        star = np.asarray(axis.collections[-1].get_offsets())
        np.testing.assert_allclose(star, [(best[axis.get_title()], 2.0)])
        assert np.nanmax(axis.lines[1].get_ydata()) == pytest.approx(2.05, abs=0.01)


def test_the_slope_at_the_chosen_pull_is_its_strength() -> None:
    divergence = np.array([0.5, 0.1, 1.0])
    path = pd.DataFrame({"strength": 0.1 / (1 + divergence), "divergence": divergence}).assign(
        gain=0.1 * np.log(1 + divergence), objective=0.0
    )
    axis = axes(landscape_plots.pull_path(path, path["strength"][0]))[0]
    x, y = axis.lines[1].get_data()
    assert np.diff(y) / np.diff(x) == pytest.approx(0.1 / 1.5)
    assert np.interp(0.5, x, y) == pytest.approx(0.1 * np.log(1.5))
