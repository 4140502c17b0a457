"""From a candidate, which is every choice a fit can make, to its law."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from fitting.artifact.laws import Law
from fitting.data.observations import Observations
from fitting.estimators import joint, nested, published
from fitting.estimators.joint import ScaleFit
from fitting.estimators.least_squares import Exponentials
from fitting.estimators.nested import Curves

Array = np.ndarray

METHODS = ("joint", "nested")  # those that `auto` chooses from
ALL_METHODS = (*METHODS, *published.METHODS)
TIES = {"joint": ("all", "domain"), "nested": ("domain", "all", "curve")}  # the default first
CHOICES = {  # what can be chosen of each law
    "joint": ("power", "ridge", "terms", "shrinking", "tie"),
    "nested": ("power", "ridge", "tie", "huber"),
    **dict.fromkeys(published.METHODS, ("ridge",)),
}


@dataclass(frozen=True)
class Candidate:
    """One way to fit."""

    method: str
    power: float = 0.5  # φ(r) = r^power; 0 is log(r + ε)
    ridge: float = 1e-3
    terms: int = 1  # exponentials in the mixing law (joint only)
    shrinking: bool = False  # whether the mixture's effect shrinks with scale (joint only)
    tie: str = "all"  # what shares exponents: "all", a "domain" or (nested only) a "curve"
    huber: float = 0.0  # nats per token beyond which residuals count linearly (nested only)

    @property
    def form(self) -> "Candidate":
        """The same without the choice of φ and ridge."""
        return replace(self, power=0.0, ridge=0.0)

    @property
    def scale_form(self) -> "Candidate":
        """The choices that the scale terms depend on."""
        return replace(self.form, terms=1)

    def __str__(self) -> str:
        if self.method not in METHODS:
            return f"{self.method} law, ridge {self.ridge:.0e}"
        parts = [
            f"{self.method} law",
            f"φ(r) = r^{self.power:g}" if self.power else "φ(r) = log(r + ε)",
            f"ridge {self.ridge:.0e}",
        ]
        if self.terms > 1:
            parts.append(f"{self.terms} exponentials")
        if self.shrinking:
            parts.append("the mixture's effect shrinking with scale")
        if self.tie != TIES.get(self.method, (self.tie,))[0]:
            parts.append(f"exponents tied over {self.tie}")
        if self.huber:
            parts.append(f"Huber loss beyond {self.huber:g}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Target:
    """The run whose losses are wanted."""

    n_params: float
    tokens: float


Memory = dict[Any, Any]  # what a fit found, for similar fits to start from


def fit(observations: Observations, candidate: Candidate, target: Target) -> Law:
    """The law of one candidate on all observations."""
    return fit_all(observations, [candidate], target)[candidate]


def fit_all(
    observations: Observations,
    wanted: Sequence[Candidate],
    target: Target,
    memory: Memory | None = None,
) -> dict[Candidate, Law]:
    """The laws of several candidates; what they share is computed once, all ridges in a batch.

    An empty `memory` is filled, a filled one is where the solvers start.
    """
    memory = {} if memory is None else memory
    laws: dict[Candidate, Law] = {}
    ours = [c for c in wanted if c.method in METHODS]
    for candidate in wanted:
        if candidate.method not in METHODS:
            laws[candidate], parameters = published.fit(
                observations, candidate.method, candidate.ridge, memory.get(candidate)
            )
            memory.setdefault(candidate, parameters)
    for form in dict.fromkeys(c.scale_form for c in ours):
        same = [c for c in ours if c.scale_form == form]
        mix = _scale_step(observations, form, target, memory)
        for power, terms in dict.fromkeys((c.power, c.terms) for c in same):
            group = tuple(c for c in same if (c.power, c.terms) == (power, terms))
            ridges = np.array([c.ridge for c in group])
            found, exponentials = mix(power, ridges, memory.get(group, terms))
            memory.setdefault(group, exponentials)
            laws.update(zip(group, found, strict=True))
    return laws


def _scale_step(
    observations: Observations, form: Candidate, target: Target, memory: Memory
) -> Callable[..., tuple[Sequence[Law], Exponentials]]:
    """Fit what does not depend on φ, ridge and terms; the rest as a function of those."""
    if form.method == "nested":
        return partial(nested.fit_mixing, _curves(observations, form, target))
    scales = _scales(observations, form, memory.get(form))
    memory.setdefault(form, scales)

    def mix(
        power: float, ridges: Array, start: Exponentials | int
    ) -> tuple[Sequence[Law], Exponentials]:
        return joint.fit_mixing([scales] * len(ridges), observations.mixtures, power, ridges, start)

    return mix


def bootstrap(
    observations: Observations, candidate: Candidate, target: Target, counts: Array
) -> list[Law]:
    """The laws of one candidate on mixtures drawn with replacement, all in one batch.

    counts (draws, m): how often each draw took each mixture. The nested law's curves stay as
    they are; a draw changes its mixing law alone.
    """
    memory: Memory = {}
    fit_all(observations, [candidate], target, memory)
    if candidate.method not in METHODS:
        start = memory[candidate]
        return [
            published.fit(observations, candidate.method, candidate.ridge, start, draw)[0]
            for draw in counts
        ]
    found: Exponentials = memory[(candidate,)]
    starts = found.part(np.tile(np.arange(len(found.floor)), len(counts)))
    ridges = np.full(len(counts), candidate.ridge)
    if candidate.method == "nested":
        curves = _curves(observations, candidate, target)
        return list(nested.fit_mixing(curves, candidate.power, ridges, starts, counts)[0])
    first = memory[candidate.scale_form]
    scales = [_scales(observations, candidate, first, draw) for draw in counts]
    mixtures = observations.mixtures
    return list(joint.fit_mixing(scales, mixtures, candidate.power, ridges, starts, counts)[0])


def _scales(
    observations: Observations,
    form: Candidate,
    start: ScaleFit | None,
    counts: Array | None = None,
) -> ScaleFit:
    return joint.fit_scales(
        observations, shrinking=form.shrinking, tie=form.tie, counts=counts, start=start
    )


def _curves(observations: Observations, form: Candidate, target: Target) -> Curves:
    return nested.fit_curves(
        observations, target.n_params, target.tokens, form.tie, form.huber or None
    )
