"""What has become of a study's proxies: from MLflow, the ledger and this machine's outboxes."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import mlflow
import pandas as pd
from mlflow.entities import Run as MlflowRun
from optuna.trial import FrozenTrial, TrialState

from pipelines.runs import proxy_runs
from pipelines.study.prepared import Prepared
from training.delivery import courier
from training.record import attempts, keys, layout, process, stores
from training.run import Run, fingerprint
from training.workers import ledger as ledgers

DONE, DIVERGED, RUNNING, WAITING, FAILED = "done", "diverged", "running", "waiting", "failed"
DELIVERING = "trained, not delivered yet"
FILE = "status.csv"  # the artifact of a sweep
LOG_SECONDS = 60


@dataclass(frozen=True)
class RunStatus:
    """One proxy."""

    run: Run
    state: str
    flops: int
    where: str = ""
    """Host and process of the worker."""
    step: int = 0
    tokens_per_second: float = 0.0
    heard: float | None = None
    """Seconds since the worker's last heartbeat."""
    reason: str = ""
    """Why it failed or diverged."""
    seconds: float = 0.0
    """That its training took, at its median speed."""

    @property
    def steps(self) -> int:
        return self.run.training.steps

    @property
    def flops_done(self) -> float:
        """FLOPs that need not be spent again."""
        if self.state in (DONE, DIVERGED, DELIVERING):
            return self.flops
        return self.flops * self.step / self.steps

    @property
    def flops_per_second(self) -> float:
        return (
            self.flops / (self.steps * self.run.training.tokens_per_step) * self.tokens_per_second
        )


@dataclass(frozen=True)
class Status:
    """A study's sweep."""

    name: str
    tag: str
    experiment: str
    runs: list[RunStatus]
    undelivered: int
    """Runs whose logs wait on this machine's disk."""

    def count(self, *states: str) -> int:
        return sum(run.state in states for run in self.runs)

    def is_over(self) -> bool:
        """Whether nothing is left to train or to deliver."""
        return self.count(DONE, DIVERGED, FAILED) == len(self.runs)

    def table(self) -> pd.DataFrame:
        """One row for each proxy."""
        return pd.DataFrame(
            {
                "run": [r.run.name for r in self.runs],
                "state": [r.state for r in self.runs],
                "where": [r.where for r in self.runs],
                "step": [r.steps if r.state == DONE else r.step for r in self.runs],
                "steps": [r.steps for r in self.runs],
                "tokens_per_second": [round(r.tokens_per_second) for r in self.runs],
                "seconds_since_heartbeat": [r.heard for r in self.runs],
                "reason": [r.reason for r in self.runs],
            }
        )


def gather(prepared: Prepared, active: mlflow.ActiveRun) -> Status:
    """The state of a study's proxies in the experiment of the active run."""
    experiment = active.info.experiment_id
    finished = attempts.finished_runs(experiment, keys.PROXY)
    trials = {
        t.user_attrs[ledgers.FINGERPRINT]: t for t in proxy_runs.ledger(prepared, active).trials()
    }
    vocab_size = prepared.corpus.vocab_size
    runs = [
        _of_run(run, run.flops(vocab_size), finished.get(key), trials.get(key))
        for run in proxy_runs.planned_runs(prepared, active)
        for key in [fingerprint(run)]
    ]
    undelivered = courier.count(prepared.study.workspace)
    named = str(mlflow.get_experiment(experiment).name)
    return Status(prepared.study.name, prepared.tag, named, runs, undelivered)


