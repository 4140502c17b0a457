"""`fit`: run histories → law → cross-validation → registered predictor."""

from dataclasses import asdict, dataclass

import matplotlib.pyplot as plt
import mlflow
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fitting import history, laws, plots, registry, validate
from fitting.history import Histories, Purpose
from fitting.registry import Registered
from fitting.table import Observations
from fitting.validate import Target, Validation
from pipelines import entry
from pipelines import study as studies
from training import record
from training.errors import InputError

Array = np.ndarray
POOR_FIT = 0.5  # cross-validated error over that of predicting the mean


@dataclass(frozen=True)
class Fitted:
    """What a fit found and registered."""

    registered: Registered
    validation: Validation
    target: Target


def fit(
    experiment_ids: list[str],
    runs: str,
    model: str,
    methods: tuple[str, ...] = validate.METHODS,
    target: dict[str, float] | None = None,
    weights: dict[str, float] | None = None,
) -> Fitted:
    """Fit the complete proxy runs of the experiments and register the predictor.

    Target and weights are, in this order: those given, those of the sweeps above the runs, the
    largest size and length in the data and equal weights.
    """
    pulled = history.pull(experiment_ids, runs)
    observations = Observations.from_tidy(pulled.table)
    purpose = history.purpose(pulled.parents)
    aim = _target(observations, purpose, target or {})
    w = _weights(observations.val_domains, weights or purpose.weights)
    result = validate.validate(observations, w, aim, methods)
    law = validate.fit(observations, result.best, aim)
    _log(pulled, observations, result, aim, w)
    _log_figures(observations, result, law, w, aim)
    spec = {
        "domains": list(observations.domains),
        "val_domains": list(observations.val_domains),
        "weights": w.tolist(),
        "target": asdict(aim),
        "law": laws.to_json(law),
        "mixtures": observations.mixtures.tolist(),
        "half_width": result.half_width,
    }
    metadata = {
        **{key: spec[key] for key in ("domains", "val_domains", "target")},
        "weights": dict(zip(observations.val_domains, w.tolist(), strict=True)),
        "default_mixture": purpose.default_mixture,
        "best_observed": _best_observed(observations, w),
        "lowest": purpose.lowest,
        "highest": purpose.highest,
    }
    registered = registry.register(model, spec, metadata, result.scores.objective_mae)
    mlflow.set_tags({"model_uri": registered.uri, "alias": registered.alias})
    if registered.reason:
        mlflow.set_tag("why_not_champion", registered.reason)
    fitted = Fitted(registered, result, aim)
    print("\n".join(report(fitted, len(observations.runs), pulled.left_out)))
    return fitted


def report(fitted: Fitted, runs: int, left_out: dict[str, str]) -> list[str]:
    """What a fit found, in a few lines."""
    s, best = fitted.validation.scores, fitted.validation.best
    lines = [
        f"fit: {runs} runs; {best.method} law, φ(r) = r^{best.power:g}, ridge {best.ridge:.1e}"
        + (", the mixture's effect shrinking with scale" if best.shrinking else ""),
        f"  left-out mixtures: mean |error| of the objective {s.objective_mae:.4f}, predicting "
        f"the mean {s.mean_prediction_mae:.4f}, spread {s.objective_spread:.4f}; "
        f"Spearman {s.spearman:.2f}",
        f"  target: {fitted.target.n_params:,.0f} parameters, {fitted.target.tokens:,.0f} tokens; "
        f"90 % interval ±{fitted.validation.half_width:.3f}",
        f"  registered {fitted.registered.uri} as {fitted.registered.alias}"
        + (f": {fitted.registered.reason}" if fitted.registered.reason else ""),
    ]
    if tested := fitted.validation.tested:
        lines.insert(
            2,
            f"  backtest (the largest runs predicted from smaller and shorter ones): mean error "
            f"{tested.bias:+.4f}, rms {tested.rmse:.4f} at {tested.n_params_factor:.1f}× the "
            f"parameters and {tested.tokens_factor:.1f}× the tokens",
        )
    if left_out:
        named = "; ".join(f"{name}: {why}" for name, why in list(left_out.items())[:5])
        lines.append(f"  {len(left_out)} runs left out ({named})")
    if s.objective_mae > POOR_FIT * s.mean_prediction_mae:
        lines.append(
            "  WARNING: the law predicts left-out mixtures little better than their mean; "
            "train more mixtures before you trust a mixture found with it"
        )
    return lines


def _target(observations: Observations, purpose: Purpose, given: dict[str, float]) -> Target:
    n_params = given.get("n_params") or purpose.n_params or observations.n_params.max()
    tokens = given.get("tokens") or purpose.tokens or observations.tokens.max()
    return Target(float(n_params), float(tokens))


