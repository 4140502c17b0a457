"""The tables of the report."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlflow.entities import Run

from fitting.registry import DIAGNOSTIC, OLD_DIAGNOSTIC
from optimization.mixture.solve import BEST, DEFAULT
from pipelines.html_report import cost, lineage
from pipelines.html_report.findings import Findings
from pipelines.html_report.mixture_charts import changes
from pipelines.html_report.numbers import NO_VALUE, fixed, scientific
from training.record import keys, layout

TIME = "time"
LAW_COLUMNS = {  # of laws.json, with their names and decimals
    "weight": ("weight", 3),
    "held_out_rmse": ("held-out error", 4),
    "extrapolation_rmse": ("extrapolation error", 4),
    "expected_error": ("expected at the target", 4),
}


@dataclass(frozen=True)
class Cell:
    """A cell's text, the number that it stands for if it does, and the run that it names."""

    text: str
    value: float | None = None
    run: Run | None = None


@dataclass(frozen=True)
class Table:
    """A table; its first column names the rows."""

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    source: Run | None  # the run that holds the numbers

    @property
    def numeric(self) -> list[bool]:
        """Whether each column holds numbers."""
        columns = zip(*self.rows, strict=True)
        return [
            any(cell.value is not None for cell in column)
            or all(cell.text == NO_VALUE for cell in column)
            for column in columns
        ]


def all_of(f: Findings) -> dict[str, Table]:
    """The tables that have rows, by name."""
    makers = (mixtures, compared, losses, laws, diagnostics, trained, targets, proxies, proposals)
    return {table.name: table for table in (make(f) for make in makers) if table.rows}


def mixtures(f: Findings) -> Table:
    """The proportions, and the near-optimal range of each domain."""
    ranges = f.ranges.set_index("domain") if len(f.ranges) else None
    rows = []
    for domain in f.best:
        cells = [Cell(domain), *(_number(m[domain]) for m in f.mixtures.values())]
        if ranges is not None:
            cells += [_number(float(ranges.loc[domain, end])) for end in ("lowest", "highest")]
        rows.append(tuple(cells))
    ends = ("near-optimal from", "to") if ranges is not None else ()
    caption = "Proportions of the training tokens"
    columns = ("domain", *f.mixtures, *ends)
    return Table("mixtures", caption, columns, tuple(rows), f.lineage.search or f.lineage.fit)


def compared(f: Findings) -> Table:
    """Predicted and measured losses of the mixtures."""
    means = f.targets_weighed.groupby("mixture")["measured"].mean() if f.proof else {}
    differences = "difference" in f.compared
    above = "above the best" if f.base == BEST else f"above the {f.base}"
    rows = []
    for row in f.compared.to_dict("records"):
        cells = [Cell(str(row["mixture"])), *_with_interval(row, "objective")]
        if differences:
            none = [Cell(NO_VALUE)] * 3
            cells += none if row["mixture"] == f.base else _with_interval(row, "difference", True)
        cells.append(_number(row["distance"], 3))
        cells += [_number(means.get(row["mixture"]))] if f.proof else []
        rows.append(tuple(cells))
    return Table(
        "compared",
        f"Losses of the compared mixtures, {keys.unit_text(f.unit)}; distance is the share of "
        "tokens by which a mixture differs from the nearest one that was trained",
        (
            *("mixture", "predicted loss", "90 % from", "to"),
            *((above, "90 % from", "to") if differences else ()),
            "distance",
            *(("measured loss",) if f.proof else ()),
        ),
        tuple(rows),
        f.lineage.search or f.lineage.fit,
    )


def losses(f: Findings) -> Table:
    """Each loss on the best and the compared mixture, predicted and measured."""
    by_name = f.compared.set_index("mixture")
    means = f.proof.table.drop(columns="run_id").groupby("mixture").mean() if f.proof else None
    predicted, measured = changes(f)
    rows = []
    for name in {**predicted, **measured}:
        column = keys.VAL_LOSS + name
        cells = [Cell(name), _number(f.weights.get(name), 3)]
        for mixture in (BEST, f.compared_with):
            known = mixture in by_name.index and column in by_name
            cells.append(_number(float(by_name.loc[mixture, column]) if known else None))
        cells.append(_number(predicted.get(name), sign=True))
        if means is not None:
            cells += [_number(means.loc[m].get(f"measured/{name}")) for m in (BEST, DEFAULT)]
            cells.append(_number(measured.get(name), sign=True))
        rows.append(tuple(cells))
    return Table(
        "losses",
        f"Losses by domain, set and task, {keys.unit_text(f.unit)}",
        (
            *("loss of", "weight", "predicted on best", f"on {f.compared_with}", "change"),
            *(("measured on best", f"on {DEFAULT}", "change") if means is not None else ()),
        ),
        tuple(rows),
        f.lineage.verify if f.proof else f.lineage.search or f.lineage.fit,
    )


