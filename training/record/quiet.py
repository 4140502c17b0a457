"""Terminal output: the project's own lines, and only warnings and errors of libraries."""

import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

PACKAGES = ("training", "fitting", "optimization", "pipelines")  # each has one logger
LOGGERS = ("mlflow", "alembic", "datasets", "transformers", "DeepSpeed", "deepspeed")

# logger → first words of a warning that does not help users; its other warnings are shown
WARNINGS = {
    "torch.utils.cpp_extension": "No CUDA runtime is found",
    "mlflow.utils.git_utils": "Failed to import Git",
    "matplotlib.font_manager": "Matplotlib is building the font cache",
}

# module → the function that prints routine messages, and the first words of those messages
PRINTED = {
    "mlflow.tracking._model_registry.fluent": (
        "eprint",
        ("Successfully registered model", "Registered model", "Created version"),
    ),
    "deepspeed.comm.torch": ("print", ("DeepSpeed deepspeed.ops.",)),
}

ENVIRONMENT = {  # libraries read it at import, here and in child processes
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


def quiet() -> None:
    """Silence library messages about routine work; call it again after importing more libraries.

    If `MLFLOW_LOGGING_LEVEL` is set, MLflow keeps that level.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in LOGGERS:
        if name != "mlflow" or "MLFLOW_LOGGING_LEVEL" not in os.environ:
            logging.getLogger(name).setLevel(logging.WARNING)
    for name, start in WARNINGS.items():
        logger = logging.getLogger(name)
        if not any(isinstance(known, _Unless) for known in logger.filters):
            logger.addFilter(_Unless((start,)))
    for name, (function, starts) in PRINTED.items():
        if module := sys.modules.get(name):
            say = getattr(module, function, print)
            if not isinstance(say, _Say):
                setattr(module, function, _Say(say, _Unless(starts)))


def log_to_terminal() -> None:
    """Show the messages of the project's own loggers: info on stdout, warnings on stderr."""
    for name in PACKAGES:
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.handlers = [_Terminal()]


class _Terminal(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stdout if record.levelno < logging.WARNING else sys.stderr
        print(record.getMessage(), file=stream, flush=True)


class _Unless(logging.Filter):
    """Drops lines that start with one of these texts."""

    def __init__(self, starts: tuple[str, ...]) -> None:
        super().__init__()
        self.starts = starts

    def shows(self, text: str) -> bool:
        return not text.startswith(self.starts)

    def filter(self, record: logging.LogRecord) -> bool:
        return self.shows(record.getMessage())


class _Say:
    """A library's `print`, limited to what a filter passes."""

    def __init__(self, say: Callable[..., None], filter: _Unless) -> None:
        self.say, self.filter = say, filter

    def __call__(self, *texts: Any, **options: Any) -> None:
        if self.filter.shows(" ".join(map(str, texts))):
            self.say(*texts, **options)
