"""One model to train: all that its losses depend on, and their fingerprint."""

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Self

from pydantic import Field

from training.config import DomainName, Engine, Section, Size, Training


class Phase(Section):
    """A part of a schedule: its mixture and where it begins."""

    from_tokens: int = Field(default=0, ge=0)
    """Tokens that the run has seen when the phase begins; a whole number of steps."""
    mixture: dict[DomainName, float]
    """Domain → proportion; missing domains have 0."""


class Base(Section):
    """A trained model whose weights a run starts from, with a new optimizer state."""

    source: str
    """A folder or a hub id for `from_pretrained`."""
    digest: str
    """Hash of its weights."""


class Run(Section):
    """One model to train: all that its losses depend on, and the study it belongs to."""

    name: str
    stage: str
    study: str
    """The study's tag, shared by runs whose losses are comparable; fits select runs by it."""
    workspace: Path
    """The study's folder, which holds the checkpoints."""
    corpus: Path
    """The manifest that `prepare` wrote."""
    corpus_digest: str
    mixture: dict[str, float]
    """Proportions from the first step on."""
    later: tuple[Phase, ...] = ()
    """The phases of a schedule after the first, in order."""
    base: Base | None = None
    """The model to start from; randomly initialised when absent."""
    size_name: str
    size: Size
    training: Training
    validation_tokens: int
    data_share: float = 1.0
    """The part of each domain's training text that the run may see."""
    seed: int
    engine: Engine = Engine()
    """Not part of the fingerprint."""
    keep_state: bool = False
    """Whether to keep the final state for runs with the same beginning; not part of the
    fingerprint."""

    @property
    def phases(self) -> list[tuple[int, dict[str, float]]]:
        """(steps done at its beginning, mixture) of each phase."""
        per_step = self.training.tokens_per_step
        return [(0, self.mixture), *((p.from_tokens // per_step, p.mixture) for p in self.later)]

    def mean_mixture(self) -> dict[str, float]:
        """The proportions over all tokens of the run."""
        starts, mixtures = zip(*self.phases, strict=True)
        lengths = [b - a for a, b in pairwise([*starts, self.training.steps])]
        return {
            name: sum(n * m[name] for n, m in zip(lengths, mixtures, strict=True))
            / self.training.steps
            for name in self.mixture
        }

    def until(self, step: int) -> Self:
        """The same run ended after `step` steps, with a single evaluation.

        Runs that agree up to that step share it, and so its fingerprint.
        """
        ended = {"steps": step, "first_evaluation": step, "evaluations": 1, "decay_steps": 0}
        tokens = step * self.training.tokens_per_step
        return self.model_copy(
            update={
                "training": self.training.model_copy(update=ended),
                "later": tuple(p for p in self.later if p.from_tokens < tokens),
            }
        )

    def flops(self, vocab_size: int) -> int:
        """Training compute, 6 FLOPs per parameter and token; the input embedding has none."""
        parameters = self.size.n_params + vocab_size * self.size.width
        return 6 * parameters * self.training.tokens_per_step * self.training.steps


def fingerprint(run: Run) -> str:
    """A hash of everything that a run's losses depend on."""
    excluded = {
        "name",
        "stage",
        "study",
        "workspace",
        "corpus",
        "size_name",
        "engine",
        "keep_state",
    }
    spec = run.model_dump(mode="json", exclude=excluded)
    if run.base is None:
        del spec["base"]
    else:  # independent of the location of its files
        spec["base"] = run.base.digest
        del spec["size"]["config"]
    if not run.later:
        del spec["later"]
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:32]
