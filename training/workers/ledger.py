"""The sweep's ledger: runs are enqueued as Optuna trials, which workers claim atomically.

Workers send heartbeats. The run of a worker that died is enqueued again, a limited number of times.
MLflow records which runs are done; the ledger only distributes the others. A trial is complete when
the tracking server has all that its run logged.
"""

import functools
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError
from tqdm import tqdm

from training.engine.checkpoint import BusyError
from training.record import process, secrets, stores
from training.record.errors import InputError
from training.run import Run, fingerprint
from training.workers.patience import Patience
from training.workers.trial_store import TrialStore

HEARTBEAT_SECONDS = 10
GRACE_SECONDS = 60  # without a heartbeat before a worker counts as dead
POLL_SECONDS = 1.0
MANY = 500  # runs whose enqueueing takes seconds
ATTEMPTS = 3  # at a run whose worker dies, before it is given up
OPEN = (TrialState.WAITING, TrialState.RUNNING)

# attributes of a trial
RUN = "run"
FINGERPRINT = "fingerprint"
CLAIMED_BY = "claimed_by"  # identity of the worker's process, and its parent's token for it
PROGRESS = "progress"  # what the worker says of the run, with every heartbeat
DEATHS = "deaths"  # why earlier attempts ended
REASON = "reason"  # why this attempt ended
COUNTED = "counted"  # whether its end counts as a death
TRAINED = "trained"  # whether only its log is not delivered
SILENT = "its worker sent no heartbeat"
# of the queue
WITHDRAWN = "withdrawn"  # fingerprints of runs that must not be trained


@dataclass
class Claim:
    """A run that a worker has claimed."""

    run: Run
    deaths: list[str]
    """Why earlier attempts at it ended."""
    progress: dict[str, float] = field(default_factory=dict)
    """What `status` shows of it; the worker keeps it up to date."""


@dataclass(frozen=True)
class Trained:
    """The end of a run's training."""

    loss: float | None
    """The final mean validation loss; None if it diverged."""
    is_delivered: Callable[[], bool] = lambda: True
    """Whether the tracking server has all that the run logged."""


