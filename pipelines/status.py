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
    if parameters.clean:
        for line in _clean(prepared, active):
            print(line)
    while True:
        status = sweep_status.gather(prepared, active)
        shown = "\n".join(sweep_status.lines(status))
        print(CLEAR + shown if parameters.watch and sys.stdout.isatty() else shown, flush=True)
        ended = status.count(sweep_status.DONE, sweep_status.DIVERGED, sweep_status.FAILED)
        if not parameters.watch or ended == len(status.runs):
            break
        time.sleep(WATCH_SECONDS)
    mlflow.log_text(status.table().to_csv(index=False), sweep_status.FILE)
    mlflow.log_metrics(
        {
            "runs_planned": len(status.runs),
            **{f"runs_{s}": status.count(s) for s in ("done", "running", "waiting", "failed")},
        }
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
