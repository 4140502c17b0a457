"""Files that are replaced as a whole."""

import json
import os
from pathlib import Path


def write_json(path: Path, value: object, indent: int | None = None) -> None:
    """Replace a file atomically by a value as JSON; its folder is created if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with scratch.open("w") as file:
        file.write(json.dumps(value, indent=indent))
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)
