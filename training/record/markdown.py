"""Descriptions in Markdown, which MLflow's pages show, with links that work on every server.

An address is relative to the page that shows it, so it holds at any host and below any path.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from urllib.parse import quote, urlencode

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from training.record import layout
from training.record.keys import TAG_LIMIT
from training.record.secrets import masked

MODE = "workflowType=machine_learning"  # the side of MLflow's UI that shows training runs
ROWS = 25  # at most, of a table of domains
SPECIAL = re.compile(r"([\\`*_\[\]<>|~#!])")


def run_page(run: Run, artifact: str = "") -> str:
    """The address of a run's page, or of one of its artifacts there."""
    inside = f"/artifacts/{quote(artifact)}" if artifact else ""
    return f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}{inside}?{MODE}"


def version_page(name: str, version: str) -> str:
    """The address of the page of a registered model's version."""
    return f"#/models/{quote(name, safe='')}/versions/{version}"


def escaped(text: str) -> str:
    """A text as Markdown shows it literally; names keep underscores between letters."""
    return re.sub(r"(?<=\w)\\_(?=\w)", "_", SPECIAL.sub(r"\\\1", text)).replace("\n", " ")


def link(text: str, page: str) -> str:
    return f"[{escaped(text)}]({page})"


def run_link(run_id: str, text: str = "") -> str:
    """A link to a run, by its name unless a text is given; the bare text if the run is gone."""
    with suppress(MlflowException):
        run = mlflow.get_run(run_id)
        return link(text or str(run.info.run_name), run_page(run))
    return escaped(text or f"run {run_id} (deleted)")


def version_link(name: str, version: str) -> str:
    return link(f"{name} v{version}", version_page(name, version))


def figure(run: Run, name: str, shows: str) -> str:
    """A figure of a run; `shows` says what is in it."""
    query = urlencode({"path": f"figures/{name}.png", "run_uuid": run.info.run_id})
    return f"![{escaped(shows)}](get-artifact?{query})"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = True) -> str:
    """A table whose cells are Markdown; columns of numbers, all but the first, are on the right."""
    ruler = [":--", *["--:" if numbers else ":--"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ruler, *rows))


def facts(values: Mapping[str, str], heads: tuple[str, str] = ("", "")) -> str:
    """Name and value in two columns; the values are Markdown."""
    return table(heads, values.items(), numbers=False)


def mixtures(
    shares: Mapping[str, Mapping[str, float]], below: Mapping[str, Mapping[str, str]]
) -> str:
    """A table of mixtures, a column each, domains by falling proportion in the first one; `below`
    are further rows, name → mixture → cell."""
    first = next(iter(shares.values()))
    ranked = sorted(first, key=lambda domain: -first[domain])
    cut = ROWS if len(ranked) > ROWS + 1 else len(ranked)
    rows = [
        [escaped(domain), *(f"{mixture[domain]:.3f}" for mixture in shares.values())]
        for domain in ranked[:cut]
    ]
    if rest := ranked[cut:]:
        sums = (sum(mixture[domain] for domain in rest) for mixture in shares.values())
        rows.append([f"{len(rest)} further domains", *(f"{total:.3f}" for total in sums)])
    rows += [
        [f"**{escaped(name)}**", *(cells.get(mixture, "") for mixture in shares)]
        for name, cells in below.items()
    ]
    return table(["", *map(escaped, shares)], rows)


def cautions(lines: Sequence[str]) -> str:
    """A list of warnings."""
    return "\n".join(f"- ⚠ {escaped(line)}" for line in lines)


def fitting_parts(parts: Iterable[str], end: str = "", room: int = TAG_LIMIT) -> str:
    """The parts of a description, the most important first, as far as they fit, and its end."""
    text = ""
    for part in filter(None, map(masked, parts)):
        if len(text) + len(part) + 2 <= room - len(end) - 2:
            text += part + "\n\n"
    return (text + end).rstrip()


def description(parts: Iterable[str], run: Run) -> str:
    """The description of a run that has a report among its artifacts, with a link to it."""
    return fitting_parts(parts, link("the whole report", run_page(run, layout.REPORT)))


def with_line(text: str, heading: str, line: str) -> str:
    """A description with one more line in the list below a heading, the newest first; the oldest
    ones give way where they do not fit."""
    before, _, below = text.partition(f"**{heading}**\n\n")
    rows = below.splitlines()
    count = next((i for i, row in enumerate(rows) if not row.startswith("- ")), len(rows))
    lines, after = list(dict.fromkeys([f"- {line}", *rows[:count]])), rows[count:]
    while lines:
        grown = "\n".join([before.rstrip(), "", f"**{heading}**", "", *lines, *after]).lstrip()
        if len(grown) <= TAG_LIMIT:
            return grown
        lines.pop()
    return text
