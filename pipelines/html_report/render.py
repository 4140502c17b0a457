"""The page: findings, figures and tables as one HTML file that needs no network."""

import base64
import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import plotly
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from mlflow.entities import Run

from pipelines.html_report import fit_charts, mixture_charts, next_steps, statements, tables
from pipelines.html_report.charts import Chart
from pipelines.html_report.findings import Findings
from pipelines.html_report.links import Links
from training.record import version
from training.record.secrets import masked

HERE = Path(__file__).parent
CHARTS = (
    mixture_charts.proportions,
    mixture_charts.gains,
    mixture_charts.beside,
    mixture_charts.by_loss,
    fit_charts.over_tokens,
    fit_charts.held_out,
    fit_charts.laws,
    mixture_charts.against,
)
BUNDLE = "\0plotly\0"  # stands where the bundle comes in, which needs no masking; no name holds it
PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"


def render(f: Findings, run: Run, study: str = "") -> str:
    """The page of these findings; `run` is the one that holds it, `study` the study file if it is
    known."""
    links = Links.of_store(run)
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    charts = [draw(f) for draw in CHARTS]
    drawn = {chart.name: chart for chart in charts if chart is not None}
    page = environment.get_template("page.html").render(
        f=f,
        links=links,
        charts=drawn,
        tables=tables.all_of(f),
        statements=statements,
        missing=list(next_steps.missing(f, study)),
        steps=list(next_steps.steps(f, study)),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=version.version(),
        style=_asset("page.css"),
        script=_asset("page.js"),
        plotly=BUNDLE if drawn else "",
        figures=_json({name: _figures(chart) for name, chart in drawn.items()}),
    )
    return masked(page).replace(BUNDLE, _packed(PLOTLY.read_bytes()))


def _figures(chart: Chart) -> list[Any]:
    return [json.loads(figure.to_json()) for figure in chart.panels]


def _asset(name: str) -> Markup:
    """A file beside this one; it ends no script or style."""
    return Markup((HERE / name).read_text())


def _json(value: Any) -> Markup:
    """JSON that may stand within a script element."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _packed(script: bytes) -> str:
    """Compressed, as text of a third of the size; the browser unpacks it."""
    return base64.b64encode(gzip.compress(script, 9, mtime=0)).decode()
