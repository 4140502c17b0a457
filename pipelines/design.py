"""`design`: which mixtures to train next.

They lie where the predictor is uncertain and the predicted loss is low. Without a predictor
they fill the gaps between the mixtures that are trained or planned.
"""

from dataclasses import dataclass

import mlflow
from mlflow.exceptions import MlflowException

from fitting.model_names import CHAMPION
from optimization.design import space_filling as designs
from optimization.domain import predictor as predictors
from optimization.domain.predictor import Predictor
from pipelines.command import table, texts
from pipelines.optimize import champion
from pipelines.prepare import prepare
from pipelines.runs import preflight
from pipelines.runs.proposal import log, proposed, report
from pipelines.runs.proxy_runs import ledger
from pipelines.study import load as studies
from pipelines.study import search_problem
from pipelines.study.study import Study
from training.record.errors import InputError


@dataclass(frozen=True)
class Parameters:
    study: str = table.study()
    model: str = table.model(
        "The predictor that chooses; by default the champion of the study, if there is one."
    )
    count: int = table.parameter("Mixtures to propose.", table.at_least(1), default="4")
    way: str = table.parameter(
        f"Design them without a predictor, so that they fill the gaps between the others: "
        f"{', '.join(designs.WAYS)}."
    )
    enqueue: bool = table.parameter(
        "`true`: the next `sweep` of this study trains them.", texts.boolean, default="false"
    )


def _predictor(study: Study, model: str) -> Predictor | None:
    """The predictor `model`, or the study's champion if there is one for its domains."""
    if model:
        return predictors.load(model)
    try:
        mlflow.MlflowClient().get_model_version_by_alias(study.model, CHAMPION)
    except MlflowException:
        return None
    predictor = predictors.load(champion(study.model))
    if set(predictor.domains) == set(study.domains):
        return predictor
    print(f"design: {predictor.uri} has other domains than the study; it is not used")
    return None


def main(parameters: Parameters, active: mlflow.ActiveRun) -> None:
    study, model, way = studies.load(parameters.study), parameters.model, parameters.way
    if way and way not in designs.WAYS:
        raise InputError(f"way: {way!r}; it is {', '.join(designs.WAYS)}")
    if way and model:
        raise InputError("way: a model chooses the mixtures itself; leave out way or model")
    preflight.preparing(study)
    preflight.ledger(study)
    predictor = None if way else _predictor(study, model)
    if predictor is not None:
        search_problem.refuse_other_domains(study, predictor)
    prepared = prepare(study)
    proposal = proposed(prepared, parameters.count, predictor, way or study.sweep.design, active)
    log(proposal)
    print("\n".join(report(proposal)))
    if parameters.enqueue:
        ledger(prepared, active).enqueue(proposal.runs)
        print("enqueued: the next `sweep` of this study trains them")
    else:
        print("not enqueued; enqueue=true lets the next `sweep` of this study train them")
