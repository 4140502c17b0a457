"""`optimize`: search the mixture with Optuna against the registered predictor."""

from dataclasses import dataclass

import matplotlib.pyplot as plt
import mlflow
import numpy as np
import pandas as pd

from optimization import model as predictors
from optimization import plots, search
from optimization.model import Prediction, Predictor
from pipelines import entry
from pipelines import study as studies
from training import record
from training.errors import InputError

Mixture = dict[str, float]
CHAMPION = "models:/mixture-predictor@champion"


@dataclass(frozen=True)
class Optimum:
    """The best mixture beside those it is compared with: default, uniform, best observed."""

    mixtures: dict[str, Mixture]  # name → proportions; `best` is the answer
    predictions: dict[str, Prediction]
    predictor: Predictor


def optimize(
    predictor: Predictor, trials: int, seed: int = 0, bounds: dict[str, Mixture] | None = None
) -> Optimum:
    """Search within the bounds of the predictor's sweep, or those given (`lowest`, `highest`)."""
    domains, metadata = predictor.domains, predictor.metadata
    limits = bounds or metadata
    lower = np.array([limits.get("lowest", {}).get(d, 0.0) for d in domains])
    upper = np.array([limits.get("highest", {}).get(d, 1.0) for d in domains])
    known = {
        "default": metadata.get("default_mixture"),
        "uniform": dict.fromkeys(domains, 1 / len(domains)),
        "best observed": metadata.get("best_observed"),
    }
    compared = {name: mixture for name, mixture in known.items() if mixture}
    result = search.search(predictor.objective, domains, lower, upper, compared, trials, seed)
    mixtures = {"best": result.mixture, **compared}
    optimum = Optimum(mixtures, {n: predictor.ask(m) for n, m in mixtures.items()}, predictor)
    _log(optimum, result.trials)
    return optimum


def report(optimum: Optimum) -> list[str]:
    """The compared mixtures as a table."""
    domains = optimum.predictor.domains
    width = max(8, *(len(d) + 2 for d in domains))
    lines = [f"{'mixture':<14}" + "".join(f"{d:>{width}}" for d in domains) + "   predicted loss"]
    for name, mixture in optimum.mixtures.items():
        p = optimum.predictions[name]
        lines.append(
            f"{name:<14}"
            + "".join(f"{mixture[d]:>{width}.3f}" for d in domains)
            + f"   {p.objective:.4f} [{p.low:.4f}, {p.high:.4f}]"
        )
    return lines


def _log(optimum: Optimum, trials: pd.DataFrame) -> None:
    best = optimum.mixtures["best"]
    mlflow.log_params(
        {
            **record.with_prefix(record.MIXTURE, best),
            "model_uri": optimum.predictor.uri,
            record.TARGET_N_PARAMS: optimum.predictor.n_params,
            record.TARGET_TOKENS: optimum.predictor.tokens,
            "n_trials": len(trials),
        }
    )
    metrics = {}
    for name, p in optimum.predictions.items():
        key = name.replace(" ", "_")
        metrics[f"objective/{key}"] = p.objective
        metrics[f"distance/{key}"] = p.distance
        metrics |= {f"predicted/{key}/{d}": loss for d, loss in p.losses.items()}
    mlflow.log_metrics(metrics)
    mlflow.log_dict(best, "best_mixture.json")
    mlflow.log_table(trials, "trials.json")
    losses = {name: p.losses for name, p in optimum.predictions.items()}
    for name, figure in (
        ("best_mixture", plots.mixtures(optimum.mixtures, losses)),
        ("trials", plots.trials(trials)),
    ):
        mlflow.log_figure(figure, f"figures/{name}.png")
        plt.close(figure)


def main(model: str, trials: str, n_params: str, tokens: str, study: str) -> None:
    predictor = predictors.load(
        model,
        entry.integer("n_params", n_params, least=1) if n_params else None,
        entry.integer("tokens", tokens, least=1) if tokens else None,
    )
    bounds, seed = None, 0
    if study:
        plan = studies.load(study)
        if set(plan.domains) != set(predictor.domains):
            raise InputError(
                f"study {study!r} has the domains {', '.join(plan.domains)}; the predictor "
                f"{model} has {', '.join(predictor.domains)}"
            )
        lower, upper = plan.limits()
        seed = plan.search.seed
        bounds = {
            "lowest": dict(zip(plan.domains, lower, strict=True)),
            "highest": dict(zip(plan.domains, upper, strict=True)),
        }
    optimum = optimize(predictor, entry.integer("trials", trials, least=1), seed, bounds)
    print("\n".join(report(optimum)))


if __name__ == "__main__":
    entry.main(
        record.OPTIMIZE,
        main,
        entry.arguments(__doc__, model=CHAMPION, trials="300", n_params="", tokens="", study=""),
    )
