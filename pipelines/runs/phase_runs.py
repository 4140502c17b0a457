"""The proxies of a schedule: in each phase every mixture, branched from common checkpoints.

Phase 1 trains each mixture from the start. Some of these runs go on unchanged to the last phase.
They are the parent runs of the later ones: at the end of each phase every mixture branches off each
parent's state. A branch is an ordinary run with a schedule whose first phases are already trained.
"""

from dataclasses import dataclass

import mlflow
import numpy as np
import pandas as pd

from optimization.domain.feasible import distances
from pipelines.runs.proxy_runs import designed, train_missing
from pipelines.study.prepared import Prepared
from pipelines.study.sections import Phases
from pipelines.study.study import Study
from training.engine.devices import Machines
from training.record import keys
from training.record.errors import InputError
from training.record.mlflow_runs import last_losses
from training.run import Phase, Run

Mixture = dict[str, float]
SCRATCH = "scratch"  # no parent: trained from the start


def refuse_listed(study: Study) -> None:
    """Raise InputError where the study lists its mixtures."""
    if study.listed_mixtures():
        raise InputError("sweep.mixtures: a schedule designs its own; give their number instead")


def parent_labels(tried: dict[str, Mixture], count: int) -> list[str]:
    """Labels of the parent runs' mixtures: far from each other, including the first one."""
    points = np.array([[*mixture.values()] for mixture in tried.values()])
    chosen = [0]
    while len(chosen) < min(count, len(points)):
        chosen.append(int(distances(points, points[chosen]).min(axis=1).argmax()))
    return [list(tried)[i] for i in chosen]


@dataclass(frozen=True)
class PhaseProxies:
    """The proxies of a prepared study's section `phases`."""

    prepared: Prepared
    section: Phases

    def mixtures(self) -> dict[str, Mixture]:
        """Label → mixture, for the mixtures to try."""
        refuse_listed(self.prepared.study)
        return designed(self.prepared.study, self.section.mixtures, self.prepared.default)

    def run(
        self, name: str, schedule: list[Mixture], seed: int, stage: str = keys.SCHEDULED
    ) -> Run:
        """A model trained on these mixtures, one for each of the first phases; the learning rate
        decays only in the last phase of the section."""
        section, per_step = self.section, self.prepared.study.training.tokens_per_step
        ends = np.cumsum(section.steps)
        steps, total = int(ends[len(schedule) - 1]), int(ends[-1])
        later = [
            Phase(from_tokens=int(end) * per_step, mixture=mixture)
            for end, mixture in zip(ends[: len(schedule) - 1], schedule[1:], strict=True)
        ]
        plain = self.prepared.run(
            name,
            schedule[0],
            size=section.size,
            seed=seed,
            stage=stage,
            steps=total,
            later=later,
        )
        decay = round(section.decay * section.steps[-1]) if steps == total else 0
        training = plain.training.model_copy(
            update={
                "steps": steps,
                "first_evaluation": steps,
                "evaluations": 1,
                "decay_steps": decay,
            }
        )
        return plain.model_copy(update={"training": training})

    def train(self, machines: Machines, active: mlflow.ActiveRun) -> pd.DataFrame:
        """Train the proxies of every phase below the active run.

        The table has a row for each run: run, phase (from 1), trunk (the label of its parent run),
        label of its mixture, mixture/<domain>…, and the validation losses at the start
        (before/<domain>…, missing in the first phase) and the end (val_loss/<domain>…) of the
        phase.
        """
        section, tried = self.section, self.mixtures()
        unit = self.prepared.study.unit
        labels = parent_labels(tried, section.trunks)
        rows: list[dict[str, object]] = []
        no_losses = dict.fromkeys(self.prepared.study.evaluated, np.nan)
        states: dict[str, Mixture] = {SCRATCH: no_losses}
        for number in range(1, len(section.steps) + 1):
            planned = {
                (parent, label): self._branch(number, parent, label, tried)
                for parent in states
                for label in tried
            }
            parents = [(SCRATCH if number == 1 else label, label) for label in labels]
            if number < len(section.steps):
                for key in parents:
                    planned[key] = planned[key].model_copy(update={"keep_state": True})
            ordered = [*parents, *(key for key in planned if key not in parents)]
            runs = [planned[key] for key in ordered]
            run_ids = train_missing(self.prepared, runs, machines, keys.SCHEDULE, active)
            losses = {key: last_losses(run_ids[planned[key].name], unit) for key in planned}
            rows += [
                {
                    "run": run_ids[planned[parent, label].name],
                    "phase": number,
                    "trunk": parent,
                    "label": label,
                    **keys.with_prefix(keys.MIXTURE, tried[label]),
                    **keys.with_prefix(keys.BEFORE, states[parent]),
                    **keys.with_prefix(keys.VAL_LOSS, losses[parent, label]),
                }
                for parent, label in planned
            ]
            states = {label: losses[key] for key, label in zip(parents, labels, strict=True)}
        return pd.DataFrame(rows)

    def _branch(self, number: int, parent: str, label: str, tried: dict[str, Mixture]) -> Run:
        before = [tried[parent]] * (number - 1) if parent != SCRATCH else []
        name = f"phase{number}-{parent}-{label}"
        return self.run(name, [*before, tried[label]], self.prepared.study.sweep.seed)
