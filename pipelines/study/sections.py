"""Sections of a study file that only the pipelines read.

The sections of single models and their text are in `training.config`.
"""

from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from training.config import DomainName, Name, Section, Seed, Seeds

COUNT, LISTED = "#count", "#listed"  # the two kinds of `sweep.mixtures`, in pydantic's locations


def _kind_of_mixtures(value: object) -> str:
    return LISTED if isinstance(value, list) else COUNT


class Sweep(Section):
    """Which proxy runs are trained: every mixture at every size."""

    mixtures: Annotated[
        Annotated[int, Field(ge=3), Tag(COUNT)]
        | Annotated[list[dict[DomainName, float]], Field(min_length=3), Tag(LISTED)],
        Discriminator(_kind_of_mixtures),
    ]
    """How many to design, including the default and the uniform mixture; or a list of mixtures,
    domain → proportion, trained in this order."""
    design: Literal["spread", "halved", "sobol", "dirichlet"] = "spread"
    """How they are designed: spread over the simplex by clustering; the paper's grid of halved
    proportions; scrambled Sobol points; or drawn around the default mixture."""
    concentration: float = Field(default=10.0, gt=0)
    """How close to the default mixture `dirichlet` draws; 1 around uniform is uniform."""
    sizes: list[Name] = Field(min_length=1)
    """Names of sizes, the study's own or the ladder's."""
    seed: Seed = 0
    """Seed of the design and of every proxy run."""
    seeds: Seeds = Field(default=[])
    """Further seeds of the first mixture, in a designed sweep the default one, at every size. What
    these runs differ by is the noise of a run: a fit says whether its errors are larger, and
    `design` whether seeds are worth more than mixtures."""

    @model_validator(mode="after")
    def _other_seeds(self) -> Self:
        if self.seed in self.seeds:
            raise ValueError(f"seeds: {self.seed} is already the seed; list other ones")
        return self


class TargetSection(Section):
    """The large run that the predictor is fitted for and that `verify` trains."""

    size: Name
    """The name of its size."""
    steps: int = Field(gt=0)
    """Its optimizer steps."""
    seeds: Seeds = Field(default=[0, 1], min_length=1)
    """Seeds of the target on the best and the default mixture, one run each."""


class Search(Section):
    """The search over the mixture against the registered predictor."""

    trials: int = Field(default=300, gt=0)
    """Trials of Optuna."""
    seed: Seed = 0
    """Seed of Optuna's sampler."""
    objective: str = "loss"
    """`loss`, weighted as in `validation`; `worst`, the worst domain's excess over the reference;
    or several of loss, deviation and domains, separated by commas."""
    bounds: dict[str, tuple[float, float]] = Field(default={})
    """[lowest, highest] proportion of a domain, within the study's bounds, or of several domains
    together: `web+books`."""
    epochs: float | None = Field(default=None, gt=0)
    """How often the target may see the text that `prepare` counted; no limit when absent."""
    reference: dict[DomainName, float] | None = None
    """What the best mixture is compared with and pulled to; the default mixture when absent."""
    pull: float | Literal["auto"] = Field(default=0.0)
    """What a nat of divergence from the reference must gain, in the unit of the losses; `auto`: the
    strongest pull that keeps nine tenths of the gain."""
    trust_region: float | None = Field(default=None, ge=0, le=1)
    """Largest distance (share of tokens) from the nearest fitted mixture."""
    pessimistic: bool = False
    """Whether the upper end of the interval is minimised."""


class Critical(Section):
    """A base model that is trained further on its original data and new domains: how much original
    data keeps what it knew."""

    base: str | None = None
    """A Transformers checkpoint: a folder, a hub id, or `runs:/<id>/model`; trained here on the
    original domains when absent."""
    size: Name | None = None
    """The size of the base, where it is trained here."""
    base_steps: int | None = Field(default=None, gt=0)
    """Optimizer steps of the base, where it is trained here; those of `training` when absent."""
    original: dict[DomainName, Annotated[float, Field(gt=0)]] = Field(min_length=1)
    """Domains of the original data → their proportions relative to each other."""
    new: dict[DomainName, Annotated[float, Field(gt=0)]] = Field(min_length=1)
    """Domains of the new data → their proportions relative to each other."""
    new_validation: list[DomainName] = Field(default=[])
    """Sets and tasks that measure the new data; the others measure the original data."""
    steps: int = Field(gt=0)
    """Optimizer steps for which the base is continued."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of the continuation; as for a model of the base's width when absent."""
    decay: float = Field(default=0.2, ge=0, lt=1)
    """Share of the steps, at their end, over which the learning rate falls to zero; also in a base
    that is trained here."""
    shares: list[Annotated[float, Field(ge=0, le=1)]] = Field(default=[])
    """Proportions of original data to try, all its domains together; the proportions within each
    side stay the same."""
    mixtures: int = Field(default=0, ge=0)
    """How many further mixtures to try, in which all these domains vary freely."""
    tolerances: list[Annotated[float, Field(ge=0)]] = Field(default=[0.0], min_length=1)
    """By how much the loss on the original data may rise, in the unit of the losses."""
    seeds: Seeds = Field(default=[1, 2])
    """Seeds with which the answer is trained; an empty list: it is not trained."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if both := sorted(set(self.original) & set(self.new)):
            raise ValueError(f"{both[0]!r} is in original and in new; a domain is one of them")
        if (self.base is None) == (self.size is None):
            raise ValueError("give either base, or size (of one that is trained here)")
        if len(set(self.shares)) + self.mixtures < 3:
            raise ValueError("shares, mixtures: give three or more mixtures in all")
        return self


class Phases(Section):
    """How `schedule` plans a mixture that changes while a model trains."""

    size: Name
    """The name of every model's size."""
    steps: list[Annotated[int, Field(gt=0)]] = Field(min_length=2)
    """Optimizer steps of each phase."""
    mixtures: int = Field(default=10, ge=4)
    """How many mixtures to try in each phase."""
    trunks: int = Field(default=3, ge=2)
    """How many of these runs go on to the next phases, where every mixture branches off the end of
    each."""
    decay: float = Field(default=0.2, ge=0, le=1)
    """Share of the last phase over which the learning rate falls to zero."""
    seeds: Seeds = Field(default=[1, 2, 3, 4], min_length=2)
    """Seeds with which the best schedule and the best constant mixture are trained."""
