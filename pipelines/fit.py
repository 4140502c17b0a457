"""`fit`: run histories → law → cross-validation → registered predictor."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import mlflow
import numpy as np

from fitting import artifacts, changes, model_card, registry
from fitting import fit as fits
from fitting.artifact.spec import Explored, Target
from fitting.data import histories, reuse
from fitting.data.histories import Purpose
from fitting.data.observations import Observations
from fitting.data.reuse import Reuse
from fitting.diagnostics.optimum import Space
from fitting.estimators import accuracy
from fitting.estimators.candidates import ALL_METHODS, CHOICES, MEMBERS, TIES
from fitting.fit import Fit
from fitting.model_names import DEFAULT_NAME, refuse_bad_name
from fitting.registry import Registered
from fitting.report import report
from fitting.selection.forms import Options
from optimization.domain.constraints import Constraints
from optimization.domain.feasible import feasible
from pipelines import entry
from pipelines.command import advice, backlinks, table, texts
from pipelines.runs.fitted_runs import (
    Checkpoints,
    explored,
    left_out,
    of_known_domains,
    purpose_of,
    rules_of,
    usable,
    within_rules,
)
from pipelines.study import load as studies
from pipelines.study.prepared import TAG_DIGITS, Prepared
from pipelines.study.study import Study
from training.record import keys, layout
from training.record.errors import InputError
from training.record.mixtures import checked_weights

Array = np.ndarray
OBJECTIVE = "objective"  # the one validation domain of an implicit fit
EXPLICIT, IMPLICIT = "explicit", "implicit"


@dataclass(frozen=True)
class Parameters:
    study: str = table.parameter(
        "The study whose runs are fitted, with its target, weights and rules; by default those of "
        "the newest sweep above the runs."
    )
    experiment: str = table.experiment()
    runs: str = table.runs()
    method: str = table.parameter(
        f"The law: `auto`, by cross-validation, or one of {', '.join(ALL_METHODS)}.",
        default="auto",
    )
    n_params: int | None = table.parameter(
        "Non-embedding parameters of the target; by default the study's, or the largest in the "
        "data.",
        table.at_least(1),
    )
    tokens: int | None = table.parameter(
        "Tokens of the target; by default the study's, or the most in the data.",
        table.at_least(1),
    )
    weights: dict[str, float] | None = table.parameter(
        "Weights of the validation domains: `web=2,code=1`, a JSON object or file.", texts.numbers
    )
    unit: str = table.parameter(
        f"The unit of the fitted losses, {keys.NATS} or {keys.BITS}; by default the study's, or "
        "the runs' own."
    )
    model: str = table.parameter(
        f"The name to register under; by default the study's, or {DEFAULT_NAME}."
    )
    min_step: int | None = table.parameter(
        "The first fitted step; by default the first one after the start-up transient.",
        table.at_least(0),
    )
    max_step: int | None = table.parameter("The last fitted step.", table.at_least(1))
    aggregation: str = table.parameter(
        f"`{EXPLICIT}`: a law for each validation domain; `{IMPLICIT}`: one for the weighted loss.",
        texts.one_of(EXPLICIT, IMPLICIT),
        default=EXPLICIT,
    )
    power: float | None = table.parameter(
        "The exponent of φ(r) = r^a; by default chosen by cross-validation.", texts.not_negative
    )
    ridge: float | None = table.parameter(
        "The penalty on coefficients; by default chosen by cross-validation.", texts.not_negative
    )
    terms: int | None = table.parameter(
        "Exponentials of the law; by default chosen by cross-validation.", table.at_least(1)
    )
    shrinking: bool | None = table.parameter(
        "`true`: the effect of the mixture shrinks with size and steps; by default chosen by "
        "cross-validation.",
        texts.boolean,
    )
    tie: str = table.parameter(
        "What shares exponents: `all`, `domain` or (nested) `curve`; by default `all` for joint, "
        "`domain` for nested."
    )
    huber: float | None = table.parameter(
        "nested: residuals beyond this, in the unit of the losses, count linearly; by default "
        "none do.",
        texts.not_negative,
    )
    compare: bool = table.parameter(
        "`true`: compare with the other laws and with boosted trees.",
        texts.boolean,
        default="true",
    )
    reuse: str = table.parameter(
        "An MLflow filter string that selects an older study's runs, which are fitted too."
    )
    split: dict[str, dict[str, float]] | None = table.parameter(
        "How an older domain is split into newer ones: `code=python:0.6+cpp:0.4`.", texts.shares
    )
    repetition: bool = table.parameter(
        "`true`: also fit what repeated text is worth, where runs see a domain at least twice.",
        texts.boolean,
        default="false",
    )
    unplanned: bool = table.parameter(
        "`true`: also fit runs of `train` that no sweep planned.", texts.boolean, default="false"
    )


@dataclass(frozen=True)
class RegisteredFit:
    """The result of a fit, and its registered predictor."""

    fit: Fit
    registered: Registered


def fit(
    experiment_ids: list[str],
    runs: str,
    model: str,
    options: Options | None = None,
    target: dict[str, float] | None = None,
    weights: dict[str, float] | None = None,
    checkpoints: Checkpoints | None = None,
    *,
    implicit: bool = False,
    old: Reuse | None = None,
    unplanned: bool = False,
    purpose: Purpose | None = None,
    unit: str = "",
    repeated: bool = False,
) -> RegisteredFit:
    """Fit the complete proxy runs of the experiments and register the predictor.

    Runs of a study that no sweep planned are left out unless `unplanned` is set. Runs whose
    mixtures break a rule of the purpose are always left out. Old runs (`old`) are fitted too.

    Target, weights and unit are the arguments, or else those of the purpose, which by default is
    that of the sweeps above the runs, or else the largest size and length in the data, equal
    weights, and the runs' own unit.

    An implicit fit predicts only the weighted loss, as a sum of exponentials that stand for latent
    domains.
    """
    old = old or Reuse()
    unit = unit or (purpose.unit if purpose else "")
    pulled = reuse.pull(experiment_ids, runs, old, unplanned=unplanned, unit=unit)
    swept = histories.purpose(pulled.parents)
    purpose = purpose or swept
    default_mixture = purpose.default_mixture or swept.default_mixture
    pulled = of_known_domains(pulled, purpose)
    rules = rules_of(pulled, purpose)
    pulled = within_rules(pulled, feasible(rules, pulled.domains, 1.0))
    checkpoints = checkpoints or Checkpoints()
    raw_weights = weights or reuse.weights(purpose, pulled)
    losses, raw_weights, ignored = reuse.common_losses(pulled.table, raw_weights, pulled.reused)
    losses, notes = usable(losses, checkpoints)
    notes = [*left_out(pulled), *notes, *ignored, *reuse.summary(losses, pulled.reused, old.splits)]
    observations = Observations.from_tidy(losses)
    raw_weights = raw_weights or dict.fromkeys(observations.val_domains, 1.0)
    w = np.array(checked_weights(raw_weights, observations.val_domains))
    val_weights = dict(zip(observations.val_domains, w.tolist(), strict=True))
    if implicit:
        overall = (observations.losses @ w)[:, None]
        observations = replace(observations, val_domains=(OBJECTIVE,), losses=overall)
        w = np.ones(1)
    rules = explored(observations, rules)
    try:
        fitted = fits.fit(
            observations,
            w,
            _target(observations, purpose, target or {}),
            options,
            _space(observations, rules),
            keep_transients=checkpoints.min_step is not None,
            repeated=repeated,
        )
    except InputError as error:
        raise InputError("; ".join([str(error), *left_out(pulled)])) from error
    guesses = {t: g for t, g in pulled.guesses.items() if t in observations.val_domains}
    if unpredicted := sorted(pulled.guesses.keys() - guesses.keys()):
        notes.append(f"accuracy of {', '.join(unpredicted)} left out: its loss is not predicted")
    accuracies = accuracy.of_tasks(pulled.table, guesses)
    artifacts.log(fitted, pulled, val_weights, accuracies)
    spec = registry.spec_of(
        fitted,
        pulled.unit,
        explored=Explored(
            lowest={d: low for d, (low, _) in rules.bounds.items()},
            highest={d: high for d, (_, high) in rules.bounds.items()},
            bundles={name: dict(shares) for name, shares in rules.bundles.items()},
        ),
        val_weights=val_weights,
        default_mixture=dict(default_mixture),
        curves={one.task: one.curve for one in accuracies if one.curve is not None},
    )
    earlier = registry.newest(model, registry.purpose_of(spec))
    previous = changes.read_version(earlier.version, earlier.run_id) if earlier else None
    run = mlflow.get_run(mlflow.active_run().info.run_id)
    card = partial(model_card.version, fitted, spec, pulled, run)
    registered = registry.register(model, spec, fitted.choice.scores.objective_mae, card)
    mlflow.set_tags({"model_uri": registered.uri, "alias": registered.alias})
    if registered.reason:
        mlflow.set_tag(registry.WHY_NOT_CHAMPION, registered.reason)
    lines = report(fitted, registered, pulled, notes, accuracies)
    if previous:
        law = {f"law/{key}": value for key, value in fitted.choice.stack.params().items()}
        lines.append(f"  {changes.summary(previous, fitted, pulled, law)}")
    mlflow.set_tag(keys.NOTE, model_card.of_fit(fitted, registered, pulled, run))
    mlflow.log_text("\n".join(lines), layout.REPORT)
    backlinks.link_fit(pulled.parents, run.info.run_id)
    print("\n".join(lines))
    return RegisteredFit(fitted, registered)


def _space(o: Observations, rules: Constraints) -> Space:
    """Where the best mixture is searched."""
    allowed = feasible(rules, o.domains, 1.0)
    return Space(allowed.lower, allowed.upper, allowed.spread)


def _target(observations: Observations, purpose: Purpose, target: dict[str, float]) -> Target:
    n_params = target.get("n_params") or purpose.n_params or observations.n_params.max()
    tokens = target.get("tokens") or purpose.tokens or observations.tokens.max()
    return Target(float(n_params), float(tokens))


def main(parameters: Parameters, active: mlflow.ActiveRun) -> None:
    p = parameters
    study = studies.load(p.study) if p.study else None
    prepared = Prepared.find(study) if study else None
    model = p.model or (study.model if study else DEFAULT_NAME)
    refuse_bad_name(model, "model")
    target = {"n_params": p.n_params, "tokens": p.tokens}
    fitted = fit(
        entry.experiment_ids(p.experiment, active),
        p.runs or (_runs_of(study, prepared) if study else ""),
        model,
        law_options(p),
        {name: float(value) for name, value in target.items() if value},
        p.weights,
        Checkpoints(p.min_step, p.max_step),
        implicit=p.aggregation == IMPLICIT,
        old=Reuse(p.reuse, p.split or {}),
        unplanned=p.unplanned,
        purpose=purpose_of(study, prepared) if study else None,
        unit=p.unit,
        repeated=p.repetition,
    )
    run = mlflow.get_run(active.info.run_id)
    uri = fitted.registered.uri
    print(f"look at it:  {advice.look_at(run)}")
    print(f"search it:   {advice.command('optimize', run.info.experiment_id, model=uri)}")


def _runs_of(study: Study, prepared: Prepared | None) -> str:
    """An MLflow filter string that selects a study's runs; all runs with its name where its text is
    not prepared."""
    if prepared is None:
        print(
            f"fit: the text of study {study.name!r} is not prepared as the study now describes it; "
            "all runs of studies with its name are looked at"
        )
        return f"tags.{keys.STUDY} LIKE '{study.name}-{'_' * TAG_DIGITS}'"
    return f"tags.{keys.STUDY} = '{prepared.tag}'"


def law_options(parameters: Parameters) -> Options:
    """The user's choices for the law; cross-validation makes the others.

    `auto` keeps the methods that take every choice of the user.
    """
    method, tie = parameters.method, parameters.tie
    if method != "auto" and method not in ALL_METHODS:
        raise InputError(f"method: {method!r}; it is auto, {', '.join(ALL_METHODS)}")
    choices: dict[str, Any] = {
        "power": parameters.power,
        "ridge": parameters.ridge,
        "terms": parameters.terms,
        "shrinking": parameters.shrinking,
        "tie": tie or None,
        "huber": parameters.huber,
    }
    made = {name for name, value in choices.items() if value is not None}
    groups = (MEMBERS, ("nested",)) if method == "auto" else ((method,),)
    candidates = [name for group in groups for name in group]
    taking = [tuple(m for m in group if made <= set(CHOICES[m])) for group in groups]
    if not any(taking):
        takes = "; ".join(f"{m} takes {', '.join(CHOICES[m])}" for m in candidates)
        raise InputError(
            f"{', '.join(n for n in choices if n in made)}: no law of method {method} takes all of "
            f"them: {takes}"
        )
    if tie:
        ties = {t for group in taking for m in group for t in TIES[m]}
        taking = [tuple(m for m in group if tie in TIES[m]) for group in taking]
        if not any(taking):
            raise InputError(f"tie: {tie!r}; method {method} takes {', '.join(sorted(ties))}")
    methods = next(filter(None, taking))
    return Options(methods=methods, compare=parameters.compare, **choices)
