"""One model to train: all that its losses depend on, and the fingerprint of that."""

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Self

from pydantic import Field

from training.config import DomainName, Engine, Section, Size, Training


class Phase(Section):
    """A part of a schedule: the mixture from a number of tokens on."""

    from_tokens: int = Field(default=0, ge=0)
    """Tokens that the run has seen when it begins; a whole number of steps."""
    mixture: dict[DomainName, float]
    """Domain → proportion; domains that are left out have 0."""


class Base(Section):
    """A trained model whose weights a run begins with; its optimizer begins anew."""

    source: str
    """A folder or a hub id that `from_pretrained` knows."""
    digest: str
    """Of its weights."""


class Run(Section):
    """One model to train: all that its losses depend on, and where it belongs."""

    name: str
    stage: str
    study: str
    """Fingerprint of the study's training part; fits select by it."""
    workspace: Path
    """The study's folder; checkpoints lie in it."""
    corpus: Path
    """The manifest that `prepare` wrote."""
    corpus_digest: str
    mixture: dict[str, float]
    """From the first step on."""
    later: tuple[Phase, ...] = ()
    """The phases of a schedule after the first, in their order."""
    base: Base | None = None
    """What it continues; fresh weights when absent."""
    size_name: str
    size: Size
    training: Training
    validation_tokens: int
    data_share: float = 1.0
    """The part of each domain's training text that the run may see."""
    seed: int
    engine: Engine = Engine()
    """Not a part of what the losses depend on."""
    keep_state: bool = False
    """Whether its last state is kept for runs that begin as it did; nor is this."""

    @property
    def phases(self) -> list[tuple[int, dict[str, float]]]:
        """Steps done when each phase begins, and its mixture."""
        per_step = self.training.tokens_per_step
        return [(0, self.mixture), *((p.from_tokens // per_step, p.mixture) for p in self.later)]

    def mean_mixture(self) -> dict[str, float]:
        """The proportions of all tokens of the run."""
        starts, mixtures = zip(*self.phases, strict=True)
        lengths = [b - a for a, b in pairwise([*starts, self.training.steps])]
        return {
            name: sum(n * m[name] for n, m in zip(lengths, mixtures, strict=True))
            / self.training.steps
            for name in self.mixture
        }

    def until(self, step: int) -> Self:
        """The run that ends where this one has done so many steps; all that its state depends on,
        its evaluations aside."""
        ended = {"steps": step, "first_evaluation": step, "evaluations": 1, "decay_steps": 0}
        tokens = step * self.training.tokens_per_step
        return self.model_copy(
            update={
                "training": self.training.model_copy(update=ended),
                "later": tuple(p for p in self.later if p.from_tokens < tokens),
            }
        )

    def flops(self, vocab_size: int) -> int:
        """Training compute, 6 FLOPs a parameter and token; the input embedding computes none."""
        parameters = self.size.n_params + vocab_size * self.size.width
        return 6 * parameters * self.training.tokens_per_step * self.training.steps


def fingerprint(run: Run) -> str:
    """A hash of everything that a run's losses depend on."""
    other = {"name", "stage", "study", "workspace", "corpus", "size_name", "engine", "keep_state"}
    spec = run.model_dump(mode="json", exclude=other)
    if run.base is None:
        del spec["base"]
    else:  # wherever its files lie
        spec["base"] = run.base.digest
        del spec["size"]["config"]
    if not run.later:
        del spec["later"]
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:32]
