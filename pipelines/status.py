"""`status`: what has become of a study's sweep, from any machine."""

import json
import shutil
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import mlflow

from pipelines.command import table, texts
from pipelines.runs import sweep_status
from pipelines.runs.sweep_status import Status
from pipelines.study import load as studies
from pipelines.study.prepared import Prepared
from training import run_log
from training.delivery import outbox
from training.delivery.courier import Courier
from training.delivery.outbox import Outbox
from training.engine import checkpoint
from training.record import attempts, keys, layout
from training.record.errors import InputError
from training.record.mlflow_runs import close, search
from training.run import fingerprint

WATCH_SECONDS = 5
CLEAR = "\x1b[2J\x1b[H"  # of a terminal


@dataclass(frozen=True)
class Parameters:
    study: str = table.study()
    watch: bool = table.parameter(
        "`true`: show it again every few seconds, until the sweep is done or Ctrl-C.",
        texts.boolean,
        default="false",
    )
    clean: bool = table.parameter(
        "`true`: end MLflow runs that nobody trains any more, and remove checkpoints that nobody "
        "will go on from.",
        texts.boolean,
        default="false",
    )


def main(parameters: Parameters, active: mlflow.ActiveRun) -> None:
    study = studies.load(parameters.study)
    prepared = Prepared.find(study)
    if prepared is None:
        raise InputError(
            f"study: the text of {study.name!r} is not prepared in {study.workspace}, so it has no "
            "sweep there; start it with the entry point sweep"
        )
    _refuse_without_sweep(prepared, active)
    if parameters.clean:
        print("\n".join(_clean(prepared, active)) or "nothing to clean")
    status = _shown(prepared, active, clear=parameters.watch and sys.stdout.isatty())
    with suppress(KeyboardInterrupt):  # how watching ends
        while parameters.watch and not status.is_over():
            time.sleep(WATCH_SECONDS)
            status = _shown(prepared, active, clear=sys.stdout.isatty())
    mlflow.log_text(status.table().to_csv(index=False), sweep_status.FILE)
    mlflow.log_metrics(
        {
            "runs_planned": len(status.runs),
            **{f"runs_{s}": status.count(s) for s in ("done", "running", "waiting", "failed")},
        }
    )


def _shown(prepared: Prepared, active: mlflow.ActiveRun, *, clear: bool) -> Status:
    """The status, which is printed; on a terminal that is cleared first."""
    status = sweep_status.gather(prepared, active)
    text = "\n".join(sweep_status.lines(status))
    print(CLEAR + text if clear else text, flush=True)
    return status


def _refuse_without_sweep(prepared: Prepared, active: mlflow.ActiveRun) -> None:
    """Raise InputError if the experiment of the active run has no sweep of a study."""
    place, tag = active.info.experiment_id, prepared.tag
    if not search([place], f"tags.{keys.STAGE} = '{keys.SWEEP}' and tags.{keys.STUDY} = '{tag}'"):
        raise InputError(
            f"study: experiment {mlflow.get_experiment(place).name!r} has no sweep of "
            f"{prepared.study.name!r} as the study file now describes it ({tag}); start it with "
            "the entry point sweep, or name its experiment (--experiment-name)"
        )


def _clean(prepared: Prepared, active: mlflow.ActiveRun) -> Iterator[str]:
    """End runs and remove checkpoints that nobody goes on with; says what."""
    experiment, workspace = active.info.experiment_id, prepared.study.workspace
    status = sweep_status.gather(prepared, active)
    planned = {fingerprint(run.run): run.state for run in status.runs}
    finished = attempts.finished_ids(experiment, keys.PROXY)
    going_on = {key for key in planned if key not in finished}
    folders = sorted((workspace / checkpoint.CHECKPOINTS).glob("*/"))
    own = {folder for folder in folders if _is_of(folder, workspace, prepared.tag)}
    for box in outbox.waiting(workspace):
        with suppress(FileNotFoundError):  # delivered meanwhile
            if _is_over(box, prepared.tag, going_on):
                box.abandon("nobody goes on with it")
    outbox.close_dead(workspace, planned)
    Courier(workspace).deliver()
    query = f"attributes.status = 'RUNNING' and tags.{keys.STUDY} = '{prepared.tag}'"
    for run in search([experiment], f"{query} and tags.{keys.STAGE} = '{keys.PROXY}'"):
        key = run.data.tags.get(keys.FINGERPRINT, "")
        held = planned.get(key) in (sweep_status.RUNNING, sweep_status.DELIVERING)
        swept = key in planned and keys.PROCESS not in run.data.tags
        if swept and not held and not checkpoint.is_locked(workspace, key):
            close(run.info.run_id, "nobody trains it any more")
            yield f"ended MLflow run {run.info.run_name} ({run.info.run_id}): nobody trains it"
    for folder in folders:
        key, _, damaged = folder.name.partition(".damaged-")
        if checkpoint.is_locked(workspace, key) or (key in going_on and not damaged):
            continue
        if not damaged and key not in finished and folder not in own:
            yield f"left {folder}: it is of another study or command"
            continue
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        shutil.rmtree(folder)
        yield f"removed checkpoint {folder} ({layout.short_count(size)}B)"


def _is_over(box: Outbox, tag: str, going_on: Collection[str]) -> bool:
    """Whether an outbox of a study is of a run that nobody goes on with."""
    header = box.header
    key, workspace = header.fingerprint, box.folder.parents[1]
    ours = header.study == tag and header.stage == keys.PROXY and header.run_id is None
    over = ours and key not in going_on and not box.end()
    return over and not checkpoint.is_locked(workspace, key)


def _is_of(folder: Path, workspace: Path, tag: str) -> bool:
    """Whether a checkpoint is of a proxy of this study."""
    with suppress(OSError, ValueError, KeyError):
        state = json.loads((folder / checkpoint.STATE).read_text())
        box = outbox.folder(workspace) / state[checkpoint.LOG_STATE][run_log.ATTEMPT]
        header = Outbox(box).header
        return header.study == tag and header.stage == keys.PROXY and header.run_id is None
    return False
