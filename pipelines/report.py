"""`report`: what a study found, whether to believe it and what comes next, as one HTML file."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from pipelines import entry
from pipelines.command import advice, table
from pipelines.command.output import writing
from pipelines.html_report import findings, lineage, render
from pipelines.html_report.lineage import Lineage
from pipelines.runs import preflight
from pipelines.study import load as studies
from pipelines.study.prepared import TAG_DIGITS, Prepared
from pipelines.study.study import Study
from training.record import keys, markdown
from training.record.errors import InputError, first_line

FILE = "report.html"  # the artifact


@dataclass(frozen=True)
class Parameters:
    study: str = table.study("")
    experiment: str = table.experiment()
    output: str = table.parameter("A file to write too; by default only the artifact.")


def write(found: Lineage, run: Run, study: str = "") -> str:
    """The report of an answer, logged to a run; `study` is the study file, if it is known."""
    html = render.render(findings.gather(found), run, study)
    mlflow.log_text(html, FILE, run_id=run.info.run_id)
    return html


def attach_report(active: mlflow.ActiveRun, study: str) -> str:
    """Log the report of what a run of `main` or `verify` found, and say so in a line. A report that
    fails loses nothing of the run: the line says why and how to try again."""
    try:
        run = mlflow.get_run(active.info.run_id)
        write(lineage.of(run), run, study)
    except Exception as error:  # whatever it is, the study is done
        again = _command("report", active, study=study)
        return f"{FILE} could not be written ({first_line(error)}); to try again:  {again}"
    figures = markdown.link("with figures", markdown.run_page(run, FILE))
    with suppress(MlflowException):  # one that is too long already
        mlflow.set_tag(keys.NOTE, f"{run.data.tags.get(keys.NOTE, '')}, {figures}")
    return f"{FILE}, among its artifacts, has all of this on one page"


def main(parameters: Parameters, active: mlflow.ActiveRun) -> None:
    output = Path(parameters.output).absolute() if parameters.output else None
    if output is not None:
        preflight.output(output)
    study = studies.load(parameters.study) if parameters.study else None
    experiments = entry.experiment_ids(parameters.experiment, active)
    found = lineage.newest(experiments, _of_study(study))
    if found is None:
        raise InputError(_nothing(experiments, parameters, active))
    run = mlflow.get_run(active.info.run_id)
    html = write(found, run, parameters.study)
    newest = found.newest
    stage, name = newest.data.tags[keys.STAGE], newest.info.run_name
    print(f"report: what {stage} run {name!r} ({newest.info.run_id}) found")
    if output is not None:
        with writing(output):
            output.write_text(html)
        print(f"  {len(html) / 1e6:.1f} MB → {output}")
    print(f"look at it:  {advice.look_at(run, FILE)}")


def _of_study(study: Study | None) -> Callable[[Run], bool]:
    """Whether a run is one of the study's."""
    if study is None:
        return lambda _: True
    prepared = Prepared.find(study)

    def belongs(run: Run) -> bool:
        tag = run.data.tags.get(keys.STUDY, "")
        return tag == prepared.tag if prepared else tag[:-TAG_DIGITS] == f"{study.name}-"

    return belongs


def _nothing(experiments: list[str], p: Parameters, active: mlflow.ActiveRun) -> str:
    """What to do where there is nothing to report."""
    names = ", ".join(repr(mlflow.get_experiment(e).name) for e in experiments)
    query = f"tags.{keys.STAGE} = '{keys.PROXY}' and tags.{keys.COMPLETE} = 'true'"
    runs = mlflow.MlflowClient().search_runs(experiments, query, max_results=1)
    if p.study:
        todo = f"fit its runs first: {_command('fit', active, study=p.study)}"
    elif runs:
        todo = f"fit its runs first: {_command('fit', active, experiment=p.experiment)}"
    else:
        todo = "it has no runs to fit either: train them with sweep, or bring them with import"
    of = f" of study {p.study}" if p.study else ""
    return f"experiment: there is no finished fit{of} in {names}; {todo}"


def _command(name: str, active: mlflow.ActiveRun, **parameters: str) -> str:
    chosen = {key: value for key, value in parameters.items() if value}
    return advice.command(name, active.info.experiment_id, **chosen)
