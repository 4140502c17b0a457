"""`optimize`: search the best mixture with Optuna on the registered predictor."""

from dataclasses import dataclass

import mlflow

from fitting.model_names import CHAMPION, DEFAULT_NAME
from optimization.domain import predictor as predictors
from optimization.domain.predictor import Predictor
from optimization.mixture import artifacts, solve
from optimization.mixture.report import description, report
from optimization.mixture.solve import Answer, Problem
from pipelines.command import advice, backlinks, table, texts
from pipelines.study import load as studies
from pipelines.study import search_problem
from pipelines.study.search_problem import Overrides
from training.record import keys, layout


@dataclass(frozen=True)
class Parameters(Overrides):
    study: str = table.study("")
    model: str = table.model("The predictor; by default the champion of the study.")
    n_params: int | None = table.parameter(
        "Non-embedding parameters of the target; by default the predictor's.", table.at_least(1)
    )
    tokens: int | None = table.parameter(
        "Tokens of the target; by default the predictor's.", table.at_least(1)
    )
    children: bool = table.parameter(
        "`true`: log every trial as a child run.", texts.boolean, default="false"
    )


def optimize(
    predictor: Predictor, problem: Problem, *, trials_below: mlflow.ActiveRun | None = None
) -> Answer:
    """Answer a problem and log the answer to the active run, and each trial as a child of
    `trials_below`, if given."""
    answer = solve.solve(predictor, problem)
    artifacts.log(answer, trials_below=trials_below)
    run = mlflow.get_run(mlflow.active_run().info.run_id)
    mlflow.set_tag(keys.NOTE, description(answer, backlinks.predictor_link(predictor), run))
    mlflow.log_text("\n".join(report(answer)), layout.REPORT)
    backlinks.link_answer(predictor, run.info.run_id, f"predicted gain {answer.gain:.4f}")
    return answer


def champion(name: str) -> str:
    """The URI of a registered predictor's champion."""
    return f"models:/{name}@{CHAMPION}"


def main(parameters: Parameters, active: mlflow.ActiveRun) -> None:
    study = studies.load(parameters.study) if parameters.study else None
    predictor = predictors.load(
        parameters.model or champion(study.model if study else DEFAULT_NAME),
        parameters.n_params,
        parameters.tokens,
    )
    problem = (
        search_problem.of_study(study, predictor)
        if study
        else search_problem.of_predictor(predictor)
    )
    problem = search_problem.changed(problem, predictor, study, parameters)
    answer = optimize(predictor, problem, trials_below=active if parameters.children else None)
    print("\n".join(report(answer)))
    print(f"look at it:  {advice.look_at(mlflow.get_run(active.info.run_id))}")
