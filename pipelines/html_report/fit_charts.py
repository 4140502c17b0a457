"""Figures of the fit: whether its law can be believed."""

import numpy as np

from pipelines.html_report import charts
from pipelines.html_report.charts import MUTED, Chart
from pipelines.html_report.findings import Findings
from pipelines.html_report.numbers import fixed, listed, ordinal
from training.record import keys, layout, words

SHADES = 4  # of the sizes of proxies, in page.css
FEW_RUNS = 60  # whose points are drawn large
ERRORS = (  # columns of the table of laws, with their names, symbols and colours
    ("held_out_rmse", "held-out mixtures", "circle", charts.INK),
    ("extrapolation_rmse", "extrapolation", "diamond", "var(--default)"),
    ("expected_error", "expected at the target", "square", "var(--reference)"),
)


def over_tokens(f: Findings) -> Chart | None:
    """The loss of the target over its tokens, by the law and as measured."""
    curves = f.measured or f.predicted
    if not curves:
        return None
    chart, styles = charts.figure(), charts.styles(list(f.mixtures))
    x: list[float | None] = []
    y: list[float | None] = []
    for curve in f.proxies:
        x += [*curve.tokens, None]
        y += [*curve.losses, None]
    chart.add_scatter(
        x=x, y=y, mode="lines", line={"color": "var(--faint)", "width": 1},
        name="fitted runs", hoverinfo="skip",
    )  # fmt: skip
    for group, kind, line in (
        (f.predicted, "by the law", {"dash": "dash", "width": 2}),
        (f.measured, "measured", {"width": 3}),
    ):
        for curve in group:
            chart.add_scatter(
                x=curve.tokens,
                y=curve.losses,
                mode="lines+markers" if kind == "measured" else "lines",
                line={"color": styles[curve.label][0], **line},
                marker={"size": 7},
                name=f"{curve.label}, {kind}",
                hovertemplate=f"{charts.plain(curve.label)} {kind}: %{{y:.4f}} at %{{x:.3s}} tokens"
                "<extra></extra>",
            )
    first = min(curve.tokens[0] for curve in (*curves, *f.proxies))
    last = max(curve.tokens[-1] for curve in (*curves, *f.proxies))
    chart.update_xaxes(title="training tokens", **charts.log_axis(first, last, "count"))
    chart.update_yaxes(title=f"weighted loss ({keys.unit_text(f.unit)})", automargin=True)
    chart.update_layout(hovermode="closest")
    ends = {curve.label: curve.losses[-1] for curve in curves}
    kind = "measured" if f.measured else "predicted"
    title = f"At {layout.short_count(f.tokens)} tokens, {kind}: {listed(ends)}"
    proof = None if f.reweighed else f.proof
    if proof is not None and proof.steps_to_default is not None and proof.steps:
        share = proof.steps_to_default / proof.steps
        part = f"{100 * share:.0f} % of the tokens"
        title = f"The best mixture has the default's final loss after {part}"
    return Chart(
        "tokens",
        title,
        f"The target has {layout.short_count(f.n_params)} parameters, the fitted runs have "
        f"{_sizes(f)}.",
        f"Loss at the end of training, {kind}: {listed(ends)}",
        (chart,),
        f.lineage.verify if f.measured else f.lineage.fit,
        420,
    )


def _sizes(f: Findings) -> str:
    sizes = {float(run.data.params.get(keys.N_PARAMS, "nan")) for run in f.fitted}
    known = sorted(size for size in sizes if np.isfinite(size))
    if not known:
        return "unknown sizes"
    ends = list(dict.fromkeys(layout.short_count(n) for n in (known[0], known[-1])))
    return " to ".join(ends)


