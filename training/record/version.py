"""The version of the project, a tag of every run and of every registered version."""

import functools
import tomllib
from pathlib import Path

TAG = "project_version"


@functools.cache
def version() -> str:
    """As `pyproject.toml` says it."""
    project = Path(__file__).parents[2] / "pyproject.toml"
    return str(tomllib.loads(project.read_text())["project"]["version"])
