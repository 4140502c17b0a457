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
        if not any(isinstance(known, _PrefixFilter) for known in logger.filters):
            logger.addFilter(_PrefixFilter((start,)))
    for name, (function_name, starts) in PRINTED.items():
        if module := sys.modules.get(name):
            function = getattr(module, function_name, print)
            if not isinstance(function, _FilteredPrint):
                filtered = _FilteredPrint(function, _PrefixFilter(starts))
                setattr(module, function_name, filtered)


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


class _PrefixFilter(logging.Filter):
    """Drops lines that start with one of these texts."""

    def __init__(self, starts: tuple[str, ...]) -> None:
        super().__init__()
        self.starts = starts

    def shows(self, text: str) -> bool:
        return not text.startswith(self.starts)

    def filter(self, record: logging.LogRecord) -> bool:
        return self.shows(record.getMessage())


class _FilteredPrint:
    """A library's `print`, limited to what a filter passes."""

    def __init__(self, function: Callable[..., None], filter: _PrefixFilter) -> None:
        self.function, self.filter = function, filter

    def __call__(self, *texts: Any, **options: Any) -> None:
        if self.filter.shows(" ".join(map(str, texts))):
            self.function(*texts, **options)
