"""Checkpoints: what a killed run goes on from.

    <workspace>/checkpoints/<fingerprint of the run>/<step>/   DeepSpeed's files
    <workspace>/checkpoints/<fingerprint of the run>/state.json
    <workspace>/states/<fingerprint of the run>/   the same, of a run that others begin as

`state.json` names the step whose files are whole and is replaced in one move after they are
written, so that a kill at any moment leaves a checkpoint that can be loaded. The sampler's
position is the step.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from training.record.errors import InputError, first_line
from training.run import Run, fingerprint

STATE = "state.json"
CHECKPOINTS, STATES = "checkpoints", "states"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is whole."""

    folder: Path
    step: int  # optimizer steps done
    ranks: int
    zero_stage: int
    kept: dict[str, Any]
    """What the run's log needs to go on: its MLflow run and the points logged so far; empty in a
    state that another run begins with."""

    def load_into(self, engine: Any) -> None:
        """Model, optimizer and learning-rate schedule; every process calls it.

        Raises InputError where the files are damaged.
        """
        try:
            engine.load_checkpoint(str(self.folder), tag=str(self.step))
        except Exception as error:  # whatever a damaged file makes the readers raise
            raise _damaged(self.folder, error) from error


def find(run: Run, ranks: int) -> Checkpoint | None:
    """The checkpoint of this run, else the last kept state of one that ended where a phase of this
    one begins; of as many processes and the same ZeRO stage.

    Raises InputError where it is damaged.
    """
    before_decay = run.training.steps - run.training.decay_steps
    starts = [step for step, _ in run.phases[:0:-1] if step <= before_decay]
    folders = [_folder(run), *(_folder(run.until(step), STATES) for step in starts)]
    return next(filter(None, (_read(f, ranks, run.engine.zero_stage) for f in folders)), None)


def _read(folder: Path, ranks: int, zero_stage: int) -> Checkpoint | None:
    try:
        state = json.loads((folder / STATE).read_text())
        found = Checkpoint(folder=folder, **state)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise _damaged(folder, error) from error
    if (found.ranks, found.zero_stage) != (ranks, zero_stage):
        return None
    return found


@contextmanager
def exclusive(run: Run) -> Iterator[None]:
    """Keep a run's checkpoint to this process; a killed process lets go of it.

    Raises InputError where another process trains the same run in the same workspace.
    """
    folder = _folder(run)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder.with_suffix(".lock"), timeout=0):
            yield
    except Timeout:
        raise InputError(
            f"run {run.name}: another process trains it in the workspace {run.workspace}; wait for "
            "its end, or give this study another workspace"
        ) from None


def save(
    run: Run, engine: Any, step: int, ranks: int, keep: Callable[[], Any], *, kept: bool = False
) -> None:
    """Write a checkpoint and remove the one before; every process calls it.

    `keep` is asked in the first process only; `kept`: for other runs to begin with.
    """
    from torch import distributed

    folder = _folder(run, STATES if kept else CHECKPOINTS)
    engine.save_checkpoint(str(folder), tag=str(step), save_latest=False)
    if ranks > 1:
        distributed.barrier()  # all have written
    if distributed.get_rank() == 0:
        saved = Checkpoint(folder, step, ranks, run.engine.zero_stage, keep())
        state = {key: value for key, value in asdict(saved).items() if key != "folder"}
        scratch = folder / f"{STATE}.partial"
        scratch.write_text(json.dumps(state))
        os.replace(scratch, folder / STATE)
        for other in folder.iterdir():
            if other.is_dir() and other.name != str(step):
                shutil.rmtree(other)


def remove(run: Run) -> None:
    """Forget a run's checkpoint: it has ended."""
    shutil.rmtree(_folder(run), ignore_errors=True)


def _damaged(folder: Path, error: Exception) -> InputError:
    return InputError(
        f"checkpoint {folder} cannot be loaded: {first_line(error)}; delete this folder to train "
        "the run from its start"
    )


def _folder(run: Run, kind: str = CHECKPOINTS) -> Path:
    return run.workspace / kind / fingerprint(run)
