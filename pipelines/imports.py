"""`import`: run histories in files → complete proxy runs in MLflow, ready to be fitted."""

import hashlib
import logging
import os
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import mlflow
from filelock import FileLock, Timeout

from fitting.importing import mixinglaws, pair, table_reader, writer
from fitting.importing.table_reader import ImportedRun, RunTable
from pipelines.command import experiment_page, saved_view, table, texts
from training.record import keys, layout, markdown
from training.record.errors import InputError
from training.record.mixtures import checked_weights
from training.record.mlflow_runs import log_params, open_run
from training.record.secrets import masked

logger = logging.getLogger("pipelines")

EXPERIMENT_LIMIT = 256  # characters of an experiment's name in MLflow's database
NOTICE_SECONDS = 2  # of waiting before it is reported
FORMATS = {  # format → the parameters that it takes
    "tidy": (),
    "pair": ("n_params", "tokens", "strip"),
    "mixinglaws": ("domains", "n_params", "base"),
}


@dataclass(frozen=True)
class Parameters:
    source: str = table.parameter(
        "tidy: a CSV or Parquet file. pair: two of them, separated by commas, or their folder. "
        "mixinglaws: its logs, or their folder.",
        default=None,
    )
    format: str = table.parameter(f"{', '.join(FORMATS)}.", default=None)
    experiment: str = table.parameter("The experiment to write to; by default this run's.")
    weights: str = table.parameter(
        "Weights of the validation domains: `web=2,code=1`, a JSON object or file."
    )
    domains: list[str] | None = table.parameter(
        "mixinglaws: the names of its domains, separated by commas.", texts.names
    )
    n_params: str = table.parameter(
        "Non-embedding parameters. pair: one number; mixinglaws: `70M=18915328,…`."
    )
    tokens: int | None = table.parameter("pair: the tokens of every run.", table.at_least(1))
    strip: list[str] | None = table.parameter(
        "pair: texts to cut off the ends of column names, separated by commas.", texts.names
    )
    check: list[str] | None = table.parameter(
        "Names of runs that no fit reads, separated by commas; `critical` checks with them.",
        texts.names,
    )
    base: str = table.parameter(
        "mixinglaws: the checkpoint of the base model, by the last part of its path in the logs, "
        "whose lines hold its losses."
    )
    unit: str = table.parameter("Unit of the losses; by default the files', or nats_per_token.")


def read(parameters: Parameters) -> RunTable:
    """The runs in the files; raises InputError for a parameter that the format does not take."""
    p = parameters
    if p.format not in FORMATS:
        raise InputError(f"format: {p.format!r}; it is {', '.join(FORMATS)}")
    for name in ("domains", "n_params", "tokens", "strip", "base"):
        if getattr(p, name) and name not in FORMATS[p.format]:
            takes = ", ".join(FORMATS[p.format]) or "no such parameters"
            raise InputError(f"{name}: format {p.format} takes {takes}")
    if p.format == "pair":
        n_params = texts.integer("n_params", p.n_params, least=1) if p.n_params else None
        return pair.pair(p.source, n_params, p.tokens, p.strip or [])
    if p.format == "mixinglaws":
        sizes = texts.pairs("n_params", p.n_params) if p.n_params else {}
        for size, count in sizes.items():
            texts.integer(f"n_params: {size}", str(count), least=1)
        return mixinglaws.logs(p.source, p.domains or [], sizes, p.base)
    return table_reader.tidy(p.source)


def mark_checks(run_table: RunTable, names: Sequence[str]) -> RunTable:
    """The table with the runs of these names marked as check runs, which no fit reads."""
    known = [run.name for run in run_table.runs]
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"check: no run {unknown[0]!r}; there are {', '.join(known[:5])} …")
    runs = (replace(run, check=True) if run.name in names else run for run in run_table.runs)
    return replace(run_table, runs=tuple(runs))


def with_unit(run_table: RunTable, unit: str) -> RunTable:
    """The table with the unit of its losses: this one, or else the files', or nats per token."""
    if unit and (fault := keys.unit_fault(unit)):
        raise InputError(f"unit: {fault}")
    if unit and run_table.unit and unit != run_table.unit:
        raise InputError(
            f"unit: {unit}, but the table's column {keys.UNIT!r} says {run_table.unit}"
        )
    unit = unit or run_table.unit or keys.NATS
    runs = tuple(replace(run, unit=unit) for run in run_table.runs)
    return replace(run_table, runs=runs, unit=unit)


