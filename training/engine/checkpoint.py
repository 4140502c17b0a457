"""Checkpoints, from which a killed run resumes.

    <workspace>/checkpoints/<fingerprint of the run>/<step>/   DeepSpeed's files
    <workspace>/checkpoints/<fingerprint of the run>/state.json
    <workspace>/states/<fingerprint of the run>/   the same, at a branch point of several runs

`state.json` names the step whose files are complete. It is replaced atomically after they are
written, so a kill at any moment leaves a checkpoint that can be loaded. The sampler's position is
the step.
"""

import errno
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from training.record.errors import InputError, first_line
from training.record.files import write_json
from training.run import Run, fingerprint

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
SPARE_BYTES = 2**26  # a disk with less counts as full when PyTorch cannot write
STATE = "state.json"
LOG_STATE = "kept"  # its key for the state of the run's log
CHECKPOINTS, STATES = "checkpoints", "states"


class DamagedError(InputError):
    """A checkpoint cannot be read."""

    def __init__(self, folder: Path, error: Exception) -> None:
        super().__init__(
            f"checkpoint {folder} cannot be loaded: {first_line(error)}; delete this folder to "
            "train the run from its start"
        )
        self._folder = folder

    def set_aside(self) -> Path:
        """Rename the checkpoint, so that training begins without it; returns its new place."""
        place = self._folder.with_name(f"{self._folder.name}.damaged-{int(time.time())}")
        with suppress(FileNotFoundError):  # another process was first
            self._folder.rename(place)
        return place


class BusyError(InputError):
    """Another process trains the same run in the same workspace."""


class NoSpaceError(OSError):
    """The disk is full; the previous checkpoint is unchanged."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    folder: Path
    step: int  # optimizer steps done
    ranks: int
    zero_stage: int
    log_state: dict[str, Any]
    """The state of the run's log: its MLflow run and the points logged so far. Empty at a branch
    point."""

    def load_into(self, engine: Any) -> None:
        """Load model, optimizer and learning-rate schedule; every process calls it.

        Raises DamagedError for damaged files.
        """
        try:
            engine.load_checkpoint(str(self.folder), tag=str(self.step))
        except Exception as error:  # a damaged file may raise anything
            memory = isinstance(error, MemoryError) or "out of memory" in str(error)
            disk = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
            if memory or disk:
                raise
            raise DamagedError(self.folder, error) from error


def find(run: Run, ranks: int) -> Checkpoint | None:
    """The checkpoint of this run, else its latest branch point: the kept state of a run that ends
    where a phase of this run begins. It must match the number of processes and the ZeRO stage.

    Raises DamagedError if it is damaged.
    """
    before_decay = run.training.steps - run.training.decay_steps
    starts = [step for step, _ in run.phases[:0:-1] if step <= before_decay]
    folders = [_folder(run), *(_folder(run.until(step), STATES) for step in starts)]
    return next(filter(None, (_read(f, ranks, run.engine.zero_stage) for f in folders)), None)


def _read(folder: Path, ranks: int, zero_stage: int) -> Checkpoint | None:
    try:
        state = json.loads((folder / STATE).read_text())
        checkpoint = Checkpoint(
            folder, state["step"], state["ranks"], state["zero_stage"], state[LOG_STATE]
        )
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedError(folder, error) from error
    if (checkpoint.ranks, checkpoint.zero_stage) != (ranks, zero_stage):
        return None
    return checkpoint


@contextmanager
def exclusive(run: Run) -> Iterator[None]:
    """Lock a run's checkpoint for this process; a killed process releases the lock.

    Raises BusyError if another process trains the same run in the same workspace.
    """
    folder = _folder(run)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder.with_suffix(".lock"), timeout=0):
            yield
    except Timeout:
        raise BusyError(
            f"run {run.name}: another process trains it in the workspace {run.workspace}; wait "
            "until it ends, or give this study another workspace"
        ) from None


def is_locked(workspace: Path, fingerprint: str) -> bool:
    """Whether a process trains the run with this fingerprint in a workspace."""
    lock = workspace / CHECKPOINTS / f"{fingerprint}.lock"
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def save(
    run: Run,
    engine: Any,
    step: int,
    ranks: int,
    log_state: Callable[[], Any],
    *,
    branch_point: bool = False,
) -> None:
    """Write a checkpoint and remove the previous one; every process calls it.

    Only the first process calls `log_state`. A `branch_point` is a state that other runs start
    from. Raises NoSpaceError if the disk is full.
    """
    folder = _folder(run, STATES if branch_point else CHECKPOINTS)
    try:
        _save(run, folder, engine, step, ranks, log_state)
    except (OSError, RuntimeError) as error:  # PyTorch raises the latter
        if not _disk_is_full(folder, error):
            raise
        shutil.rmtree(folder / str(step), ignore_errors=True)
        raise NoSpaceError(f"no space left for the checkpoint {folder / str(step)}") from error


def _save(
    run: Run, folder: Path, engine: Any, step: int, ranks: int, log_state: Callable[[], Any]
) -> None:
    from torch import distributed

    engine.save_checkpoint(str(folder), tag=str(step), save_latest=False)
    if ranks > 1:
        distributed.barrier()  # until all have written
    if distributed.get_rank() == 0:
        state = {
            "step": step,
            "ranks": ranks,
            "zero_stage": run.engine.zero_stage,
            LOG_STATE: log_state(),
        }
        write_json(folder / STATE, state)
        for entry in folder.iterdir():
            if entry.is_dir() and entry.name != str(step):
                shutil.rmtree(entry)


def _disk_is_full(folder: Path, error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in NO_SPACE
    return "PytorchStreamWriter" in str(error) and shutil.disk_usage(folder).free < SPARE_BYTES


def remove(run: Run) -> None:
    """Delete the checkpoint of a run that has ended."""
    shutil.rmtree(_folder(run), ignore_errors=True)


def _folder(run: Run, kind: str = CHECKPOINTS) -> Path:
    return run.workspace / kind / fingerprint(run)
