"""The parameters of a command, each declared once.

A command's `Parameters` is a frozen dataclass whose fields are made by `parameter`. The command's
parser and help, the checks of its values and `docs/reference.md` are derived from it; a test
compares `mlproject` with it.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pipelines.command import texts

LOCAL, SLURM = "local", "slurm"  # launchers

Table = TypeVar("Table")
Read = Callable[[str, str], Any]  # a parameter's name and text → its value


@dataclass(frozen=True)
class Parameter:
    """A parameter of a command, and how its text becomes a value."""

    name: str
    default: str | None  # None: required
    help: str
    read: Read


def text(_: str, value: str) -> str:
    """The text unchanged."""
    return value


def at_least(least: int) -> Read:
    """An integer of at least `least`."""
    return partial(texts.integer, least=least)


def parameter(help: str, read: Read = text, *, default: str | None = "") -> Any:
    """A field of a command's `Parameters`.

    A parameter whose default is the empty text may be left out: its value is then None, or the
    empty text if it is read as a text.
    """
    return field(metadata={"default": default, "help": help, "read": read})


def study(default: str = "quickstart") -> Any:
    return parameter("A ready-made study, or the path of a study file.", default=default)


def workers() -> Any:
    help = "Models to train at once; `auto`: as many as there are GPUs, or else cores."
    return parameter(help, default="auto")


def ranks() -> Any:
    return parameter("Processes that train one model together.", at_least(1), default="1")


def hostfile() -> Any:
    return parameter(
        "A DeepSpeed hostfile, lines `host slots=n`: its processes train one model together."
    )


def launcher() -> Any:
    help = "`local`: workers on this machine; `slurm`: `workers` tasks of one Slurm job array."
    return parameter(help, texts.one_of(LOCAL, SLURM), default=LOCAL)


def sbatch() -> Any:
    return parameter("Options of `sbatch` for each task, such as `--partition=gpu --gres=gpu:1`.")


def experiment() -> Any:
    return parameter("Names of experiments, separated by commas; by default this run's.")


def runs() -> Any:
    return parameter("An MLflow filter string that selects runs; by default all.")


def dry_run() -> Any:
    help = "`true`: only report what the command would train and what that takes."
    return parameter(help, texts.boolean, default="false")


def throughput() -> Any:
    help = "FLOP/s of one worker, for the hours of `plan=true`; by default as measured."
    return parameter(help, texts.positive)


def benchmarks(**options: Any) -> Any:
    return parameter(
        "Tasks of lm-eval and YAML files of tasks of your own, separated by commas.",
        texts.names,
        **options,
    )


def limit() -> Any:
    return parameter("Questions of each task of a benchmark; by default all.", at_least(1))


def few_shot() -> Any:
    return parameter(
        "Examples before each question of a benchmark; by default as the task says.", at_least(0)
    )


def batch_size() -> Any:
    return parameter("Prompts that a benchmark gives the model at once.", at_least(1), default="16")


def model(help: str) -> Any:
    return parameter(f"{help} A registered model: `models:/name@champion` or `models:/name/3`.")


def declared(table: type) -> list[Parameter]:
    """The parameters of a table, in order."""
    return [Parameter(f.name, **f.metadata) for f in fields(table)]


def read(table: type[Table], arguments: Mapping[str, str]) -> Table:
    """The table's values from texts by name; a parameter without a text has its default.

    Raises InputError for the first text that is not a value of its parameter.
    """
    values = {}
    for param in declared(table):
        argument = arguments.get(param.name, param.default or "")
        left_out = not argument and param.default == "" and param.read is not text
        values[param.name] = None if left_out else param.read(param.name, argument)
    return table(**values)


class _Parser(argparse.ArgumentParser):
    """A parser whose error is one line."""

    def error(self, message: str) -> NoReturn:
        sys.exit(f"{Path(self.prog).stem}: {message}")


def parser(table: type, description: str | None) -> argparse.ArgumentParser:
    """A parser of a command line `--name value …`; its values are texts."""
    command_line = _Parser(description=description, allow_abbrev=False)
    for param in declared(table):
        default = "required" if param.default is None else f"default: {param.default or 'empty'}"
        command_line.add_argument(
            f"--{param.name.replace('_', '-')}",
            default=param.default or "",
            help=f"{param.help} ({default})".replace("%", "%%"),
        )
    return command_line
