"""The MLflow runs of one model: which one is done, and which ones were abandoned."""

import mlflow
from mlflow.entities import Run as MlflowRun

from training.record import keys
from training.record.mlflow_runs import close, search


def finished_ids(experiment_id: str, stage: str, fingerprint: str = "") -> dict[str, str]:
    """Fingerprint → id of each complete or diverged run, which need not be trained again; if a
    fingerprint is given, of that run only.

    For the stage `proxy` only proxy runs count, since fits use no others; else runs of any stage.
    """
    runs = finished_runs(experiment_id, stage, fingerprint)
    return {key: run.info.run_id for key, run in runs.items()}


def finished_runs(experiment_id: str, stage: str, fingerprint: str = "") -> dict[str, MlflowRun]:
    """As `finished_ids`, the runs; of several, complete ones first, then ones with a parent run."""
    runs: dict[str, MlflowRun] = {}
    which = f"= '{fingerprint}'" if fingerprint else "!= ''"
    for state in ("FINISHED", "FAILED"):
        query = f"attributes.status = '{state}' and tags.{keys.FINGERPRINT} {which}"
        for run in search([experiment_id], query):
            tags = run.data.tags
            key = tags[keys.FINGERPRINT]
            ended = tags.get(keys.COMPLETE) == "true" or keys.DIVERGED in tags
            ended &= stage != keys.PROXY or tags.get(keys.STAGE) == stage
            if ended and (key not in runs or _rank(run) > _rank(runs[key])):
                runs[key] = run
    return runs


def _rank(run: MlflowRun) -> tuple[bool, bool]:
    return keys.COMPLETE in run.data.tags, keys.PARENT in run.data.tags


def close_abandoned(experiment_id: str, fingerprint: str, started: int, successor: str) -> None:
    """End earlier attempts at a run that a crash left RUNNING: those that began before `started`,
    milliseconds since 1970, except the successor."""
    query = f"attributes.status = 'RUNNING' and tags.{keys.FINGERPRINT} = '{fingerprint}'"
    for attempt in mlflow.MlflowClient().search_runs([experiment_id], query):
        if attempt.info.run_id != successor and attempt.info.start_time < started:
            close(attempt.info.run_id, "its worker died; trained again")
