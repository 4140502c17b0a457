"""`explore`: a page to play with a registered predictor, with sliders for the proportions."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import mlflow
from threadpoolctl import threadpool_limits

from fitting.artifact.spec import Target
from fitting.model_names import CHAMPION, DEFAULT_NAME, version_of
from optimization.domain import predictor as predictors
from optimization.domain.feasible import feasible
from optimization.domain.predictor import Predictor
from optimization.mixture.solve import DEFAULT, REFERENCE, Problem
from optimization.search import projection
from pipelines.command import table, titles
from pipelines.explorer import app, server
from pipelines.explorer.copies import Origin
from pipelines.explorer.explorer import Explorer
from pipelines.study import load as studies
from pipelines.study import search_problem
from pipelines.study.study import Study


@dataclass(frozen=True)
class Parameters:
    model: str = table.model("The predictor; by default the champion of the study.")
    study: str = table.study("")
    n_params: int | None = table.parameter(
        "Non-embedding parameters of the target; by default the predictor's.", table.at_least(1)
    )
    tokens: int | None = table.parameter(
        "Tokens of the target; by default the predictor's.", table.at_least(1)
    )
    host: str = table.parameter(
        "Address that the page answers on; on another than this machine's own, everyone who "
        "reaches the port can use the page.",
        default="127.0.0.1",
    )
    port: int = table.parameter(
        "Port of the page; `0` takes a free one.", table.at_least(0), default="8050"
    )


def explorer(predictor: Predictor, study: Study | None) -> Explorer:
    """What the page shows: within the rules of the study, or else of the predictor's own sweep."""
    problem = (
        search_problem.of_study(study, predictor)
        if study
        else search_problem.of_predictor(predictor)
    )
    return Explorer(predictor, problem, default(predictor, problem, study))


def default(
    predictor: Predictor, problem: Problem, study: Study | None
) -> tuple[str, dict[str, float]]:
    """The mixture that others are compared with, and its name."""
    known: dict[str, Mapping[str, float] | None] = {
        REFERENCE: problem.reference,
        DEFAULT: (study and study.explicit_default()) or predictor.spec.default_mixture,
    }
    for name, mixture in known.items():
        if mixture:
            return name, {domain: mixture.get(domain, 0.0) for domain in predictor.domains}
    rules = (problem.constraints, predictor.domains, predictor.tokens, predictor.fitted)
    name, even = projection.uniform(feasible(*rules))
    return name, dict(zip(predictor.domains, even.tolist(), strict=True))


def pinned(uri: str) -> str:
    """The URI of the version that an alias names now."""
    version = version_of(uri)  # if it is None, loading it says what is wrong
    return f"models:/{version.name}/{version.version}" if version else uri


def main(parameters: Parameters, active: mlflow.ActiveRun) -> None:
    study = studies.load(parameters.study) if parameters.study else None
    listening = server.listen(parameters.host, parameters.port)
    uri = pinned(parameters.model or f"models:/{study.model if study else DEFAULT_NAME}@{CHAMPION}")
    predictor = predictors.load(uri, parameters.n_params, parameters.tokens)
    explored = explorer(predictor, study)
    print("searching the best mixture …", flush=True)
    search = explored.search_at(explored.target)
    search.thread.join()
    if search.error is not None:
        raise search.error
    origin = Origin(uri, active.info.experiment_id)
    if study:
        size, steps = study.target.size, str(study.target.steps)
        target = Target(study.size(size).n_params, study.target_tokens())
        origin = replace(origin, study=parameters.study, size=size, steps=steps, target=target)
    made = app.app(explored, origin, titles.model_title(uri))
    if not server.is_loopback(parameters.host):
        print(f"WARNING: whoever reaches port {listening.getsockname()[1]} can use the page")
    print(f"the page is at {server.url(parameters.host, listening)}   Ctrl-C ends it", flush=True)
    # small matrices: more threads only wait for each other
    with threadpool_limits(1), server.serving(made, parameters.host, listening) as serving:
        serving.serve_forever()  # until Ctrl-C, which is how a page ends: the run is FINISHED
    print("the page has ended")
