"""Sends what waits in a workspace's outboxes to the tracking server, in order and once.

A request may arrive twice, when its answer was lost: MLflow's stores keep a point with the same
step, time and value once, so that nothing is doubled.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from filelock import FileLock, Timeout
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from training.delivery import outbox
from training.delivery.outbox import ARTIFACTS, SENT, End, Header, Outbox
from training.record import attempts, keys, stores
from training.record.errors import first_line
from training.record.files import write_json
from training.record.mlflow_runs import PARAM_BATCH
from training.record.secrets import masked
from training.record.version import TAG

logger = logging.getLogger("training")

POLL_SECONDS = 1.0
RETRY_SECONDS = 5.0  # between two attempts to reach a server that is away
UPLOAD_SECONDS = 3600  # for the server to take one file
ATTEMPT = "attempt"  # tag of a run: the name of its outbox
MISSING = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")
REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "PERMISSION_DENIED", *MISSING)


class AnotherServerError(Exception):
    """The run and its parent are not on this server."""


@dataclass(frozen=True)
class Home:
    """Where runs go whose parent is not on this server."""

    experiment_id: str
    parent_run_id: str
    fingerprints: Collection[str] | None = None
    """Of these models only; None: of all."""

    def takes(self, header: Header) -> bool:
        return self.fingerprints is None or (
            header.fingerprint in self.fingerprints and header.experiment_id == self.experiment_id
        )


@dataclass
class Waits:
    """What a pass over the outboxes could not send."""

    outboxes: int = 0
    """With records that the server does not have."""
    away: str = ""
    """Why the server does not answer."""
    refused: str = ""
    """What the server says of records that it does not take."""


class Courier:
    """Delivers the outboxes of a workspace."""

    def __init__(self, workspace: Path, home: Home | None = None) -> None:
        self._workspace, self._home = workspace, home
        self._client = mlflow.MlflowClient()
        self._lock = FileLock(outbox.folder(workspace) / ".lock", timeout=0)
        self.waits = Waits()
        self.blocked_since: float | None = None
        """Since when the server does not answer, or refuses records, by the monotonic clock."""
        self._foreign: set[str] = set()  # outboxes whose runs are on another server
        self._stop = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Deliver in a thread, until the end of the block."""
        with stores.short_timeouts():
            thread = threading.Thread(target=self._run, daemon=True, name="courier")
            thread.start()
            try:
                yield
            finally:
                self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.deliver()
            self._stop.wait(RETRY_SECONDS if self.waits.away else POLL_SECONDS)

    def deliver(self) -> Waits:
        """One pass over the outboxes; never raises for a server that is away."""
        waits, folder = Waits(), outbox.folder(self._workspace)
        if not folder.exists():
            self.waits = waits
            return waits
        try:
            with self._lock:
                for box in outbox.waiting(self._workspace):
                    self._try(box, waits)
        except Timeout:  # another command's courier delivers them
            self.waits = Waits(count(self._workspace))
            return self.waits
        except Exception as error:  # of the disk
            waits.away = masked(f"{type(error).__name__}: {first_line(error)}")
        if not (waits.away or waits.refused):
            self.blocked_since = None
        elif self.blocked_since is None:
            self.blocked_since = time.monotonic()
        self.waits = waits
        return waits

    def _try(self, box: Outbox, waits: Waits) -> None:
        """Send an outbox's records unless the server is away; note what it could not send."""
        if waits.away:
            waits.outboxes += _has_records(box)
            return
        try:
            self._send(box)
        except AnotherServerError:
            self._foreign.add(box.name)
        except Exception as error:
            if box.is_delivered():
                return  # by another machine
            waits.outboxes += 1
            code = error.error_code if isinstance(error, MlflowException) else ""
            away = isinstance(error, MlflowException | ConnectionError | TimeoutError)
            if away and code not in REFUSED:
                waits.away = masked(stores.unanswered(error))
            else:
                waits.refused = masked(f"{type(error).__name__}: {first_line(error)}")

    def finish(
        self, fingerprints: Collection[str], minutes: float, tell: Callable[[str], None]
    ) -> bool:
        """Deliver until the server has everything of these runs; False if that takes longer than
        `minutes`."""
        deadline = time.monotonic() + minutes * 60
        while True:
            waits = self.deliver()
            if not self.is_due(fingerprints):
                return True
            if time.monotonic() > deadline:
                return False
            tell(waits.away or waits.refused or "another command delivers it")
            time.sleep(RETRY_SECONDS if waits.away or waits.refused else POLL_SECONDS)

    def is_due(self, fingerprints: Collection[str]) -> bool:
        """Whether the server lacks records of one of these runs that belong to it."""
        for box in outbox.waiting(self._workspace):
            with suppress(FileNotFoundError):  # delivered meanwhile
                ours = box.name not in self._foreign and box.header.fingerprint in fingerprints
                if ours and _has_records(box):
                    return True
        return False

    def _send(self, box: Outbox) -> None:
        """Send an outbox's records, and delete it if the last one is among them."""
        if not _has_records(box):
            return
        header, sent = box.header, _sent(box)
        run_id, offset = self._run_of(box, header, sent)
        record: dict[str, Any] = {}
        for end, record in box.records(offset):
            self._send_record(box, header, run_id, record)
            write_json(box.folder / SENT, {"run_id": run_id, "offset": end})
        if "end" in record:
            box.remove()

    def _run_of(self, box: Outbox, header: Header, sent: dict[str, Any]) -> tuple[str, int]:
        """The MLflow run of an outbox and the offset of the first record to send to it."""
        run_id = sent.get("run_id") or header.run_id
        if run_id is not None and self._exists(run_id):
            return run_id, sent.get("offset", 0)
        if header.parent_run_id is not None and self._exists(header.parent_run_id):
            place, parent = header.experiment_id, header.parent_run_id
        elif self._home is not None and self._home.takes(header):
            place, parent = self._home.experiment_id, self._home.parent_run_id
        else:
            raise AnotherServerError
        query = f"tags.{ATTEMPT} = '{box.name}'"
        created = self._client.search_runs([place], query, max_results=1)
        run = created[0] if created else self._client.create_run(
            place, header.started, _tags(box, header, parent), header.name
        )  # fmt: skip
        attempts.close_abandoned(place, header.fingerprint, header.started, run.info.run_id)
        write_json(box.folder / SENT, {"run_id": run.info.run_id, "offset": 0})
        return run.info.run_id, 0

    def _exists(self, run_id: str) -> bool:
        """Whether this server has a run that is not deleted."""
        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code in MISSING:
                return False
            raise

    def _send_record(
        self, box: Outbox, header: Header, run_id: str, record: dict[str, Any]
    ) -> None:
        client = self._client
        if points := record.get("metrics"):
            client.log_batch(run_id, metrics=[Metric(*point) for point in points])
        if params := record.get("params"):
            entries = [Param(key, value) for key, value in params.items()]
            for start in range(0, len(entries), PARAM_BATCH):
                client.log_batch(run_id, params=entries[start : start + PARAM_BATCH])
        if inputs := record.get("inputs"):
            client.log_inputs(run_id, [_input(entry) for entry in inputs])
        if name := record.get("artifact"):
            path, place = box.folder / ARTIFACTS / name, str(Path(name).parent)
            with stores.request_timeout(UPLOAD_SECONDS):
                if path.is_dir():
                    client.log_artifacts(run_id, str(path), name)
                else:
                    client.log_artifact(run_id, str(path), None if place == "." else place)
        if tags := record.get("tags"):
            owned = header.run_id is None
            complete = keys.COMPLETE in tags
            if owned and complete and (other := self._trained_elsewhere(header, run_id)):
                client.set_tag(run_id, keys.ERROR, f"also trained as run {other}, which counts")
                client.set_terminated(run_id, "KILLED")
                return
            client.log_batch(run_id, tags=[RunTag(k, v) for k, v in tags.items()])
        if status := record.get("status"):
            if status == "RUNNING":
                self._reopen(run_id)
            else:
                client.set_terminated(run_id, status)
        if end := record.get("end"):
            self._end(header, run_id, End(**end), record["time"])

    def _end(self, header: Header, run_id: str, end: End, ended: int) -> None:
        """Set a run's final status, unless its own process sets it."""
        if end.trained and run_id == header.run_id:
            return
        run = self._client.get_run(run_id)
        superseded = end.loss is not None and keys.COMPLETE not in run.data.tags
        if superseded or (end.status == "KILLED" and run.info.status != "RUNNING"):
            return
        self._client.set_terminated(run_id, end.status, ended)

    def _reopen(self, run_id: str) -> None:
        self._client.update_run(run_id, status="RUNNING")
        with suppress(MlflowException):
            self._client.delete_tag(run_id, keys.ERROR)

    def _trained_elsewhere(self, header: Header, run_id: str) -> str | None:
        """The id of another complete run of the same model, if there is one."""
        place = self._client.get_run(run_id).info.experiment_id
        done = attempts.finished_ids(place, header.stage, header.fingerprint)
        other = done.get(header.fingerprint)
        return other if other != run_id else None


def count(workspace: Path) -> int:
    """Number of runs of which the server lacks records."""
    return sum(map(_has_records, outbox.waiting(workspace)))


def _sent(box: Outbox) -> dict[str, Any]:
    try:
        value: Any = json.loads((box.folder / SENT).read_text())
        return value if isinstance(value, dict) else {}
    except (FileNotFoundError, ValueError):  # the run is found by its tag
        return {}


def _has_records(box: Outbox) -> bool:
    """Whether the server lacks records of an outbox."""
    return bool(box.size() > _sent(box).get("offset", 0))


def _tags(box: Outbox, header: Header, parent: str | None) -> dict[str, str]:
    tags = {
        ATTEMPT: box.name,
        TAG: header.version,
        keys.STAGE: header.stage,
        keys.STUDY: header.study,
        keys.FINGERPRINT: header.fingerprint,
        "mlflow.user": header.user,
        "mlflow.source.name": "training/workers/worker.py",
        "mlflow.source.type": "LOCAL",
    }
    return tags if parent is None else {**tags, keys.PARENT: parent}


def _input(entry: dict[str, Any]) -> DatasetInput:
    context = [InputTag(key, value) for key, value in entry.pop("context").items()]
    return DatasetInput(Dataset(**entry), context)