class Ledger:
    """One named queue of runs in a relational store (SQLite; PostgreSQL for several machines).

    With `patience`, a store that stops answering is waited for; without, it raises InputError.
    """

    def __init__(self, url: str, name: str, patience: Patience | None = None) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        secrets.remember(url)
        self._url, self._patience = url, patience

        def opened() -> tuple[TrialStore, optuna.Study]:
            storage = TrialStore(url, HEARTBEAT_SECONDS, GRACE_SECONDS, self._on_stale)
            study = optuna.create_study(
                storage=storage, study_name=name, load_if_exists=True, direction="minimize"
            )
            return storage, study

        self._storage: TrialStore
        self._study: optuna.Study
        try:
            self._storage, self._study = self._patiently(opened) if patience else opened()
        except (SQLAlchemyError, ImportError, RuntimeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise stores.failure(url, "ledger", error) from error
        self._held: dict[int, Claim] = {}  # trials of this process, which it keeps alive

    def enqueue(self, runs: Sequence[Run]) -> None:
        """Enqueue the runs that are not enqueued or claimed yet, in this order."""
        with self._answering():
            queued = {trial.user_attrs.get(FINGERPRINT) for trial in self._trials(*OPEN)}
            withdrawn = set(self._study.user_attrs.get(WITHDRAWN, []))
            if again := withdrawn & {fingerprint(run) for run in runs}:
                self._study.set_user_attr(WITHDRAWN, sorted(withdrawn - again))
            few = len(runs) < MANY
            for run in tqdm(runs, desc="enqueueing", unit="run", disable=few, leave=False):
                key = fingerprint(run)
                if key not in queued:
                    attributes = {FINGERPRINT: key, RUN: run.model_dump(mode="json")}
                    self._study.enqueue_trial({}, user_attrs=attributes)
                    queued.add(key)

    def open_runs(self) -> list[Run]:
        """The runs that no worker has finished, in order, including interrupted ones."""
        with self._answering():
            trials = self._study.get_trials(deepcopy=False)
        ended = (TrialState.COMPLETE, TrialState.PRUNED)
        return [_run(trial) for trial in _newest(trials).values() if trial.state not in ended]

    def withdraw(self, runs: Iterable[Run]) -> None:
        """Withdraw waiting runs and those of killed workers, so that no worker trains them."""
        keys = {fingerprint(run) for run in runs}
        with self._answering():
            before = self._study.user_attrs.get(WITHDRAWN, [])
            self._study.set_user_attr(WITHDRAWN, sorted({*before, *keys}))
            for trial in self._trials(*OPEN):
                waits = trial.state == TrialState.WAITING
                if waits and trial.user_attrs.get(FINGERPRINT) in keys:
                    # `tell` refuses trials that wait
                    self._storage.set_trial_state_values(trial._trial_id, TrialState.PRUNED)

    def work(
        self,
        train: Callable[[Claim], Trained],
        waiting: Callable[[int, int], None],
        token: str = "",
    ) -> None:
        """Claim and train runs until none is left; waits for runs that other workers hold.

        `waiting` is called with the number of runs that others train, and of those whose log waits
        for the tracking server, while none can be claimed. `token` is the parent's name for
        this worker. If `train` raises, its run is enqueued again; an exception other than
        InputError and KeyboardInterrupt counts as a death.
        """
        undelivered: dict[int, Trained] = {}
        with self._heart():
            while True:
                for trial_id in [i for i, end in undelivered.items() if end.is_delivered()]:
                    self._complete(trial_id, undelivered.pop(trial_id))
                trial = self._patiently(lambda: self._claim(token))
                if trial is None:
                    held = self._patiently(lambda: self._trials(TrialState.RUNNING))
                    trained = [t for t in held if t.user_attrs.get(TRAINED)]
                    if not held and not undelivered:
                        return
                    waiting(len(held) - len(trained), max(len(trained), len(undelivered)))
                    time.sleep(POLL_SECONDS)
                    self._patiently(self._retry_dead)
                    continue
                try:
                    end = self._when_free(train, self._held[trial._trial_id], waiting)
                    undelivered[trial._trial_id] = end
                    self._patiently(functools.partial(self._mark, trial._trial_id, TRAINED, True))
                except BaseException as error:
                    counts = not isinstance(error, InputError | KeyboardInterrupt)
                    reason = secrets.masked(str(error)) or type(error).__name__
                    with suppress(SQLAlchemyError, StorageInternalError):  # else it counts as stale
                        self.retry(trial, reason, counts=counts)
                    raise

    def _when_free(
        self, train: Callable[[Claim], Trained], claim: Claim, waiting: Callable[[int, int], None]
    ) -> Trained:
        """Train a run as soon as no other process trains it."""
        while True:
            try:
                return train(claim)
            except BusyError:
                waiting(1, 0)
                time.sleep(POLL_SECONDS)

    def release(self, token: str, reason: str, *, counts: bool = True) -> None:
        """Enqueue the runs again that dead workers held whose tokens begin so; their parent calls
        it."""
        with self._answering():
            for trial in self._trials(TrialState.RUNNING):
                if trial.user_attrs.get(CLAIMED_BY, ["", ""])[1].startswith(token):
                    self.retry(trial, reason, counts=counts)

    def retry(self, trial: FrozenTrial, reason: str, *, counts: bool = True) -> None:
        """End an attempt at a run and enqueue the next one, if there may be one."""
        self._held.pop(trial._trial_id, None)
        counts = counts and not trial.user_attrs.get(TRAINED)
        deaths = [*trial.user_attrs.get(DEATHS, []), *([reason] if counts else [])]
        try:
            self._storage.set_trial_user_attr(trial._trial_id, REASON, reason)
            self._storage.set_trial_user_attr(trial._trial_id, COUNTED, counts)
            self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        except optuna.exceptions.UpdateFinishedTrialError:
            return  # another worker was first
        self._enqueue_again(trial, deaths)

    def given_up(self, runs: Iterable[Run]) -> dict[str, str]:
        """Name → reason of the runs whose last attempt failed."""
        names = {fingerprint(run): run.name for run in runs}
        with self._answering():
            newest = _newest(self._study.get_trials(deepcopy=False))
        return {
            names[key]: trial.user_attrs.get(REASON, SILENT)
            for key, trial in newest.items()
            if key in names and is_given_up(trial)
        }

    def trials(self) -> list[FrozenTrial]:
        """The newest trial of each run, in order."""
        with self._answering():
            return list(_newest(self._study.get_trials(deepcopy=False)).values())

    def _claim(self, token: str) -> FrozenTrial | None:
        """The next run that waits, which is this worker's from now on."""
        withdrawn: set[str] | None = None
        while (trial_id := self._storage.first_waiting(self._study._study_id)) is not None:
            try:
                if not self._storage.set_trial_state_values(trial_id, TrialState.RUNNING):
                    continue  # another worker was first
            except optuna.exceptions.UpdateFinishedTrialError:
                continue  # and has ended it
            trial = self._storage.get_trial(trial_id)
            key = trial.user_attrs[FINGERPRINT]
            if self._storage.is_running_twice(self._study._study_id, trial_id, FINGERPRINT, key):
                # two commands have enqueued it at once
                self._storage.set_trial_state_values(trial_id, TrialState.PRUNED)
                continue
            if withdrawn is None:
                withdrawn = set(self._study.user_attrs.get(WITHDRAWN, []))
            if key in withdrawn:
                self._storage.set_trial_state_values(trial_id, TrialState.PRUNED)
                continue
            claimed_by = (process.identity(), token)
            self._storage.set_trial_user_attr(trial_id, CLAIMED_BY, claimed_by)
            self._held[trial_id] = Claim(_run(trial), trial.user_attrs.get(DEATHS, []))
            return trial
        return None

    def _mark(self, trial_id: int, key: str, value: bool) -> None:
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            self._storage.set_trial_user_attr(trial_id, key, value)

    def _complete(self, trial_id: int, end: Trained) -> None:
        """Mark a run's trial as done, unless another worker took it for dead."""
        state = TrialState.PRUNED if end.loss is None else TrialState.COMPLETE
        values = None if end.loss is None else [end.loss]

        def complete() -> None:
            with suppress(optuna.exceptions.UpdateFinishedTrialError):
                self._storage.set_trial_state_values(trial_id, state, values)

        self._patiently(complete)
        self._held.pop(trial_id, None)

    def _retry_dead(self) -> None:
        """Enqueue the runs of workers that are gone again."""
        for trial in self._trials(TrialState.RUNNING):
            if process.is_dead(trial.user_attrs.get(CLAIMED_BY, [""])[0]):
                self.retry(trial, "its worker was killed")
        # after an outage of the store no worker has a heartbeat until it reaches the store again
        since = self._patience.answering_since if self._patience else 0.0
        if time.monotonic() - since > GRACE_SECONDS:
            optuna.storages.fail_stale_trials(self._study)

    def _on_stale(self, _study: optuna.Study, trial: FrozenTrial) -> None:
        """What Optuna calls for a trial without a heartbeat, which it has failed."""
        trained = trial.user_attrs.get(TRAINED)
        deaths = [*trial.user_attrs.get(DEATHS, []), *([] if trained else [SILENT])]
        self._enqueue_again(trial, deaths)

    def _enqueue_again(self, trial: FrozenTrial, deaths: Sequence[str]) -> None:
        if RUN in trial.user_attrs and len(deaths) < ATTEMPTS:
            attributes = {key: trial.user_attrs[key] for key in (FINGERPRINT, RUN)}
            self._study.enqueue_trial({}, user_attrs={**attributes, DEATHS: deaths})

    @contextmanager
    def _heart(self) -> Iterator[None]:
        """Send heartbeats and the progress of this process's runs, from a thread."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(HEARTBEAT_SECONDS):
                for trial_id, claim in list(self._held.items()):
                    # a store that is away, or a run that another worker took for dead
                    with suppress(
                        SQLAlchemyError,
                        StorageInternalError,
                        optuna.exceptions.UpdateFinishedTrialError,
                    ):
                        self._storage.record_heartbeat(trial_id)
                        progress = {**claim.progress, "at": time.time()}
                        self._storage.set_trial_user_attr(trial_id, PROGRESS, progress)

        thread = threading.Thread(target=beat, daemon=True, name="heartbeat")
        thread.start()
        try:
            yield
        finally:
            stop.set()

    def _patiently(self, attempt: Callable[[], Any]) -> Any:
        """Repeat what fails while the store is away, if this ledger has patience."""
        if self._patience is None:
            with self._answering():
                return attempt()
        return self._patience(
            f"ledger {secrets.masked(self._url)!r}",
            attempt,
            lambda error: isinstance(error, SQLAlchemyError | StorageInternalError),
        )

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Raise a one-line error if the store stops answering."""
        try:
            yield
        except (SQLAlchemyError, StorageInternalError) as error:
            cause = error.__cause__ if isinstance(error.__cause__, SQLAlchemyError) else error
            raise stores.failure(self._url, "ledger", cause, "does not answer") from error

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states)


def is_given_up(trial: FrozenTrial) -> bool:
    """Whether a run's newest trial failed and was the last attempt."""
    attributes = trial.user_attrs
    counted = attributes.get(COUNTED, True)
    deaths = len(attributes.get(DEATHS, [])) + counted
    return trial.state == TrialState.FAIL and deaths >= ATTEMPTS


def _newest(trials: Iterable[FrozenTrial]) -> dict[str, FrozenTrial]:
    """Fingerprint → the newest trial of the run."""
    ordered = sorted(trials, key=lambda trial: trial.number)
    return {t.user_attrs[FINGERPRINT]: t for t in ordered if RUN in t.user_attrs}


def _run(trial: FrozenTrial) -> Run:
    """The run of a trial, with its size resolved."""
    run = Run.model_validate(trial.user_attrs[RUN])
    if run.size.config is None:
        return run
    from training.engine import model  # slow: torch

    return run.model_copy(update={"size": model.resolve(run.size)})
