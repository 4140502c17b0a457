"""Where a proxy run comes from: planned by a sweep, added by hand, imported, …"""

from collections.abc import Sequence

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from training.record import keys

PLANNED = "planned by sweep"
PROPOSED = "proposed by design"
CONTINUED = "planned by critical"
IMPORTED = "imported"
FOREIGN = "logged by other code"
UNPLANNED = "added by train"
GONE = "gone"  # the stage of a parent that was permanently deleted

_BY_PARENT = {keys.SWEEP: PLANNED, GONE: PLANNED, keys.CRITICAL: CONTINUED}


def origins(runs: Sequence[Run]) -> dict[str, str]:
    """Run id → origin.

    A run of a study counts as planned if a sweep trained it, or found it trained and marked it.
    """
    parents = {run.data.tags[keys.PARENT] for run in runs if keys.PARENT in run.data.tags}
    stages = {parent: _stage(parent) for parent in parents}
    return {run.info.run_id: _origin(run, stages) for run in runs}


def _origin(run: Run, stages: dict[str, str]) -> str:
    tags = run.data.tags
    if keys.IMPORTED_FROM in tags:
        return IMPORTED
    if keys.STUDY not in tags:
        return FOREIGN
    origin = _BY_PARENT.get(stages.get(tags.get(keys.PARENT, ""), ""), UNPLANNED)
    if origin == UNPLANNED and keys.PLANNED_BY in tags:
        origin = PLANNED
    proposed = (run.info.run_name or "").startswith(keys.PROPOSAL)
    return PROPOSED if origin == PLANNED and proposed else origin


def _stage(run_id: str) -> str:
    try:
        return str(mlflow.get_run(run_id).data.tags.get(keys.STAGE, ""))
    except MlflowException:
        return GONE
