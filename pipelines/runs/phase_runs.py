"""The proxies of a schedule: in each phase every mixture, continued from common checkpoints.

Phase 1 trains each mixture from the start. Some of these runs, the trunks, go on unchanged to the
last phase; at the end of each phase every mixture is tried from the state of each trunk. Such a run
is an ordinary one with a schedule that happens to find its beginning done.
"""

import numpy as np
import pandas as pd

from optimization.domain.feasible import distances
from pipelines.runs.proxy_runs import designed, train_missing
from pipelines.study.sections import Phases
from pipelines.study.study import Study
from training.data.corpus import Corpus
from training.record import keys
from training.record.errors import InputError
from training.record.mlflow_runs import last_losses
from training.run import Phase, Run
from training.workers.devices import Machines

Mixture = dict[str, float]
SCRATCH = "scratch"  # the trunk of phase 1


def refuse_listed(plan: Study) -> None:
    """Raise InputError where the study lists its mixtures."""
    if plan.listed_mixtures():
        raise InputError("sweep.mixtures: a schedule designs its own; give their number instead")


def mixtures(plan: Study, corpus: Corpus, asked: Phases) -> dict[str, Mixture]:
    """Label → mixture of those that are tried."""
    refuse_listed(plan)
    return designed(plan, asked.mixtures, plan.default(corpus))


def trunks(tried: dict[str, Mixture], count: int) -> list[str]:
    """Labels of mixtures that lie far from each other, the first one among them."""
    points = np.array([[*mixture.values()] for mixture in tried.values()])
    chosen = [0]
    while len(chosen) < min(count, len(points)):
        chosen.append(int(distances(points, points[chosen]).min(axis=1).argmax()))
    return [list(tried)[i] for i in chosen]


def run(
    plan: Study,
    corpus: Corpus,
    asked: Phases,
    name: str,
    schedule: list[Mixture],
    seed: int,
    stage: str = keys.SCHEDULED,
) -> Run:
    """A model trained through the first phases on these mixtures; in the last of all phases its
    learning rate decays."""
    ends = np.cumsum(asked.steps)
    steps, total = int(ends[len(schedule) - 1]), int(ends[-1])
    per_step = plan.training.tokens_per_step
    later = [
        Phase(from_tokens=int(end) * per_step, mixture=mixture)
        for end, mixture in zip(ends[: len(schedule) - 1], schedule[1:], strict=True)
    ]
    first, last = schedule[0], steps == total
    size = asked.size
    plain = plan.run(
        corpus, name, first, size=size, seed=seed, stage=stage, steps=total, later=later
    )
    training = plain.training.model_copy(
        update={
            "steps": steps,
            "first_evaluation": steps,
            "evaluations": 1,
            "decay_steps": round(asked.decay * asked.steps[-1]) if last else 0,
        }
    )
    return plain.model_copy(update={"training": training})


def train(plan: Study, corpus: Corpus, asked: Phases, machines: Machines) -> pd.DataFrame:
    """Train the proxies of every phase below the active run.

    The table, a row a run: run, phase (from 1), trunk, label of its mixture, mixture/<domain>…,
    before/<domain>… and val_loss/<domain>…, validation losses at the phase's start (none in the
    first) and end.
    """
    tried = mixtures(plan, corpus, asked)
    trunk_labels = trunks(tried, asked.trunks)
    rows: list[dict[str, object]] = []
    states: dict[str, Mixture] = {SCRATCH: dict.fromkeys(plan.domains, np.nan)}
    for number in range(1, len(asked.steps) + 1):
        planned = {
            (trunk, label): _branch(plan, corpus, asked, number, trunk, label, tried)
            for trunk in states
            for label in tried
        }
        keep = [(SCRATCH if number == 1 else label, label) for label in trunk_labels]
        if number < len(asked.steps):
            for key in keep:
                planned[key] = planned[key].model_copy(update={"keep_state": True})
        ordered = [*keep, *(key for key in planned if key not in keep)]
        run_ids = train_missing(
            plan, corpus, [planned[key] for key in ordered], machines, keys.SCHEDULE
        )
        losses = {key: last_losses(run_ids[planned[key].name]) for key in planned}
        rows += [
            {
                "run": run_ids[planned[trunk, label].name],
                "phase": number,
                "trunk": trunk,
                "label": label,
                **keys.with_prefix(keys.MIXTURE, tried[label]),
                **keys.with_prefix(keys.BEFORE, states[trunk]),
                **keys.with_prefix(keys.VAL_LOSS, losses[trunk, label]),
            }
            for trunk, label in planned
        ]
        states = {label: losses[key] for key, label in zip(keep, trunk_labels, strict=True)}
    return pd.DataFrame(rows)


def _branch(
    plan: Study,
    corpus: Corpus,
    asked: Phases,
    number: int,
    trunk: str,
    label: str,
    tried: dict[str, Mixture],
) -> Run:
    before = [tried[trunk]] * (number - 1) if trunk != SCRATCH else []
    name = f"phase{number}-{trunk}-{label}"
    return run(plan, corpus, asked, name, [*before, tried[label]], plan.sweep.seed)