def _weights(val_domains: tuple[str, ...], given: dict[str, float]) -> Array:
    """Weights in the order of the validation domains, divided by their sum; equal by default."""
    if not given:
        return np.full(len(val_domains), 1 / len(val_domains))
    record.refuse_unknown(given, val_domains, "weights")
    missing = [name for name in val_domains if name not in given]
    if missing:
        raise InputError(f"weights: no weight for {', '.join(missing)}; give 0 to ignore a domain")
    raw = np.array([given[name] for name in val_domains])
    if (raw < 0).any() or not np.isfinite(raw).all() or raw.sum() == 0:
        raise InputError("weights: they must be >= 0 and not all 0")
    return raw / raw.sum()


def _best_observed(observations: Observations, weights: Array) -> dict[str, float]:
    """The mixture with the least objective among the longest runs of the largest size."""
    o = observations.rows(observations.last())
    o = o.rows(o.n_params == o.n_params.max())
    best = o.proportions()[np.argmin(o.losses @ weights)]
    return dict(zip(o.domains, best.round(12).tolist(), strict=True))


def _log(
    pulled: Histories,
    observations: Observations,
    result: Validation,
    aim: Target,
    weights: Array,
) -> None:
    mlflow.log_params(
        {
            "law": result.best.method,
            "power": result.best.power,
            "ridge": result.best.ridge,
            "shrinking": result.best.shrinking,
            record.TARGET_N_PARAMS: aim.n_params,
            record.TARGET_TOKENS: aim.tokens,
            **{
                record.WEIGHT + d: w
                for d, w in zip(observations.val_domains, weights.tolist(), strict=True)
            },
        }
    )
    tested = result.tested
    mlflow.log_metrics(
        {
            **{f"cv/{key}": value for key, value in vars(result.scores).items()},
            **({f"backtest/{k}": v for k, v in vars(tested).items()} if tested else {}),
            "half_width": result.half_width,
            "runs_used": len(observations.runs),
            "runs_left_out": len(pulled.left_out),
            "mixtures": len(observations.mixtures),
        }
    )
    numbers = pulled.table.drop(columns="run").astype(float)
    mlflow.log_input(mlflow.data.from_pandas(numbers, name="proxy-runs"), context="fitting")
    mlflow.log_text(pulled.table.to_csv(index=False), "runs.csv")
    mlflow.log_table(result.table, "candidates.json")
    held_out = result.held_out
    mlflow.log_table(
        pd.DataFrame(
            {
                "run": [held_out.runs[i] for i in held_out.run_of],
                record.N_PARAMS: held_out.n_params,
                **{
                    f"{kind}/{name}": values[:, i]
                    for i, name in enumerate(held_out.val_domains)
                    for kind, values in (
                        ("observed", held_out.losses),
                        ("predicted", result.predictions),
                    )
                },
            }
        ),
        "held_out_predictions.json",
    )


def _log_figures(
    observations: Observations,
    result: Validation,
    law: laws.Law,
    weights: Array,
    aim: Target,
) -> None:
    figures: dict[str, Figure] = {
        "predicted_against_observed": plots.predicted_against_observed(result, weights),
        "loss_over_tokens": plots.curves(observations, law, weights, (aim.n_params, aim.tokens)),
        "interactions": plots.interactions(law, observations.domains, observations.val_domains),
    }
    for name, figure in figures.items():
        mlflow.log_figure(figure, f"figures/{name}.png")
        plt.close(figure)


def main(
    study: str,
    experiment: str,
    runs: str,
    method: str,
    n_params: str,
    tokens: str,
    weights: str,
    model: str,
) -> None:
    methods = validate.METHODS if method == "auto" else (method,)
    if not set(methods) <= set(validate.METHODS):
        raise InputError(f"method: {method!r}; it is auto, {' or '.join(validate.METHODS)}")
    target = {
        key: float(entry.integer(key, text, least=1))
        for key, text in (("n_params", n_params), ("tokens", tokens))
        if text
    }
    if study:
        plan = studies.load(study)
        model = model or plan.model
        runs = runs or f"tags.{record.STUDY} LIKE '{plan.name}-%'"
    fit(
        entry.experiment_ids(experiment),
        runs,
        model or registry.DEFAULT_NAME,
        methods,
        target,
        entry.weights(weights) if weights else None,
    )


if __name__ == "__main__":
    entry.main(
        record.FIT,
        main,
        entry.arguments(
            __doc__,
            study="",
            experiment="",
            runs="",
            method="auto",
            n_params="",
            tokens="",
            weights="",
            model="",
        ),
    )
