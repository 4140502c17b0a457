"""`import`: run histories in files → complete proxy runs in MLflow, ready to be fitted."""

import hashlib
import logging
import math
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
from fitting.importing.table_reader import ForeignRun, RunTable
from pipelines import entry
from pipelines.command import table, texts
from training.record import keys
from training.record.errors import InputError
from training.record.mixtures import refuse_unknown
from training.record.mlflow_runs import log_params, open_run
from training.record.secrets import masked

logger = logging.getLogger("pipelines")

EXPERIMENT_LIMIT = 256  # characters of an experiment's name, of MLflow's database
NOTICE_SECONDS = 2  # of waiting before the terminal says so
FORMATS = {  # and the parameters that each one knows
    "tidy": (),
    "pair": ("n_params", "tokens", "strip"),
    "mixinglaws": ("domains", "n_params", "base"),
}


@dataclass(frozen=True)
class Parameters:
    source: str = table.parameter(
        "The files, separated by commas: CSV, Parquet or JSON lines.", default=None
    )
    format: str = table.parameter(f"{', '.join(FORMATS)}.", default=None)
    experiment: str = table.parameter("The experiment to write to; by default that of this run.")
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
        "pair: what is cut off the names of columns, separated by commas.", texts.names
    )
    check: list[str] | None = table.parameter(
        "Names of runs that no fit reads, separated by commas; `critical` checks with them.",
        texts.names,
    )
    base: str = table.parameter("mixinglaws: the file with the base model's losses.")
    unit: str = table.parameter("Of the losses; by default the files', or nats_per_token.")


def read(parameters: Parameters) -> RunTable:
    """The runs in the files; raises InputError for a parameter that the format does not know."""
    p = parameters
    if p.format not in FORMATS:
        raise InputError(f"format: {p.format!r}; it is {', '.join(FORMATS)}")
    for name in ("domains", "n_params", "tokens", "strip", "base"):
        if getattr(p, name) and name not in FORMATS[p.format]:
            knows = ", ".join(FORMATS[p.format]) or "none of the like"
            raise InputError(f"{name}: format {p.format} takes {knows}")
    if p.format == "pair":
        n_params = texts.integer("n_params", p.n_params, least=1) if p.n_params else None
        return pair.pair(p.source, n_params, p.tokens, p.strip or [])
    if p.format == "mixinglaws":
        sizes = texts.pairs("n_params", p.n_params) if p.n_params else {}
        for size, count in sizes.items():
            texts.integer(f"n_params: {size}", str(count), least=1)
        return mixinglaws.logs(p.source, p.domains or [], sizes, p.base)
    return table_reader.tidy(p.source)


def checks_marked(found: RunTable, names: Sequence[str]) -> RunTable:
    """The runs, those of these names marked as check runs, which no fit reads."""
    known = [run.name for run in found.runs]
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"check: no run {unknown[0]!r}; there are {', '.join(known[:5])} …")
    runs = (replace(run, check=True) if run.name in names else run for run in found.runs)
    return replace(found, runs=tuple(runs))


def measured_in(found: RunTable, unit: str) -> RunTable:
    """The runs with the unit of their losses: that given, or the files', or nats per token."""
    if unit and (fault := keys.unit_fault(unit)):
        raise InputError(f"unit: {fault}")
    if unit and found.unit and unit != found.unit:
        raise InputError(f"unit: {unit}, but the table's column {keys.UNIT!r} says {found.unit}")
    unit = unit or found.unit or keys.NATS
    return replace(found, runs=tuple(replace(run, unit=unit) for run in found.runs), unit=unit)


