"""What the worker processes of a command have in common, imported once: they are forked from it.

Multiprocessing's fork server imports this module. Nothing here starts a thread, and no GPU is
touched, which a forked process could not use.
"""

import os
import signal
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from training.engine.devices import visible_gpus

PARENT = os.getppid()
DEVICES = ("/dev/nvidiactl", "/dev/nvmap", "/dev/dxg", "/dev/kfd")  # NVIDIA, Jetson, WSL, AMD


def main() -> None:
    """Import the libraries, as long as there is a command that wants them.

    What a library raises is left to the workers, which import it again and report it.
    """
    # a signal to the whole group is for the command and its workers, whose ends are told from here
    signal.signal(signal.SIGTERM, lambda *_: None)
    with suppress(Exception):
        _load("training.workers.worker")
        _load("torch")
        if not (visible_gpus() or any(Path(device).exists() for device in DEVICES)):
            os.environ["DS_ACCELERATOR"] = "cpu"
            _load("training.engine.trainer")


def _load(name: str) -> None:
    if os.getppid() != PARENT:
        os._exit(1)
    import_module(name)


main()
