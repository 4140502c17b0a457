"""DeepSpeed's CPU kernel: compiled once per machine, in a folder of the project.

PyTorch guards a build with a lock file that survives a killed process, and then waits for it
forever. Here a lock that the system releases when its holder dies admits one process at a time. Any
PyTorch lock file that exists while it is held is stale and is removed.
"""

import hashlib
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from training.engine.devices import Machines, check_compiler, use_device, visible_gpus
from training.record.errors import InputError
from training.record.quiet import quiet

logger = logging.getLogger("training")

ROOT = Path(__file__).parents[2]
EXTENSIONS = "TORCH_EXTENSIONS_DIR"  # PyTorch's variable for its build folder
BUILT, LOG = "built", "build.log"
REFUSED = 2  # exit code of the compiling process after it printed the error
SCRATCH = "building-"  # one folder per process: a compiler may outlive its killed parent
NOTICE_SECONDS = 2  # of waiting before a notice
LIMIT_SECONDS = 600  # of waiting for another process to build
POLL_SECONDS = 0.2
REFRESH_SECONDS, LOG_SECONDS = 1, 15  # refresh of the progress, on a terminal and in a log


def build_for(machines: Machines) -> None:
    """Compile the kernel if training runs on this machine without GPUs."""
    if machines.hostfile is None and not visible_gpus():
        check_compiler()
        build()


def build() -> None:
    """Compile the kernel in a child process, unless this machine has it already.

    The child ends with this process. Raises InputError if it cannot be compiled.
    """
    folder = _folder()
    if (folder / BUILT).exists():
        return
    process = subprocess.Popen(
        [sys.executable, "-m", "training.engine.kernels", str(os.getpid())],
        cwd=ROOT,
        start_new_session=True,  # so that its compilers can be ended with it
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    bar_format = "compiling DeepSpeed's CPU kernel (once per environment): {elapsed}"
    interval = REFRESH_SECONDS if sys.stderr.isatty() else LOG_SECONDS
    try:
        with tqdm(bar_format=bar_format, mininterval=interval, miniters=0) as bar:
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
                bar.update(0)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)  # ninja then ends its compilers
        process.wait()
    if process.returncode == REFUSED:
        raise InputError("DeepSpeed's CPU kernel was not compiled; see the reason above")
    if process.returncode < 0:
        raise InputError(
            "compiling DeepSpeed's CPU kernel was ended by "
            f"{signal.Signals(-process.returncode).name}; start again"
        )
    if process.returncode:
        log = folder / LOG
        raise InputError(f"DeepSpeed's CPU kernel failed to compile: {_reason(log)}; see {log}")


def load() -> None:
    """Load the kernel into this process, for `deepspeed.init_distributed` to find."""
    builder = _builder()
    if builder is None:
        return
    build()
    with _locked(silently=True) as folder:  # a worker's parent shows what it waits for
        _load(builder, folder)


def _builder() -> Any:
    """DeepSpeed's builder of the kernel, or None if it has none for this machine."""
    from deepspeed.accelerator import get_accelerator

    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    return builder if builder is not None and builder.is_compatible() else None


def _load(builder: Any, folder: Path) -> None:
    os.environ[EXTENSIONS] = str(folder)
    Path(folder, builder.name, "lock").unlink(missing_ok=True)
    builder.load(verbose=False)


@contextmanager
def _locked(*, silently: bool = False) -> Iterator[Path]:
    """The kernel's folder, locked for this process; warns if it has to wait."""
    folder = _folder()
    lock = FileLock(folder / "building.lock")
    try:
        lock.acquire(timeout=NOTICE_SECONDS)
    except Timeout:
        if not silently:
            logger.warning(f"waiting for another process to compile the kernel in {folder}")
        try:
            lock.acquire(timeout=LIMIT_SECONDS)
        except Timeout:
            raise InputError(
                f"another process has compiled in {folder} for {LIMIT_SECONDS // 60} minutes; end "
                "it and start again"
            ) from None
    try:
        yield folder
    finally:
        lock.release()


def _folder() -> Path:
    """The folder for kernels of this environment, compiler and CPU type; created if missing.

    Raises InputError if it cannot be written.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    root = os.environ.get(EXTENSIONS) or os.path.join(cache, "mixture", "kernels")
    built_for = [
        *(version("torch"), version("deepspeed"), sys.implementation.cache_tag, sys.prefix),
        *(*platform.libc_ver(), os.environ.get("CXX", ""), _cpu()),
    ]
    key = hashlib.sha256("\n".join(built_for).encode()).hexdigest()[:12]
    path = Path(root).expanduser().absolute()
    folder = path if path.name == key else path / key  # inherited from the parent, or not
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOG).touch()
    except OSError as error:
        raise InputError(
            f"{folder}, for DeepSpeed's kernel, cannot be written ({error.strerror}); set "
            f"{EXTENSIONS} to a writable folder"
        ) from error
    return folder


def _cpu() -> str:
    """The CPU features that compiled code may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {features}"


def _reason(log: Path) -> str:
    """The line of a build's log that shows the error."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return next((line for line in lines if "error: " in line), lines[-1] if lines else "no reason")


def _build(parent: int) -> None:
    """The compiling process: builds in a scratch folder and moves the result when complete.

    The output goes to a log file.
    """

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os.killpg(0, signal.SIGTERM)

    threading.Thread(target=end_with_parent, daemon=True).start()
    quiet()
    use_device(0, 1)
    builder = _builder()
    with _locked() as folder:
        if (folder / BUILT).exists():
            return
        log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for stream in (1, 2):
            os.dup2(log, stream)
        for leftover in folder.glob(f"{SCRATCH}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        if builder is not None:
            scratch = folder / f"{SCRATCH}{os.getpid()}"
            scratch.mkdir()
            _load(builder, scratch)
            shutil.rmtree(folder / builder.name, ignore_errors=True)
            os.replace(scratch / builder.name, folder / builder.name)
            scratch.rmdir()
        Path(folder, BUILT).touch()


if __name__ == "__main__":
    try:
        _build(int(sys.argv[1]))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(REFUSED)
