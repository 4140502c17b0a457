"""`main`: the whole loop on one study, from text to a verified mixture."""

from collections.abc import Mapping

import mlflow
import numpy as np

from optimization import model as predictors
from optimization import simplex
from optimization.answer import Answer
from optimization.report import report
from pipelines import entry, preflight, problem, verify
from pipelines import study_file as studies
from pipelines.fit import Fitted, fit
from pipelines.optimize import optimize
from pipelines.prepare import prepare
from pipelines.sweep import refuse_design, sweep
from pipelines.verify import Proof
from training import kernels, layout, record

RULE = "─" * 78
LINES = 3  # of a mixture that is written out


def main(study: str, workers: str, ranks: str) -> None:
    plan = studies.load(study)
    processes = entry.machines(workers, ranks)
    preflight.training(plan, processes, [*plan.sweep.sizes, plan.target.size])
    refuse_design(plan)
    kernels.build_for(processes)
    active = mlflow.active_run()
    assert active is not None
    with entry.stage(record.PREPARE):
        corpus = prepare(plan)
    with entry.stage(record.SWEEP):
        sweep(plan, corpus, processes)
    with entry.stage(record.FIT):
        fitted = fit(
            [active.info.experiment_id],
            f"tags.{record.STUDY} = '{plan.tag(corpus)}'",
            plan.model,
            target={
                "n_params": plan.size(plan.target.size).n_params,
                "tokens": plan.target_tokens(),
            },
            weights=plan.weights(),
        )
    predictor = predictors.load(fitted.registered.uri)
    with entry.stage(record.OPTIMIZE) as searching:
        answer = optimize(predictor, problem.of_study(plan, predictor, corpus))
    with entry.stage(record.VERIFY):
        proof = verify.verify(plan, corpus, predictor, answer.mixtures, processes)
    experiment = mlflow.get_experiment(active.info.experiment_id)
    mlflow.log_params(record.with_prefix(record.MIXTURE, answer.best))
    print(summary(fitted, answer, proof, experiment.name, searching.info.run_id))


def summary(fitted: Fitted, answer: Answer, proof: Proof, experiment: str, run_id: str) -> str:
    """The closing summary: what was found, how sure it is, and where to look; run_id is that of the
    search."""
    scores = fitted.fit.choice.scores
    return "\n".join(
        [
            RULE,
            *report(answer),
            "",
            *verify.report(proof),
            "",
            f"cross-validated error of the predicted loss: {scores.objective_mae:.4f} nats/token "
            f"(predicting the mean: {scores.mean_prediction_mae:.4f})",
            "",
            f"look at it:  mlflow ui   (experiment {experiment!r}, registered model "
            f"{fitted.registered.name!r} version {fitted.registered.version})",
            "ask it about a mixture of your own, in Python:",
            f'  model = mlflow.pyfunc.load_model("{fitted.registered.uri}")',
            *_question(answer.best, run_id),
            RULE,
        ]
    )


def _question(best: Mapping[str, float], run_id: str) -> list[str]:
    """A question about the best mixture in Python, read from its run where it is too long."""
    shares = simplex.rounded(np.array(list(best.values())), 2)
    columns = [f'"{record.MIXTURE}{d}": {share:g}' for d, share in zip(best, shares, strict=True)]
    columns[0] = "model.predict(pd.DataFrame([{" + columns[0]
    columns[-1] += "}]))"
    first, *others = layout.listing(columns)
    lines = [first, *(f"  {line}" for line in others)]
    if len(lines) <= LINES and max(map(layout.cells, lines)) <= layout.WIDTH:
        return lines
    return [
        f'  params = mlflow.get_run("{run_id}").data.params  # of the optimize run',
        f"  row = {{k: float(v) for k, v in params.items() if k.startswith({record.MIXTURE!r})}}",
        "  model.predict(pd.DataFrame([row]))",
    ]


if __name__ == "__main__":
    entry.main(
        record.MAIN,
        main,
        entry.arguments(__doc__, study="quickstart", workers="auto", ranks="1"),
    )
