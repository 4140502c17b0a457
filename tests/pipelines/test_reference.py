"""Every parameter is declared once: `mlproject` and the reference follow the code's tables."""

import re
from typing import Any

import pytest
import yaml

from pipelines import reference
from pipelines.__main__ import COMMANDS
from pipelines.command import table
from pipelines.study.study import Study
from tests.support.commands import ROOT, run_entry
from training.config import Section

POINTS: dict[str, Any] = yaml.safe_load((ROOT / "mlproject").read_text())["entry_points"]


def test_every_command_is_an_entry_point() -> None:
    assert set(POINTS) == {*COMMANDS, "test"}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_project_file_hands_every_parameter_over(command: str) -> None:
    declared = table.declared(reference.module(command).Parameters)
    point = POINTS[command]
    defaults = {name: given.get("default") for name, given in point["parameters"].items()}
    assert defaults == {one.name: one.default for one in declared}
    assert {given["type"] for given in point["parameters"].values()} == {"string"}
    call = f"python -m pipelines {command} "
    assert point["command"].startswith(call)
    handed = re.findall(r"--([a-z-]+) \{(\w+)\}", point["command"])
    assert call + " ".join(f"--{o} {{{n}}}" for o, n in handed) == point["command"].strip()
    assert [(option.replace("-", "_"), name) for option, name in handed] == [
        (name, name) for name in defaults
    ]


def test_the_reference_is_what_the_code_declares() -> None:
    message = "run `python -m pipelines.reference`"
    assert reference.PAGE.read_text() == reference.page(), message


def test_everything_declared_is_described() -> None:
    for command in COMMANDS:
        for one in table.declared(reference.module(command).Parameters):
            assert one.help.endswith("."), f"{command}: {one.name}"
    whole: list[tuple[str, type[Section]]] = [("", Study)]
    for path, section in [*whole, *reference.sections(Study, "")]:
        for key, field in section.model_fields.items():
            assert field.description, f"{path}.{key}"


@pytest.mark.slow
def test_a_command_explains_itself() -> None:
    told = run_entry("optimize", "--help")
    assert told.returncode == 0
    for one in table.declared(reference.module("optimize").Parameters):
        assert f"--{one.name.replace('_', '-')} " in told.stdout
