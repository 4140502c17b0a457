"""The project's version, a tag of every run and every registered model version."""

import functools
import tomllib
from pathlib import Path

TAG = "project_version"


@functools.cache
def version() -> str:
    """The version in `pyproject.toml`."""
    project = Path(__file__).parents[2] / "pyproject.toml"
    return str(tomllib.loads(project.read_text())["project"]["version"])
