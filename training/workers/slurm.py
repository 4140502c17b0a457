"""A sweep's workers as one Slurm job array: submitted, followed, and cancelled at Ctrl-C.

Slurm is asked by its own commands. Arrays are found by their job name, so that a command that was
killed and starts again follows the array that it left.
"""

import argparse
import hashlib
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlflow
from optuna.trial import TrialState
from tqdm import tqdm

from training.data.corpus import Corpus
from training.record import layout
from training.record.errors import InputError
from training.run import Run
from training.workers import array_task
from training.workers.ledger import RUN, Ledger, is_given_up
from training.workers.messages import Queue

logger = logging.getLogger("training")

ROOT = Path(__file__).parents[2]
TEMPLATE = Path(__file__).with_name("array_task.sbatch")
FOLDER = "slurm"  # in the workspace: the job file and the tasks' logs
WARN_SECONDS = 120  # before a task's time is over
POLL_SECONDS = 5.0
REFRESH_SECONDS, LOG_SECONDS = 1, 15  # refresh of the progress line, on a terminal and in a log
ANSWER_SECONDS = 60  # timeout of a command of Slurm
NO_CONTROLLER = ("configuration source", "Unable to contact slurm controller")
PATIENCE_SECONDS = 600  # without an answer of Slurm or the ledger before the command ends
OWN = ("array", "job-name", "export", "chdir", "wrap")  # of sbatch: set or excluded by this module
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
SHORT = {"array": "-a", "job-name": "-J", "chdir": "-D"}


@dataclass(frozen=True)
class Array:
    """How many tasks, each a worker, and sbatch's options for each."""

    tasks: int
    options: tuple[str, ...]
    ranks: int = 1
    """Processes of a task that train one model together."""


@dataclass(frozen=True)
class _Task:
    """A task as Slurm shows it."""

    array: str
    state: str
    reason: str


def options(text: str) -> tuple[str, ...]:
    """sbatch's options in a text, as a shell splits it.

    Raises InputError for those that the sweep sets itself.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"sbatch: {text!r}: {error}") from error
    own = vars(_parsed(words))
    for name in OWN:
        if own[name.replace("-", "_")] is not None:
            raise InputError(f"sbatch: leave --{name} out, which the sweep needs itself")
    return tuple(words)


def refuse_unusable(array: Array, stores: Sequence[str]) -> None:
    """Raise InputError if Slurm refuses the array, or its nodes would share an SQLite file.

    `stores` are the URLs of the ledger and of MLflow's stores.
    """
    nodes = _nodes(array)
    if len(nodes) > 1 and any(url.startswith("sqlite") for url in stores):
        raise InputError(
            f"launcher: Slurm has {len(nodes)} nodes for these tasks ({layout.some(nodes)}), and "
            "SQLite files are not safe on several: give the study a PostgreSQL `ledger` and set "
            "MLFLOW_TRACKING_URI to a server or to PostgreSQL"
        )
    _sbatch(["--test-only", *_template(array)])


def train(runs: Sequence[Run], corpus: Corpus, work: Queue, array: Array) -> None:
    """Train every run that is not trained yet by the tasks of a job array.

    Raises InputError if Slurm refuses it, or if it has ended and left runs that no worker gave up.
    """
    book = Ledger(work.ledger_url, work.name)
    book.enqueue(runs)
    name, folder = job_name(work), work.workspace / FOLDER
    job_file = folder / f"{name}.json"
    folder.mkdir(exist_ok=True)
    array_task.write_job(job_file, work, corpus.manifest, array.ranks)
    logger.info(f"Slurm: the tasks' logs are in {folder}")
    try:
        if queued := _tasks(name):
            logger.warning(
                f"Slurm: {_names(queued)} of this sweep is in the queue already, with "
                f"{layout.count(len(queued), 'task')}; no other is submitted"
            )
            _follow(name, book, len(runs))
        if not queued or _left(book):
            number = _submit(name, array, work, job_file)
            logger.info(f"Slurm: submitted array {number} of {layout.count(array.tasks, 'task')}")
            _follow(name, book, len(runs))
    except KeyboardInterrupt:
        logger.warning("Slurm: cancelling the array")
        _slurm("scancel", *_selected(name))
        raise
    if left := _left(book):
        raise InputError(
            f"the tasks of Slurm have ended and {layout.count(len(left), 'run')} not trained "
            f"({layout.some(left)}); {_last_words(folder)}; run the command again to train the rest"
        )


def job_name(work: Queue) -> str:
    """The name of the arrays of a sweep, equal whenever the sweep starts again."""
    key = hashlib.sha256(f"{work.name}\n{work.workspace}".encode()).hexdigest()[:8]
    return f"mixture-{work.name}-{key}"


def _submit(name: str, array: Array, work: Queue, job_file: Path) -> str:
    """Submit the array; returns its number."""
    log = str(job_file.parent).replace("%", "%%") + "/%A_%a.log"
    settings = [
        "--parsable",
        f"--job-name={name}",
        f"--output={log}",
        "--open-mode=append",  # a requeued task goes on in its log
        "--requeue",
        f"--signal=B:USR1@{WARN_SECONDS}",
        "--export=ALL",
        f"--chdir={ROOT}",
    ]
    stores = {array_task.LEDGER: work.ledger_url, array_task.TRACKING: mlflow.get_tracking_uri()}
    arguments = [*settings, *_template(array), sys.executable, str(job_file)]
    return _sbatch(arguments, stores).partition(";")[0]


def _template(array: Array) -> list[str]:
    """The array's tasks, the user's options, which win, and what each task runs."""
    return [f"--array=0-{array.tasks - 1}", *array.options, str(TEMPLATE)]


def _follow(name: str, book: Ledger, runs: int) -> None:
    """Show the array's state and the runs that are done, until no task is left.

    Tasks that still wait when no run is left are cancelled.
    """
    answered = time.monotonic()
    with tqdm(
        total=runs,
        mininterval=REFRESH_SECONDS if sys.stderr.isatty() else LOG_SECONDS,
        miniters=0,
        bar_format="{desc}, {n_fmt} of {total_fmt} runs done, {elapsed} elapsed",
    ) as bar:
        while True:
            try:
                tasks, left = _tasks(name), len(_left(book))
                answered = time.monotonic()
            except InputError as error:
                if time.monotonic() - answered > PATIENCE_SECONDS:
                    raise InputError(
                        f"{error}; the array goes on: run the command again to follow it"
                    ) from error
                time.sleep(POLL_SECONDS)
                continue
            bar.set_description_str(_described(tasks), refresh=False)
            bar.update(max(0, runs - left - bar.n))
            if not tasks:
                return
            if not left and any(task.state == "PENDING" for task in tasks):
                _slurm("scancel", "--state=PENDING", *_selected(name))
            time.sleep(POLL_SECONDS)


def _left(book: Ledger) -> list[str]:
    """Names of the runs that are neither trained nor given up."""
    open_trials = (t for t in book.trials() if t.state not in ENDED and not is_given_up(t))
    return [trial.user_attrs[RUN]["name"] for trial in open_trials]


def _tasks(name: str) -> list[_Task]:
    """The tasks of this name that have not ended."""
    told = _slurm("squeue", "--noheader", "--array", "--format=%F %T %r", *_selected(name))
    return [_Task(*line.split(maxsplit=2)) for line in told.splitlines()]


def _selected(name: str) -> tuple[str, str]:
    return f"--name={name}", f"--user={os.geteuid()}"


def _described(tasks: Sequence[_Task]) -> str:
    """`Slurm array 12: 2 running, 3 pending (Resources)`."""
    if not tasks:
        return "Slurm: no task is left"
    parts = []
    for state, count in Counter(task.state for task in tasks).items():
        reasons = dict.fromkeys(t.reason for t in tasks if t.state == state and t.reason != "None")
        parts.append(
            f"{count} {state.lower()}" + (f" ({', '.join(reasons)})" if any(reasons) else "")
        )
    return f"Slurm {_names(tasks)}: {', '.join(parts)}"


def _names(tasks: Sequence[_Task]) -> str:
    return "array " + " and ".join(dict.fromkeys(task.array for task in tasks))


def _last_words(folder: Path) -> str:
    """The last line of the newest log."""
    logs = sorted(folder.glob("*_*.log"), key=lambda path: path.stat().st_mtime)
    for log in reversed(logs):
        lines = [line.split("\r")[-1] for line in log.read_text(errors="replace").split("\n")]
        if words := [line.strip() for line in lines if line.strip()]:
            return f"the last line of {log}: {words[-1]!r}"
    return f"there is no log in {folder}"


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    """What this module reads of sbatch's options."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in OWN:
        parser.add_argument(*([SHORT[name]] if name in SHORT else []), f"--{name}")
    parser.add_argument("-p", "--partition")
    try:
        return parser.parse_known_args(words)[0]
    except argparse.ArgumentError as error:
        raise InputError(f"sbatch: {error}") from error


