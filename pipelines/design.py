"""`design`: which mixtures to train next, where the predictor is uncertain and promising.

Without a predictor they fill what the mixtures that are trained or planned leave.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException

from fitting.data import origin
from fitting.registry import CHAMPION
from optimization.design import batch, plots
from optimization.design import space_filling as designs
from optimization.design.batch import Choice
from optimization.domain import predictor as predictors
from optimization.domain.feasible import feasible
from optimization.domain.predictor import Predictor
from pipelines import entry
from pipelines.command import parameters, preflight
from pipelines.optimize import champion
from pipelines.prepare import prepare
from pipelines.runs.proxy_runs import planned_runs, proxy_runs, queue
from pipelines.study import load as studies
from pipelines.study import search_problem
from pipelines.study.study import Study
from training.data.corpus import Corpus
from training.record import keys, layout
from training.record.errors import InputError
from training.record.mlflow_runs import search
from training.record.secrets import masked
from training.run import Run
from training.workers.ledger import Ledger

Array = np.ndarray
FEW = 3  # fitted mixtures a domain, below which what a batch is worth is overestimated
Mixtures = dict[str, dict[str, float]]  # label → domain → proportion


@dataclass(frozen=True)
class Proposal:
    """What to train next, what it costs and what it is expected to bring."""

    mixtures: Mixtures
    runs: list[Run]  # every mixture at every size of the sweep
    flops: int  # of these runs
    sweep_flops: int  # of the runs that the study plans
    predictor: Predictor | None = None
    choice: Choice | None = None  # None without a predictor
    longer: float | None = None
    """What the FLOPs would bring in a longer training of the target, in the unit of the
    losses; None where no step law says."""


def proposed(
    plan: Study, corpus: Corpus, count: int, predictor: Predictor | None, way: str
) -> Proposal:
    """`count` mixtures beside those that are trained, planned or wait in the ledger."""
    known, choice, longer = _known(plan, corpus), None, None
    seed = plan.sweep.seed + len(known)  # not the points of the sweep's own design
    if predictor is None:
        default = np.array([*plan.default(corpus).values()])
        every = designs.designed(
            way, len(known) + count, known, plan.feasible(), seed, default, plan.sweep.concentration
        )
        found = every[len(known) :]
    else:
        rules = replace(search_problem.of_study(plan, predictor, corpus).constraints, trust=None)
        allowed = feasible(rules, predictor.domains, predictor.tokens)
        order = [list(plan.domains).index(d) for d in predictor.domains]
        choice = batch.choose(predictor, allowed, known[:, order], count, seed)
        found = choice.mixtures[choice.chosen][:, np.argsort(order)]
    mixtures = _labelled(plan, found)
    runs = _runs(plan, corpus, mixtures)
    flops = sum(run.flops(corpus.vocab_size) for run in runs)
    if predictor is not None and choice is not None:
        longer = _longer(plan, corpus, predictor, choice.best, flops)
    planned = sum(run.flops(corpus.vocab_size) for run in proxy_runs(plan, corpus))
    return Proposal(mixtures, runs, flops, planned, predictor, choice, longer)


def _known(plan: Study, corpus: Corpus) -> Array:
    """The study's mixtures that are planned, wait in the ledger or are trained for fits, (p, M)."""
    active = mlflow.active_run()
    assert active is not None
    query = (
        f"tags.{keys.STAGE} = '{keys.PROXY}' and tags.{keys.COMPLETE} = 'true' and "
        f"tags.{keys.STUDY} = '{plan.tag(corpus)}'"
    )
    complete = search([active.info.experiment_id], query)
    origins = origin.origins(complete)
    trained = [
        keys.without_prefix(keys.MIXTURE, run.data.params)
        for run in complete
        if origins[run.info.run_id] != origin.UNPLANNED
    ]
    every = [*(run.mixture for run in planned_runs(plan, corpus)), *trained]
    return np.unique([[mixture[d] for d in plan.domains] for mixture in every], axis=0)


def _labelled(plan: Study, mixtures: Array) -> Mixtures:
    """Mixtures (n, M) by names that no other mixture of the study has."""
    named = [dict(zip(plan.domains, mixture.tolist(), strict=True)) for mixture in mixtures]
    digests = [hashlib.sha256(json.dumps(mixture).encode()).hexdigest() for mixture in named]
    return {
        f"{keys.PROPOSAL}{digest[:8]}": mixture
        for digest, mixture in zip(digests, named, strict=True)
    }


def _runs(plan: Study, corpus: Corpus, mixtures: Mixtures) -> list[Run]:
    """Every mixture at every size of the sweep, the largest first."""
    return [
        plan.run(corpus, f"{label}-{size}", mixture, size=size, seed=plan.sweep.seed)
        for size in sorted(plan.sweep.sizes, key=lambda s: -plan.size(s).n_params)
        for label, mixture in mixtures.items()
    ]