def laws(f: Findings) -> Table:
    """The laws that were tried."""
    known = {c: told for c, told in LAW_COLUMNS.items() if c in f.laws}
    rows = []
    for row in f.laws.to_dict("records"):
        chosen = bool(row["chosen"])
        texts = [row[c] for c in ("note", "form") if isinstance(row.get(c), str)]
        rows.append(
            (
                Cell(f"{row['law']} (chosen)" if chosen else row["law"]),
                *(_number(row[c], decimals) for c, (_, decimals) in known.items()),
                Cell("see above" if chosen else next(iter(texts), "")),
            )
        )
    return Table(
        "laws",
        f"The laws; errors are root mean squares, {keys.unit_text(f.unit)}",
        ("law", *(name for name, _ in known.values()), "form"),
        tuple(rows),
        f.lineage.fit,
    )


def diagnostics(f: Findings) -> Table:
    """What the fit was tested for."""
    fit, rows = f.lineage.fit, []
    for key, text in fit.data.tags.items() if fit else ():
        prefix = next((p for p in (DIAGNOSTIC, OLD_DIAGNOSTIC) if key.startswith(p)), None)
        if fit and prefix is not None:
            name = key.removeprefix(prefix).replace("_", " ")
            rows.append((Cell(name), _number(fit.data.metrics.get(key)), Cell(text)))
    columns = ("diagnostic", "value", "warning")
    return Table("diagnostics", "Diagnostics of the fit", columns, tuple(rows), fit)


def trained(f: Findings) -> Table:
    """What was trained, and what it cost."""
    rows = [
        (
            Cell(f"{row.kind} {row.size}".strip()),
            _count(row.n_params),
            _number(float(row.runs), 0),
            _count(row.tokens),
            Cell(scientific(row.flops), row.flops if math.isfinite(row.flops) else None),
            _time(row.hours),
        )
        for row in f.trained
    ]
    columns = ("models", "parameters", "runs", "tokens", "FLOPs", TIME)
    return Table("trained", "What was trained", columns, tuple(rows), f.lineage.fit)


def targets(f: Findings) -> Table:
    """Every target."""
    rows = []
    for row in f.proof.table.to_dict("records") if f.proof else ():
        run = f.targets.get(row["run_id"])
        rows.append(
            (
                Cell(str(run.info.run_name) if run else str(row["run_id"]), run=run),
                Cell(str(row["mixture"])),
                _number(float(row["seed"]), 0),
                _number(row["predicted"]),
                _number(row["measured"]),
                _time(cost.hours(run) if run else None),
            )
        )
    caption = f"Targets, weighted losses in {keys.unit_text(f.unit)}"
    caption += ", weighed as the fit did" if f.reweighed else ""
    columns = ("target", "mixture", "seed", "predicted", "measured", TIME)
    return Table("targets", caption, columns, tuple(rows), f.lineage.verify)


def proxies(f: Findings) -> Table:
    """Every run that was fitted."""
    last = {curve.run_id: curve.losses[-1] for curve in f.proxies if curve.losses}
    rows = [
        (
            Cell(str(run.info.run_name), run=run),
            _count(float(run.data.params.get(keys.N_PARAMS, "nan"))),
            _count(run.data.metrics.get(keys.TOKENS, math.nan)),
            _number(last.get(run.info.run_id)),
            _time(cost.hours(run)),
        )
        for run in sorted(f.fitted, key=lambda r: str(r.info.run_name))
    ]
    caption = f"Fitted runs, weighted losses in {keys.unit_text(f.unit)}"
    columns = ("run", "parameters", "tokens", "last loss", TIME)
    return Table("proxies", caption, columns, tuple(rows), f.lineage.fit)


def proposals(f: Findings) -> Table:
    """The mixtures that `design` proposed."""
    table, domains = lineage.table(f.design, "proposals.json"), list(f.best)
    rows = tuple(
        (Cell(str(row["mixture"])), *(_number(row.get(keys.MIXTURE + d)) for d in domains))
        for row in table.to_dict("records")
    )
    columns = ("mixture", *domains)
    return Table("proposals", "Mixtures that design proposed", columns, rows, f.design)


def _number(value: float | None, decimals: int = 4, *, sign: bool = False) -> Cell:
    if value is None or not math.isfinite(value):
        return Cell(NO_VALUE)
    return Cell(fixed(value, decimals, sign=sign), float(value))


def _with_interval(row: Mapping[Any, Any], name: str, sign: bool = False) -> list[Cell]:
    """A value and the ends of its interval."""
    return [_number(row[key], sign=sign) for key in (name, f"{name}_low", f"{name}_high")]


def _count(number: float) -> Cell:
    return Cell(layout.short_count(number), number) if math.isfinite(number) else Cell(NO_VALUE)


def _time(hours: float | None) -> Cell:
    return Cell(NO_VALUE) if hours is None else Cell(layout.duration(hours), hours)
