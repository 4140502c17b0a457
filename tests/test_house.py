"""What holds the house together: who imports whom, one pin per dependency, complete documents."""

import ast
import graphlib
import hashlib
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.study.sections import Critical, Phases, Search
from tests.support.commands import ROOT
from tests.test_documents import DOCUMENTS, yaml_blocks
from training.config import LADDER, Domain, Engine, Section, Size, Tokenizer, Training, Validation
from training.run import Phase

HEAVY = {"torch", "deepspeed", "transformers", "datasets"}
SHARED = "training.record"  # what training shares with the others


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(path: Path) -> set[str]:
    """Every module that a file imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files_of(package: str) -> list[Path]:
    """All of a package, in its folders too."""
    found = sorted((ROOT / package).rglob("*.py"))
    assert len(found) > 1
    return found


def file_of(name: str) -> Path:
    """Where a module or package of the project lies; it may be none."""
    path = ROOT.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def reached(path: Path) -> set[str]:
    """The project's modules that importing a file brings in, itself excluded."""
    todo, seen = [path], set()
    while todo:
        for name in imports(todo.pop()):
            file = file_of(name)
            if file.exists() and name not in seen:
                seen.add(name)
                todo.append(file)
    return seen


@pytest.mark.parametrize("package", ["fitting", "optimization"])
def test_fitting_and_optimization_never_reach_the_training_libraries(package: str) -> None:
    for path in files_of(package):
        modules = {module_name(path), *reached(path)}
        files = [file_of(name) for name in modules]
        heavy = {i.split(".")[0] for file in files for i in imports(file)} & HEAVY
        assert not heavy, f"{path.name} reaches {heavy}"
        of_training = {m for m in modules if m.startswith("training.")}
        assert all(m.startswith(SHARED) for m in of_training), path.name


ROOMS = {  # room → the rooms of its own package that it may import
    "training/record": set(),
    "training/data": {"record"},
    "training/engine": {"record", "data"},
    "training/delivery": {"record", "data", "engine"},
    "training/workers": {"record", "data", "engine", "delivery"},
    "fitting/artifact": set(),
    "fitting/data": set(),
    "fitting/importing": set(),
    "fitting/estimators": {"artifact", "data"},
    "fitting/selection": {"artifact", "data", "estimators"},
    "fitting/diagnostics": {"artifact", "data", "estimators", "selection"},
    "optimization/domain": set(),
    "optimization/search": {"domain"},
    "optimization/mixture": {"domain", "search"},
    "optimization/design": {"domain", "search", "mixture"},
    "optimization/continual": {"domain", "search"},
    "optimization/schedule": {"domain", "search"},
    "pipelines/command": set(),
    "pipelines/study": {"command"},
    "pipelines/explorer": {"command", "study"},
    "pipelines/runs": {"command", "study"},
    "pipelines/benchmarks": {"command"},
    "pipelines/proof": {"command", "study", "runs", "benchmarks"},
    "pipelines/html_report": {"command", "proof"},
}
PACKAGES = ("training", "fitting", "optimization", "pipelines")
MODULES = {module_name(path): path for package in PACKAGES for path in files_of(package)}


def test_every_room_has_its_rule() -> None:
    folders = {"/".join(name.split(".")[:2]) for name in MODULES if name.count(".") > 1}
    assert folders == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_lies_below_it(room: str) -> None:
    package, own = room.split("/")
    for path in files_of(room):
        for name in imports(path) & set(MODULES):
            parts = name.split(".")
            if parts[0] == package and len(parts) > 2:
                assert parts[1] in ROOMS[room] | {own}, f"{path.name} imports {name}"


TOPS = {  # subpackage → modules at the top of its package that it may import
    "training/data": {"config"},
    "training/engine": {"config", "run"},
    "training/delivery": {"run"},
    "training/workers": {"config", "run", "run_log"},
}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_few_modules_at_the_top_of_its_package(room: str) -> None:
    package, _ = room.split("/")
    for path in files_of(room):
        tops = {name.split(".")[1] for name in imports(path) & set(MODULES) if name.count(".") == 1
                and name.startswith(package + ".")}  # fmt: skip
        assert tops <= TOPS.get(room, set()), path.name


@pytest.mark.parametrize("package", PACKAGES)
def test_no_two_classes_of_a_package_share_a_name(package: str) -> None:
    classes = Counter(
        node.name
        for path in files_of(package)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and node.name != "Parameters"
    )
    assert not [name for name, count in classes.items() if count > 1]


def test_one_module_imports_the_harness_of_benchmarks_when_it_is_needed() -> None:
    harness = "pipelines.benchmarks.harness"
    users = {m for m, path in MODULES.items() if any(i[:7] == "lm_eval" for i in imports(path))}
    assert users == {harness}
    top = ast.parse(MODULES[harness].read_text()).body
    assert not any(
        "lm_eval" in ast.unparse(n) for n in top if isinstance(n, ast.Import | ast.ImportFrom)
    )


def test_no_modules_import_each_other_in_a_circle() -> None:
    graphlib.TopologicalSorter(
        {name: imports(path) & set(MODULES) for name, path in MODULES.items()}
    ).prepare()


