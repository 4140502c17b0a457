"""`critical`: how much of its original data keeps what a base model knew as it learns new data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import mlflow
import numpy as np
import pandas as pd

from fitting import artifacts as fit_artifacts
from fitting import fit, registry
from fitting.data import continual, histories
from fitting.data.continual import Side
from fitting.data.histories import Histories
from fitting.data.observations import Observations
from fitting.estimators.candidates import Target
from fitting.selection.choose import Options
from optimization.continual import artifacts, solve
from optimization.continual.artifacts import CHECK, FITTED, Answer, report
from optimization.continual.solve import Forgetting
from optimization.domain import predictor as predictors
from pipelines import entry
from pipelines.command import parameters, preflight
from pipelines.fit import register
from pipelines.prepare import prepare
from pipelines.runs import continual_runs
from pipelines.runs.proxy_runs import train_missing
from pipelines.study import load as studies
from pipelines.study.sections import Critical
from pipelines.study.study import CONTINUED, Study
from training.engine import kernels
from training.record import keys
from training.record.errors import InputError
from training.record.mixtures import checked_mixture
from training.record.mlflow_runs import last_losses
from training.run import Run
from training.workers.devices import Machines

Array = np.ndarray
DEFAULT_MODEL = "continual-predictor"


@dataclass(frozen=True)
class Asked:
    """What is asked of runs that continue a base."""

    original: Sequence[str]  # training domains
    new_validation: Sequence[str]
    weights: dict[str, float]  # of validation domains, in the place of the import's or sweep's
    tokens: int | None
    tolerances: Sequence[float]
    model: str  # registered name


@dataclass(frozen=True)
class Solved:
    """The law of continued training and its answer, before any check."""

    found: Forgetting
    sides: tuple[Side, Side]
    table: pd.DataFrame  # tidy, the fitted evaluations
    names: dict[str, str]  # of the runs, by id


def critical(pulled: Histories, asked: Asked) -> Solved:
    """Fit the law of continued training at one number of tokens, register it, and solve.

    Logs the fit to the active run.
    """
    base = continual.base_losses(pulled.table, pulled.names)
    table = continual.at_tokens(pulled.table, asked.tokens)
    objective = histories.purpose(pulled.parents).weights
    sides = continual.sides(table, asked.original, asked.new_validation, asked.weights, objective)
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
    told = {
        "lowest": lowest,
        "highest": highest,
        "weights": weighed,
        "default_mixture": {},
        "base": base,
        "original": dict.fromkeys(original.domains, 1.0),
        "original_weights": original.weights,
        "new_weights": new.weights,
    }
    registered = register(fitted, asked.model, told, pulled.unit)
    mlflow.set_tags({"model_uri": registered.uri, "alias": registered.alias})
    found = solve.solve(predictors.load(registered.uri), asked.tolerances)
    return Solved(found, sides, table, pulled.names)


def answered(solved: Solved, checks: pd.DataFrame) -> Answer:
    """What is logged and told; `checks` is a tidy table of runs that were not fitted."""
    rows = []
    domains = solved.found.predictor.domains
    for kind, runs in ((FITTED, solved.table), (CHECK, checks)):
        for _, row in runs.iterrows():
            mixture = np.array([row.get(keys.MIXTURE + d, 0.0) for d in domains])
            told = {"run": solved.names.get(row["run"], row["run"]), "kind": kind}
            told["share"] = float(mixture @ solved.found.is_original)
            predictions = solved.found.losses(mixture)
            for side, predicted in zip(solved.sides, predictions, strict=True):
                losses = (w * row.get(keys.VAL_LOSS + d, np.nan) for d, w in side.weights.items())
                told |= {side.name: sum(losses), f"predicted_{side.name}": predicted[0]}
            rows.append(told)
    return Answer(solved.found, pd.DataFrame(rows))


def of_experiment(names: str, runs: str, asked: Asked) -> Answer:
    """The answer from runs that an experiment holds."""
    experiments = entry.experiment_ids(names)
    pulled = histories.pull(experiments, runs)
    checks = histories.checks(experiments, runs, pulled.unit)
    solved = critical(pulled, asked)
    if len(checks):
        scale = [keys.TOKENS, keys.N_PARAMS]
        same = (checks[scale] == solved.table[scale].iloc[0]).all(axis=1)
        if others := sorted({*checks["run"]} - {*checks["run"][same]}):
            print(f"critical: check runs of another size or length left out: {', '.join(others)}")
        checks = checks[same]
    return answered(solved, checks)


def of_study(plan: Study, section: Critical, asked: Asked, machines: Machines) -> Answer:
    """Train the base, if need be, and what it becomes on each mixture; then train the answer."""
    mixtures = continual_runs.mixtures(plan, section)
    _refuse_late(plan, section, asked, mixtures, machines)
    corpus = prepare(plan)
    base = continual_runs.find_base(plan, corpus, section, machines)
    seed = plan.sweep.seed
    tried = [
        continual_runs.run(plan, corpus, section, base, name, mixture, seed)
        for name, mixture in mixtures.items()
    ]
    train_missing(plan, corpus, tried, machines, keys.CRITICAL)
    active = mlflow.active_run()
    assert active is not None
    pulled = histories.pull([active.info.experiment_id], f"tags.{keys.STUDY} = '{tried[0].study}'")
    solved = critical(pulled, asked)
    print("\n".join(report(answered(solved, pd.DataFrame()))), flush=True)

    def continued_on(mixture: Array, name: str, seed: int) -> Run:
        shares = dict(zip(solved.found.predictor.domains, mixture.tolist(), strict=True))
        checked = checked_mixture(shares, list(plan.domains))
        return continual_runs.run(
            plan, corpus, section, base, name, checked, seed, stage=keys.TARGET
        )

    proofs = [
        continued_on(one.mixture, f"critical-{one.tolerance:g}-seed{seed}", seed)
        for one in solved.found.answers
        if one.mixture is not None
        for seed in section.seeds
    ]
    run_ids = train_missing(plan, corpus, proofs, machines, keys.CRITICAL) if proofs else {}
    rows = [
        {
            "run": run.name,
            **keys.with_prefix(keys.MIXTURE, run.mixture),
            **keys.with_prefix(keys.VAL_LOSS, last_losses(run_ids[run.name])),
        }
        for run in proofs
    ]
    return answered(solved, pd.DataFrame(rows))


def _refuse_late(
    plan: Study,
    section: Critical,
    asked: Asked,
    mixtures: Mapping[str, Mapping[str, float]],
    machines: Machines,
) -> None:
    """Raise InputError, before anything is trained, for what would be refused after it."""
    sizes = [section.size] if section.size else []
    preflight.training(plan, machines, [*sizes, plan.target.size])
    plan.refuse_length(section.steps)
    plan.refuse_length(section.base_steps or plan.training.steps)
    planned = pd.DataFrame([keys.with_prefix(keys.MIXTURE, m) for m in mixtures.values()])
    planned = planned.assign(**dict.fromkeys((keys.VAL_LOSS + d for d in plan.domains), 0.0))
    continual.sides(planned, asked.original, asked.new_validation, asked.weights)
    continual_runs.refuse_missing_base(section)
    kernels.build_for(machines)


def main(
    study: str,
    experiment: str,
    runs: str,
    original: str,
    new_validation: str,
    tokens: str,
    tolerance: str,
    weights: str,
    model: str,
    workers: str,
    ranks: str,
) -> None:
    if study and experiment:
        raise InputError("experiment: give a study, which is trained, or an experiment, not both")
    registry.refuse_bad_name(model or DEFAULT_MODEL, "model")
    asked = Asked(
        original=parameters.names("original", original),
        new_validation=parameters.names("new_validation", new_validation),
        weights=parameters.numbers("weights", weights) if weights else {},
        tokens=parameters.integer("tokens", tokens, least=1) if tokens else None,
        tolerances=[_tolerance(part) for part in parameters.names("tolerance", tolerance)],
        model=model or DEFAULT_MODEL,
    )
    if experiment:
        given = of_experiment(experiment, runs, asked)
    else:
        for name, value in (("runs", runs), ("original", original), ("tokens", tokens)):
            if value:
                raise InputError(f"{name}: it goes with experiment; a study says it itself")
        plan = studies.load(study or "quickstart")
        section = plan.critical
        if section is None:
            raise InputError(
                f"study {plan.name!r} has no section `critical`, which says what is continued on "
                "what; `-P study=quickstart` has one"
            )
        asked = replace(
            asked,
            original=list(section.original),
            weights=asked.weights or plan.weights(),
            tolerances=asked.tolerances or section.tolerances,
            model=model or plan.model + CONTINUED,
        )
        given = of_study(plan, section, asked, entry.machines(workers, ranks))
    artifacts.log(given)
    print("\n".join(report(given)))


def _tolerance(text: str) -> float:
    value = parameters.number("tolerance", text)
    if value < 0:
        raise InputError(f"tolerance: {text!r} must be >= 0, in the unit of the losses")
    return value


if __name__ == "__main__":
    entry.main(
        keys.CRITICAL,
        main,
        entry.arguments(
            __doc__,
            study="",
            experiment="",
            runs="",
            original="",
            new_validation="",
            tokens="",
            tolerance="",
            weights="",
            model="",
            workers="auto",
            ranks="1",
        ),
    )
