"""Mixtures to train next: which ones, what they cost, and what they are expected to gain."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

import mlflow
import numpy as np
import pandas as pd

from fitting.data import origin
from optimization.design import batch, plots
from optimization.design import space_filling as designs
from optimization.design.batch import Batch
from optimization.domain.feasible import feasible
from optimization.domain.predictor import Predictor
from pipelines.runs.proxy_runs import planned_runs, proxy_runs
from pipelines.study import search_problem
from pipelines.study.prepared import Prepared
from pipelines.study.study import Study
from training.record import keys, layout
from training.record.mlflow_runs import search
from training.record.secrets import masked
from training.run import Run

Array = np.ndarray
FEW = 3  # fitted mixtures for each domain; below that a batch's expected gain is too high
Mixtures = dict[str, dict[str, float]]  # label → domain → proportion


@dataclass(frozen=True)
class Proposal:
    """What to train next, what it costs and what it is expected to gain."""

    mixtures: Mixtures
    runs: list[Run]  # every mixture at every size of the sweep
    flops: int  # of these runs
    sweep_flops: int  # of the runs that the study plans
    predictor: Predictor | None = None
    choice: Batch | None = None  # None without a predictor
    longer: float | None = None
    """What the same FLOPs would gain in a longer training of the target, in the unit of the
    losses; None without a step law."""


def proposed(
    prepared: Prepared, count: int, predictor: Predictor | None, way: str, active: mlflow.ActiveRun
) -> Proposal:
    """`count` mixtures in addition to those that are trained, planned or in the ledger's queue."""
    study, choice, longer = prepared.study, None, None
    known = _known(prepared, active)
    seed = study.sweep.seed + len(known)  # not the same points as the sweep's design
    if predictor is None:
        designed = designs.designed(
            way,
            len(known) + count,
            known,
            study.feasible(),
            seed,
            np.array([*prepared.default.values()]),
            study.sweep.concentration,
        )
        proposals = designed[len(known) :]
    else:
        rules = replace(search_problem.of_study(study, predictor).constraints, trust=None)
        allowed = feasible(rules, predictor.domains, predictor.tokens)
        order = [list(study.domains).index(d) for d in predictor.domains]
        choice = batch.choose(predictor, allowed, known[:, order], count, seed)
        proposals = choice.mixtures[choice.chosen][:, np.argsort(order)]
    mixtures = _labelled(study, proposals)
    vocab_size = prepared.corpus.vocab_size
    runs = prepared.at_every_size(mixtures)
    flops = sum(run.flops(vocab_size) for run in runs)
    if predictor is not None and choice is not None:
        longer = _longer(prepared, predictor, choice.best, flops)
    planned = sum(run.flops(vocab_size) for run in proxy_runs(prepared))
    return Proposal(mixtures, runs, flops, planned, predictor, choice, longer)


def _known(prepared: Prepared, active: mlflow.ActiveRun) -> Array:
    """The study's mixtures that are planned, queued in the ledger or trained for fits, (p, M)."""
    query = (
        f"tags.{keys.STAGE} = '{keys.PROXY}' and tags.{keys.COMPLETE} = 'true' and "
        f"tags.{keys.STUDY} = '{prepared.tag}'"
    )
    complete = search([active.info.experiment_id], query)
    origins = origin.origins(complete)
    trained = [
        keys.without_prefix(keys.MIXTURE, run.data.params)
        for run in complete
        if origins[run.info.run_id] != origin.UNPLANNED
    ]
    known = [*(run.mixture for run in planned_runs(prepared, active)), *trained]
    return np.unique([[mixture[d] for d in prepared.study.domains] for mixture in known], axis=0)


def _labelled(study: Study, mixtures: Array) -> Mixtures:
    """Mixtures (n, M) by unique names, made from their proportions."""
    named = [dict(zip(study.domains, mixture.tolist(), strict=True)) for mixture in mixtures]
    digests = [hashlib.sha256(json.dumps(mixture).encode()).hexdigest() for mixture in named]
    return {
        f"{keys.PROPOSAL}{digest[:8]}": mixture
        for digest, mixture in zip(digests, named, strict=True)
    }


def _longer(prepared: Prepared, predictor: Predictor, best: Array, flops: int) -> float | None:
    """The predicted gain of spending the FLOPs on a longer target; None without a step law."""
    if predictor.spec.only.tokens is not None:
        return None
    target = prepared.target("target", prepared.default, seed=0)
    share = 1 + flops / target.flops(prepared.corpus.vocab_size)
    later = predictor.at(predictor.n_params, predictor.tokens * share)
    now, then = (p.surface.predict(best[None])[0] @ p.weights for p in (predictor, later))
    return float(now - then)


def report(proposal: Proposal) -> Iterator[str]:
    """The mixtures as a table, a warning about their expected gain, their cost and their gain."""
    predictor, choice = proposal.predictor, proposal.choice
    predictions = {}
    if predictor:
        for name, mixture in proposal.mixtures.items():
            p = predictor.predict_one(mixture)
            predictions[name] = f"{p.objective:.4f} [{p.low:.4f}, {p.high:.4f}], {p.distance:.2f}"
    yield from layout.mixtures(
        proposal.mixtures,
        predictions,
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
        f"{len(proposal.runs)} runs: {proposal.flops:.3g} FLOPs, "
        f"{100 * proposal.flops / proposal.sweep_flops:.0f} % of what the study's own sweep takes"
    )
    unit = keys.unit_text(predictor.unit) if predictor else ""
    if choice:
        improvement = choice.improvement
        yield (
            f"expected to make the best mixture better by {improvement.expected:.2g} {unit} "
            f"(to know the law exactly: {improvement.most:.2g})"
        )
        if choice.repeated is not None:
            more = choice.repeated > improvement.expected
            yield (
                f"as many runs with other seeds of the best fitted mixture: {choice.repeated:.2g} "
                f"{unit}" + ("; seeds are worth more than mixtures" if more else "")
            )
    if proposal.longer is not None:
        yield f"as many FLOPs in a longer training of the target: {proposal.longer:.2g} {unit}"


def log(proposal: Proposal) -> None:
    """Log a proposal to the active run."""
    table = pd.DataFrame(
        [{"mixture": n, **keys.with_prefix(keys.MIXTURE, m)} for n, m in proposal.mixtures.items()]
    )
    metrics = {"flops": float(proposal.flops), "sweep_flops": float(proposal.sweep_flops)}
    if proposal.predictor is not None and proposal.choice is not None:
        choice = proposal.choice
        mlflow.log_param("model_uri", masked(proposal.predictor.uri))
        metrics |= {
            "expected_gain": choice.improvement.expected,
            "most_gain": choice.improvement.most,
        }
        if choice.repeated is not None:
            metrics["seeds_gain"] = choice.repeated
        objective, deviation = choice.ensemble.objective, choice.ensemble.deviation
        table["objective"] = objective[choice.chosen]
        table["deviation"] = deviation[choice.chosen]
        names = list(proposal.mixtures)
        for name, figure in (
            (
                "proposals",
                plots.proposals(
                    proposal.predictor.fitted, proposal.mixtures, proposal.predictor.domains
                ),
            ),
            (
                "uncertainty",
                plots.uncertainty(
                    objective, deviation, choice.chosen, names, proposal.predictor.unit
                ),
            ),
        ):
            mlflow.log_figure(figure, f"figures/{name}.png")
    if proposal.longer is not None:
        metrics["longer_target_gain"] = proposal.longer
    mlflow.log_metrics(metrics)
    mlflow.log_table(table, "proposals.json")
