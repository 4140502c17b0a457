"""The YAML of a study file: values that YAML would silently read as something else are errors."""

import re
from pathlib import Path
from typing import Any

import yaml

from training.record.errors import InputError

OLD = re.compile(r"[-+]?0[0-9_]+|.*:.*|yes|no|on|off", re.IGNORECASE)
"""YAML 1.1 reads 010 as 8, 1:30 as 90 and no as false."""


VALUES = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool"))


class _Loader(yaml.SafeLoader):
    """Refuses keys that are given twice or are not text, and values in old notations."""

    def __init__(self, stream: bytes) -> None:
        super().__init__(stream)
        self._checked: set[int] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge what `<<` names into a mapping, which is checked as it stands in the file."""
        if id(node) not in self._checked:
            self._checked.add(id(node))
            self._check_keys(node)
        super().flatten_mapping(node)

    def _check_keys(self, node: yaml.MappingNode) -> None:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise InputError(f"line {line}: a key is a list or a mapping; write a text")
            if key.tag != "tag:yaml.org,2002:str":
                raise InputError(
                    f"line {line}: YAML reads the key {key.value!r} as {_read_as(key)}; put it in "
                    f'quotes: "{key.value}"'
                )
            if key.value in lines:
                raise InputError(
                    f"line {line}: the key {key.value!r} is given in line {lines[key.value]} "
                    "already; remove one"
                )
            lines[key.value] = line

    def construct_value(self, node: yaml.ScalarNode) -> Any:
        if OLD.fullmatch(str(node.value)):
            raise InputError(
                f"line {node.start_mark.line + 1}: YAML reads {node.value} as {_read_as(node)}; "
                f'write that, or put a text in quotes: "{node.value}"'
            )
        return _construct(node)

    yaml_constructors = yaml.SafeLoader.yaml_constructors | dict.fromkeys(VALUES, construct_value)


def load(path: Path) -> Any:
    """What the file holds. Raises InputError that names the file and the line."""
    try:
        return yaml.load(path.read_bytes(), _Loader)
    except InputError as error:
        raise InputError(f"{path}, {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise InputError(f"{path}: not YAML: {text}") from error
    except RecursionError:
        raise InputError(f"{path}: not YAML: nested too deeply") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _construct(node: yaml.Node) -> Any:
    return yaml.SafeLoader("").construct_object(node, deep=True)


def _read_as(node: yaml.Node) -> str:
    """What plain YAML makes of a node, in words."""
    value = _construct(node)
    if isinstance(value, bool):
        return "true" if value else "false"
    return "null" if value is None else f"the {type(value).__name__} {value}"
