"""Read a study file: find it, explain its errors in words, and make its paths absolute."""

import datetime
import difflib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import pydantic

from pipelines.study import yaml_file
from pipelines.study.sections import COUNT, LISTED
from pipelines.study.study import Study
from training.config import Section, Source
from training.record.errors import InputError

ROOT = Path(__file__).parents[2]
STUDIES = ROOT / "pipelines" / "studies"
SCALARS = (bool, int, float, datetime.date)
UNIONS = ("files", "domain_value", "pull")  # keys that take a string or something else


def load(name: str) -> Study:
    """The ready-made study of this name, or the study at this path.

    Raises InputError that names the file, the key and the rule.
    """
    path = _find(name)
    raw = yaml_file.load(path)
    if not isinstance(raw, dict):
        raise InputError(f"{path}: a study is a mapping of keys; found {type(raw).__name__}")
    try:
        study = _resolve(Study.model_validate(raw), path.parent)
        return with_sizes(study, study.used_sizes())
    except pydantic.ValidationError as error:
        raise InputError(f"{path}: {_explain(error.errors())}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def title(name: str) -> str:
    """The name in the study that `load` would find; its file's where the study has none to read."""
    path = Path(name)
    with suppress(InputError):
        path = _find(name)
        raw = yaml_file.load(path)
        if isinstance(raw, dict) and isinstance(raw.get("name"), str) and raw["name"].strip():
            return str(raw["name"])
    return path.stem if path.suffix in (".yaml", ".yml") else name


def with_sizes(study: Study, names: Iterable[str]) -> Study:
    """The study with the sizes of these names resolved from their Transformers configs.

    Raises InputError for a config that cannot be loaded.
    """
    if not (
        named := {n: study.sizes[n] for n in names if n in study.sizes and study.sizes[n].config}
    ):
        return study
    from training.engine import model  # slow: torch

    resolved = {name: model.resolve(size, name) for name, size in named.items()}
    return study.model_copy(update={"sizes": {**study.sizes, **resolved}})


def _find(name: str) -> Path:
    ready_made = STUDIES / f"{name}.yaml"
    if ready_made.exists():
        return ready_made
    path = (ROOT / name).absolute()
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in STUDIES.glob("*.yaml")))
        raise InputError(
            f"study {name!r}: no such file ({path}); give a path (a relative one starts at the "
            f"project's folder) or a ready-made study: {known}"
        )
    return path


def _resolve(study: Study, folder: Path) -> Study:
    """The study with absolute paths: the files of sources, a model's config and a base start at
    the study's folder, the workspace at ROOT.

    A config or base that does not exist there is kept: it is a hub id or, for a base, a URI.
    """

    def absolute(pattern: str) -> str:
        return str(folder / _expanded(pattern))

    sizes = dict(study.sizes)
    for name, size in sizes.items():
        if size.config and Path(absolute(size.config)).exists():
            sizes[name] = size.model_copy(update={"config": absolute(size.config)})

    def located(described: Mapping[str, Source]) -> dict[str, Source]:
        sources = {}
        for name, source in described.items():
            if source.files:
                patterns = [source.files] if isinstance(source.files, str) else source.files
                source = source.model_copy(update={"files": [absolute(p) for p in patterns]})
            sources[name] = source
        return sources

    validation = study.validation
    beside = {"sets": located(validation.sets), "tasks": located(validation.tasks)}
    validation = validation.model_copy(update=beside)
    critical = study.critical
    if critical and critical.base and Path(absolute(critical.base)).exists():
        critical = critical.model_copy(update={"base": absolute(critical.base)})
    workspace = (ROOT / _expanded(str(study.workspace))).absolute()
    resolved = {
        "domains": located(study.domains),
        "validation": validation,
        "sizes": sizes,
        "critical": critical,
        "workspace": workspace,
    }
    return study.model_copy(update=resolved)


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path}: {error}") from error


def _explain(errors: Sequence[Any]) -> str:
    """pydantic's errors as `key: rule; …`; an unknown key with the nearest known one."""
    rules: dict[str, list[str]] = {}
    unknown = []
    for item in errors:
        parts = _keys(item["loc"])
        where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in parts)
        where = where.removeprefix(".")
        if item["type"] == "extra_forbidden":
            known = _known_keys(item["loc"][:-1])
            near = difflib.get_close_matches(str(parts[-1]), known, n=1, cutoff=0)
            unknown.append(f"unknown key {where!r}; the nearest known key is {near[0]!r}")
            continue
        rule = item["msg"].removeprefix("Value error, ")
        if item["type"] == "string_type" and isinstance(item["input"], SCALARS):
            rule += f", and YAML reads {item['input']!r}; put it in quotes"
        rules.setdefault(where, []).append(rule)
    lines = [
        f"{where}: {', or: '.join(broken)}" if where else broken[0]
        for where, broken in rules.items()
        if not any(key.startswith((f"{where}.", f"{where}[")) for key in rules if where)
    ]
    return "; ".join(unknown + lines)


def _keys(location: Sequence[str | int]) -> list[str | int]:
    """The study keys in pydantic's location, without the names of types."""
    types = ("str", "float") if len(location) > 1 and location[-2] in UNIONS else ()
    last = len(location) - 1
    return [
        part
        for i, part in enumerate(location)
        if part not in (COUNT, LISTED)
        and not (isinstance(part, str) and "[" in part)
        and not (i == last and part in types)
    ]


def _known_keys(location: Sequence[str | int]) -> list[str]:
    """The keys of the section at a location in the study."""
    section: Any = Study
    for part in location:
        if isinstance(section, type) and issubclass(section, Section):
            section = section.model_fields[str(part)].annotation
        else:  # a list or a mapping: the type of its values
            section = get_args(section)[-1]
        if NoneType in get_args(section):  # a section that may be absent
            section = next(kind for kind in get_args(section) if kind is not NoneType)
    return list(section.model_fields)
