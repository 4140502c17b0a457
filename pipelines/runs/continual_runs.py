"""The runs of continued training: the base, and its continuation on each mixture."""

import hashlib
import json
from dataclasses import dataclass, replace

import mlflow
import numpy as np

from optimization.design import space_filling
from optimization.domain.constraints import Constraints
from optimization.domain.feasible import feasible
from pipelines.runs.proxy_runs import train_missing
from pipelines.study.prepared import Prepared
from pipelines.study.sections import Critical
from pipelines.study.study import Study
from training.config import Size, Training
from training.engine.devices import Machines
from training.record import keys
from training.record.mixtures import checked_mixture
from training.run import Base, Run

Mixture = dict[str, float]

EVALUATIONS = 4  # of a continued run, log-spaced over its last two thirds, after that of the base


@dataclass(frozen=True)
class Continuation:
    """A base, continued as a study's section `critical` says."""

    prepared: Prepared
    section: Critical
    base: Base
    size: Size

    def run(self, name: str, mixture: Mixture, seed: int, stage: str = keys.PROXY) -> Run:
        """The base continued on a mixture."""
        steps = self.section.steps
        plain = self.prepared.run(
            name,
            mixture,
            size=self.prepared.study.target.size,
            seed=seed,
            stage=stage,
            steps=steps,
        )
        training = plain.training.model_copy(
            update={
                "warmup_steps": min(plain.training.warmup_steps, steps // 4),
                "first_evaluation": max(1, steps // 3),
                "evaluations": EVALUATIONS,
            }
        )
        training = _decayed(training, self.section)
        return plain.model_copy(
            update={
                "base": self.base,
                "size": self.size,
                "size_name": "base",
                "study": self.tag(training),
                "training": training,
                "data_share": 1.0,
            }
        )

    def tag(self, training: Training) -> str:
        """Tag of the runs that continue one base in one way: their losses are comparable only among
        themselves."""
        rate = self.size.learning_rate
        spec = [self.prepared.tag, self.base.digest, rate, training.model_dump()]
        digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.prepared.study.name}-continued-{digest}"


def of_base(
    prepared: Prepared, section: Critical, machines: Machines, active: mlflow.ActiveRun
) -> Continuation:
    """The base that the study names, or one that is trained here on the original data.

    Raises InputError for a base that is missing, of another kind or with another tokenizer.
    """
    from training.engine import base_model as bases  # slow: torch

    study = prepared.study
    place = section.base or f"runs:/{_train_base(prepared, section, machines, active)}/model"
    base, size = bases.find(place, prepared.corpus, study.training.sequence_length, study.workspace)
    size = size.model_copy(update={"learning_rate": section.learning_rate})
    return Continuation(prepared, section, base, size)


def refuse_missing_base(section: Critical) -> None:
    """Raise InputError for a base that does not exist; its tokenizer is compared with the corpus's
    later."""
    if section.base is not None:
        from training.engine import base_model as bases  # slow: torch

        bases.refuse_missing(section.base)


def _train_base(
    prepared: Prepared, section: Critical, machines: Machines, active: mlflow.ActiveRun
) -> str:
    """Train the base below the active run; its run id."""
    assert section.size is not None
    study = prepared.study
    run = prepared.run(
        f"base-{section.size}",
        blend(study, section, 1.0),
        size=section.size,
        seed=study.sweep.seed,
        stage=keys.TARGET,
        steps=section.base_steps,
    )
    run = run.model_copy(update={"training": _decayed(run.training, section)})
    saving = study.engine.model_copy(update={"save_models": True})
    saved = replace(prepared, study=study.model_copy(update={"engine": saving}))
    return train_missing(saved, [run], machines, keys.CRITICAL, active)[run.name]


def blend(study: Study, section: Critical, share: float) -> Mixture:
    """The mixture with this share of original data; the proportions within each side are fixed."""
    sides = ((share, section.original), (1 - share, section.new))
    mixture = dict.fromkeys(study.domains, 0.0)
    for total, side in sides:
        for name, part in side.items():
            mixture[name] += total * part / sum(side.values())
    return checked_mixture(mixture, list(study.domains))


def mixtures(study: Study, section: Critical) -> dict[str, Mixture]:
    """Label → mixture: those of the shares, and those designed over the domains of both sides."""
    tried = {
        f"original-{share:g}": blend(study, section, share) for share in sorted(section.shares)
    }
    if section.mixtures:
        involved = {*section.original, *section.new}
        others = {name: (0.0, 0.0) for name in study.domains if name not in involved}
        allowed = feasible(
            Constraints(bounds={**study.bounds, **others}),
            list(study.domains),
            study.target_tokens(),
        )
        existing = np.array([[*mixture.values()] for mixture in tried.values()])
        drawn = space_filling.designed(
            study.sweep.design,
            len(tried) + section.mixtures,
            fixed=existing.reshape(-1, len(study.domains)),
            allowed=allowed,
            seed=study.sweep.seed,
            reference=np.array([*blend(study, section, 0.5).values()]),
            concentration=study.sweep.concentration,
        )
        tried |= {
            f"mix{i:02d}": dict(zip(study.domains, map(float, drawn[i]), strict=True))
            for i in range(len(tried), len(drawn))
        }
    return tried


def _decayed(training: Training, section: Critical) -> Training:
    return training.model_copy(update={"decay_steps": round(section.decay * training.steps)})
