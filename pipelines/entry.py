"""What all entry points share: their MLflow run, their parameters, and how errors are shown."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException

from pipelines.command import processes, table, texts, titles
from pipelines.runs import preflight
from pipelines.study import load as studies
from training.engine.devices import Machines, cores, visible_gpus
from training.record import keys, secrets, stores
from training.record.errors import DivergedError, InputError, first_line
from training.record.mlflow_runs import open_run
from training.record.quiet import log_to_terminal, quiet
from training.workers import launcher, slurm, step_tasks
from training.workers.signals import INTERRUPTED, interrupt_on_signals


@contextmanager
def stage(
    stage_name: str, parameters: Mapping[str, str] | None = None, name: str = ""
) -> Iterator[mlflow.ActiveRun]:
    """A run of this stage: the one that `mlflow run` started, or a child of the enclosing stage.

    The run is named after its parameters, if there are any and the user gave it no name; a child
    after its stage and `name`.
    """
    inside = mlflow.active_run() is not None
    joins = not inside and "MLFLOW_RUN_ID" in os.environ
    with open_run(
        nested=inside, run_name=None if joins else f"{stage_name} {name}".rstrip()
    ) as active:
        mlflow.set_tag(keys.STAGE, stage_name)
        processes.mark(active.info.run_id)
        if parameters is not None:
            processes.close_dead(active.info.experiment_id)
            preflight.registry_and_artifacts(active)  # a title may ask the registry
        if parameters is not None and (not joins or titles.generated(active.info.run_name)):
            named = title(stage_name, parameters, active.info.experiment_id)
            mlflow.set_tag(keys.RUN_NAME, named)
        for key, value in active.data.tags.items():  # such as a repository's URL
            if (safe := secrets.masked(value)) != value:
                mlflow.set_tag(key, safe)
        yield active
        processes.unmark(active.info.run_id)


def title(stage_name: str, parameters: Mapping[str, str], experiment_id: str) -> str:
    """The name of a run of this stage with these parameters."""
    study = studies.title(parameters["study"]) if parameters.get("study") else ""
    return secrets.masked(titles.title(stage_name, {**parameters, "study": study}, experiment_id))


def main(name: str, body: Callable[[Any, mlflow.ActiveRun], object], parameters: type) -> None:
    """Run an entry point; a user error ends it with one line and exit code 1.

    `parameters` is the command's table of them. `body` takes their values, and the stage's MLflow
    run, which is active.
    """
    os.environ.setdefault("PGCONNECT_TIMEOUT", str(stores.CONNECT_SECONDS))
    quiet()
    secrets.guard()
    log_to_terminal()
    command = titles.COMMANDS.get(name, name)
    parser = table.parser(parameters, sys.modules[parameters.__module__].__doc__)
    arguments = vars(parser.parse_args(_joined(sys.argv[1:])))
    interrupt_on_signals()
    try:
        preflight.tracking_store()
        with stage(name, arguments) as active:
            body(table.read(parameters, arguments), active)
    except (InputError, DivergedError) as error:
        sys.exit(f"{command}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{command}: {INTERRUPTED}")
    except MlflowException as error:
        sys.exit(f"{command}: MLflow: {first_line(error)}")


def _joined(arguments: Sequence[str]) -> list[str]:
    """`--key value` as `--key=value`, so that a value may begin with a dash."""
    joined: list[str] = []
    for text in arguments:
        if joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={text}"
        else:
            joined.append(text)
    return joined


def machines(workers: str = "auto", ranks: int = 1, hostfile: str = "") -> Machines:
    """The processes that these parameters ask for.

    `auto` workers take all GPUs, or all cores: single-threaded processes suit tiny models best.
    In a Slurm job of several nodes, all its tasks train one model together. Raises InputError for
    more processes than there are GPUs or tasks.
    """
    if hostfile:
        if ranks != 1:
            raise InputError("ranks: a hostfile says how many processes there are; leave ranks out")
        path = Path(hostfile).absolute()
        return Machines(workers=1, ranks=launcher.slots(path), hostfile=path)
    tasks = step_tasks.of_several_nodes()
    if tasks and ranks > 1:
        if ranks != tasks or workers not in ("auto", "1"):
            raise InputError(
                f"ranks: {ranks}; this Slurm job has {tasks} tasks on several nodes, which train "
                f"one model together: give ranks={tasks}, and leave workers out"
            )
        return Machines(1, ranks)
    gpus = len(visible_gpus())
    if workers == "auto":
        count = max(1, (gpus or cores()) // ranks)
    else:
        count = texts.integer("workers", workers, least=1)
    if gpus and ranks > 1 and count * ranks > gpus:
        raise InputError(
            f"ranks: {count} x {ranks} processes need as many GPUs; this machine offers {gpus}"
        )
    return Machines(count, ranks)


def array(kind: str, sbatch: str, workers: str, ranks: int) -> slurm.Array | None:
    """The Slurm job array that these parameters ask for; None if workers are started here."""
    if kind == table.LOCAL:
        if sbatch:
            raise InputError("sbatch: these are options for launcher=slurm; give that too")
        return None
    if workers == "auto":
        raise InputError(
            "workers: give the number of tasks of Slurm's job array, such as workers=8; auto "
            "counts what this machine has"
        )
    return slurm.Array(texts.integer("workers", workers, least=1), slurm.options(sbatch), ranks)


def experiment_ids(names: str, active: mlflow.ActiveRun) -> list[str]:
    """Ids of comma-separated experiments, or of one whose name contains commas; by default that of
    the active run."""
    if not names:
        return [active.info.experiment_id]
    ids = []
    whole = mlflow.get_experiment_by_name(names)
    for name in [names] if whole else texts.names("experiment", names):
        experiment = mlflow.get_experiment_by_name(name)
        if experiment is None:
            known = ", ".join(e.name for e in mlflow.search_experiments())
            raise InputError(f"experiment: no experiment {name!r}; there are: {known}")
        ids.append(experiment.experiment_id)
    return ids
