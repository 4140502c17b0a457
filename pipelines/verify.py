"""`verify`: train the target on the default and the best mixture; compare with predictions."""

from dataclasses import dataclass, replace

import mlflow

from fitting import registry
from fitting.registry import Standing
from optimization.domain import predictor as predictors
from optimization.domain.predictor import Predictor
from optimization.mixture.solve import BEST, DEFAULT
from pipelines import entry
from pipelines.benchmarks import harness
from pipelines.command import advice, backlinks, table, texts
from pipelines.optimize import champion, optimize
from pipelines.prepare import prepare
from pipelines.proof import benchmarks, targets, verdict
from pipelines.proof.verdict import Proof
from pipelines.report import attach_report
from pipelines.runs import preflight
from pipelines.study import load as studies
from pipelines.study import search_problem
from training.engine import kernels
from training.record import keys, layout, markdown
from training.record.errors import InputError


@dataclass(frozen=True)
class Parameters:
    study: str = table.study()
    model: str = table.model("The predictor; by default the champion of the study.")
    mixture: str = table.parameter(
        "Train this mixture in place of the best: `web=0.5,code=0.5`, a JSON object or file, "
        "or `runs:/<id>` of a run with a mixture."
    )
    trials: int | None = table.parameter(
        "Trials of Optuna; by default the study's.", table.at_least(1)
    )
    workers: str = table.workers()
    ranks: int = table.ranks()
    hostfile: str = table.hostfile()
    benchmarks: list[str] | None = table.benchmarks()
    limit: int | None = table.limit()
    few_shot: int | None = table.few_shot()
    batch_size: int = table.batch_size()


def conclude(proof: Proof, standing: Standing, predictor: Predictor) -> list[str]:
    """Describe the active run by its verdict, link it to the predictor; the report's lines."""
    run = mlflow.get_run(mlflow.active_run().info.run_id)
    lines = verdict.report(proof, standing)
    mlflow.set_tag(
        keys.NOTE, verdict.description(proof, standing, backlinks.predictor_link(predictor), run)
    )
    mlflow.log_text("\n".join(lines), layout.REPORT)
    backlinks.link_answer(predictor, run.info.run_id, verdict.headline(proof, standing))
    return lines


def main(parameters: Parameters, active: mlflow.ActiveRun) -> None:
    study = studies.load(parameters.study)
    machines = entry.machines(parameters.workers, parameters.ranks, parameters.hostfile)
    preflight.training(study, machines, [study.target.size])
    n_params, tokens = study.size(study.target.size).n_params, study.target_tokens()
    uri = parameters.model or champion(study.model)
    predictor = predictors.load(uri, n_params, tokens, study.unit)
    search_problem.refuse_other_domains(study, predictor)
    if set(predictor.val_domains) != set(study.evaluated):
        raise InputError(
            f"model {predictor.uri} predicts {', '.join(predictor.val_domains)}; a target is "
            f"measured on {', '.join(study.evaluated)}"
        )
    mixture = texts.mixture(parameters.mixture, predictor.domains) if parameters.mixture else None
    if mixture:
        study.refuse_forbidden({"mixture": mixture})
    settings = harness.Settings(parameters.limit, parameters.few_shot, parameters.batch_size)
    suite = harness.load(parameters.benchmarks, settings) if parameters.benchmarks else None
    kernels.build_for(machines)
    prepared = prepare(study)
    problem = search_problem.of_study(study, predictor)
    problem = replace(problem, trials=parameters.trials or problem.trials)
    with entry.stage(keys.OPTIMIZE, name=study.name):
        answer = optimize(predictor, problem)
    mixtures = {**targets.to_train(answer), DEFAULT: prepared.default}
    if mixture:
        mixtures[BEST] = mixture
    if suite:
        prepared = benchmarks.saving(prepared)
        benchmarks.refuse_unsaved(targets.target_runs(prepared, mixtures), active)
    proof = targets.prove(prepared, predictor, mixtures, machines, active)
    lines = conclude(proof, registry.standing(predictor.uri), predictor)
    print("\n".join(lines))
    print(f"look at it:  {advice.look_at(mlflow.get_run(active.info.run_id))}")
    print(attach_report(active, parameters.study))
    if suite:  # the verdict stands, whatever becomes of the benchmarks
        more = ["", *benchmarks.compare(proof.table, suite)]
        note = mlflow.get_run(active.info.run_id).data.tags[keys.NOTE]
        mlflow.set_tag(keys.NOTE, markdown.fitting_parts([note, layout.description(more)]))
        mlflow.log_text("\n".join(lines + more), layout.REPORT)
        print("\n".join(more))
