"""The GPUs and CPU cores that this machine trains on."""

import os
import shutil
import socket
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from training.record.errors import InputError


@dataclass(frozen=True)
class Machines:
    """How many processes train at once, and where."""

    workers: int
    """Models trained in parallel."""
    ranks: int = 1
    """Processes that train one model together."""
    hostfile: Path | None = None
    """DeepSpeed's file of machines for these processes; this machine when absent."""

    @property
    def threads(self) -> int:
        """Threads of each process on a CPU."""
        return max(1, cores() // (self.workers * self.ranks))


def visible_gpus() -> list[str]:
    """Ids of the GPUs that may be used; empty on a CPU. Loads no GPU library."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu for gpu in named.split(",") if gpu]
    try:
        return [str(i) for i, _ in enumerate(Path("/proc/driver/nvidia/gpus").iterdir())]
    except OSError:
        return []


def cores() -> int:
    """Number of cores that this process may use, in a Slurm job at most the job's."""
    has_affinity = hasattr(os, "sched_getaffinity")
    allowed = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return min(allowed, int(os.environ.get("SLURM_CPUS_ON_NODE", allowed)))


def use_device(index: int, threads: int) -> None:
    """Choose a GPU if there are any, else check what DeepSpeed needs on a CPU.

    `index` is the worker's. Processes started by DeepSpeed's launcher have a GPU already.
    """
    os.environ["PATH"] = _path()
    import torch  # slow

    if torch.cuda.is_available():
        os.environ.setdefault("LOCAL_RANK", str(index % torch.cuda.device_count()))
        torch.set_float32_matmul_precision("high")
        return
    os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(threads)
    check_compiler()


def check_compiler() -> None:
    """Raise InputError if DeepSpeed cannot compile its CPU kernel."""
    compiler = os.environ.get("CXX") or "c++"
    if not (shutil.which(compiler) or shutil.which("g++")):
        raise InputError(
            f"no C++ compiler ({compiler} or g++) on the PATH: DeepSpeed compiles a kernel on a "
            "CPU at first use; install one (Debian, Ubuntu: apt-get install g++) or set CXX"
        )
    if not shutil.which("ninja", path=_path()):
        raise InputError("ninja is not on the PATH; install it with: pip install ninja")


def _path() -> str:
    """PATH with the commands of this environment, such as ninja, activated or not."""
    return sysconfig.get_path("scripts") + os.pathsep + os.environ.get("PATH", "")


def free_port() -> int:
    """A free TCP port of this machine."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
