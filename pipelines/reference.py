"""`docs/reference.md`: every parameter and every study key, as the code declares them.

`python -m pipelines.reference` writes it.
"""

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from pipelines.__main__ import COMMANDS, MODULES
from pipelines.command import table
from pipelines.study.study import Study
from training.config import Section

PAGE = Path(__file__).parents[1] / "docs" / "reference.md"
HEAD = """# Reference

Every parameter of every command, and every key of a study file. This page is generated from the
code (`python -m pipelines.reference`); a test compares the two.

A parameter is given as `-P name=value`. Numbers by name may come from a JSON file. Relative
paths start at the project's folder.
"""


def module(command: str) -> ModuleType:
    """The module of a command."""
    return importlib.import_module(f"pipelines.{MODULES.get(command, command)}")


def page() -> str:
    """The page, in Markdown."""
    lines = [HEAD, "## Commands", ""]
    for command in COMMANDS:
        lines += _command(command)
    lines += ["## The study file", "", *_keys(Study)]
    described: dict[type[Section], str] = {}
    for name, section in sections(Study, ""):
        lines += [f"### `{name}`", ""]
        if section in described:
            lines += [f"The keys of `{described[section]}`.", ""]
            continue
        described[section] = name
        lines += [inspect.cleandoc(section.__doc__ or ""), "", *_keys(section)]
    return "\n".join(lines)


def sections(section: type[Section], prefix: str) -> Iterator[tuple[str, type[Section]]]:
    """The sections below one, by their path; `<name>` stands for a name that the user gives."""
    for key, field in section.model_fields.items():
        for path, inner in _inner(field.annotation, f"{prefix}{key}"):
            yield path, inner
            yield from sections(inner, f"{path}.")


def _inner(annotation: Any, path: str) -> Iterator[tuple[str, type[Section]]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield path, annotation
        return
    kind = get_origin(annotation)
    below = f"{path}.<name>" if kind is dict else f"{path}[]" if kind is list else path
    for inner in get_args(annotation):
        yield from _inner(inner, below)


def _command(command: str) -> Iterator[str]:
    command_module = module(command)
    doc = (command_module.__doc__ or "").strip()
    yield from (f"### {command}", "", doc[0].upper() + doc[1:] if doc[0] != "`" else doc, "")
    yield from ("| parameter | default | meaning |", "|---|---|---|")
    for param in table.declared(command_module.Parameters):
        default = f"`{param.default}`" if param.default else ""
        default = "required" if param.default is None else default
        yield f"| `{param.name}` | {default} | {_cell(param.help)} |"
    yield ""


def _keys(section: type[Section]) -> Iterator[str]:
    yield from ("| key | default | meaning |", "|---|---|---|")
    for key, field in section.model_fields.items():
        yield f"| `{key}` | {_default(field)} | {_cell(field.description or '')} |"
    yield ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value == {} or value == []:
        return ""
    if isinstance(value, Section):
        return "as below"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