def _nodes(array: Array) -> list[str]:
    """The nodes on which the tasks may run, as far as their partition says it."""
    partition = _parsed(array.options).partition or os.environ.get("SBATCH_PARTITION")
    chosen = [f"--partition={partition}"] if partition else []
    return sorted(set(_slurm("sinfo", "--noheader", "--Node", "--format=%N", *chosen).split()))


def _sbatch(arguments: Sequence[str], variables: dict[str, str] | None = None) -> str:
    """sbatch, with further environment variables, which no command line shows."""
    outer = {  # a job of Slurm, in which this command may run, is not the tasks' own
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SLURM_") or name in ("SLURM_CONF", "SLURM_CLUSTERS")
    }
    return _slurm("sbatch", *arguments, environment={**outer, **(variables or {})})


def _slurm(command: str, *arguments: str, environment: dict[str, str] | None = None) -> str:
    """The output of a command of Slurm; InputError with Slurm's own words if it fails."""
    if not shutil.which(command):
        raise InputError(
            f"launcher: {command} is not on the PATH; run the command where Slurm jobs are "
            "submitted, or leave launcher out"
        )
    try:
        done = subprocess.run(
            [command, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ANSWER_SECONDS,
            start_new_session=True,  # a terminal's Ctrl-C is for this process
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{command} does not answer within {ANSWER_SECONDS} seconds") from error
    if done.returncode:
        lines = filter(None, map(str.strip, done.stderr.splitlines()))
        said = [re.sub(rf"^{command}: (error: |fatal: )?", "", line) for line in lines]
        silent = [line for line in said if any(text in line for text in NO_CONTROLLER)]
        if command == "sinfo" and silent:  # the first that is asked
            raise InputError(
                f"launcher: no Slurm answers on this machine ({silent[0]}); run the command where "
                "Slurm jobs are submitted, or leave launcher out"
            )
        raise InputError(f"{command}: {'; '.join(said) or f'exit code {done.returncode}'}")
    return done.stdout.strip()
