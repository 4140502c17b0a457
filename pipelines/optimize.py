"""`optimize`: search the mixture with Optuna against the registered predictor."""

import mlflow

from fitting.registry import CHAMPION, DEFAULT_NAME
from optimization import answer, artifacts
from optimization import model as predictors
from optimization.answer import Answer, Problem
from optimization.model import Predictor
from optimization.report import report
from pipelines import entry, parameters, problem
from pipelines import study_file as studies
from training import layout, record


def optimize(predictor: Predictor, wanted: Problem, *, children: bool = False) -> Answer:
    """Answer a problem and log the answer to the active run."""
    found = answer.solve(predictor, wanted)
    artifacts.log(found, children=children)
    lines = report(found)
    mlflow.set_tag(record.NOTE, layout.description(lines))
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
    wanted = problem.of_study(plan, predictor) if plan else problem.of_predictor(predictor)
    wanted = problem.with_parameters(wanted, predictor, plan, **options)
    found = optimize(predictor, wanted, children=parameters.boolean("children", children))
    print("\n".join(report(found)))


if __name__ == "__main__":
    entry.main(
        record.OPTIMIZE,
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