def _longer(
    plan: Study, corpus: Corpus, predictor: Predictor, best: Array, flops: int
) -> float | None:
    if predictor.python.spec["only"]["tokens"] is not None:
        return None
    target = plan.run(
        corpus, "target", plan.default(corpus), size=plan.target.size, seed=0,
        steps=plan.target.steps,
    )  # fmt: skip
    share = 1 + flops / target.flops(corpus.vocab_size)
    later = predictor.at(predictor.n_params, predictor.tokens * share)
    now, then = (p.surface.predict(best[None])[0] @ p.weights for p in (predictor, later))
    return float(now - then)


def report(found: Proposal) -> Iterator[str]:
    """The mixtures as a table, what makes their worth doubtful, their cost and their worth."""
    predictor, choice = found.predictor, found.choice
    beside = {}
    if predictor:
        for name, mixture in found.mixtures.items():
            p = predictor.ask(mixture)
            beside[name] = f"{p.objective:.4f} [{p.low:.4f}, {p.high:.4f}], {p.distance:.2f}"
    yield from layout.mixtures(
        found.mixtures,
        beside,
        heads=("mixture", "predicted loss, distance" if predictor else ""),
        decimals=4,
        exact="exact proportions: proposals.json of this run",
    )
    if predictor and choice:
        fitted, domains = len(predictor.fitted), int((np.ptp(predictor.fitted, axis=0) > 0).sum())
        if fitted < FEW * domains:
            yield (
                f"WARNING: {fitted} fitted mixtures are few for {domains} domains that vary: the "
                "laws of the bootstrap differ too much, and what these are expected to gain is "
                "probably far too high"
            )
    yield (
        f"{len(found.runs)} runs: {found.flops:.3g} FLOPs, "
        f"{100 * found.flops / found.sweep_flops:.0f} % of what the study's own sweep takes"
    )
    unit = keys.unit_text(predictor.unit) if predictor else ""
    if choice:
        worth = choice.worth
        yield (
            f"expected to make the best mixture better by {worth.expected:.2g} {unit} (to know "
            f"the law exactly: {worth.most:.2g})"
        )
    if found.longer is not None:
        yield f"as many FLOPs in a longer training of the target: {found.longer:.2g} {unit}"


def log(found: Proposal) -> None:
    """Log a proposal to the active run."""
    table = pd.DataFrame(
        [{"mixture": n, **keys.with_prefix(keys.MIXTURE, m)} for n, m in found.mixtures.items()]
    )
    metrics = {"flops": float(found.flops), "sweep_flops": float(found.sweep_flops)}
    if found.predictor is not None and found.choice is not None:
        choice = found.choice
        mlflow.log_param("model_uri", masked(found.predictor.uri))
        metrics |= {"expected_gain": choice.worth.expected, "most_gain": choice.worth.most}
        objective, deviation = choice.ensemble.objective, choice.ensemble.deviation
        table["objective"] = objective[choice.chosen]
        table["deviation"] = deviation[choice.chosen]
        names = list(found.mixtures)
        for name, figure in (
            (
                "proposals",
                plots.proposals(found.predictor.fitted, found.mixtures, found.predictor.domains),
            ),
            (
                "uncertainty",
                plots.uncertainty(objective, deviation, choice.chosen, names, found.predictor.unit),
            ),
        ):
            mlflow.log_figure(figure, f"figures/{name}.png")
    if found.longer is not None:
        metrics["longer_target_gain"] = found.longer
    mlflow.log_metrics(metrics)
    mlflow.log_table(table, "proposals.json")


def _predictor(plan: Study, model: str) -> Predictor | None:
    """The given one, or the study's champion if there is one for its domains."""
    if model:
        return predictors.load(model)
    try:
        mlflow.MlflowClient().get_model_version_by_alias(plan.model, CHAMPION)
    except MlflowException:
        return None
    found = predictors.load(champion(plan.model))
    if set(found.domains) == set(plan.domains):
        return found
    print(f"design: {found.uri} has other domains than the study; it is not used")
    return None


def main(study: str, model: str, count: str, way: str, enqueue: str) -> None:
    plan, wanted = studies.load(study), parameters.integer("count", count, least=1)
    if way and way not in designs.WAYS:
        raise InputError(f"way: {way!r}; it is {', '.join(designs.WAYS)}")
    if way and model:
        raise InputError("way: a model chooses the mixtures itself; leave out way or model")
    put = parameters.boolean("enqueue", enqueue)
    preflight.preparing(plan)
    preflight.ledger(plan)
    predictor = None if way else _predictor(plan, model)
    if predictor is not None:
        search_problem.refuse_other_domains(plan, predictor)
    corpus = prepare(plan)
    found = proposed(plan, corpus, wanted, predictor, way or plan.sweep.design)
    log(found)
    print("\n".join(report(found)))
    if put:
        there = queue(plan, corpus)
        Ledger(there.ledger_url, there.name).plan(found.runs)
        print("enqueued: the next `sweep` of this study trains them")
    else:
        print("not enqueued; enqueue=true lets the next `sweep` of this study train them")


if __name__ == "__main__":
    entry.main(
        keys.DESIGN,
        main,
        entry.arguments(__doc__, study="quickstart", model="", count="4", way="", enqueue="false"),
    )
