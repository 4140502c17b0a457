"""`critical`: how much original data keeps what a base model knew as it learns new data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import mlflow
import numpy as np
import pandas as pd

from fitting import model_names
from fitting.data import continual, histories
from optimization.continual import artifacts
from optimization.continual.report import CriticalAnswer, report
from pipelines import entry
from pipelines.command import table, texts
from pipelines.prepare import prepare
from pipelines.runs import continual_runs, preflight
from pipelines.runs.continual_law import Question, answered, fit_and_solve
from pipelines.runs.proxy_runs import train_missing
from pipelines.study import load as studies
from pipelines.study.sections import Critical
from pipelines.study.study import CONTINUED, Study
from training.engine import kernels
from training.engine.devices import Machines
from training.record import keys
from training.record.errors import InputError
from training.record.mixtures import checked_mixture
from training.record.mlflow_runs import last_losses
from training.run import Run

Array = np.ndarray
DEFAULT_MODEL = "continual-predictor"


def _tolerances(name: str, text: str) -> list[float]:
    values = [texts.number(name, part) for part in texts.names(name, text)]
    if values and min(values) < 0:
        raise InputError(f"{name}: {text!r} must be >= 0, in the unit of the losses")
    return values


@dataclass(frozen=True)
class Parameters:
    study: str = table.parameter(
        "The study to train; by default quickstart, unless an experiment is given."
    )
    experiment: str = table.parameter(
        "Names of experiments whose runs are read instead of training, separated by commas."
    )
    runs: str = table.runs()
    original: list[str] | None = table.parameter(
        "With an experiment: the domains of the original data, separated by commas.", texts.names
    )
    new_validation: list[str] | None = table.parameter(
        "Validation domains that belong to the new data although no training domain has their "
        "name, separated by commas.",
        texts.names,
    )
    tokens: int | None = table.parameter(
        "With an experiment: the tokens at which losses are compared; by default the largest "
        "number at which every run was evaluated.",
        table.at_least(1),
    )
    tolerance: list[float] | None = table.parameter(
        "By how much the loss on the original data may rise, in its unit: one number or several, "
        "separated by commas.",
        _tolerances,
    )
    weights: dict[str, float] | None = table.parameter(
        "Weights of the validation domains: `web=2,code=1`, a JSON object or file.", texts.numbers
    )
    model: str = table.parameter(
        f"The name to register the predictor under; by default the study's with {CONTINUED}, or "
        f"{DEFAULT_MODEL}."
    )
    workers: str = table.workers()
    ranks: int = table.ranks()


def of_experiment(experiments: Sequence[str], runs: str, question: Question) -> CriticalAnswer:
    """The answer from the runs of experiments, by their ids."""
    pulled = histories.pull(list(experiments), runs)
    checks = histories.checks(list(experiments), runs, pulled.unit)
    solved = fit_and_solve(pulled, question)
    if len(checks):
        scale = [keys.TOKENS, keys.N_PARAMS]
        same = (checks[scale] == solved.table[scale].iloc[0]).all(axis=1)
        if left_out := sorted({*checks["run"]} - {*checks["run"][same]}):
            print(f"critical: check runs of another size or length left out: {', '.join(left_out)}")
        checks = checks[same]
    return answered(solved, checks)


def of_study(
    study: Study,
    section: Critical,
    question: Question,
    machines: Machines,
    active: mlflow.ActiveRun,
) -> CriticalAnswer:
    """Train the base if needed, its continuation on each mixture, and then the answer."""
    mixtures = continual_runs.mixtures(study, section)
    _refuse_late(study, section, question, mixtures, machines)
    prepared = prepare(study)
    continuation = continual_runs.of_base(prepared, section, machines, active)
    seed = study.sweep.seed
    tried = [continuation.run(name, mixture, seed) for name, mixture in mixtures.items()]
    train_missing(prepared, tried, machines, keys.CRITICAL, active)
    unit = study.unit
    pulled = histories.pull(
        [active.info.experiment_id], f"tags.{keys.STUDY} = '{tried[0].study}'", unit=unit
    )
    solved = fit_and_solve(pulled, question)
    print("\n".join(report(answered(solved, pd.DataFrame()))), flush=True)

    def target(mixture: Array, name: str, seed: int) -> Run:
        shares = dict(zip(solved.forgetting.predictor.domains, mixture.tolist(), strict=True))
        checked = checked_mixture(shares, list(study.domains))
        return continuation.run(name, checked, seed, stage=keys.TARGET)

    proofs = [
        target(answer.mixture, f"critical-{answer.tolerance:g}-seed{seed}", seed)
        for answer in solved.forgetting.answers
        if answer.mixture is not None
        for seed in section.seeds
    ]
    run_ids = train_missing(prepared, proofs, machines, keys.CRITICAL, active) if proofs else {}
    rows = [
        {
            "run": run.name,
            **keys.with_prefix(keys.MIXTURE, run.mixture),
            **keys.with_prefix(keys.VAL_LOSS, last_losses(run_ids[run.name], unit)),
        }
        for run in proofs
    ]
    return answered(solved, pd.DataFrame(rows))


def _refuse_late(
    study: Study,
    section: Critical,
    question: Question,
    mixtures: Mapping[str, Mapping[str, float]],
    machines: Machines,
) -> None:
    """Raise InputError before training for what would otherwise be refused after it."""
    sizes = [section.size] if section.size else []
    preflight.training(study, machines, [*sizes, study.target.size])
    study.refuse_length(section.steps)
    study.refuse_length(section.base_steps or study.training.steps)
    planned = pd.DataFrame([keys.with_prefix(keys.MIXTURE, m) for m in mixtures.values()])
    planned = planned.assign(**dict.fromkeys((keys.VAL_LOSS + d for d in study.evaluated), 0.0))
    continual.sides(planned, question.original, question.new_validation, question.weights)
    continual_runs.refuse_missing_base(section)
    kernels.build_for(machines)


def main(parameters: Parameters, active: mlflow.ActiveRun) -> None:
    p = parameters
    if p.study and p.experiment:
        raise InputError("experiment: give a study, which is trained, or an experiment, not both")
    model_names.refuse_bad_name(p.model or DEFAULT_MODEL, "model")
    question = Question(
        original=p.original or [],
        new_validation=p.new_validation or [],
        weights=p.weights or {},
        tokens=p.tokens,
        tolerances=p.tolerance or [],
        model=p.model or DEFAULT_MODEL,
    )
    if p.experiment:
        answer = of_experiment(entry.experiment_ids(p.experiment, active), p.runs, question)
    else:
        for name in ("runs", "original", "tokens"):
            if getattr(p, name):
                raise InputError(f"{name}: it goes with experiment; a study says it itself")
        study = studies.load(p.study or "quickstart")
        section = study.critical
        if section is None:
            raise InputError(
                f"study {study.name!r} has no section `critical`, which says what is continued on "
                "what; `-P study=quickstart` has one"
            )
        question = replace(
            question,
            original=list(section.original),
            new_validation=question.new_validation or section.new_validation,
            weights=question.weights or study.weights(),
            tolerances=question.tolerances or section.tolerances,
            model=p.model or study.model + CONTINUED,
        )
        machines = entry.machines(p.workers, p.ranks)
        answer = of_study(study, section, question, machines, active)
    artifacts.log(answer)
    print("\n".join(report(answer)))
