"""A study whose text is tokenised: its tag, its default mixture and its runs."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from optimization.search import projection
from pipelines.study import repetition
from pipelines.study.study import Study
from training.data import corpus as corpora
from training.data.corpus import Corpus
from training.record import keys
from training.run import Phase, Run

TAG_DIGITS = 8  # of a study's tag, after its name


@dataclass(frozen=True)
class Prepared:
    """A study and its corpus. The corpus may be an estimate where nothing is trained."""

    study: Study
    corpus: Corpus

    @classmethod
    def find(cls, study: Study) -> Self | None:
        """The study with the text that `prepare` tokenised; None if it is not prepared."""
        corpus = corpora.find(study.domains, study.tokenizer, study.validation, study.workspace)
        return cls(study, corpus) if corpus else None

    @property
    def tag(self) -> str:
        """Tag of the runs whose losses are comparable: same data, same training except its length.

        Runs that repeat their text as often as the target are comparable for one target only.
        """
        study = self.study
        spec = [
            self.corpus.digest,
            study.validation.tokens,
            study.training.model_dump(exclude={"steps", "first_evaluation", "evaluations"}),
            study.target.steps if study.repetition.match_target else None,
        ]
        digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:TAG_DIGITS]
        return f"{study.name}-{digest}"

    @property
    def default(self) -> dict[str, float]:
        """The default mixture."""
        if explicit := self.study.explicit_default():
            return explicit
        proportional = self.corpus.proportional_mixture()
        values = np.array([proportional[d] for d in self.study.domains])
        nearest = projection.nearest(values, self.study.feasible())
        if nearest is values:
            return proportional
        return dict(zip(self.study.domains, nearest.tolist(), strict=True))

    def run(
        self,
        name: str,
        mixture: dict[str, float],
        *,
        size: str,
        seed: int,
        stage: str = keys.PROXY,
        steps: int | None = None,
        later: Sequence[Phase] = (),
    ) -> Run:
        """One model to train; a short run is evaluated at least at its end.

        `later` are the phases of a schedule after the first, whose mixture is `mixture`. Raises
        InputError for a run that is no longer than the learning-rate decay or the schedule.
        """
        study = self.study
        steps = steps or study.training.steps
        study.refuse_length(steps, later)
        first = min(study.training.first_evaluation, steps)
        matched = study.repetition.match_target
        return Run(
            name=name,
            stage=stage,
            study=self.tag,
            workspace=study.workspace,
            corpus=self.corpus.manifest,
            corpus_digest=self.corpus.digest,
            mixture=mixture,
            later=tuple(later),
            size_name=size,
            size=study.size(size),
            training=study.training.model_copy(update={"steps": steps, "first_evaluation": first}),
            validation_tokens=study.validation.tokens,
            data_share=min(1.0, steps / study.target.steps) if matched else 1.0,
            seed=seed,
            engine=study.engine,
        )

    def target(self, name: str, mixture: dict[str, float], seed: int) -> Run:
        """The study's target, trained on a mixture."""
        target = self.study.target
        return self.run(
            name, mixture, size=target.size, seed=seed, stage=keys.TARGET, steps=target.steps
        )

    def at_every_size(
        self, mixtures: dict[str, dict[str, float]], seed: int | None = None
    ) -> list[Run]:
        """A proxy of every mixture at every size of the sweep, the largest first; with the sweep's
        seed, or with another one that its name says."""
        study, end = self.study, "" if seed is None else f"-seed{seed}"
        seed = study.sweep.seed if seed is None else seed
        return [
            self.run(f"{label}-{size}{end}", mixture, size=size, seed=seed)
            for size in sorted(study.sweep.sizes, key=lambda s: -study.size(s).n_params)
            for label, mixture in mixtures.items()
        ]

    def check_repetition(self, runs: Sequence[Run]) -> None:
        """Warn about runs that would see the same text too often, or refuse them.

        Call it before training, with the runs that are not trained yet.
        """
        repetition.check(self.study.repetition, runs, self.corpus)
