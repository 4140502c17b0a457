"""The runs of continued training: the base, and what it becomes on each mixture."""

import hashlib
import json

import numpy as np

from optimization.design import space_filling
from optimization.domain.constraints import Constraints
from optimization.domain.feasible import feasible
from pipelines.runs.proxy_runs import train_missing
from pipelines.study.sections import Critical
from pipelines.study.study import Study
from training.config import Size, Training
from training.data.corpus import Corpus
from training.record import keys
from training.record.mixtures import checked_mixture
from training.run import Base, Run
from training.workers.devices import Machines

Mixture = dict[str, float]
Found = tuple[Base, Size]

EVALUATIONS = 4  # of a continued run, log-spaced over its last two thirds, beside that of the base


def find_base(plan: Study, corpus: Corpus, asked: Critical, machines: Machines) -> Found:
    """The base that the study names, or one that is trained on the original data here.

    Raises InputError for a base that is missing, of another kind or of another tokenizer.
    """
    from training.engine import base_model as bases  # slow: torch

    place = asked.base or f"runs:/{_train_base(plan, corpus, asked, machines)}/model"
    length = plan.training.sequence_length
    base, size = bases.find(place, corpus, length, plan.workspace)
    return base, size.model_copy(update={"learning_rate": asked.learning_rate})


def refuse_missing_base(asked: Critical) -> None:
    """Raise InputError for a base that is not there; its tokenizer is compared with the corpus's
    later."""
    if asked.base is not None:
        from training.engine import base_model as bases  # slow: torch

        bases.refuse_missing(asked.base)


def _train_base(plan: Study, corpus: Corpus, asked: Critical, machines: Machines) -> str:
    """Train the base below the active run; its run id."""
    assert asked.size is not None
    run = plan.run(
        corpus,
        f"base-{asked.size}",
        blend(plan, asked, 1.0),
        size=asked.size,
        seed=plan.sweep.seed,
        stage=keys.TARGET,
        steps=asked.base_steps,
    )
    run = run.model_copy(update={"training": _decayed(run.training, asked)})
    saving = plan.engine.model_copy(update={"save_models": True})
    saved = plan.model_copy(update={"engine": saving})
    return train_missing(saved, corpus, [run], machines, keys.CRITICAL)[run.name]


def blend(plan: Study, asked: Critical, share: float) -> Mixture:
    """The mixture with this share of original data, each side in its proportions."""
    sides = ((share, asked.original), (1 - share, asked.new))
    found = dict.fromkeys(plan.domains, 0.0)
    for total, side in sides:
        for name, part in side.items():
            found[name] += total * part / sum(side.values())
    return checked_mixture(found, list(plan.domains))


def mixtures(plan: Study, asked: Critical) -> dict[str, Mixture]:
    """Label → mixture: those of the shares, and those that the domains of both sides design."""
    found = {f"original-{share:g}": blend(plan, asked, share) for share in sorted(asked.shares)}
    if asked.mixtures:
        involved = {*asked.original, *asked.new}
        others = {name: (0.0, 0.0) for name in plan.domains if name not in involved}
        allowed = feasible(
            Constraints(bounds={**plan.bounds, **others}), list(plan.domains), plan.target_tokens()
        )
        given = np.array([[*mixture.values()] for mixture in found.values()])
        drawn = space_filling.designed(
            plan.sweep.design,
            len(found) + asked.mixtures,
            given=given.reshape(-1, len(plan.domains)),
            allowed=allowed,
            seed=plan.sweep.seed,
            reference=np.array([*blend(plan, asked, 0.5).values()]),
            concentration=plan.sweep.concentration,
        )
        found |= {
            f"mix{i:02d}": dict(zip(plan.domains, map(float, drawn[i]), strict=True))
            for i in range(len(found), len(drawn))
        }
    return found


def run(
    plan: Study,
    corpus: Corpus,
    asked: Critical,
    found: Found,
    name: str,
    mixture: Mixture,
    seed: int,
    stage: str = keys.PROXY,
) -> Run:
    """The base continued on a mixture."""
    base, size = found
    steps = asked.steps
    plain = plan.run(
        corpus, name, mixture, size=plan.target.size, seed=seed, stage=stage, steps=steps
    )
    training = plain.training.model_copy(
        update={
            "warmup_steps": min(plain.training.warmup_steps, steps // 4),
            "first_evaluation": max(1, steps // 3),
            "evaluations": EVALUATIONS,
        }
    )
    training = _decayed(training, asked)
    return plain.model_copy(
        update={
            "base": base,
            "size": size,
            "size_name": "base",
            "study": tag(plan, corpus, found, training),
            "training": training,
            "data_share": 1.0,
        }
    )


def _decayed(training: Training, asked: Critical) -> Training:
    return training.model_copy(update={"decay_steps": round(asked.decay * training.steps)})


def tag(plan: Study, corpus: Corpus, found: Found, training: Training) -> str:
    """Names the runs that continue one base in one way: their losses are comparable with each
    other's only."""
    base, size = found
    spec = [plan.tag(corpus), base.digest, size.learning_rate, training.model_dump()]
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:8]
    return f"{plan.name}-continued-{digest}"
