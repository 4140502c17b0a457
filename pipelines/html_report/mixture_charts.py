"""Figures of the mixtures: their proportions, their losses, what they gain."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from optimization.mixture.solve import BEST, DEFAULT
from pipelines.html_report import charts
from pipelines.html_report.charts import INK, MUTED, PAPER, Chart
from pipelines.html_report.findings import Findings
from pipelines.html_report.measured import half_width
from pipelines.html_report.numbers import fixed, joined, listed
from training.record import keys, layout

PANELS = 12  # figures of single domains, at most
FIRST = 6  # values, at most, of a text alternative that names domains
BEHIND = "The others are in the table."


def proportions(f: Findings) -> Chart:
    """Proportions of the mixtures, and the near-optimal range of each domain."""
    best, other = f.best, f.mixtures[f.compared_with]
    most = {d: max(m[d] for m in f.mixtures.values()) for d in best}
    shown = charts.largest(most)
    rows, chart = charts.names(shown), charts.figure()
    if len(f.ranges):
        ranges = f.ranges.set_index("domain").loc[shown]
        lowest, highest = (ranges[end].to_numpy(float) for end in ("lowest", "highest"))
        chart.add_bar(
            y=rows,
            x=highest - lowest,
            base=lowest,
            orientation="h",
            width=0.5,
            marker={"color": "var(--band)", "line": {"width": 0}},
            name="near-optimal range",
            customdata=highest,
            hovertemplate="near-optimal from %{base:.3f} to %{customdata:.3f}<extra></extra>",
        )
    styles = charts.styles(list(f.mixtures))
    for name, mixture in reversed(f.mixtures.items()):
        chart.add_scatter(
            y=rows,
            x=[mixture[d] for d in shown],
            mode="markers",
            marker=charts.marker(styles[name]),
            name=name,
            hovertemplate=f"{charts.plain(name)} %{{x:.4f}}<extra></extra>",
        )
    chart.update_layout(legend={"traceorder": "reversed"}, hovermode="y unified")
    top = max(most.values())
    top = max(top, float(f.ranges["highest"].max())) if len(f.ranges) else top
    limits = (-0.02 * top, 1.04 * top)  # room for a marker at 0
    chart.update_xaxes(title="proportion of the training tokens", range=limits)
    chart.update_yaxes(**charts.row_axis(len(rows)))
    change = {d: best[d] - other[d] for d in best}
    moved = sorted(change, key=lambda d: -abs(change[d]))[:3]
    cut = layout.short(moved, charts.NAME)
    caption = [
        "Near-optimal mixtures are those that the law cannot tell from the best one."
        if len(f.ranges)
        else "",
        f"The {len(shown)} largest of {len(best)} domains. {BEHIND}"
        if len(shown) < len(best)
        else "",
    ]
    first = {d: best[d] for d in charts.largest(best, FIRST)}
    return Chart(
        "proportions",
        f"The best mixture beside {charts.the(f.compared_with)}: "
        + listed({cut[d]: change[d] for d in moved}, 3, sign=True),
        " ".join(filter(None, caption)),
        f"Best mixture: {listed(first, 3)}",
        (chart,),
        f.lineage.search or f.lineage.fit,
        charts.height(len(shown)),
    )


def gains(f: Findings) -> Chart | None:
    """What the loss of each mixture lies above that of the best one."""
    if "difference" not in f.compared or f.gain is None:
        return None
    table = f.compared[f.compared["mixture"] != BEST].set_index("mixture")
    rows, chart, styles = list(table.index), charts.figure(), charts.styles(list(f.mixtures))
    predicted = table["difference"].to_dict()
    ends = table["difference_low"], table["difference_high"]
    colours = [styles[name][0] for name in rows]
    charts.add_intervals(chart, table["difference"], rows, colours, *ends)
    measured: dict[str, float] = {}
    if f.proof is not None:
        by_seed = f.targets_weighed.pivot_table("measured", "seed", "mixture")
        measured = {n: float((by_seed[n] - by_seed[BEST]).mean()) for n in rows if n in by_seed}
        gain = half_width(f.targets_weighed) if f.reweighed else f.proof.gain.half_width
        half = [gain if name == DEFAULT else None for name in measured]
        interval = {"type": "data", "array": half, "width": 5, "thickness": 1.5, "color": INK}
        charts.add_measured(chart, list(measured.values()), list(measured), error_x=interval)
    chart.add_vline(x=0, line={"color": "var(--best)", "width": 2})
    chart.update_layout(hovermode="closest")
    chart.update_yaxes(**charts.row_axis(len(rows)))
    chart.update_xaxes(title=f"loss above the best mixture's ({keys.unit_text(f.unit)})")
    clear = [name for name, low in zip(rows, table["difference_low"], strict=True) if low > 0]
    unclear = [name for name in rows if name not in clear]
    parts = [
        f"is better than {joined(clear)}" if clear else "",
        f"cannot be distinguished from {joined(unclear, word='or')}" if unclear else "",
    ]
    return Chart(
        "gains",
        f"By the law the best mixture {' and '.join(filter(None, parts))}",
        "A difference is more certain than a loss, because errors that mixtures share cancel."
        + (" The measured gain over default has an interval of its own." if measured else ""),
        f"Loss above the best mixture's, predicted: {listed(predicted, sign=True)}"
        + (f"; measured: {listed(measured, sign=True)}" if measured else ""),
        (chart,),
        f.lineage.search or f.lineage.fit,
        charts.height(len(rows), row=44),
    )


def beside(f: Findings) -> Chart | None:
    """Measured losses of the targets beside the predicted ones."""
    if f.proof is None:
        return None
    table = _once(f.proof.table)
    groups = table.groupby("mixture", sort=False)
    first, means = groups.first(), groups["measured"].mean()
    rows, chart, styles = list(first.index), charts.figure(), charts.styles(list(f.mixtures))
    known = [styles.get(name.partition(", ")[0], charts.OTHERS[-1]) for name in rows]
    colours = [colour for colour, *_ in known]
    charts.add_intervals(chart, first["predicted"], rows, colours, first["low"], first["high"])
    hover = "measured %{x:.4f}, seed %{customdata}<extra></extra>"
    charts.add_measured(
        chart, table["measured"], table["mixture"], "measured, one for each seed",
        customdata=table["seed"], hovertemplate=hover,
    )  # fmt: skip
    chart.update_layout(hovermode="closest")
    chart.update_yaxes(**charts.row_axis(len(rows)))
    chart.update_xaxes(title=f"weighted loss of the target ({keys.unit_text(f.unit)})")
    inside = int(((first["low"] <= means) & (means <= first["high"])).sum())
    return Chart(
        "beside",
        f"{inside} of {len(rows)} measured losses lie within the predicted interval",
        f"Predictions lie within {100 * f.proof.error:.1f} % of the measured losses, which are "
        f"means over seeds.{f.as_fitted}",
        "Predicted and measured losses: "
        + "; ".join(f"{n} {fixed(first['predicted'][n])} and {fixed(means[n])}" for n in rows),
        (chart,),
        f.lineage.verify,
        charts.height(len(rows), row=44),
    )


def _once(targets: pd.DataFrame) -> pd.DataFrame:
    """The targets, each once; a mixture whose runs are all another one's is named beside it."""
    runs: dict[tuple[str, ...], set[str]] = {}
    for name, rows in targets.groupby("mixture", sort=False):
        ids = set(rows["run_id"])
        same = next((names for names, held in runs.items() if ids <= held), ())
        held = runs.pop(same, ids)
        runs[(*same, str(name))] = held
    label = {names[0]: ", ".join(names) for names in runs}
    return targets[targets["mixture"].isin(label)].replace({"mixture": label})