def _of_run(
    run: Run, flops: int, finished: MlflowRun | None, trial: FrozenTrial | None
) -> RunStatus:
    if finished is not None:
        reason = (
            finished.data.tags.get(keys.ERROR, "") if keys.DIVERGED in finished.data.tags else ""
        )
        state = DIVERGED if reason else DONE
        speed = finished.data.metrics.get(keys.TOKENS_PER_SECOND, 0.0)
        tokens = finished.data.metrics.get(keys.TOKENS, 0.0)
        seconds = tokens / speed if speed else 0.0
        return RunStatus(run, state, flops, reason=reason, seconds=seconds, tokens_per_second=speed)
    if trial is None or trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
        return RunStatus(run, WAITING, flops)
    if trial.state == TrialState.FAIL and ledgers.is_given_up(trial):
        reason = trial.user_attrs.get(ledgers.REASON, ledgers.SILENT)
        return RunStatus(run, FAILED, flops, reason=reason)
    if trial.state != TrialState.RUNNING:
        deaths = trial.user_attrs.get(ledgers.DEATHS, [])
        reason = f"its last worker ended: {deaths[-1]}" if deaths else ""
        return RunStatus(run, WAITING, flops, reason=reason)
    if ledgers.CLAIMED_BY not in trial.user_attrs:  # its worker was killed as it claimed it
        return RunStatus(run, WAITING, flops)
    worker = trial.user_attrs[ledgers.CLAIMED_BY][0]
    if process.is_dead(worker):
        return RunStatus(run, WAITING, flops, reason="its worker was killed")
    progress = trial.user_attrs.get(ledgers.PROGRESS, {})
    trained, steps = trial.user_attrs.get(ledgers.TRAINED), run.training.steps
    step = steps if trained else int(progress.get("step", 0))
    host, *_, pid, _ = worker.split()
    return RunStatus(
        run,
        DELIVERING if trained else RUNNING,
        flops,
        where=f"{host}, process {pid}",
        step=step,
        tokens_per_second=progress.get("tokens_per_second", 0.0),
        heard=round(time.time() - progress["at"], 1) if "at" in progress else None,
    )


def lines(status: Status) -> Iterator[str]:
    """The status for a terminal."""
    parts = [
        f"{status.count(state)} {state}"
        for state in (DONE, DIVERGED, RUNNING, WAITING, FAILED)
        if status.count(state) or state in (DONE, RUNNING, WAITING)
    ]
    if delivering := status.count(DELIVERING):
        parts.append(f"{delivering} {DELIVERING}")
    yield (
        f"sweep of study {status.name!r} ({status.tag}) in experiment {status.experiment!r}: "
        f"{layout.count(len(status.runs), 'run')}"
    )
    yield f"  {', '.join(parts)}"
    total = sum(run.flops for run in status.runs)
    done = sum(run.flops_done for run in status.runs)
    yield f"  FLOPs: {done:.2e} of {total:.2e}, {done / total:.0%}{_left(status, total - done)}"
    seconds = sum(run.seconds for run in status.runs)
    yield f"  cost so far: {layout.duration(seconds / 3600)} of training, in runs that ended"
    if status.undelivered:
        yield (
            f"  on this machine's disk: the logs of {layout.count(status.undelivered, 'run')}, "
            "for the tracking server"
        )
    shown = [run for run in status.runs if run.state in (RUNNING, DELIVERING)]
    if shown:
        yield f"{'running':<26}{'where':<32}{'step':>16}{'tokens/s':>12}{'heard':>10}"
    for run in shown:
        heard = "" if run.heard is None else f"{run.heard:.0f} s ago"
        step, pace = f"{run.step:,} of {run.steps:,}", f"{run.tokens_per_second:,.0f}"
        yield f"{run.run.name:<26}{run.where:<32}{step:>16}{pace:>12}{heard:>10}"
    for run in status.runs:
        if run.state in (FAILED, DIVERGED) or (run.state == WAITING and run.reason):
            yield f"{run.state}: {run.run.name}: {run.reason}"


def _left(status: Status, flops: float) -> str:
    """What the FLOPs that are left take at the present speed."""
    training = [run for run in status.runs if run.state == RUNNING]
    speed = sum(run.flops_per_second for run in training)
    if flops and speed:
        return f"; about {layout.duration(flops / speed / 3600)} left at {speed:.2e} FLOP/s"
    return "" if training or not flops else "; nobody trains"


@contextmanager
def logged(prepared: Prepared, active: mlflow.ActiveRun) -> Iterator[None]:
    """Keep the status as an artifact of the active run, until the end of the block."""
    stop = threading.Event()

    def log() -> None:
        # a server or a ledger may be away
        with stores.short_timeouts(), suppress(Exception):
            table = gather(prepared, active).table()
            client = mlflow.MlflowClient()
            client.log_text(active.info.run_id, table.to_csv(index=False), FILE)

    def keep() -> None:
        while not stop.wait(LOG_SECONDS):
            log()

    thread = threading.Thread(target=keep, daemon=True, name="status")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(LOG_SECONDS)
        log()
