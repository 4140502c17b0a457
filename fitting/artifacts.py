"""What a fit leaves in its MLflow run: params, metrics, tags, tables and figures."""

from collections.abc import Sequence

import mlflow
import pandas as pd
from matplotlib.figure import Figure

from fitting import plots, registry
from fitting.data.histories import Histories
from fitting.diagnostics import identifiability
from fitting.diagnostics.optimum import Optimum
from fitting.estimators.accuracy import TaskAccuracy
from fitting.fit import Fit
from fitting.selection.choose import ChosenLaw
from training.record import keys


def log(
    fit: Fit,
    pulled: Histories,
    weights: dict[str, float],
    accuracies: Sequence[TaskAccuracy] = (),
) -> None:
    """Log a fit to the active run; weights are those of the validation domains."""
    choice, tests = fit.choice, fit.choice.extrapolation.backtests
    mlflow.log_params(
        {
            **{f"law/{key}": value for key, value in choice.stack.params().items()},
            keys.TARGET_N_PARAMS: fit.target.n_params,
            keys.TARGET_TOKENS: fit.target.tokens,
            keys.LOSS_UNIT: pulled.unit,
            **keys.with_prefix(keys.WEIGHT, weights),
        }
    )
    mlflow.log_metrics(
        {
            **{f"cv/{key}": value for key, value in vars(choice.scores).items()},
            **{
                f"backtest/{test.label}/{key}": value
                for test in tests
                for key, value in test.figures().items()
            },
            **{f"{registry.DIAGNOSTIC}{one.name}": one.value for one in fit.diagnostics},
            **{f"cpu_seconds/{stage}": value for stage, value in fit.cpu_seconds.items()},
            "half_width": fit.half_width(fit.target),
            "runs_used": len(fit.observations.runs),
            "runs_left_out": len(pulled.left_out),
            "mixtures": len(fit.observations.mixtures),
        }
    )
    mlflow.set_tags(
        {f"{registry.DIAGNOSTIC}{one.name}": one.warning or "ok" for one in fit.diagnostics}
    )
    if (told := fit.repetition) is not None:
        worth, low, high = told.at(fit.target.n_params)
        mlflow.log_metrics({"repetition/wear": told.wear})
        for name, values in (("worth", worth), ("worth_low", low), ("worth_high", high)):
            named = dict(zip(fit.observations.domains, values.tolist(), strict=True))
            mlflow.log_metrics(keys.with_prefix(f"repetition/{name}/", named))
    if fit.unidentified:
        mlflow.set_tag(registry.NOT_IDENTIFIED, "; ".join(fit.unidentified)[: keys.TAG_LIMIT])
    numbers = pulled.table.drop(columns="run").astype(float)
    mlflow.log_input(mlflow.data.from_pandas(numbers, name="proxy-runs"), context="fitting")
    mlflow.log_text(pulled.table.to_csv(index=False), "runs.csv")
    mlflow.log_table(_taken(fit, pulled), "runs_taken.json")
    mlflow.log_table(choice.candidates, "candidates.json")
    mlflow.log_table(choice.laws, "laws.json")
    mlflow.log_table(_held_out(choice, pulled.names), "held_out_predictions.json")
    optima = [*fit.by_size, fit.best]
    mlflow.log_table(_optima(fit.observations.domains, optima), "optimum_by_size.json")
    if accuracies:
        mlflow.log_table(_accuracies(accuracies), "accuracies.json")
        curves = plots.accuracies(accuracies, pulled.unit)
        mlflow.log_figure(curves, "figures/accuracy.png")
    for name, figure in _figures(fit, optima, pulled.unit).items():
        if figure is not None:
            mlflow.log_figure(figure, f"figures/{name}.png")


def _figures(fit: Fit, optima: list[Optimum], unit: str) -> dict[str, Figure | None]:
    o, law = fit.observations, fit.law
    target = (fit.target.n_params, fit.target.tokens)
    return {
        "predicted_against_observed": plots.predicted_against_observed(
            fit.choice, fit.weights, unit
        ),
        "loss_over_tokens": plots.step_curves(o, law, fit.weights, target, unit),
        "loss_over_size": plots.size_curves(o, law, fit.weights, target, unit),
        "loss_against_proportion": plots.loss_against_proportion(o, law, fit.weights, unit),
        "interactions": plots.interactions(law, o, identifiability.constant_domains(o)),
        "cross_validation": plots.cross_validation(fit.choice),
        "laws": plots.laws_compared(fit.choice, unit),
        "optimum_by_size": plots.optima(o.domains, optima),
        "loss_against_epochs": plots.loss_against_epochs(fit, unit) if fit.repetition else None,
    }


def _accuracies(found: Sequence[TaskAccuracy]) -> pd.DataFrame:
    """A row for each task with choices: its curve, or why there is none."""
    return pd.DataFrame(
        {
            "task": one.task,
            "chance": one.guess.chance,
            "questions": one.guess.questions,
            **(one.curve.named() if one.curve else {}),
            "reason": one.reason,
        }
        for one in found
    )


def _taken(fit: Fit, pulled: Histories) -> pd.DataFrame:
    """Every run that was looked at: where it comes from, or why it was left out."""
    taken = [(pulled.names[run], pulled.origins[run], "", run) for run in fit.observations.runs]
    left_out = [(name, "", reason, "") for name, reason in pulled.left_out.items()]
    return pd.DataFrame([*taken, *left_out], columns=["run", "taken", "left_out", "id"])


def _held_out(choice: ChosenLaw, names: dict[str, str]) -> pd.DataFrame:
    """Observed and predicted losses of each run's last evaluation, its mixture left out."""
    h = choice.held_out
    return pd.DataFrame(
        {
            "run": [names[h.runs[i]] for i in h.run_of],
            keys.N_PARAMS: h.n_params,
            **{
                f"{kind}/{name}": values[:, i]
                for i, name in enumerate(h.val_domains)
                for kind, values in (("observed", h.losses), ("predicted", choice.predictions))
            },
        }
    )


def _optima(domains: tuple[str, ...], optima: list[Optimum]) -> pd.DataFrame:
    """The best mixture of each proxy size by its runs alone, and of the target by the law."""
    table = pd.DataFrame([o.mixture for o in optima], columns=[keys.MIXTURE + d for d in domains])
    table.insert(0, keys.N_PARAMS, [o.n_params for o in optima])
    table.insert(1, keys.TOKENS, [o.tokens for o in optima])
    table.insert(2, "objective", [o.objective for o in optima])
    return table
