"""The documents say what is there: their links, paths, commands and study keys exist."""

import ast
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import TypeAdapter

from pipelines.study.study import Study
from tests.support.commands import ROOT
from training.config import Section

README = ROOT / "README.md"
GENERATED = {"docs/reference.md"}  # from the parameters and the study's classes
DOCUMENTS = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *(p for p in sorted((ROOT / "docs").glob("*.md")) if f"docs/{p.name}" not in GENERATED),
]
TOPS = ("training", "fitting", "optimization", "pipelines", "tests", "docs", ".ci")
MOST_LINES = 170  # of the README: it is the way in
OF_MLFLOW = {"--env-manager", "--experiment-name"}  # options of `mlflow run` that the documents use

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def yaml_blocks(text: str) -> list[dict[str, Any]]:
    """The YAML blocks of a document."""
    return [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.S)]


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives to a document's headings."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(document.read_text()), re.M)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


def commands(text: str) -> Iterator[list[str]]:
    """The words of each `mlflow run` in a document."""
    code = re.findall(r"^```\w*\n(.*?)^```", text, re.S | re.M)
    lines = "\n".join(code).replace("\\\n", " ").splitlines()
    inline = re.findall(r"`([^`\n]+)`", without_blocks(text))
    for line in (*lines, *inline):
        found = re.search(r"mlflow run .*", line)
        if found:
            yield shlex.split(re.sub(r"<[^>]*>", "ID", found[0]), comments=True)


def of_options(words: list[str]) -> tuple[str, list[str]]:
    """The entry point and the names of the parameters in an `mlflow run`."""
    point, parameters = "main", []
    assert words[:3] == ["mlflow", "run", "."]
    rest = iter(words[3:])
    for word in rest:
        if word == "-e":
            point = next(rest)
        elif word == "-P":
            name, equals, _ = next(rest).partition("=")
            assert equals
            parameters.append(name)
        else:
            assert word in OF_MLFLOW
            next(rest)
    return point, parameters


def defined(path: Path) -> set[str]:
    """The names that a module defines, and `Class.method`."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.FunctionDef(name=name):
                names.add(name)
            case ast.ClassDef(name=name, body=body):
                inner = (n.name for n in body if isinstance(n, ast.FunctionDef))
                names |= {name, *(f"{name}.{method}" for method in inner)}
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
    return names


@each_document
def test_every_link_leads_somewhere(document: Path) -> None:
    text = without_blocks(document.read_text())
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    for link in links:
        if link.startswith(("https://", "http://")):
            continue
        place, _, anchor = link.partition("#")
        file = (document.parent / place).resolve() if place else document
        if str(file.relative_to(ROOT)) in GENERATED:
            continue
        assert file.exists(), link
        if anchor:
            assert anchor in anchors(file), link


@each_document
def test_every_path_and_name_of_the_code_exists(document: Path) -> None:
    text = document.read_text()
    for path, _, name in re.findall(r"`((?:\.?\w+/)+[\w.]*)(::([\w.]+))?`", text):
        if path.startswith(tuple(f"{top}/" for top in TOPS)) and path not in GENERATED:
            assert (ROOT / path).exists(), path
            if name:
                assert name in defined(ROOT / path), f"{path}::{name}"
    for module in re.findall(r"python -m (tests\.[\w.]+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module


@each_document
def test_every_command_is_one_of_the_project(document: Path) -> None:
    points = yaml.safe_load((ROOT / "mlproject").read_text())["entry_points"]
    text = document.read_text()
    for words in commands(text):
        point, parameters = of_options(words)
        if point == "NAME":  # stands for any
            continue
        declared = points[point].get("parameters", {})
        assert set(parameters) <= set(declared), " ".join(words)
        needed = {name for name, spec in declared.items() if "default" not in spec}
        assert needed <= set(parameters), " ".join(words)
    every = {name for point in points.values() for name in point.get("parameters", {})}
    told = set(re.findall(r"-P (\w+)=", text)) - {"parameter"}
    assert told <= every


def test_the_documents_hold_commands_of_every_entry_point() -> None:
    points = yaml.safe_load((ROOT / "mlproject").read_text())["entry_points"]
    found = {of_options(words)[0] for path in DOCUMENTS for words in commands(path.read_text())}
    assert found - {"NAME"} == set(points)


@each_document
def test_every_study_key_is_one_of_the_study(document: Path) -> None:
    needed = {name for name, field in Study.model_fields.items() if field.is_required()}
    for block in yaml_blocks(document.read_text()):
        if needed <= set(block):
            Study.model_validate(block)
        for key, value in block.items():
            annotation: Any = Study.model_fields[key].annotation
            TypeAdapter(annotation).validate_python(value)
    for section, key in re.findall(r"`(\w+)\.(\w+)`", without_blocks(document.read_text())):
        kind = Study.model_fields[section].annotation if section in Study.model_fields else None
        for one in (kind, *get_args(kind)):
            if isinstance(one, type) and issubclass(one, Section):
                assert key in one.model_fields, f"{section}.{key}"


def test_a_document_holds_a_whole_study() -> None:
    blocks = [block for path in DOCUMENTS for block in yaml_blocks(path.read_text())]
    assert any({"name", "domains", "training", "sweep", "target"} <= set(block) for block in blocks)


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= MOST_LINES
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert pages <= set(re.findall(r"\]\(([^)#\s]+)", text))
    pictures = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.png")}
    shown = {
        str((path.parent / link).resolve().relative_to(ROOT))
        for path in DOCUMENTS
        for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", path.read_text())
    }
    assert shown == pictures


def test_the_check_finds_the_test_command_of_the_readme() -> None:
    script = (ROOT / ".ci/run").read_text()
    pattern = re.search(r"sed -n '([^']*)'", script)
    assert pattern is not None
    found = subprocess.run(
        ["sed", "-n", pattern[1], str(README)], capture_output=True, text=True, check=True
    )
    command = 'pip install "mlflow==3.17.2" uv && mlflow run . -e test --env-manager uv'
    assert found.stdout == f"{command}\n"
