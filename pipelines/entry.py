"""What every entry point shares: its MLflow run, its parameters, and how a mistake is told."""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException

from training import launcher, record, tracking
from training.devices import Machines, cores, visible_gpus
from training.errors import DivergedError, InputError
from training.signals import interrupt_on_signals


@contextmanager
def stage(name: str) -> Iterator[mlflow.ActiveRun]:
    """A run of this stage: the one `mlflow run` started, or a child of the stage around it."""
    inside = mlflow.active_run() is not None
    joins = not inside and "MLFLOW_RUN_ID" in os.environ
    with tracking.open_run(nested=inside, run_name=None if joins else name) as active:
        mlflow.set_tag(record.STAGE, name)
        yield active


def main(name: str, body: Callable[..., object], parser: argparse.ArgumentParser) -> None:
    """Run an entry point: a mistake of the user's ends it with one line and exit code 1.

    `body` takes the parsed parameters as keywords and runs inside the stage's MLflow run.
    """
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    parameters = vars(parser.parse_args())
    interrupt_on_signals()
    try:
        with stage(name):
            body(**parameters)
    except (InputError, DivergedError) as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{name}: interrupted; start it again to go on where it was")
    except MlflowException as error:
        sys.exit(f"{name}: MLflow: {error.message}")


def arguments(description: str | None, **parameters: str) -> argparse.ArgumentParser:
    """A parser of string parameters, name → default, as `mlproject` hands them over."""
    parser = argparse.ArgumentParser(description=description)
    for key, default in parameters.items():
        parser.add_argument(f"--{key.replace('_', '-')}", default=default)
    return parser


def mixture(text: str, domains: Sequence[str]) -> dict[str, float]:
    """A mixture parameter: `web=0.5,code=0.5`, a JSON file, or `runs:/<id>` of a run with one."""
    if text.startswith("runs:/"):
        run_id = text.removeprefix("runs:/").split("/")[0]
        try:
            params = mlflow.get_run(run_id).data.params
        except MlflowException as error:
            raise InputError(f"mixture: {text}: {error.message}") from error
        found: dict[str, Any] = record.without_prefix(record.MIXTURE, params)
        if not found:
            raise InputError(f"mixture: run {run_id} has no params {record.MIXTURE}<domain>")
    elif "=" in text:
        found = pairs("mixture", text)
    else:
        found = json_object("mixture", text)
    return record.checked_mixture(found, domains)


def pairs(name: str, text: str) -> dict[str, float]:
    """`a=1,b=2` as numbers by name."""
    found: dict[str, float] = {}
    for part in text.split(","):
        key, _, value = part.partition("=")
        if key.strip() in found:
            raise InputError(f"{name}: {key.strip()!r} is given twice")
        found[key.strip()] = number(f"{name}: {part.strip()!r}", value)
    return found


def shares(name: str, text: str) -> dict[str, dict[str, float]]:
    """`code=python:0.6+cpp:0.4,…` as name → part → its share."""
    found: dict[str, dict[str, float]] = {}
    for part in filter(None, text.split(",")):
        key, _, parts = (x.strip() for x in part.partition("="))
        if key in found:
            raise InputError(f"{name}: {key!r} is given twice")
        found[key] = pairs(f"{name}: {key!r}", parts.replace("+", ",").replace(":", "="))
    return found


def json_object(name: str, text: str) -> dict[str, float]:
    """The numbers by name in a JSON object or file."""
    try:
        raw = json.loads(text if text.startswith("{") else Path(text).read_text())
    except OSError as error:
        raise InputError(
            f"{name}: {text!r} is neither name=value,… nor a JSON file that can be read: {error}"
        ) from error
    except json.JSONDecodeError as error:
        raise InputError(f"{name}: {text}: not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise InputError(f"{name}: {text}: must hold one JSON object, name → number")
    return {key: number(f"{name}: {text}: {key!r}", value) for key, value in raw.items()}


def number(where: str, value: object) -> float:
    """A number, or an error that says where there is none."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise InputError(f"{where}: {value!r} is no number") from None


def integer(name: str, text: str, least: int = 0) -> int:
    """A whole number of at least `least`; `1e9` is one."""
    value = number(name, text)
    if value != int(value) or value < least:
        raise InputError(f"{name}: {text!r} is no whole number of at least {least}")
    return int(value)


def boolean(name: str, text: str) -> bool:
    """`true` or `false`."""
    if text.lower() not in ("true", "false"):
        raise InputError(f"{name}: {text!r}; it is true or false")
    return text.lower() == "true"


def machines(workers: str = "auto", ranks: str = "1", hostfile: str = "") -> Machines:
    """The processes that these parameters ask for.

    `auto` workers take all GPUs, or all cores: processes of one thread suit tiny models best.
    Raises InputError for more processes than there are GPUs.
    """
    if hostfile:
        if ranks != "1":
            raise InputError("ranks: a hostfile says how many processes there are; leave ranks out")
        path = Path(hostfile).absolute()
        return Machines(workers=1, ranks=launcher.slots(path), hostfile=path)
    together = integer("ranks", ranks, least=1)
    gpus = len(visible_gpus())
    if workers == "auto":
        count = max(1, (gpus or cores()) // together)
    else:
        count = integer("workers", workers, least=1)
    if gpus and together > 1 and count * together > gpus:
        raise InputError(
            f"ranks: {count} x {together} processes need as many GPUs; this machine offers {gpus}"
        )
    return Machines(count, together)


def experiment_ids(names: str) -> list[str]:
    """Ids of comma-separated experiments; by default the active run's."""
    if not names:
        active = mlflow.active_run()
        assert active is not None
        return [active.info.experiment_id]
    ids = []
    for name in names.split(","):
        found = mlflow.get_experiment_by_name(name.strip())
        if found is None:
            known = ", ".join(e.name for e in mlflow.search_experiments())
            raise InputError(f"experiment: no experiment {name.strip()!r}; there are: {known}")
        ids.append(found.experiment_id)
    return ids


def weights(text: str) -> dict[str, float]:
    """`web=2,code=1`, a JSON object or a JSON file: validation domain → weight."""
    return pairs("weights", text) if "=" in text else json_object("weights", text)
