"""What a model's training logs: records on disk until the tracking server has them.

    <workspace>/outbox/<fingerprint of the run>-<attempt>/
      run.json      the MLflow run that the records belong to
      journal       the records, one JSON object a line, in order; each is synced to the disk
      artifacts/    files to log
      sent.json     the MLflow run on the server, and how much of the journal it has

Workers write here and never wait for a server. `training.delivery.courier` sends the records and
deletes the folder when the server has all of them.
"""

import getpass
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from mlflow.entities import DatasetInput, Metric

from training.engine import checkpoint
from training.record import keys
from training.record.errors import DivergedError, first_line
from training.record.files import write_json
from training.record.mlflow_runs import METRIC_BATCH
from training.record.secrets import masked
from training.record.version import version
from training.run import Run, fingerprint

logger = logging.getLogger("training")

OUTBOX, DAMAGED = "outbox", "outbox.damaged"
HEADER, JOURNAL, SENT, ARTIFACTS = "run.json", "journal", "sent.json", "artifacts"
LIMIT_BYTES = 2**30  # of records that wait in a workspace before no new run begins

_SOUND: dict[Path, int] = {}  # folder of an outbox → bytes of its journal that can be read

Patience = Callable[[str, Callable[[], Any]], Any]
"""Calls a function until the disk has space; the text says what it waits for."""


@dataclass(frozen=True)
class Header:
    """The MLflow run that an outbox's records belong to."""

    experiment_id: str
    name: str
    parent_run_id: str | None
    run_id: str | None
    """An existing MLflow run, whose status its own process sets; None: it is created."""
    fingerprint: str
    stage: str
    study: str
    started: int  # milliseconds since 1970
    user: str
    version: str
    """The project's, that trained it."""


@dataclass(frozen=True)
class End:
    """The last record of an outbox."""

    status: str
    loss: float | None = None
    """The final mean validation loss of a complete run."""
    diverged: str | None = None

    @property
    def trained(self) -> bool:
        """Whether the run need not be trained again."""
        return self.loss is not None or self.diverged is not None