def held_out(f: Findings) -> Chart | None:
    """Observed against predicted losses of held-out mixtures."""
    table = f.held_out.dropna() if len(f.held_out) else f.held_out
    if table.empty:
        return None
    chart, values = charts.figure(), table[["observed", "predicted"]].to_numpy(float)
    ends = [float(values.min()), float(values.max())]
    chart.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": MUTED, "width": 1},
        name="observed = predicted", hoverinfo="skip",
    )  # fmt: skip
    sizes = sorted(table[keys.N_PARAMS].unique())
    for i, size in enumerate(sizes):
        rows = table[table[keys.N_PARAMS] == size]
        shade = SHADES if len(sizes) == 1 else 1 + round((SHADES - 1) * i / (len(sizes) - 1))
        chart.add_scatter(
            x=rows["predicted"],
            y=rows["observed"],
            mode="markers",
            marker={
                "color": f"var(--size-{shade})",
                "size": 8 if len(table) <= FEW_RUNS else 5,
            },
            name=f"{layout.short_count(size)} parameters",
            text=[charts.plain(str(name)) for name in rows["run"]],
            hovertemplate="%{text}: predicted %{x:.4f}, observed %{y:.4f}<extra></extra>",
        )
    unit = keys.unit_text(f.unit)
    chart.update_xaxes(title=f"predicted without its mixture ({unit})")
    chart.update_yaxes(title=f"observed ({unit})", automargin=True)
    chart.update_layout(hovermode="closest")
    metrics = f.lineage.fit.data.metrics if f.lineage.fit else {}
    error = metrics.get("cv/objective_mae", float(np.abs(values[:, 0] - values[:, 1]).mean()))
    mean = metrics.get("cv/mean_prediction_mae")
    other = f"; {words.beside_mean(fixed(mean))}" if mean is not None else ""
    return Chart(
        "held_out",
        f"Held-out mixtures are predicted with a mean error of {fixed(error)} {unit}{other}",
        "Each point is a run at its last evaluation, predicted by a law without its mixture."
        + f.as_fitted,
        f"{layout.count(len(table), 'run')}, mean absolute error {fixed(error)} {unit}{other}",
        (chart,),
        f.lineage.fit,
        440,
    )


def laws(f: Findings) -> Chart | None:
    """The errors of each law on held-out mixtures and of extrapolation."""
    table = f.laws.dropna(subset="held_out_rmse") if "held_out_rmse" in f.laws else f.laws
    if len(table) < 2:
        return None
    table = table.sort_values("held_out_rmse")
    chosen = table[table["chosen"].astype(bool)]
    rows = [
        f"{law} (chosen)" if mine else law
        for law, mine in zip(table["law"], table["chosen"].astype(bool), strict=True)
    ]
    chart = charts.figure()
    columns = [column for column, *_ in ERRORS if column in table]
    for column, label, symbol, colour in ERRORS:
        if column in columns and table[column].notna().any():
            chart.add_scatter(
                y=rows,
                x=table[column],
                mode="markers",
                marker={"symbol": symbol, "size": 10, "color": colour},
                name=label,
                hovertemplate=f"{label}: %{{x:.4f}}<extra></extra>",
            )
    values = table[columns].to_numpy(float)
    axis = charts.log_axis(float(np.nanmin(values)), float(np.nanmax(values)))
    chart.update_xaxes(title=f"root mean square error ({keys.unit_text(f.unit)})", **axis)
    chart.update_yaxes(**charts.row_axis(len(rows)))
    chart.update_layout(hovermode="closest")
    errors = dict(zip(table["law"], table["held_out_rmse"], strict=True))
    ends = f"{fixed(min(errors.values()))} to {fixed(max(errors.values()))}"
    title = f"The laws have an RMSE of {ends} on held-out mixtures"
    if len(chosen):
        row = chosen.iloc[0]
        rank = 1 + int((table["held_out_rmse"] < row["held_out_rmse"]).sum())
        title = (
            f"The chosen law has an RMSE of {fixed(row['held_out_rmse'])} on held-out mixtures "
            f"({ordinal(rank)} of {len(table)})"
        )
    return Chart(
        "laws",
        title,
        "Extrapolation is to runs that are larger or longer than those that a backtest fits.",
        f"Root mean square errors on held-out mixtures: {listed(errors)}",
        (chart,),
        f.lineage.fit,
        charts.height(len(rows), row=36),
    )
