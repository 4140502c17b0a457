"""The study file: one YAML with everything that an experiment fixes, checked before it runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import Field, field_serializer, model_validator

from fitting import model_names
from optimization.domain.constraints import Constraints
from optimization.domain.feasible import Feasible, feasible
from optimization.domain.objective import DEVIATION, LOSS, WORST
from pipelines.study import schedule_section
from pipelines.study.sections import Critical, Phases, Search, Sweep, TargetSection
from training.config import (
    LADDER,
    Domain,
    DomainName,
    Engine,
    Name,
    Repetition,
    Section,
    Size,
    Tokenizer,
    Training,
    Validation,
)
from training.record import keys, secrets
from training.record.errors import InputError
from training.record.mixtures import (
    MIXTURE_TOLERANCE,
    checked_mixture,
    checked_weights,
    mixture_key,
    refuse_unknown,
)
from training.run import Phase

CONTINUED, SCHEDULED = "-continued", "-schedule"  # suffixes of the derived predictors' names


class Study(Section):
    """An experiment, from text to verified mixture."""

    name: Name
    """The study's name; its runs, queue and text are looked up by it."""
    domains: dict[DomainName, Domain] = Field(min_length=2)
    """Name → where the domain's documents come from; two or more."""
    default_mixture: Literal["proportional"] | dict[DomainName, float] = "proportional"
    """What the best mixture is compared with; `proportional`: proportional to the domains' training
    tokens, or the nearest mixture to that within the bounds and bundles."""
    bounds: dict[DomainName, tuple[float, float]] = Field(default={})
    """Domain → [lowest, highest] proportion, in the sweep and the search; [0, 1] when absent."""
    bundles: dict[DomainName, dict[DomainName, float]] = Field(default={})
    """Domains that keep these proportions relative to each other, in the sweep and the search: a
    bundle counts as one domain. For domains whose proportions older runs have settled."""
    tokenizer: Tokenizer
    """How text becomes tokens."""
    validation: Validation = Validation()
    """What is held out, and how the losses are weighted."""
    sizes: dict[Name, Size] = Field(default={})
    """The study's own sizes, in addition to the ladder (`training.config.LADDER`)."""
    training: Training
    """How every model is trained."""
    engine: Engine = Engine()
    """How DeepSpeed runs a model."""
    repetition: Repetition = Repetition()
    """How often a run may see the same text."""
    sweep: Sweep
    """The proxies."""
    target: TargetSection
    """The large run."""
    search: Search = Search()
    """The search over the mixture."""
    schedule: list[Phase] = Field(default=[])
    """The mixture over time on which `train` trains by default: its phases in order, the first from
    0 tokens."""
    phases: Phases | None = None
    """What the command `schedule` trains; without this section it refuses the study."""
    critical: Critical | None = None
    """What the command `critical` trains; without this section it refuses the study."""
    model: str = "mixture-predictor"
    """Name of the registered predictor."""
    workspace: Path = Path("workspace")
    """Folder for tokens and the ledger; a relative path starts at the project's folder."""
    ledger: str | None = Field(default=None, repr=False)
    """SQLAlchemy URL of the sweep's ledger; by default SQLite in the workspace. A password in it is
    masked wherever it is written."""

    @field_serializer("ledger")
    def _without_password(self, ledger: str | None) -> str | None:
        return ledger and secrets.masked(ledger)

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        secrets.remember(self.ledger)
        self._check_names()
        self._check_weights()
        self._check_lengths()
        self._check_sizes()
        self._check_mixtures()
        self._check_search()
        schedule_section.checked(
            self.schedule, list(self.domains), self.training.tokens_per_step, "schedule"
        )
        if self.phases is not None:
            self.size(self.phases.size, "phases.size")
        if self.critical is not None:
            self._check_critical(self.critical)
        return self

    def _check_names(self) -> None:
        """The names of models and sizes, and of the domains in a default mixture."""
        for name in (self.model, *self.derived_models()):
            model_names.refuse_bad_name(name, "model")
        validation = self.validation
        for key, named in (("sets", validation.sets), ("tasks", validation.tasks)):
            place, kind = f"validation.{key}", key[:-1]
            if words := sorted({LOSS, WORST, DEVIATION} & {*named}):
                raise ValueError(
                    f"{place}: {words[0]!r} is a word of search.objective; give the {kind} another "
                    "name"
                )
            if both := sorted({*self.domains} & {*named}):
                raise ValueError(
                    f"{place}: {both[0]!r} is also a domain, whose held-out part is measured in "
                    f"any case; give the {kind} another name"
                )
        if both := sorted({*validation.sets} & {*validation.tasks}):
            raise ValueError(
                f"validation.tasks: {both[0]!r} is also a set; give one of them another name"
            )
        self.explicit_default()
        for name in self.sweep.sizes:
            self.size(name, "sweep.sizes")
        self.size(self.target.size, "target.size")

    def _check_weights(self) -> None:
        if self.validation.weights is not None:
            checked_weights(self._named_weights(), self.evaluated, "validation.weights")

    def _check_lengths(self) -> None:
        if self.training.first_evaluation > self.target.steps:
            raise ValueError("target.steps: fewer than training.first_evaluation")
        self._check_decay(self.target.steps, "target.steps")
        for place, steps in (("training", self.training.steps), ("target", self.target.steps)):
            if steps * self.training.tokens_per_step > keys.MAX_INTEGER:
                raise ValueError(f"{place}.steps: more than {keys.MAX_INTEGER:.2g} tokens")
        if self.training.evaluations == 1 and self.target.steps != self.training.steps:
            raise ValueError(
                "training.evaluations: one evaluation per run shows no step law that reaches "
                f"target.steps {self.target.steps}; evaluate three or more times"
            )

    def _check_sizes(self) -> None:
        if len(set(self.sweep.sizes)) < len(self.sweep.sizes):
            raise ValueError("sweep.sizes: a size is named twice")
        trained = {self.size(name) for name in self.sweep.sizes}
        if len(trained) == 1 and self.size(self.target.size) not in trained:
            raise ValueError(
                f"sweep.sizes: proxies of one size show no size law that reaches target.size "
                f"{self.target.size}; add sizes (three or more), or make the target one of them"
            )

    def _check_mixtures(self) -> None:
        """The listed mixtures and the default one, by the bounds and bundles."""
        allowed = self.feasible()
        seen: dict[tuple[float, ...], str] = {}
        for i, mixture in enumerate(self.listed_mixtures()):
            place = f"sweep.mixtures[{i}]"
            _refuse_broken(place, mixture, allowed)
            key = mixture_key(mixture, list(self.domains))
            if key in seen:
                raise ValueError(f"{place}: the same mixture as {seen[key]}; remove one")
            seen[key] = place
        if default := self.explicit_default():
            _refuse_broken("default_mixture", default, allowed)

    def _check_critical(self, section: Critical) -> None:
        known = list(self.domains)
        refuse_unknown(section.original, known, "critical.original")
        refuse_unknown(section.new, known, "critical.new")
        refuse_unknown(section.new_validation, self.evaluated, "critical.new_validation")
        for domain in (*section.original, *section.new):
            if self.bounds.get(domain, (0, 1))[1] == 0:
                raise ValueError(
                    f"critical: it trains on {domain!r}, which bounds holds at 0; change one of "
                    "them"
                )
        if section.size is not None:
            self.size(section.size, "critical.size")

    def refuse_length(self, steps: int, later: Sequence[Phase] = ()) -> None:
        """Raise InputError for a run that is no longer than the learning-rate decay, or that ends
        before a later phase of its schedule begins."""
        self._check_decay(steps, "steps")
        schedule_section.refuse_beyond(later, steps * self.training.tokens_per_step)

    def _check_decay(self, steps: int, place: str) -> None:
        if steps <= self.training.decay_steps:
            raise InputError(
                f"{place}: {steps:,} must be more than training.decay_steps "
                f"({self.training.decay_steps:,})"
            )

    def _check_search(self) -> None:
        known, search = list(self.domains), self.search
        feasible(self.constraints().within(search.bounds), known, self.target_tokens())
        if search.reference is not None:
            reference = checked_mixture(search.reference, known, "search.reference")
            self.refuse_forbidden({"search.reference": reference})
        names = [name.strip() for name in search.objective.split(",")]
        known = [LOSS, DEVIATION, *self.evaluated] if len(names) > 1 else [LOSS, WORST]
        for name in names:
            if name not in known:
                raise ValueError(
                    f"search.objective: {name!r}; it is loss (as validation.weights say), worst, "
                    f"or several of loss, deviation, {', '.join(self.evaluated)}"
                )

    def derived_models(self) -> list[str]:
        """Names under which `critical` and `schedule` register their predictors."""
        suffixes = (self.critical and CONTINUED, self.phases and SCHEDULED)
        return [f"{self.model}{suffix}" for suffix in suffixes if suffix]

    def size(self, name: str, place: str = "size") -> Size:
        """The size of this name; the study's own sizes come before the ladder's.

        Raises InputError for an unknown name.
        """
        size = self.sizes.get(name) or LADDER.get(name)
        if size is None:
            known = ", ".join([*self.sizes, *LADDER])
            raise InputError(f"{place}: no size {name!r}; there are {known}")
        return size

    def used_sizes(self) -> list[str]:
        """Names of the sizes that the study trains, each once."""
        others = [section.size for section in (self.phases, self.critical) if section]
        names = [*self.sweep.sizes, self.target.size, *others]
        return list(dict.fromkeys(name for name in names if name is not None))

    def limits(self) -> tuple[list[float], list[float]]:
        """Lowest and highest proportion of each domain, in the study's order."""
        pairs = [self.bounds.get(name, (0.0, 1.0)) for name in self.domains]
        return [low for low, _ in pairs], [high for _, high in pairs]

    def constraints(self) -> Constraints:
        """What every mixture of the sweep must satisfy."""
        return Constraints(bounds=self.bounds, bundles=self.bundles)

    def feasible(self) -> Feasible:
        """The mixtures that the sweep may train.

        Raises InputError for rules that no mixture satisfies together.
        """
        return feasible(self.constraints(), list(self.domains), self.target_tokens())

    def refuse_forbidden(self, mixtures: Mapping[str, Mapping[str, float]]) -> None:
        """Raise InputError for the first of the mixtures, by name, that breaks the study's bounds
        or bundles."""
        allowed = self.feasible()
        for name, mixture in mixtures.items():
            _refuse_broken(name, mixture, allowed)

    def broken_rule(self, mixture: Mapping[str, float]) -> str:
        """The bound or bundle that a mixture breaks, in words; empty when it breaks none."""
        values = np.array([mixture[d] for d in self.domains])
        return self.feasible().broken_rule(values, MIXTURE_TOLERANCE)

    def listed_mixtures(self) -> list[dict[str, float]]:
        """The mixtures that the study lists; empty when they are to be designed."""
        if isinstance(self.sweep.mixtures, int):
            return []
        return [
            checked_mixture(mixture, list(self.domains), f"sweep.mixtures[{i}]")
            for i, mixture in enumerate(self.sweep.mixtures)
        ]

    @property
    def evaluated(self) -> list[str]:
        """What losses are measured on: the domains, the validation sets, then the tasks."""
        return [*self.domains, *self.validation.beside]

    @property
    def unit(self) -> str:
        """The unit of the losses of the runs that the study trains."""
        return self.validation.unit or keys.NATS

    def weights(self) -> dict[str, float]:
        """Weight of each validation loss in the objective; they sum to one."""
        raw = self._named_weights() or dict.fromkeys(self.evaluated, 1.0)
        return dict(zip(self.evaluated, checked_weights(raw, self.evaluated), strict=True))

    def _named_weights(self) -> dict[str, float]:
        """The weights as given; where there are sets or tasks, 0 for what is not named."""
        raw = self.validation.weights or {}
        rest = dict.fromkeys(self.evaluated, 0.0) if raw and self.validation.beside else {}
        return {**rest, **raw}

    def explicit_default(self) -> dict[str, float] | None:
        """The default mixture that the study states; None when it follows from the text."""
        if isinstance(self.default_mixture, dict):
            return checked_mixture(self.default_mixture, list(self.domains), "default_mixture")
        return None

    def target_tokens(self) -> int:
        return self.target.steps * self.training.tokens_per_step

    def ledger_url(self) -> str:
        return self.ledger or f"sqlite:///{self.workspace / 'ledger.db'}"


def _refuse_broken(name: str, mixture: Mapping[str, float], allowed: Feasible) -> None:
    values = np.array([mixture[d] for d in allowed.domains])
    if broken := allowed.broken_rule(values, MIXTURE_TOLERANCE):
        raise InputError(f"{name} breaks the rule {broken!r}; change one of them")
