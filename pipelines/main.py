"""`main`: the whole loop on one study, from text to a verified mixture."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import mlflow
import numpy as np
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException

from fitting import registry
from fitting.registry import Standing
from optimization.domain import predictor as predictors
from optimization.domain import simplex
from optimization.mixture.report import report
from optimization.mixture.solve import Answer
from pipelines import entry
from pipelines.command import advice, backlinks, table
from pipelines.fit import RegisteredFit, fit
from pipelines.optimize import optimize
from pipelines.prepare import log, prepare
from pipelines.proof import targets, verdict
from pipelines.proof.verdict import Proof
from pipelines.report import attach_report
from pipelines.runs import budget, dry_run, earlier_sweeps, preflight
from pipelines.runs.fitted_runs import purpose_of
from pipelines.runs.proxy_runs import proxy_runs, refuse_design
from pipelines.study import load as studies
from pipelines.study import search_problem
from pipelines.study.prepared import Prepared
from pipelines.sweep import sweep
from pipelines.verify import conclude
from training.engine import kernels
from training.record import keys, layout, markdown, secrets, words

RULE = "─" * 78
LINES = 3  # at most, of a mixture that is written out
FIT_FIGURES = ("predicted_against_observed", "loss_against_proportion")
SEARCH_FIGURES = ("best_mixture", "near_optimal")
PROOF_FIGURES = ("measured_beside_predicted", "loss_curves")


@dataclass(frozen=True)
class Parameters:
    study: str = table.study()
    workers: str = table.workers()
    ranks: int = table.ranks()
    plan: bool = table.dry_run()
    throughput: float | None = table.throughput()


def main(parameters: Parameters, active: mlflow.ActiveRun) -> None:
    study = studies.load(parameters.study)
    machines = entry.machines(parameters.workers, parameters.ranks)
    if dry_run.requested(parameters.plan, parameters.throughput):
        basis = budget.basis(study)
        kept = earlier_sweeps.design(basis.prepared, active.info.experiment_id)
        runs = proxy_runs(basis.prepared, kept)
        dry_run.show(
            basis,
            runs,
            machines.workers,
            parameters.throughput,
            active,
            targets=True,
            stages=dry_run.loop(basis, runs),
        )
        return
    preflight.training(study, machines, [*study.sweep.sizes, study.target.size])
    refuse_design(study)
    earlier_sweeps.refuse_incomparable(study, Prepared.find(study), active.info.experiment_id)
    kernels.build_for(machines)
    with entry.stage(keys.PREPARE, name=study.name):
        prepared = prepare(study)
        log(prepared)
    with entry.stage(keys.SWEEP, name=study.name) as sweeping:
        sweep(prepared, machines, sweeping)
    with entry.stage(keys.FIT, name=study.name) as fitting:
        fitted = fit(
            [active.info.experiment_id],
            f"tags.{keys.STUDY} = '{prepared.tag}'",
            study.model,
            purpose=purpose_of(study, prepared),
        )
    predictor = predictors.load(fitted.registered.uri)
    with entry.stage(keys.OPTIMIZE, name=study.name) as searching:
        answer = optimize(predictor, search_problem.of_study(study, predictor))
    with entry.stage(keys.VERIFY, name=study.name) as proving:
        proof = targets.prove(prepared, predictor, targets.to_train(answer), machines, proving)
        standing = registry.standing(predictor.uri)
        conclude(proof, standing, predictor)
    lines = summary(fitted, answer, proof, standing)
    mlflow.log_params(keys.with_prefix(keys.MIXTURE, answer.best))
    mlflow.log_metrics(verdict.metrics(proof))
    mlflow.set_tags({"verdict": verdict.headline(proof, standing), "model_uri": predictor.uri})
    mlflow.log_text("\n".join(lines), layout.REPORT)
    stages = {
        keys.SWEEP: sweeping,
        keys.FIT: fitting,
        keys.OPTIMIZE: searching,
        keys.VERIFY: proving,
    }
    mlflow.set_tag(keys.NOTE, _description(active, answer, proof, standing, stages))
    _copy_figures([(fitting, FIT_FIGURES), (searching, SEARCH_FIGURES), (proving, PROOF_FIGURES)])
    told = attach_report(active, parameters.study)
    print("\n".join([RULE, *lines, "", *_next(active, fitted, answer, searching, told), RULE]))


def summary(fitted: RegisteredFit, answer: Answer, proof: Proof, standing: Standing) -> list[str]:
    """The results: the verdict first, then the mixtures, the proof, the cross-validated error."""
    scores, unit = fitted.fit.choice.scores, keys.unit_text(proof.unit)
    return [
        *verdict.verdict(proof, standing),
        "",
        *report(answer),
        "",
        *verdict.table(proof),
        "",
        f"cross-validated error of the predicted loss: {scores.objective_mae:.4f} {unit} "
        f"({words.beside_mean(f'{scores.mean_prediction_mae:.4f}')})",
    ]


def _description(
    active: mlflow.ActiveRun,
    answer: Answer,
    proof: Proof,
    standing: Standing,
    stages: Mapping[str, MlflowRun],
) -> str:
    """The description of the active run, in Markdown."""
    run = mlflow.get_run(active.info.run_id)
    links = (markdown.run_link(stage.info.run_id, name) for name, stage in stages.items())
    measured = proof.table.groupby("mixture")["measured"].mean()
    below = {
        "predicted loss": {name: f"{answer.loss(name):.4f}" for name in answer.mixtures},
        "measured loss": {str(name): f"{loss:.4f}" for name, loss in measured.items()},
    }
    return markdown.description(
        [
            *verdict.summary(proof, standing),
            markdown.mixtures(answer.mixtures, below),
            f"Predictor: {backlinks.predictor_link(answer.predictor)}. Stages: {', '.join(links)}.",
            markdown.figure(
                stages[keys.VERIFY], "measured_beside_predicted", f"Measured gain {proof.gain}"
            ),
        ],
        run,
    )


def _next(
    active: MlflowRun, fitted: RegisteredFit, answer: Answer, searching: MlflowRun, told: str
) -> Iterator[str]:
    """Where to look, and how to use the predictor; `told` is said of the report."""
    registered = fitted.registered
    yield f"look at it:  {advice.look_at(active)}"
    yield told
    yield (
        f"the predictor is version {registered.version} of the registered model "
        f"{registered.name!r}, its {registered.alias}"
    )
    yield "ask it about a mixture of your own, in Python:"
    yield "  import mlflow, pandas as pd"
    if secrets.masked(mlflow.get_tracking_uri()) == mlflow.get_tracking_uri():
        yield f'  mlflow.set_tracking_uri("{mlflow.get_tracking_uri()}")'
    yield f'  model = mlflow.pyfunc.load_model("{registered.uri}")'
    yield from _question(answer.best, searching.info.run_id)


def _copy_figures(chosen: Sequence[tuple[MlflowRun, Sequence[str]]]) -> None:
    """Copy the most telling figures of the stages into the active run."""
    with tempfile.TemporaryDirectory() as folder:
        for run, names in chosen:
            for name in names:
                with suppress(MlflowException, OSError):  # for example, two domains have no map
                    path = mlflow.artifacts.download_artifacts(
                        run_id=run.info.run_id,
                        artifact_path=f"figures/{name}.png",
                        dst_path=folder,
                    )
                    mlflow.log_artifact(path, "figures")


def _question(best: Mapping[str, float], run_id: str) -> list[str]:
    """Python that predicts the best mixture; a long mixture is read from its run."""
    shares = simplex.rounded(np.array(list(best.values())), 2)
    columns = [f'"{keys.MIXTURE}{d}": {share:g}' for d, share in zip(best, shares, strict=True)]
    columns[0] = "model.predict(pd.DataFrame([{" + columns[0]
    columns[-1] += "}]))"
    first, *others = layout.listing(columns)
    lines = [first, *(f"  {line}" for line in others)]
    if len(lines) <= LINES and max(map(layout.cells, lines)) <= layout.WIDTH:
        return lines
    return [
        f'  params = mlflow.get_run("{run_id}").data.params  # of the optimize run',
        f"  row = {{k: float(v) for k, v in params.items() if k.startswith({keys.MIXTURE!r})}}",
        "  model.predict(pd.DataFrame([row]))",
    ]
