"""What a registered predictor was fitted to and for: the content of its `predictor.json`.

The registry writes it; the predictor, and through it a search, reads its fields by name. A
registered predictor carries a copy of this file, so it imports nothing from the project. Laws are
JSON values, as `laws.to_json` makes them.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Self

Json = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """The scale of the model whose losses are predicted."""

    n_params: float  # non-embedding parameters
    tokens: float


@dataclass(frozen=True)
class Only:
    """The scale that all fitted runs share, the only one the law predicts; None where it varies."""

    n_params: float | None
    tokens: float | None


@dataclass(frozen=True)
class SizeLaw:
    """The law of one proxy size, fitted to the runs of that size alone."""

    n_params: float
    tokens: float
    law: Json


@dataclass(frozen=True)
class Explored:
    """The range of the fitted mixtures; a search stays within it."""

    lowest: dict[str, float]  # proportion by domain
    highest: dict[str, float]
    bundles: dict[str, dict[str, float]]  # name → domain → its share of the bundle


@dataclass(frozen=True)
class Continual:
    """What a fit of runs that continue a base holds besides the law."""

    base: dict[str, float]  # losses of the base by validation domain
    original: tuple[str, ...]  # training domains of the original data
    original_weights: dict[str, float]  # of validation domains, in the loss on the original data
    new_weights: dict[str, float]  # of validation domains, in the loss on the new data


@dataclass(frozen=True)
class Repetition:
    """What repeated text is worth, by runs that repeat a domain: see `laws.RepetitionLaw`."""

    n0: float
    worth: tuple[float, ...]  # R_j0, (M,)
    wear: float  # ρ
    drawn: tuple[tuple[float, ...], ...]  # log R_j0 and ρ of the bootstrap, (B, M + 1)
    seen: tuple[float, ...]  # the most passes of a fitted run over each domain, (M,)


@dataclass(frozen=True)
class Spec:
    """A predictor of validation losses at the end of training on one mixture."""

    domains: tuple[str, ...]
    val_domains: tuple[str, ...]  # only `objective` for an implicit fit
    target: Target
    unit: str  # of the losses
    weights: tuple[float, ...]  # of the val_domains, in the objective; they sum to one
    law: Json
    interval: Json
    scales: tuple[SizeLaw, ...]
    only: Only
    mixtures: tuple[tuple[float, ...], ...]  # fitted mixtures, (m, M)
    explored: Explored
    val_weights: dict[str, float]  # of the validation domains that the runs measured
    default_mixture: dict[str, float]  # empty if it is unknown
    best_observed: dict[str, float]
    continual: Continual | None = None
    noise: tuple[float, ...] = ()  # variance between seeds of each loss, (V,); empty if unknown
    accuracies: dict[str, Json] = field(default_factory=dict)  # task → its curve of accuracy
    repetition: Repetition | None = None  # None if no run repeats a domain

    def to_json(self) -> Json:
        """The spec as JSON values."""
        raw = asdict(self)
        if self.repetition is None:
            del raw["repetition"]
        return raw

    @classmethod
    def from_json(cls, raw: Json) -> Self:
        """From what `to_json` gave, or JSON of it: lists then stand where the spec has tuples."""
        continual, repetition = raw["continual"], raw.get("repetition")
        return cls(
            **{
                **raw,
                "target": Target(**raw["target"]),
                "only": Only(**raw["only"]),
                "scales": tuple(SizeLaw(**scale) for scale in raw["scales"]),
                "explored": Explored(**raw["explored"]),
                "continual": continual and Continual(**continual),
                "repetition": repetition and Repetition(**repetition),
            }
        )


@dataclass(frozen=True)
class ScheduleSpec:
    """A predictor of validation losses at the end of training on a schedule of mixtures."""

    domains: tuple[str, ...]
    val_domains: tuple[str, ...]
    weights: tuple[float, ...]
    n_params: int  # of the fitted runs
    law: Json
    replicates: tuple[Json, ...]  # laws of the bootstrap over mixtures
    residual: float  # rms error on held-out mixtures
    quantile: float  # half width of a 90 % interval, in standard deviations
    mixtures: tuple[tuple[float, ...], ...]  # tried in every phase, (m, M)
    unit: str = "nats_per_token"  # of the losses

    def to_json(self) -> Json:
        """The spec as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Json) -> Self:
        """From what `to_json` gave, or JSON of it: lists then stand where the spec has tuples."""
        return cls(**raw)
