"""What the worker processes of a command have in common, imported once: they are forked from it.

Multiprocessing's fork server imports this module. Nothing here starts a thread or touches a GPU,
which a forked process could not use.
"""

import os
from importlib import import_module
from typing import Any

PARENT = os.getppid()
NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"  # environment variable: torch asks the driver's library


def main() -> None:
    """Import the libraries, as long as there is a command that wants them."""
    os.environ[NVML] = "1"  # not CUDA, how many GPUs there are
    _load("training.workers.worker")
    torch = _load("torch")
    if torch.version.hip is None and not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
        _load("training.engine.trainer")


def _load(name: str) -> Any:
    if os.getppid() != PARENT:
        os._exit(1)
    return import_module(name)


main()