def changes(f: Findings) -> tuple[dict[str, float], dict[str, float]]:
    """Each loss on the best mixture less that on the compared one, predicted, and less that on the
    default one, measured."""
    compared = f.compared.set_index("mixture")
    predicted: dict[str, float] = {}
    measured: dict[str, float] = {}
    if {BEST, f.compared_with} <= set(compared.index):
        columns = [column for column in compared if column.startswith(keys.VAL_LOSS)]
        best, other = (compared.loc[n, columns].astype(float) for n in (BEST, f.compared_with))
        difference = (best - other).dropna()
        predicted = {str(c).removeprefix(keys.VAL_LOSS): float(x) for c, x in difference.items()}
    if f.proof is not None:
        means = f.proof.table.drop(columns="run_id").groupby("mixture").mean()
        names = [c.removeprefix("measured/") for c in means if c.startswith("measured/")]
        best, default = means.loc[BEST], means.loc[DEFAULT]
        measured = {n: float(best[f"measured/{n}"] - default[f"measured/{n}"]) for n in names}
    return predicted, measured


def by_loss(f: Findings) -> Chart | None:
    """Which losses fall and which rise on the best mixture."""
    predicted, measured = changes(f)
    values = measured or predicted
    if len(values) < 2:
        return None
    repeated = f.proof is not None and f.proof.repeated and bool(measured)
    widths = f.uncertainty
    if f.proof is not None and repeated:
        widths = {n: half_width(f.proof.table, f"measured/{n}") for n in measured}
    shown = charts.largest({name: abs(x) for name, x in values.items()})
    rows, chart = charts.names(shown), charts.figure()
    row_of = dict(zip(shown, rows, strict=True))
    known = [name for name in shown if name in predicted]
    chart.add_bar(
        y=[row_of[n] for n in known],
        x=[predicted[n] for n in known],
        orientation="h",
        width=0.5,
        marker={
            "color": ["var(--worse)" if predicted[n] > 0 else "var(--better)" for n in known],
            "line": {"width": 0},
        },
        name="predicted",
        hovertemplate="predicted %{x:+.4f}<extra></extra>",
    )
    if measured:
        hover = "measured %{x:+.4f}<extra></extra>"
        ends = [widths.get(n) for n in shown] if repeated else None
        interval = {"type": "data", "array": ends, "width": 5, "thickness": 1.5, "color": INK}
        charts.add_measured(
            chart, [measured[n] for n in shown], rows, hovertemplate=hover, error_x=interval
        )
    chart.add_vline(x=0, line={"color": MUTED, "width": 1})
    chart.update_layout(hovermode="closest", showlegend=bool(measured))
    chart.update_yaxes(**charts.row_axis(len(rows)))
    chart.update_xaxes(title=f"change of the loss ({keys.unit_text(f.unit)}), left is better")
    of, other = ("measured", DEFAULT) if measured else ("predicted", f.compared_with)
    return Chart(
        "by_loss",
        told(values, widths),
        f"Loss on the best mixture less that on {charts.the(other)}. A change is clear if its 90 % "
        f"interval, {'between seeds' if repeated else 'by the law'}, excludes 0."
        + (f" The {len(shown)} largest changes of {len(values)}. {BEHIND}"
           if len(shown) < len(values) else ""),
        f"Change of each loss, {of}: {listed({n: values[n] for n in shown}, sign=True)}",
        (chart,),
        f.lineage.verify if measured else f.lineage.search or f.lineage.fit,
        charts.height(len(shown)),
    )  # fmt: skip


