"""`optimize`: search the mixture with Optuna against the registered predictor."""

import mlflow

from fitting.registry import CHAMPION, DEFAULT_NAME
from optimization.domain import predictor as predictors
from optimization.domain.predictor import Predictor
from optimization.mixture import artifacts, solve
from optimization.mixture.report import report
from optimization.mixture.solve import Answer, Problem
from pipelines import entry
from pipelines.command import parameters
from pipelines.study import load as studies
from pipelines.study import search_problem
from training.record import keys, layout


def optimize(predictor: Predictor, wanted: Problem, *, children: bool = False) -> Answer:
    """Answer a problem and log the answer to the active run."""
    found = solve.solve(predictor, wanted)
    artifacts.log(found, children=children)
    lines = report(found)
    mlflow.set_tag(keys.NOTE, layout.description(lines))
    mlflow.log_text("\n".join(lines), layout.REPORT)
    return found


def champion(name: str) -> str:
    """The URI of a registered predictor's champion."""
    return f"models:/{name}@{CHAMPION}"


def main(model: str, n_params: str, tokens: str, study: str, children: str, **options: str) -> None:
    plan = studies.load(study) if study else None
    predictor = predictors.load(
        model or champion(plan.model if plan else DEFAULT_NAME),
        parameters.integer("n_params", n_params, least=1) if n_params else None,
        parameters.integer("tokens", tokens, least=1) if tokens else None,
    )
    wanted = (
        search_problem.of_study(plan, predictor) if plan else search_problem.of_predictor(predictor)
    )
    wanted = search_problem.with_parameters(wanted, predictor, plan, **options)
    found = optimize(predictor, wanted, children=parameters.boolean("children", children))
    print("\n".join(report(found)))


if __name__ == "__main__":
    entry.main(
        keys.OPTIMIZE,
        main,
        entry.arguments(
            __doc__,
            model="",
            trials="",
            n_params="",
            tokens="",
            study="",
            objective="",
            weights="",
            bounds="",
            bundles="",
            available="",
            epochs="",
            reference="",
            pull="",
            trust_region="",
            pessimistic="",
            seed="",
            children="false",
        ),
    )
