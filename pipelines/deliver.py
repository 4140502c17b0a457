"""`deliver`: send to the tracking server what waits on disk since the server was away."""

from dataclasses import dataclass

import mlflow

from pipelines.command import table
from pipelines.study import load as studies
from training.delivery import courier, outbox
from training.delivery.courier import Courier, Home
from training.record import layout, stores
from training.record.errors import InputError


@dataclass(frozen=True)
class Parameters:
    study: str = table.study()


def main(parameters: Parameters, active: mlflow.ActiveRun) -> None:
    workspace = studies.load(parameters.study).workspace
    before = courier.count(workspace)
    outbox.close_dead(workspace)
    print(f"deliver: sending the logs of {layout.count(before, 'run')}", flush=True)
    with stores.short_timeouts():
        waits = Courier(workspace, Home(active.info.experiment_id, active.info.run_id)).deliver()
    sent = max(0, before - waits.outboxes)
    mlflow.log_metrics({"runs_delivered": sent, "runs_left": waits.outboxes})
    if waits.outboxes:
        raise InputError(
            f"{layout.count(waits.outboxes, 'run')} of {before} still wait in "
            f"{outbox.folder(workspace)}: "
            f"{waits.away or waits.refused or 'another command delivers them'}; run the command "
            "again later"
        )
    if before:
        print(f"deliver: the logs of {layout.count(sent, 'run')} were sent from {workspace}")
    else:
        print(f"deliver: nothing waits in {outbox.folder(workspace)}")
