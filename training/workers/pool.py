"""The parent of the workers: starts them, shows their progress, starts those that die again, and
delivers what they log."""

import contextlib
import dataclasses
import logging
import secrets
import sys
import time
from collections.abc import Sequence

import mlflow
from tqdm import tqdm

from training.data.corpus import Corpus
from training.delivery import outbox
from training.delivery.courier import Courier, Home
from training.engine import kernels
from training.engine.devices import Machines
from training.record import layout
from training.record.errors import InputError
from training.run import Run, fingerprint
from training.workers import memory
from training.workers.launcher import LaunchedWorker
from training.workers.ledger import ATTEMPTS, Ledger
from training.workers.local_worker import LocalWorker
from training.workers.messages import (
    Alive,
    Crashed,
    Event,
    Failed,
    Finished,
    Job,
    Note,
    Progress,
    Queue,
    SingleRun,
    Started,
    Starting,
    Undelivered,
    Waiting,
)
from training.workers.signals import END_SECONDS, terminal_blocked

logger = logging.getLogger("training")

POLL_SECONDS = 0.1
LAST_MINUTES = 0.25  # to deliver that workers were interrupted
REFRESH_SECONDS, LOG_SECONDS = 1, 15  # refresh of the progress line, on a terminal and in a log
QUIET_SECONDS = 20  # without an event before the progress line says so
NOTICE_SECONDS = 3  # of waiting for workers to end before a notice
RESTARTS = 10  # of workers, without a run that ends in between


def train(runs: Sequence[Run], corpus: Corpus, work: Queue | SingleRun, machines: Machines) -> None:
    """Train every run that is not trained yet, and deliver what it logs to the tracking server.

    The run of a killed worker passes to the others, and the worker is started again. Raises
    InputError for a user's mistake, for a worker that is not ready in time and for a server that
    stays away, DivergedError if the work is a single run, and RuntimeError with the worker's
    traceback for anything else.
    """
    if isinstance(work, Queue):
        Ledger(work.ledger_url, work.name).enqueue(runs)
    serve(runs, Job(work, mlflow.get_tracking_uri(), corpus.manifest, machines), corpus.vocab_size)


def serve(runs: Sequence[Run], job: Job, vocab_size: int) -> None:
    """Train a job's runs, which are enqueued already, on this machine."""
    kernels.build_for(job.machines)
    home = None
    if isinstance(job.work, Queue):
        trained = {fingerprint(run) for run in runs}
        home = Home(job.work.experiment_id, job.work.parent_run_id, trained)
    courier = Courier(runs[0].workspace, home)
    flops = sum(run.flops(vocab_size) for run in runs)
    with courier.running(), _Pool(job, runs, flops, courier) as pool:
        pool.follow()
        pool.deliver()


@dataclasses.dataclass
class _Member:
    """A worker, started again when it dies."""

    worker: LocalWorker | LaunchedWorker
    began: float
    """By the monotonic clock."""
    heard: float
    """When it was last heard of."""
    doing: str = "starting Python"
    """What it does before it is ready; empty afterwards."""
    run: str = ""
    """What it trains."""
    waiting: bool = False
    """Whether it waits for something that is away, such as a database."""
    finished: bool = False
    """Whether a run of it has ended."""
    undelivered: bool = False
    """Whether it only waits for the tracking server."""
    death: str = ""
    """Why it ends, if that is known."""
    traceback: str = ""
    done: bool = False


