"""Sections of a study file that are the pipelines' own, and what is wrong in one, in words.

Those of single models and their text are in `training.settings`.
"""

import difflib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from training.settings import Name, Section

COUNT, LISTED = "#count", "#listed"  # the two kinds of `sweep.mixtures`, in pydantic's locations


def _kind_of_mixtures(given: object) -> str:
    return LISTED if isinstance(given, list) else COUNT


class Sweep(Section):
    """Which proxy runs are trained: every mixture at every size."""

    mixtures: Annotated[
        Annotated[int, Field(ge=3), Tag(COUNT)]
        | Annotated[list[dict[Name, float]], Field(min_length=3), Tag(LISTED)],
        Discriminator(_kind_of_mixtures),
    ]
    """How many to design, the default mixture and the uniform one among them; or the mixtures
    themselves, each domain → proportion, trained in this order."""
    design: Literal["spread", "halved", "sobol", "dirichlet"] = "spread"
    """How they are designed: spread over the simplex by clustering; the paper's grid of halved
    proportions; scrambled Sobol points; or drawn around the default mixture."""
    concentration: float = Field(default=10.0, gt=0)
    """How close to the default mixture `dirichlet` draws; 1 around uniform is uniform."""
    sizes: list[Name] = Field(min_length=1)
    seed: int = 0
    """Of the design and of every proxy run."""


class Target(Section):
    """The large run that the predictor is fitted for and that `verify` trains."""

    size: Name
    steps: int = Field(gt=0)
    seeds: list[int] = Field(default=[0, 1], min_length=1)


class Search(Section):
    """The search over the mixture against the registered predictor."""

    trials: int = Field(default=300, gt=0)
    seed: int = 0
    objective: str = "loss"
    """`loss`, weighted as the validation; `worst`, the worst domain's excess over the reference;
    or several of loss, deviation and domains, separated by commas."""
    bounds: dict[str, tuple[float, float]] = Field(default={})
    """[lowest, highest] proportion of a domain, in the place of the study's, or of several
    together: `web+books`."""
    epochs: float | None = Field(default=None, gt=0)
    """How often the target may see the text that `prepare` counted; no limit when absent."""
    reference: dict[Name, float] | None = None
    """What the best mixture is compared with and pulled to; the default mixture when absent."""
    pull: float | Literal["auto"] = Field(default=0.0)
    """What a nat of divergence from the reference must gain, nats per token; `auto`: the
    strongest pull that keeps nine tenths of the gain."""
    trust_region: float | None = Field(default=None, ge=0, le=1)
    """Largest distance (share of tokens) from the nearest fitted mixture."""
    pessimistic: bool = False
    """Whether the upper end of the interval is minimised."""


def explain(item: Any, study: type[Section]) -> str:
    """One pydantic error as `key: rule`; an unknown key with the nearest known one."""
    parts = [part for part in item["loc"] if part not in (COUNT, LISTED)]
    where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in parts).removeprefix(".")
    if item["type"] == "extra_forbidden":
        known = _known_keys(item["loc"][:-1], study)
        near = difflib.get_close_matches(str(parts[-1]), known, n=1, cutoff=0)
        return f"unknown key {where!r}; the nearest known key is {near[0]!r}"
    message = item["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _known_keys(location: Sequence[str | int], study: type[Section]) -> list[str]:
    """The keys of the section at a location in the study."""
    section: Any = study
    for part in location:
        if isinstance(section, type) and issubclass(section, Section):
            section = section.model_fields[str(part)].annotation
        else:  # a mapping: its values' type
            section = section.__args__[1]
    return list(section.model_fields)
