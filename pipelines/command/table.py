"""The parameters of a command, each declared once.

A command's `Parameters` is a frozen dataclass whose fields are made by `parameter`. From it follow
the command's parser and help, the checks of its values, and `docs/reference.md`; a test holds
`mlproject` against it.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pipelines.command import texts

Table = TypeVar("Table")
Read = Callable[[str, str], Any]  # a parameter's name and text → its value


@dataclass(frozen=True)
class Parameter:
    """How a parameter is given, and how its text becomes a value."""

    name: str
    default: str | None  # None: it must be given
    help: str
    read: Read


def text(_: str, given: str) -> str:
    """The text as it is given."""
    return given


def at_least(least: int) -> Read:
    """An integer from `least` on."""
    return partial(texts.integer, least=least)


def parameter(help: str, read: Read = text, *, default: str | None = "") -> Any:
    """A field of a command's `Parameters`.

    A parameter whose default is the empty text may be left out: its value then is None, or the
    empty text where it is read as a text.
    """
    return field(metadata={"default": default, "help": help, "read": read})


def study(default: str = "quickstart") -> Any:
    return parameter("A ready-made study, or the path of a study file.", default=default)


def workers() -> Any:
    help = "Models that are trained at once; `auto`: as many as there are GPUs, or else cores."
    return parameter(help, default="auto")


def ranks() -> Any:
    return parameter("Processes that train one model together.", at_least(1), default="1")


def hostfile() -> Any:
    return parameter(
        "A DeepSpeed hostfile, lines `host slots=n`: its processes train one model together."
    )


def experiment() -> Any:
    return parameter("Names of experiments, separated by commas; by default that of this run.")


def runs() -> Any:
    return parameter("An MLflow filter string that selects runs; by default all.")


def dry_run() -> Any:
    help = "`true`: only say what the command would train and what that takes."
    return parameter(help, texts.boolean, default="false")


def throughput() -> Any:
    help = "FLOP/s of one worker, for the hours of `plan=true`; by default as measured."
    return parameter(help, texts.positive)


def model(help: str) -> Any:
    return parameter(f"{help} A registered model: `models:/name@champion` or `models:/name/3`.")


def declared(table: type) -> list[Parameter]:
    """The parameters of a table, in their order."""
    return [Parameter(f.name, **f.metadata) for f in fields(table)]


def read(table: type[Table], given: Mapping[str, str]) -> Table:
    """The table's values from texts by name; a parameter that is not given has its default.

    Raises InputError for the first text that is not a value of its parameter.
    """
    values = {}
    for one in declared(table):
        given_text = given.get(one.name, one.default or "")
        left_out = not given_text and one.default == "" and one.read is not text
        values[one.name] = None if left_out else one.read(one.name, given_text)
    return table(**values)


class _Parser(argparse.ArgumentParser):
    """A parser whose error is one line."""

    def error(self, message: str) -> NoReturn:
        sys.exit(f"{Path(self.prog).stem}: {message}")


def parser(table: type, description: str | None) -> argparse.ArgumentParser:
    """A parser of a command line `--name value …`; its values are texts."""
    made = _Parser(description=description, allow_abbrev=False)
    for one in declared(table):
        default = "required" if one.default is None else f"default: {one.default or 'empty'}"
        made.add_argument(
            f"--{one.name.replace('_', '-')}",
            default=one.default or "",
            help=f"{one.help} ({default})".replace("%", "%%"),
        )
    return made