def told(values: Mapping[str, float], widths: Mapping[str, float]) -> str:
    """How many changes are clear: larger than half their intervals, where these are known."""
    clear = {n: x for n, x in values.items() if abs(x) > widths.get(n, np.inf)}
    higher = sorted((n for n in clear if clear[n] > 0), key=lambda n: -clear[n])
    lower, unclear, count = len(clear) - len(higher), len(values) - len(clear), len(values)
    if lower == count:
        return f"All {count} losses are clearly lower"
    if not clear:
        return f"None of {count} losses is clearly higher or lower"
    cut = layout.short(higher[:3], charts.NAME)
    most = listed({cut[n]: clear[n] for n in higher[:3]}, 3, sign=True)
    title = f"{len(higher)} of {count} losses {_are(len(higher))} clearly higher: {most}"
    title += ", …" if len(higher) > 3 else ""
    if not higher:
        title = f"{lower} of {count} losses {_are(lower)} clearly lower, none clearly higher"
    return title + (f"; {unclear} {_are(unclear)} unclear" if unclear else "")


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def against(f: Findings) -> Chart | None:
    """The loss above the best mixture's against the proportion of each large domain."""
    shown = charts.largest({d: share for d, share in f.best.items() if d in f.against}, PANELS)
    if not shown:
        return None
    curves = {d: f.against[d] for d in shown}
    rises = {d: float(curve["difference"].max()) for d, curve in curves.items()}
    near = [float(c["difference_high"][c["near"]].max()) for c in curves.values()]
    high = max(1.3 * float(np.median([*rises.values()])), float(np.nanmax(near)), 1e-6)
    low = min(float(c["difference_low"].min()) for c in curves.values())
    ends = (max(low, -high) - 0.05 * high, high)
    steepest = max(rises, key=lambda d: rises[d])
    unit, cut = keys.unit_text(f.unit), layout.short([steepest], charts.NAME)
    return Chart(
        "against",
        f"Within the bounds of the fit, the proportion of {cut[steepest]} matters most: up to "
        f"{fixed(rises[steepest], sign=True)} {unit}",
        f"Loss above the best mixture's ({unit}) as one domain's proportion changes and the others "
        "keep their ratios, with its 90 % interval. The thick part cannot be told from the best."
        + _of_many(len(shown), len(f.best)),
        f"Largest rise of the loss: {listed(rises)}",
        tuple(_panel(d, curves[d], f.best[d], ends) for d in shown),
        f.lineage.fit,
        210,
    )


