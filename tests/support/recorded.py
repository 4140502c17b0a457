"""A study whose runs are recorded, not trained: their losses follow a law that a fit can find."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import mlflow
import numpy as np

from fitting.selection.forms import Options
from optimization.domain import predictor as predictors
from optimization.domain.predictor import Predictor
from optimization.mixture.solve import BEST, Answer, Mixture
from pipelines import entry, fit, optimize
from pipelines.proof import targets
from pipelines.proof.verdict import Proof
from pipelines.runs.fitted_runs import purpose_of
from pipelines.runs.proxy_runs import proxy_runs
from pipelines.study import search_problem
from pipelines.study.prepared import Prepared
from pipelines.sweep import sweep
from training.engine import trainer as trainers
from training.engine.devices import Machines
from training.record import keys
from training.record.history import History, history_tags
from training.run import Run, fingerprint

ALONE = Machines(workers=1, ranks=1)
Losses = Mapping[str, Sequence[float]]  # mixture → what each seed's loss is above the predicted one


@dataclass(frozen=True)
class Recorded:
    """A study whose proxies are recorded, not trained, and what was found with them."""

    prepared: Prepared
    predictor: Predictor
    answer: Answer


def losses(run: Run, tokens: int, off: np.ndarray) -> np.ndarray:
    """A law that a fit can find, and how far a run is off it, (V,)."""
    shares = np.array([*run.mixture.values()])
    scale = 0.1 * (run.size.n_params / 3e3) ** -0.3 + 0.3 * (tokens / 1e3) ** -0.4
    return 1.5 + 0.9 * np.exp(-2 * np.sqrt(shares)) + scale + off


def always(values: np.ndarray) -> Callable[[int], np.ndarray]:
    return lambda _: values


def log_complete(run: Run, values: Callable[[int], np.ndarray]) -> None:
    """What a worker leaves of a run, with these losses at a number of tokens."""
    steps = trainers.evaluation_steps(run.training)
    tokens = tuple(step * run.training.tokens_per_step for step in steps)
    series = tuple(tuple(values(t).tolist()) for t in tokens)
    tags = {
        keys.STAGE: run.stage,
        keys.STUDY: run.study,
        keys.FINGERPRINT: fingerprint(run),
        keys.COMPLETE: "true",
        **history_tags(History(tuple(run.mixture), tuple(steps), tokens, series)),
    }
    with mlflow.start_run(run_name=run.name, nested=True, tags=tags) as active:
        mlflow.MlflowClient().delete_tag(active.info.run_id, keys.PARENT)
        mlflow.log_params(
            {**keys.with_prefix(keys.MIXTURE, run.mixture), "n_params": run.size.n_params}
        )


def found(prepared: Prepared, noise: float) -> Recorded:
    """Record the proxies in the current experiment, then sweep, fit and search as commands do."""
    rng = np.random.default_rng(0)
    with entry.stage(keys.MAIN) as active:
        for run in proxy_runs(prepared):
            off = noise * rng.standard_normal(len(prepared.study.domains))
            log_complete(run, partial(losses, run, off=off))
        with entry.stage(keys.SWEEP) as sweeping:
            sweep(prepared, ALONE, sweeping)
        with entry.stage(keys.FIT):
            fitted = fit.fit(
                [active.info.experiment_id],
                f"tags.{keys.STUDY} = '{prepared.tag}'",
                prepared.study.model,
                Options(("joint",), compare=False),
                purpose=purpose_of(prepared.study, prepared),
            )
        predictor = predictors.load(fitted.registered.uri)
        with entry.stage(keys.OPTIMIZE):
            problem = search_problem.of_study(prepared.study, predictor)
            answer = optimize.optimize(predictor, problem)
    return Recorded(prepared, predictor, answer)


def prove(
    study: Recorded, above: Losses, active: mlflow.ActiveRun, best: Mixture | None = None
) -> Proof:
    """Record targets whose losses lie so far above the predicted ones, and compare the two; `best`
    is trained in place of the best mixture."""
    mixtures = targets.to_train(study.answer) | ({BEST: best} if best else {})
    for key, run in targets.target_runs(study.prepared, mixtures).items():
        name = key.rsplit("-", 1)[0]
        off = above.get(name, (0.001, -0.001))[run.seed]
        at_end = np.array([*study.answer.predictions[name].losses.values()]) + off
        log_complete(run, always(at_end))
    return targets.prove(study.prepared, study.predictor, mixtures, ALONE, active)