def import_runs(run_table: RunTable, parameters: Parameters, active: mlflow.ActiveRun) -> None:
    """Write the runs below the active run, or below an import run in another experiment."""
    weights, experiment = parameters.weights, parameters.experiment
    weight = _weights(weights, run_table.val_domains()) if weights else {}
    own_id = active.info.experiment_id
    target_id = _experiment_id(experiment) if experiment else own_id
    new = writer.missing(run_table.runs, target_id, weight) if target_id else list(run_table.runs)
    for note in run_table.notes:
        print(f"import: {note}", flush=True)
    params = {
        "import/source": parameters.source,
        "import/format": parameters.format,
        keys.LOSS_UNIT: run_table.unit,
        **keys.with_prefix(keys.WEIGHT, weight),
    }
    if target_id == own_id:
        _write(new, active, params, run_table.notes)
    elif new:
        target_id = target_id or mlflow.create_experiment(experiment)
        with open_run(experiment_id=target_id, run_name=keys.IMPORT, nested=True) as parent:
            mlflow.set_tag(keys.STAGE, keys.IMPORT)
            _write(new, parent, params, run_table.notes)
        mlflow.set_tags({"import_experiment": experiment, "import_run": parent.info.run_id})
    _describe(target_id, run_table)
    mlflow.log_metrics(
        {"runs_imported": len(new), "runs_already_there": len(run_table.runs) - len(new)}
    )
    print("\n".join(report(run_table, len(new), mlflow.get_experiment(target_id).name)))


@contextmanager
def store_lock() -> Iterator[None]:
    """Lock the store against other imports on this machine, so that each sees earlier ones."""
    store = hashlib.sha256(mlflow.get_tracking_uri().encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir(), f"mixture-import-{os.getuid()}-{store}.lock")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=NOTICE_SECONDS)
    except Timeout:
        logger.warning("waiting for another import into this store")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _write(
    new: Sequence[ImportedRun],
    parent: mlflow.ActiveRun,
    params: Mapping[str, object],
    notes: Sequence[str],
) -> None:
    """Write the runs below their parent, the active run, which records where they are from."""
    info = parent.info
    log_params(info.run_id, params)
    if notes:
        mlflow.set_tag(keys.NOTE, masked("\n\n".join(notes))[: keys.TAG_LIMIT])
    if new:
        source = str(params["import/source"])
        writer.write(new, writer.Parent(info.experiment_id, info.run_id, source))


def _describe(experiment_id: str, run_table: RunTable) -> None:
    """Describe the experiment of the imported runs, and save a view of them."""
    name, domains = mlflow.get_experiment(experiment_id).name, list(run_table.runs[0].mixture)
    saved_view.save(experiment_id, name, "", domains, run_table.val_domains())
    question = (
        f"**Which mixture of {markdown.escaped(layout.some(domains))} has the lowest loss?** Runs "
        f"that were trained elsewhere; losses in {keys.unit_text(run_table.unit)}."
    )
    experiment_page.describe(experiment_id, question, saved_view.links(experiment_id, ""))


def report(run_table: RunTable, new: int, experiment: str) -> list[str]:
    """What was imported, in a few lines."""
    runs = run_table.runs
    evaluations = sum(len(run.history.steps) for run in runs)
    sizes = sorted({run.n_params for run in runs})
    mixtures = len({tuple(run.mixture.values()) for run in runs})
    lines = [
        f"import: {new} runs written to experiment {experiment!r}, {len(runs) - new} were there "
        "already",
        f"  {evaluations:,} evaluations on {len(run_table.val_domains())} validation domains, in "
        f"{keys.unit_text(run_table.unit)}; {mixtures} mixtures of {len(runs[0].mixture)} domains; "
        f"parameters: {', '.join(f'{n:,}' for n in sizes[:8])}",
    ]
    if checks := [run.name for run in runs if run.check]:
        lines.append(f"  check runs, which no fit reads: {', '.join(checks[:8])}")
    command = f"mlflow run . --env-manager uv -e fit -P experiment={shlex.quote(experiment)}"
    return [*lines, f"  fit them:  {command}"]


def _experiment_id(name: str) -> str:
    """The id of an experiment, empty if it does not exist; InputError for an invalid name."""
    valid = len(name) <= EXPERIMENT_LIMIT and not re.search(r"[\x00-\x1f\x7f]", name)
    if not valid or not name.strip():
        raise InputError(
            f"experiment: {table_reader.shown(name)} is not the name of an experiment, which has "
            f"1 to {EXPERIMENT_LIMIT} characters without tabs and line breaks"
        )
    experiment = mlflow.get_experiment_by_name(name)
    if experiment is None:
        return ""
    if experiment.lifecycle_stage != "active":
        raise InputError(f"experiment: {name!r} is deleted; restore it or choose another name")
    return experiment.experiment_id


def _weights(text: str, val_domains: Sequence[str]) -> dict[str, float]:
    """A weight for every validation domain, in the order of the domains."""
    weights = texts.numbers("weights", text)
    checked_weights(weights, val_domains)
    return {name: weights[name] for name in val_domains}


def main(parameters: Parameters, active: mlflow.ActiveRun) -> None:
    if not parameters.source:
        raise InputError("source: give the files to import")
    run_table = mark_checks(read(parameters), parameters.check or [])
    run_table = with_unit(run_table, parameters.unit)
    with store_lock():
        import_runs(run_table, parameters, active)