def _of_many(shown: int, count: int) -> str:
    return f" The {shown} largest of {count} domains." if shown < count else ""


def _panel(domain: str, curve: pd.DataFrame, share: float, ends: tuple[float, float]) -> go.Figure:
    chart, x = charts.figure(), curve["proportion"]
    colour: Mapping[str, str] = {"color": "var(--best)"}
    chart.add_scatter(
        x=[*x, *x[::-1]],
        y=[*curve["difference_high"], *curve["difference_low"][::-1]],
        fill="toself",
        fillcolor=charts.BAND,
        mode="lines",
        line={"width": 0},
        hoverinfo="skip",
    )
    near = curve["difference"].where(curve["near"])
    chart.add_scatter(
        x=x, y=near, mode="lines", line={**colour, "width": 9}, opacity=0.45, hoverinfo="skip"
    )
    chart.add_scatter(
        x=x,
        y=curve["difference"],
        mode="lines",
        line={**colour, "width": 2},
        hovertemplate="%{x:.3f}: %{y:+.4f}<extra></extra>",
    )
    edge = {"color": PAPER, "width": 1}
    chart.add_scatter(
        x=[share],
        y=[0],
        mode="markers",
        marker={**colour, "symbol": "star", "size": 13, "line": edge},
        hovertemplate="best: %{x:.3f}<extra></extra>",
    )
    (name,) = charts.names([domain])
    chart.update_layout(
        showlegend=False,
        title={"text": name, "x": 0.5, "font": {"size": 13}},
        margin={"t": 28, "b": 24, "l": 40, "r": 6},
    )
    chart.update_xaxes(nticks=4, rangemode="tozero")
    chart.update_yaxes(range=ends, nticks=4)
    return chart
