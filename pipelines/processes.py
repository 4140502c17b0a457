"""Which process writes a run, so that a run whose process was killed does not stay RUNNING."""

import os
import socket

import mlflow
import psutil

from training import record, tracking

WORDS = 3  # of the tag: host, process id and when that process began


def mark(run_id: str) -> None:
    """Say in a run which process writes it."""
    mlflow.MlflowClient().set_tag(run_id, record.PROCESS, _of(os.getpid()))


def close_dead(experiment_id: str) -> None:
    """End the runs of an experiment whose process was on this machine and is gone.

    Runs that a worker trains are closed where they are trained again.
    """
    client = mlflow.MlflowClient()
    query = (
        f"attributes.status = 'RUNNING' and tags.{record.PROCESS} LIKE '{socket.gethostname()} %'"
    )
    for run in client.search_runs([experiment_id], query):
        if _dead(run.data.tags[record.PROCESS]):
            tracking.close(run.info.run_id, "its process was killed")


def _of(pid: int) -> str:
    return f"{socket.gethostname()} {pid} {psutil.Process(pid).create_time():.2f}"


def _dead(tag: str) -> bool:
    parts = tag.split()
    if len(parts) != WORDS or not parts[1].isdigit():
        return False
    try:
        return _of(int(parts[1])) != tag
    except psutil.NoSuchProcess:
        return True
