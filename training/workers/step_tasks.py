"""The processes of one model as the tasks of a Slurm job step on several nodes, started by srun."""

import os
import re
import subprocess
import sys

from training.engine.devices import free_port, visible_gpus
from training.record.errors import InputError

ANSWER_SECONDS = 60  # timeout of scontrol


def of_several_nodes() -> int:
    """The number of tasks of the Slurm job of this process, if it has several nodes; else 0."""
    if int(os.environ.get("SLURM_NNODES", 1)) < 2 or "SLURM_JOB_ID" not in os.environ:
        return 0
    return int(os.environ.get("SLURM_NTASKS", os.environ["SLURM_NNODES"]))


def command(ranks: int) -> list[str]:
    """srun for these processes; a module and its arguments follow.

    It runs beside other steps of the job, and ends all processes when one fails.
    """
    cores = os.environ.get("SLURM_CPUS_PER_TASK")  # which srun does not take from there
    placement = [f"--ntasks={ranks}", *([f"--cpus-per-task={cores}"] if cores else [])]
    ending = ["--kill-on-bad-exit=1", "--quit-on-interrupt"]
    return ["srun", *placement, "--overlap", "--mpi=none", *ending, sys.executable, "-m"]


def variables() -> dict[str, str]:
    """Where the processes meet: on the job's first node."""
    nodes = _scontrol("show", "hostnames", os.environ["SLURM_JOB_NODELIST"]).split()
    found = re.search(r"NodeAddr=(\S+)", _scontrol("show", "node", nodes[0]))
    address = found[1] if found else nodes[0]
    return {"MASTER_ADDR": address, "MASTER_PORT": str(free_port())}


def take_place() -> None:
    """Tell DeepSpeed which process of the step this is."""
    if "RANK" in os.environ:
        return  # DeepSpeed's launcher has
    local, gpus = int(os.environ["SLURM_LOCALID"]), len(visible_gpus())
    os.environ |= {
        "RANK": os.environ["SLURM_PROCID"],
        "WORLD_SIZE": os.environ["SLURM_NTASKS"],
        "LOCAL_RANK": str(local % gpus if gpus else local),  # Slurm may show each its own alone
    }


def _scontrol(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["scontrol", *arguments], capture_output=True, text=True, timeout=ANSWER_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"ranks: scontrol of Slurm does not answer: {error}") from error
    if done.returncode:
        raise InputError(f"ranks: scontrol {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