@pytest.mark.slow
def test_configuration_never_reaches_torch_when_it_is_imported() -> None:
    code = (
        "import sys; import pipelines.study.load, pipelines.study.prepared, training.run; "
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_nothing_works_while_it_is_imported() -> None:
    """At the top of a module stand imports, constants and definitions."""
    allowed = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.ClassDef)
    for path in MODULES.values():
        for node in ast.parse(path.read_text()).body:
            text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            main = isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
            types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            logged = ast.unparse(node).startswith("mlflow.models.set_model(")  # a model from code
            forked = path.name == "preload.py" and ast.unparse(node) == "main()"
            works = text or main or types or logged or forked
            assert works or isinstance(node, allowed), f"{path}:{node.lineno}"


def test_training_knows_nothing_of_what_comes_after() -> None:
    for path in files_of("training"):
        packages = {name.split(".")[0] for name in reached(path) | imports(path)}
        assert not packages & {"fitting", "optimization", "pipelines"}, path.name


def test_fitting_and_optimization_meet_only_through_mlflow() -> None:
    for one, other in (("fitting", "optimization"), ("optimization", "fitting")):
        for path in files_of(one):
            assert not any(name.startswith(other) for name in reached(path)), path.name


def test_the_predictor_and_its_laws_import_nothing_of_the_project() -> None:
    allowed = {"mlflow", "numpy", "pandas", *sys.stdlib_module_names}
    for path in files_of("fitting/artifact"):
        packages = {i.split(".")[0] for i in imports(path)}
        assert packages <= allowed, path.name


def test_every_dependency_is_pinned_in_every_place_alike() -> None:
    """The direct ones in `pyproject.toml` and `conda.yaml`, all of them in `constraints.txt`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pins = [*project["project"]["dependencies"], *project["dependency-groups"]["checks"]]
    conda = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
    assert [d if isinstance(d, str) else "pip:" for d in conda] == ["python=3.11", "pip", "pip:"]
    assert conda[-1]["pip"][1:] == pins
    constraints = (ROOT / "constraints.txt").read_bytes()
    digest = hashlib.sha256(constraints).hexdigest()[:12]
    assert (
        conda[-1]["pip"][0] == f"-c constraints.txt # {digest}"
    )  # a change makes a new environment
    locked = dict(line.split("==") for line in constraints.decode().splitlines())
    versions = dict(pin.split("==") for pin in pins)
    for name, version in versions.items():
        assert locked[name.partition("[")[0].lower()] == version
    assert not any("+" in version for version in locked.values())  # no build of one machine alone
    readme = (ROOT / "README.md").read_text()
    assert set(re.findall(r"mlflow==([\d.]+)", readme)) == {versions["mlflow"]}
    clusters = (ROOT / "docs" / "gpus_and_clusters.md").read_text()
    assert f"psycopg[binary]=={versions['psycopg[binary]']}" in clusters


def rows_of(text: str, columns: int) -> dict[str, list[str]]:
    """Name → further cells of the rows of a document's tables that begin with a name in code."""
    row = re.compile(r"^\| `(\w+)` \|" + r"([^|]*)\|" * (columns - 1) + "$", re.M)
    return {name: list(cells) for name, *cells in row.findall(text)}


def test_the_documents_tell_the_entry_points_and_their_parameters() -> None:
    points = yaml.safe_load((ROOT / "mlproject").read_text())["entry_points"]
    commands = (ROOT / "README.md").read_text().split("| command |")[1].split("\n\n")[0]
    assert set(rows_of(commands, 3)) == set(points)
    told: dict[str, set[str]] = {"test": set()}  # whose page is CONTRIBUTING.md
    for path in DOCUMENTS:
        for table in path.read_text().split("| entry point |")[1:]:
            for name, (_, parameters) in rows_of(table.split("\n\n")[0], 3).items():
                assert name not in told, f"{path.name}: {name} has a row elsewhere"
                told[name] = set(re.findall(r"`(\w+)`", parameters))
    assert told == {name: set(point.get("parameters", {})) for name, point in points.items()}


def test_the_documents_tell_a_valid_study() -> None:
    blocks = [block for path in DOCUMENTS for block in yaml_blocks(path.read_text())]
    written: dict[str, list[Any]] = {}
    for block in blocks:
        for key, value in block.items():
            written.setdefault(key, []).append(value)
    for domains in written["domains"]:
        for domain in domains.values():
            Domain.model_validate(domain)
    sizes = [size for sizes in written["sizes"] for size in sizes.items()]
    for _, size in sizes:
        Size.model_validate(size)
    for sweep in written["sweep"]:
        assert set(sweep["sizes"]) <= {*LADDER, *(name for name, _ in sizes)}
    sections: dict[str, type[Section]] = {
        "tokenizer": Tokenizer,
        "validation": Validation,
        "training": Training,
        "engine": Engine,
        "search": Search,
        "critical": Critical,
        "phases": Phases,
    }
    for key, section in sections.items():
        for value in written[key]:
            section.model_validate(value)
    for schedule in written["schedule"]:
        for phase in schedule:
            Phase.model_validate(phase)
