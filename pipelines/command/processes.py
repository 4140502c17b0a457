"""Which process writes a run, so that a run whose process was killed does not stay RUNNING."""

import mlflow

from training.record import keys, process
from training.record.mlflow_runs import close


def mark(run_id: str) -> None:
    """Record in a run which process writes it."""
    mlflow.MlflowClient().set_tag(run_id, keys.PROCESS, process.identity())


def unmark(run_id: str) -> None:
    """Forget the process of a run that has ended well."""
    mlflow.MlflowClient().delete_tag(run_id, keys.PROCESS)


def close_dead(experiment_id: str) -> None:
    """End the runs of an experiment whose process was on this machine and is gone.

    A worker's runs are closed when they are trained again. A run from before the machine's last
    boot is left as it is: another machine may have its name.
    """
    query = f"attributes.status = 'RUNNING' and tags.{keys.PROCESS} LIKE '{process.machine()} %'"
    for run in mlflow.MlflowClient().search_runs([experiment_id], query):
        if process.is_dead(run.data.tags[keys.PROCESS]):
            close(run.info.run_id, "its process was killed")
