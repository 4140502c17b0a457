"""Write the file that the parameter `output` names."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training.record.errors import InputError, first_line


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises InputError if the file cannot be written, such as on a full disk."""
    try:
        yield
    except OSError as error:
        why = error.strerror or first_line(error)
        raise InputError(f"output: {path} could not be written: {why}") from error
