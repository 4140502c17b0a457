"""Parse the texts that `mlproject` passes: one rule for numbers, names, lists and files."""

import json
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException

from training.record import keys
from training.record.errors import InputError
from training.record.mixtures import checked_mixture


def number(where: str, value: object) -> float:
    """A finite number; `where` names the place in the error."""
    try:
        if isinstance(value, bool):
            raise TypeError
        result = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise InputError(f"{where}: {value!r} is not a number") from None
    except OverflowError:
        result = float("inf")
    if not isfinite(result):
        raise InputError(f"{where}: {value!r} is not a finite number")
    return result


def integer(name: str, text: str, least: int = 0) -> int:
    """An integer of at least `least`; `1e9` is one."""
    try:
        value = int(text)
    except ValueError:
        decimal = number(name, text)
        value = int(decimal)
        if value != decimal:
            raise InputError(f"{name}: {text!r} is not an integer") from None
    if not least <= value <= keys.MAX_INTEGER:
        raise InputError(
            f"{name}: {text!r} is not an integer from {least} to {keys.MAX_INTEGER:.2g}"
        )
    return value


def positive(name: str, text: str) -> float:
    """A number above 0."""
    value = number(name, text)
    if value <= 0:
        raise InputError(f"{name}: {text!r}; it must be positive")
    return value


def not_negative(name: str, text: str) -> float:
    """A number of at least 0."""
    value = number(name, text)
    if value < 0:
        raise InputError(f"{name}: {text!r}; it must be >= 0")
    return value


def one_of(*choices: str) -> Callable[[str, str], str]:
    """One of these words."""

    def read(name: str, text: str) -> str:
        if text not in choices:
            raise InputError(f"{name}: {text!r}; it is {', '.join(choices)}")
        return text

    return read


def boolean(name: str, text: str) -> bool:
    """`true` or `false`."""
    if text.lower() not in ("true", "false"):
        raise InputError(f"{name}: {text!r} is neither true nor false")
    return text.lower() == "true"


def names(name: str, text: str, separator: str = ",") -> list[str]:
    """A list of names; empty for an empty text."""
    items = _items(name, text, separator)
    _refuse_repeated(name, items)
    return items


def pairs(name: str, text: str) -> dict[str, float]:
    """`a=1,b=2` as numbers by name."""
    return {key: number(f"{name}: {key!r}", value) for key, value in _values(name, text).items()}


def limits(name: str, text: str) -> dict[str, tuple[float, float]]:
    """`web=0.1:0.5,python+cpp=:0.3,tables=0.1` as name → (lowest, highest)."""
    bounds = {}
    for key, value in _values(name, text).items():
        low, colon, high = value.partition(":")
        place = f"{name}: {key!r}"
        if not value:
            raise InputError(f"{place}: write name=lowest:highest, or name=proportion to fix it")
        least = number(place, low) if low else 0.0
        bounds[key] = (least, least if not colon else number(place, high) if high else 1.0)
    return bounds


def shares(name: str, text: str) -> dict[str, dict[str, float]]:
    """`code=python:0.6+cpp:0.4,…` as name → part → its share; the names may hold colons."""
    bundles = {}
    for key, value in _values(name, text).items():
        place = f"{name}: {key!r}"
        parts = [item.rpartition(":") for item in _items(place, value, "+")]
        if not parts or not all(part for part, _, _ in parts):
            raise InputError(f"{place}: {value!r} is not part:share+part:share")
        _refuse_repeated(place, [part for part, _, _ in parts])
        bundles[key] = {part: number(f"{place}: {part!r}", share) for part, _, share in parts}
    return bundles


def numbers(name: str, text: str) -> dict[str, float]:
    """`web=2,code=1`, a JSON object, or a file with one: name → number."""
    if not _is_file(text) and "=" in text and not text.lstrip().startswith("{"):
        return pairs(name, text)
    raw = json_value(name, text)
    if not isinstance(raw, dict):
        raise InputError(f"{name}: {text}: write a JSON object, name → number")
    return {key: number(f"{name}: {text}: {key!r}", value) for key, value in raw.items()}


def mixture(text: str, domains: Sequence[str], name: str = "mixture") -> dict[str, float]:
    """A mixture: `web=0.5,code=0.5`, a JSON object or file, or `runs:/<id>` of a run with one."""
    proportions = of_run(name, text) if text.startswith("runs:/") else numbers(name, text)
    return checked_mixture(proportions, domains, name)


def as_parameter(mixture: Mapping[str, float]) -> str:
    """A mixture as the parameter `mixture` reads it: `web=0.5,code=0.5`."""
    return ",".join(f"{domain}={share:.12g}" for domain, share in mixture.items())


def of_run(name: str, uri: str) -> dict[str, float]:
    """The mixture of the run `runs:/<id>`."""
    run_id = uri.removeprefix("runs:/").split("/")[0]
    try:
        params: Mapping[str, str] = mlflow.get_run(run_id).data.params
    except MlflowException as error:
        raise InputError(f"{name}: {uri}: {error.message}") from error
    proportions = {
        key.removeprefix(keys.MIXTURE): number(f"{name}: {uri}, param {key!r}", value)
        for key, value in params.items()
        if key.startswith(keys.MIXTURE)
    }
    if not proportions:
        raise InputError(f"{name}: run {run_id} has no params {keys.MIXTURE}<domain>")
    return proportions


def json_value(name: str, text: str) -> Any:
    """The value of a JSON text, or of the file that it names: UTF-8, UTF-16 or UTF-32.

    Raises InputError for what is not JSON, and for a key that is given twice.
    """

    def unique(entries: list[tuple[str, Any]]) -> dict[str, Any]:
        _refuse_repeated(f"{name}: {text}", [key for key, _ in entries])
        return dict(entries)

    is_json = text.lstrip()[:1] in ("{", "[")
    try:
        return json.loads(text if is_json else Path(text).read_bytes(), object_pairs_hook=unique)
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: {text}: not Unicode text: {error}; save it as UTF-8") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{name}: {text}: not JSON: {error}") from error
    except RecursionError:
        raise InputError(f"{name}: {text}: not JSON: nested too deeply") from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{name}: {text!r} is neither JSON nor a file that can be read: {error}"
        ) from error


def _values(name: str, text: str) -> dict[str, str]:
    """`a=x,b=y` as texts by name."""
    entries = []
    for item in _items(name, text):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not (key and equals):
            raise InputError(f"{name}: {item!r} is not name=value")
        entries.append((key, value))
    _refuse_repeated(name, [key for key, _ in entries])
    return dict(entries)


def _items(name: str, text: str, separator: str = ",") -> list[str]:
    items = [part.strip() for part in text.split(separator)] if text.strip() else []
    if "" in items:
        raise InputError(f"{name}: {text!r} has an empty item; remove a {separator!r}")
    return items


def _refuse_repeated(where: str, names: Sequence[str]) -> None:
    for i, name in enumerate(names):
        if name in names[:i]:
            raise InputError(f"{where}: {name!r} is given twice")


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False