class _Pool:
    """The workers of one machine."""

    def __init__(self, job: Job, runs: Sequence[Run], flops: int, courier: Courier) -> None:
        self._job = dataclasses.replace(job, token=secrets.token_hex(8))
        self._courier, self._workspace = courier, runs[0].workspace
        self._fingerprints = {fingerprint(run) for run in runs}
        single = isinstance(job.work, SingleRun)
        self._engine = job.work.run.engine if isinstance(job.work, SingleRun) else job.work.engine
        several = max(RESTARTS, 2 * job.machines.workers)
        self._limit = ATTEMPTS - 1 if single else several
        self._members: list[_Member] = []
        self._restarts = 0  # since a run ended
        self._away_since: float | None = None  # the tracking server, by the monotonic clock
        self._finished = self._tokens = 0
        self._flops: dict[str, int] = {}  # of each run so far
        self._bar = tqdm(
            total=flops,
            desc="starting workers",
            unit="FLOP",
            unit_scale=True,
            mininterval=REFRESH_SECONDS if sys.stderr.isatty() else LOG_SECONDS,
            miniters=0,
            bar_format="{desc} {percentage:3.0f}% |{bar:20}| {elapsed} elapsed, {remaining} left"
            "{postfix}",
        )

    def __enter__(self) -> "_Pool":
        try:
            for index in range(min(self._job.machines.workers, len(self._fingerprints))):
                self._members.append(self._started(index))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        _end([member.worker for member in self._members])
        if not all(member.done for member in self._members):
            self._release("interrupted", self._job.token, counts=False)
        with contextlib.suppress(OSError):  # a disk that is full
            outbox.close_dead(self._workspace, self._fingerprints)
        if self._courier.blocked_since is None:  # deliver that they were interrupted
            self._courier.finish(self._fingerprints, LAST_MINUTES, lambda _: None)

    def follow(self) -> None:
        """Show the workers' events until all have ended; raises a failed worker's error."""
        while not all(member.done for member in self._members):
            heard = False
            for index, member in enumerate(self._members):
                if events := member.worker.events():
                    heard = True
                    for event in events:
                        self._handle(member, event)
                elif not member.done:
                    self._check(index, member)
            self._show()
            if self._only_delivery_is_left():
                raise self._undelivered()
            if not heard:
                time.sleep(POLL_SECONDS)

    def deliver(self) -> None:
        """Wait until the tracking server has everything that these runs logged."""
        minutes = self._engine.patience_minutes

        def tell(reason: str) -> None:
            text = f"waiting for the tracking server, {minutes:g} minutes at most: {reason}"
            self._bar.set_description_str(text, refresh=False)
            self._bar.update(0)

        if not self._courier.finish(self._fingerprints, minutes, tell):
            raise self._undelivered()

    def _only_delivery_is_left(self) -> bool:
        """Whether nothing trains, and the tracking server was away for too long."""
        since, minutes = self._courier.blocked_since, self._engine.patience_minutes
        idle = all(member.undelivered or member.done for member in self._members)
        return idle and since is not None and time.monotonic() - since > minutes * 60

    def _undelivered(self) -> InputError:
        waits, minutes = self._courier.waits, self._engine.patience_minutes
        reason = waits.away or waits.refused or "another command delivers"
        return InputError(
            f"waited {minutes:g} minutes (engine.patience_minutes) for the tracking server: "
            f"{reason}; what was trained waits in "
            f"{outbox.folder(self._workspace)}; send it with the entry point deliver, or run the "
            "command again, once the server answers"
        )

    def _started(self, index: int) -> _Member:
        """A new process for a worker."""
        machines = self._job.machines
        kind = LocalWorker if machines.ranks == 1 and machines.hostfile is None else LaunchedWorker
        process = kind(self._job, index)
        now = time.monotonic()
        with terminal_blocked():
            process.start()
        return _Member(process, now, now)

    def _handle(self, member: _Member, event: Event) -> None:
        bar = self._bar
        if not isinstance(event, Alive):
            member.heard = time.monotonic()
            member.undelivered = isinstance(event, Undelivered)
            member.waiting = isinstance(event, Waiting)
        match event:
            case Starting(doing):
                member.doing = doing
                if doing:
                    bar.set_description_str(f"starting workers: {doing}", refresh=False)
            case Started(name):
                member.run = name
                bar.update(-self._flops.pop(name, 0))  # of an earlier attempt
                text = f"run {self._finished + 1} of {len(self._fingerprints)} ({name})"
                bar.set_description_str(text, refresh=False)
            case Progress(flops, tokens):
                self._tokens += tokens
                self._flops[member.run] = self._flops.get(member.run, 0) + flops
                bar.update(flops)
            case Finished(name, diverged):
                self._finished, self._restarts = self._finished + 1, 0
                member.run, member.finished = "", True
                if diverged:
                    bar.write(f"{name}: {diverged}; the run is marked FAILED and left out")
            case Waiting(reason):
                bar.set_description_str(f"waiting for {reason}", refresh=False)
            case Undelivered(count):
                text = f"waiting for the tracking server to take {layout.count(count, 'run')}"
                bar.set_description_str(text, refresh=False)
            case Note(text):
                bar.write(text)
            case Crashed(name, reason, traceback):
                member.run, member.death, member.traceback = name, reason, traceback
            case Failed(error):
                raise error

    def _check(self, index: int, member: _Member) -> None:
        """Start a worker again if it died or makes no progress; raises for one that is late."""
        process, now = member.worker, time.monotonic()
        if process.is_alive():
            minutes = self._engine.start_minutes
            if member.doing and now - member.began > minutes * 60:
                raise InputError(
                    f"{process.name} was not ready within {minutes:g} minutes "
                    f"(engine.start_minutes); it was still {member.doing}"
                )
            minutes = self._engine.stall_minutes
            if member.run and not member.waiting and now - member.heard > minutes * 60:
                member.death = f"no progress for {minutes:g} minutes (engine.stall_minutes)"
                process.kill()
                process.join(NOTICE_SECONDS)
        elif process.exitcode == 0 or (member.finished and isinstance(self._job.work, SingleRun)):
            member.done = True
        else:
            self._replace(index, member)

    def _replace(self, index: int, member: _Member) -> None:
        """Start a worker again that died, and enqueue its run again."""
        code = member.worker.exitcode or 0
        orphaned = member.worker.is_orphaned
        lost = "the process that starts workers was killed" if orphaned else ""
        reason = (
            member.death
            or member.worker.fault
            or lost
            or (f"killed by signal {-code}" if code < 0 else f"died with exit code {code}")
        )
        during = f" during {member.run}" if member.run else ""
        text = f"{member.worker.name}{during}: {reason}"
        if self._restarts == self._limit:
            if member.traceback:
                raise RuntimeError(member.traceback)
            raise InputError(
                f"{text}; it was started again {self._limit} times without a run that ended in "
                "between; run the command again to resume"
            )
        self._restarts += 1
        member.worker.kill()  # what is left of several processes
        member.worker.join(NOTICE_SECONDS)
        if isinstance(self._job.work, Queue):
            self._release(reason, f"{self._job.token}/{index}", counts=not orphaned)
        elif reason == memory.NO_MEMORY:
            self._halve()
        self._bar.write(f"{text}; started again ({self._restarts} of {self._limit})")
        self._members[index] = self._started(index)

    def _release(self, reason: str, token: str, *, counts: bool = True) -> None:
        """Enqueue again what workers held whose token begins so."""
        if isinstance(self._job.work, Queue):
            with contextlib.suppress(InputError):  # a store that is away: workers find it later
                ledger = Ledger(self._job.work.ledger_url, self._job.work.name)
                ledger.release(token, reason, counts=counts)

    def _halve(self) -> None:
        """Let the single run compute half as many sequences at once."""
        work = self._job.work
        assert isinstance(work, SingleRun)
        engine = memory.halved(work.run.engine, work.run.training, self._job.machines.ranks)
        smaller = dataclasses.replace(work, run=work.run.model_copy(update={"engine": engine}))
        self._job = dataclasses.replace(self._job, work=smaller)

    def _show(self) -> None:
        """Refresh the progress line."""
        quiet = time.monotonic() - max(member.heard for member in self._members)
        elapsed = self._bar.format_dict["elapsed"]
        texts = []
        if any(member.doing for member in self._members) or quiet <= QUIET_SECONDS:
            if self._tokens:
                texts.append(f"{self._tokens / elapsed:,.0f} tokens/s")
        else:
            texts.append(f"no update for {quiet:.0f} s")
        self._tell_of_server(self._courier.blocked_since)
        if (since := self._courier.blocked_since) is not None:
            waiting = layout.count(self._courier.waits.outboxes, "run")
            seconds = time.monotonic() - since
            refuses = self._courier.waits.refused and not self._courier.waits.away
            what = "refuses records" if refuses else "away"
            texts.append(f"tracking server {what} for {seconds:.0f} s, {waiting} on disk")
        self._bar.set_postfix_str("; ".join(texts), refresh=False)
        self._bar.update(0)

    def _tell_of_server(self, since: float | None) -> None:
        """A line when the tracking server goes away, and one when it is back."""
        if self._away_since is None and since is not None:
            reason = self._courier.waits.away or self._courier.waits.refused
            self._bar.write(
                f"tracking server: {reason}; training goes on, and what it logs waits in "
                f"{outbox.folder(self._workspace)}"
            )
        elif self._away_since is not None and since is None:
            seconds = time.monotonic() - self._away_since
            self._bar.write(
                f"tracking server: it answers again, after {layout.duration(seconds / 3600)}"
            )
        self._away_since = since


def _end(workers: Sequence[LocalWorker | LaunchedWorker]) -> None:
    """End every worker; each saves a checkpoint first, if it can."""
    for worker in workers:
        worker.terminate()
    workers = [worker for worker in workers if worker.pid is not None]
    started = time.monotonic()
    for seconds, message in ((NOTICE_SECONDS, ""), (END_SECONDS, "waiting for workers to end")):
        if message and any(worker.is_alive() for worker in workers):
            logger.warning(f"{message}, {END_SECONDS} seconds at most")
        for worker in workers:
            worker.join(max(0.0, started + seconds - time.monotonic()))
    for worker in workers:
        worker.kill()
        worker.join(NOTICE_SECONDS)
