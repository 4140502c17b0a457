"""The law of runs that continue a base model, and the critical proportions by it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import mlflow
import numpy as np
import pandas as pd

from fitting import artifacts as fit_artifacts
from fitting import fit, model_card, registry
from fitting.artifact.spec import Continual, Explored, Target
from fitting.data import continual, histories
from fitting.data.continual import Side
from fitting.data.histories import Histories
from fitting.data.observations import Observations
from fitting.selection.forms import Options
from optimization.continual import solve
from optimization.continual.report import CHECK, FITTED, CriticalAnswer
from optimization.continual.solve import ForgettingCurve
from optimization.domain import predictor as predictors
from pipelines.command import backlinks
from training.record import keys


@dataclass(frozen=True)
class Question:
    """What to answer from runs that continue a base."""

    original: Sequence[str]  # training domains
    new_validation: Sequence[str]
    weights: dict[str, float]  # of validation domains; empty: the import's or sweep's
    tokens: int | None
    tolerances: Sequence[float]
    model: str  # registered name


@dataclass(frozen=True)
class Solved:
    """The law of continued training and its answer, before any check run."""

    forgetting: ForgettingCurve
    sides: tuple[Side, Side]
    table: pd.DataFrame  # tidy, the fitted evaluations
    names: dict[str, str]  # run id → name


def fit_and_solve(pulled: Histories, question: Question) -> Solved:
    """Fit the law of continued training at one number of tokens, register it, and solve.

    Logs the fit to the active run.
    """
    base = continual.base_losses(pulled.table, pulled.names)
    table = continual.at_tokens(pulled.table, question.tokens)
    objective = histories.purpose(pulled.parents).weights
    sides = continual.sides(
        table, question.original, question.new_validation, question.weights, objective
    )
    observations = Observations.from_tidy(table)
    weighed = {
        d: sum(side.weights.get(d, 0.0) for side in sides) / 2 for d in observations.val_domains
    }
    fitted = fit.fit(
        observations,
        np.array([*weighed.values()]),
        Target(float(observations.n_params[0]), float(observations.tokens[0])),
        Options(compare=False),
        keep_transients=True,
    )
    fit_artifacts.log(fitted, pulled, weighed)
    lowest, highest = (
        dict(zip(observations.domains, ends.tolist(), strict=True))
        for ends in (observations.mixtures.min(axis=0), observations.mixtures.max(axis=0))
    )
    original, new = sides
    spec = registry.spec_of(
        fitted,
        pulled.unit,
        explored=Explored(lowest, highest, bundles={}),
        val_weights=weighed,
        default_mixture={},
        continual=Continual(base, tuple(original.domains), original.weights, new.weights),
    )
    run = mlflow.get_run(mlflow.active_run().info.run_id)
    card = partial(model_card.version, fitted, spec, pulled, run)
    registered = registry.register(question.model, spec, fitted.choice.scores.objective_mae, card)
    backlinks.link_fit(pulled.parents, run.info.run_id)
    mlflow.set_tags({"model_uri": registered.uri, "alias": registered.alias})
    forgetting = solve.solve(predictors.load(registered.uri), question.tolerances)
    return Solved(forgetting, sides, table, pulled.names)


def answered(solved: Solved, checks: pd.DataFrame) -> CriticalAnswer:
    """The answer to log and report; `checks` is a tidy table of runs that were not fitted."""
    rows = []
    domains = solved.forgetting.predictor.domains
    for kind, runs in ((FITTED, solved.table), (CHECK, checks)):
        for _, run in runs.iterrows():
            mixture = np.array([run.get(keys.MIXTURE + d, 0.0) for d in domains])
            row = {"run": solved.names.get(run["run"], run["run"]), "kind": kind}
            row["share"] = float(mixture @ solved.forgetting.is_original)
            predictions = solved.forgetting.losses(mixture)
            for side, predicted in zip(solved.sides, predictions, strict=True):
                losses = (w * run.get(keys.VAL_LOSS + d, np.nan) for d, w in side.weights.items())
                row |= {side.name: sum(losses), f"predicted_{side.name}": predicted[0]}
            rows.append(row)
    return CriticalAnswer(solved.forgetting, pd.DataFrame(rows))