class Outbox:
    """The records of one MLflow run."""

    def __init__(self, folder: Path, patience: Patience = lambda _, write: write()) -> None:
        self.folder, self._patience = folder, patience

    @property
    def name(self) -> str:
        return self.folder.name

    @classmethod
    def create(
        cls,
        run: Run,
        experiment_id: str,
        *,
        run_id: str | None = None,
        parent_run_id: str | None = None,
        patience: Patience = lambda _, write: write(),
    ) -> Self:
        """A new outbox: of a new MLflow run below a parent, or of an existing one."""
        key = fingerprint(run)
        box = cls(folder(run.workspace) / f"{key}-{run_id or uuid.uuid4().hex}", patience)
        header = Header(
            experiment_id=experiment_id,
            name=run.name,
            parent_run_id=parent_run_id,
            run_id=run_id,
            fingerprint=key,
            stage=run.stage,
            study=run.study,
            started=_now(),
            user=_user(),
            version=version(),
        )
        patience("disk space", lambda: write_json(box.folder / HEADER, asdict(header)))
        return box

    @property
    def header(self) -> Header:
        """Raises FileNotFoundError if the server has everything."""
        return Header(**json.loads((self.folder / HEADER).read_text()))

    def is_sound(self) -> bool:
        """Whether its header and records can be read; a damaged one is moved aside, and the log
        says where."""
        try:
            _ = self.header
            for end, _ in self.records(_SOUND.get(self.folder, 0)):
                _SOUND[self.folder] = end
        except FileNotFoundError:
            pass  # delivered meanwhile, or without a record
        except (ValueError, TypeError) as error:
            place = self.folder.parents[1] / DAMAGED / self.name
            place.parent.mkdir(exist_ok=True)
            self.folder.rename(place)
            logger.warning(f"{self.folder} is damaged ({first_line(error)}); moved to {place}")
            return False
        return True

    def is_delivered(self) -> bool:
        """Whether the server has everything."""
        return not (self.folder / HEADER).exists()

    def remove(self) -> None:
        """Delete it; a network file system may keep a part of it for a while."""
        (self.folder / HEADER).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def records(self, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
        """(offset of its end, record) of each whole record from an offset on."""
        with (self.folder / JOURNAL).open("rb") as file:
            file.seek(start)
            for line in file:
                if line.endswith(b"\n"):  # the last one may be half written
                    start += len(line)
                    record = json.loads(line)
                    if not isinstance(record, dict):
                        raise ValueError(f"a record before byte {start} is not an object")
                    yield start, record

    def size(self) -> int:
        """Bytes of the journal."""
        with suppress(FileNotFoundError):
            return (self.folder / JOURNAL).stat().st_size
        return 0

    def end(self) -> End | None:
        """The last record, if nothing follows it."""
        last: dict[str, Any] = {}
        with suppress(FileNotFoundError):
            for _, record in self.records():
                last = record
        return End(**last["end"]) if "end" in last else None

    def status(self) -> str | None:
        """The last status that was recorded."""
        last = None
        with suppress(FileNotFoundError):
            for _, record in self.records():
                last = record.get("status", last)
        return last

    def last_steps(self, names: Sequence[str]) -> dict[str, int]:
        """Metric → its last recorded step, −1 for none."""
        steps = dict.fromkeys(names, -1)
        with suppress(FileNotFoundError):
            for _, record in self.records():
                for key, _value, _time, step in record.get("metrics", ()):
                    if key in steps:
                        steps[key] = max(steps[key], step)
        return steps

    def metrics(self, points: Sequence[Metric]) -> None:
        for start in range(0, len(points), METRIC_BATCH):
            batch = points[start : start + METRIC_BATCH]
            self._append({"metrics": [(p.key, p.value, p.timestamp, p.step) for p in batch]})

    def params(self, params: Mapping[str, object]) -> None:
        self._append({"params": {key: masked(str(value)) for key, value in params.items()}})

    def tags(self, tags: Mapping[str, str]) -> None:
        self._append({"tags": {key: masked(value) for key, value in tags.items()}})

    def inputs(self, inputs: Sequence[DatasetInput]) -> None:
        """Datasets of the run."""
        entries = [
            {**dict(i.dataset), "context": {tag.key: tag.value for tag in i.tags}} for i in inputs
        ]
        self._append({"inputs": entries})

    @contextmanager
    def artifact(self, name: str) -> Iterator[Path]:
        """The path at which to write a file or folder that is logged as this artifact."""
        path = self.folder / ARTIFACTS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path
        self._append({"artifact": name})

    @contextmanager
    def open(self) -> Iterator[None]:
        """Record the final status: FINISHED, KILLED or FAILED, with the reason of a failure.

        An interrupted or failed run may be continued; a later `open` does so.
        """
        owned = self.header.run_id is None
        if owned and self.size():
            self._append({"status": "RUNNING"})
        try:
            yield
        except DivergedError:
            raise  # `close` has been called
        except KeyboardInterrupt:
            if owned:
                self.interrupt("interrupted")
            raise
        except Exception as error:
            if owned:
                reason = masked(str(error))[: keys.TAG_LIMIT]
                self._append({"tags": {keys.ERROR: reason}, "status": "FAILED"})
            raise

    def interrupt(self, reason: str) -> None:
        """Record why the run ends for now."""
        self._append({"tags": {keys.ERROR: reason}, "status": "KILLED"})

    def close(self, status: str, *, loss: float | None = None, diverged: str | None = None) -> None:
        """The last record: the run has ended for good."""
        self._append({"end": asdict(End(status, loss, diverged)), "time": _now()})

    def abandon(self, reason: str, successor: str | None = None) -> None:
        """The last record of a run that another one replaces, in its place or as `successor`."""
        reason = f"{reason}; continued by run {successor}" if successor else reason
        self._append({"tags": {keys.ERROR: reason}})
        self._append({"end": asdict(End("KILLED")), "time": _now()})

    def _append(self, record: Mapping[str, object]) -> None:
        """Append a record and sync it; a full disk is waited for."""
        line = (json.dumps(record, separators=(",", ":")) + "\n").encode()

        def write() -> None:
            with (self.folder / JOURNAL).open("ab") as file:
                start = _whole(self.folder / JOURNAL)
                file.truncate(start)
                try:
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    with suppress(OSError):
                        file.truncate(start)
                    raise

        self._patience("disk space", write)


def _whole(journal: Path) -> int:
    """The length of a journal without a record that a kill left half written."""
    size = journal.stat().st_size
    with journal.open("rb") as file:
        while size:
            start = max(0, size - 2**16)
            file.seek(start)
            found = file.read(size - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            size = start
    return 0


def folder(workspace: Path) -> Path:
    return workspace / OUTBOX


def of_run(run: Run, experiment_id: str | None = None) -> list[Outbox]:
    """The outboxes of a run in this workspace; if an experiment is given, those of it."""
    boxes = []
    for path in sorted(folder(run.workspace).glob(f"{fingerprint(run)}-*")):
        box = Outbox(path)
        with suppress(FileNotFoundError):  # delivered meanwhile
            if box.is_sound() and experiment_id in (None, box.header.experiment_id):
                boxes.append(box)
    return boxes


def waiting(workspace: Path) -> list[Outbox]:
    """The outboxes of a workspace, oldest first."""
    boxes = []
    for path in folder(workspace).glob("*/"):
        box = Outbox(path)
        with suppress(FileNotFoundError):  # delivered meanwhile, or never begun
            if box.is_sound():
                boxes.append((box.header.started, path))
    return [Outbox(path) for _, path in sorted(boxes)]


def close_dead(workspace: Path, fingerprints: Collection[str] | None = None) -> None:
    """Record that runs were interrupted whose workers are gone; they may be continued. By default
    all of the workspace, else those with these fingerprints."""
    for box in waiting(workspace):
        with suppress(FileNotFoundError):  # delivered meanwhile
            header = box.header
            if (
                (fingerprints is None or header.fingerprint in fingerprints)
                and header.run_id is None
                and not (box.end() or box.status() in ("KILLED", "FAILED"))
                and not checkpoint.is_locked(workspace, header.fingerprint)
            ):
                box.interrupt("its worker died")


def is_full(workspace: Path) -> bool:
    """Whether more waits than a workspace may hold."""
    total = 0
    for path in folder(workspace).rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
        if total > LIMIT_BYTES:
            return True
    return False


def _now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