def import_runs(found: RunTable, parameters: Parameters, active: mlflow.ActiveRun) -> None:
    """Write the runs below the active run, or below a run of this stage in another experiment."""
    weights, experiment = parameters.weights, parameters.experiment
    weight = _weights(weights, found.val_domains()) if weights else {}
    here = active.info.experiment_id
    there = _experiment_id(experiment) if experiment else here
    new = writer.missing(found.runs, there, weight) if there else list(found.runs)
    for note in found.notes:
        print(f"import: {note}", flush=True)
    params = {
        "import/source": parameters.source,
        "import/format": parameters.format,
        keys.UNIT: found.unit,
        **keys.with_prefix(keys.WEIGHT, weight),
    }
    if there == here:
        _write(new, active, params, found.notes)
    elif new:
        there = there or mlflow.create_experiment(experiment)
        with open_run(experiment_id=there, run_name=keys.IMPORT, nested=True) as parent:
            mlflow.set_tag(keys.STAGE, keys.IMPORT)
            _write(new, parent, params, found.notes)
        mlflow.set_tags({"import_experiment": experiment, "import_run": parent.info.run_id})
    mlflow.log_metrics(
        {"runs_imported": len(new), "runs_already_there": len(found.runs) - len(new)}
    )
    print("\n".join(report(found, len(new), mlflow.get_experiment(there).name)))


@contextmanager
def alone() -> Iterator[None]:
    """One import into a store at a time on this machine: each sees what the others have written."""
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
    new: Sequence[ForeignRun],
    parent: mlflow.ActiveRun,
    params: Mapping[str, object],
    notes: Sequence[str],
) -> None:
    """Write the runs below their parent, the active run, which tells where they are from."""
    info = parent.info
    log_params(info.run_id, params)
    if notes:
        mlflow.set_tag(keys.NOTE, masked("\n\n".join(notes))[: keys.TAG_LIMIT])
    if new:
        source = str(params["import/source"])
        writer.write(new, writer.Parent(info.experiment_id, info.run_id, source))


def report(found: RunTable, new: int, experiment: str) -> list[str]:
    """What was imported, in a few lines."""
    runs = found.runs
    evaluations = sum(len(run.history.steps) for run in runs)
    sizes = sorted({run.n_params for run in runs})
    mixtures = len({tuple(run.mixture.values()) for run in runs})
    lines = [
        f"import: {new} runs written to experiment {experiment!r}, {len(runs) - new} were there "
        "already",
        f"  {evaluations:,} evaluations on {len(found.val_domains())} validation domains, in "
        f"{keys.unit_text(found.unit)}; {mixtures} mixtures of {len(runs[0].mixture)} domains; "
        f"parameters: {', '.join(f'{n:,}' for n in sizes[:8])}",
    ]
    if checks := [run.name for run in runs if run.check]:
        lines.append(f"  check runs, which no fit reads: {', '.join(checks[:8])}")
    command = f"mlflow run . --env-manager uv -e fit -P experiment={shlex.quote(experiment)}"
    return [*lines, f"  fit them:  {command}"]


def _experiment_id(name: str) -> str:
    """The id of an experiment, empty if it is not there; InputError for what cannot be one."""
    held = len(name) <= EXPERIMENT_LIMIT and not re.search(r"[\x00-\x1f\x7f]", name)
    if not held or not name.strip():
        raise InputError(
            f"experiment: {table_reader.shown(name)} is not the name of an experiment, which has "
            f"1 to {EXPERIMENT_LIMIT} characters without tabs and line breaks"
        )
    found = mlflow.get_experiment_by_name(name)
    if found is None:
        return ""
    if found.lifecycle_stage != "active":
        raise InputError(f"experiment: {name!r} is deleted; restore it or choose another name")
    return found.experiment_id


def _weights(text: str, val_domains: Sequence[str]) -> dict[str, float]:
    """A weight for every validation domain, in their order."""
    given = texts.numbers("weights", text)
    refuse_unknown(given, val_domains, "weights")
    if missing := [name for name in val_domains if name not in given]:
        raise InputError(f"weights: no weight for {', '.join(missing)}; give 0 to ignore a domain")
    if not all(math.isfinite(w) and w >= 0 for w in given.values()) or not any(given.values()):
        raise InputError("weights: they must be >= 0 and not all 0")
    return {name: given[name] for name in val_domains}


def main(parameters: Parameters, active: mlflow.ActiveRun) -> None:
    if not parameters.source:
        raise InputError("source: give the files to import")
    runs = checks_marked(read(parameters), parameters.check or [])
    runs = measured_in(runs, parameters.unit)
    with alone():
        import_runs(runs, parameters, active)


if __name__ == "__main__":
    entry.main(keys.IMPORT, main, Parameters)
