"""From a candidate, which is every choice a fit can make, to its law."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from fitting.artifact.laws import Law, StackedLaw
from fitting.artifact.spec import Target
from fitting.data.observations import Observations
from fitting.estimators import joint, nested, published
from fitting.estimators.joint import ScaleFit
from fitting.estimators.least_squares import Exponentials
from fitting.estimators.nested import Curves

Array = np.ndarray

OWN = ("joint", "nested")  # laws with a choice of φ and ridge
MEMBERS = ("joint", "shukor_additive", "shukor_joint", "power_sum")  # what `auto` weighs
ALL_METHODS = (*OWN, *published.METHODS)
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
    ridges: tuple[float, ...] = ()  # of each validation domain, where they have their own

    @property
    def form(self) -> "Candidate":
        """The same without the choice of φ and ridge."""
        return replace(self, power=0.0, ridge=0.0, ridges=())

    def of_domains(self, domains: int) -> tuple[float, ...]:
        """The ridge of each of so many validation domains."""
        return self.ridges or (self.ridge,) * domains

    @property
    def scale_form(self) -> "Candidate":
        """The choices that the scale terms depend on."""
        return replace(self.form, terms=1)

    def __str__(self) -> str:
        ridge = f"ridge {self.ridge:.0e}"
        if self.ridges:
            low, high = min(self.ridges), max(self.ridges)
            ridge = f"ridge {low:.0e}" + (f" to {high:.0e} by domain" if high > low else "")
        if self.method not in OWN:
            return f"{self.method} law, {ridge}"
        parts = [
            f"{self.method} law",
            f"φ(r) = r^{self.power:g}" if self.power else "φ(r) = log(r + ε)",
            ridge,
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
class Stack:
    """Laws, each fitted its way, and their weights in the predicted losses."""

    members: tuple[Candidate, ...]
    weights: Array  # (K, V), at least 0; those of each validation domain sum to one

    @property
    def shares(self) -> list[float]:
        """The mean weight of each member over the validation domains."""
        return [float(share) for share in self.weights.mean(axis=1)]

    @property
    def best(self) -> Candidate:
        """The member with the largest share."""
        return self.members[int(np.argmax(self.shares))]

    def law(self, laws: Sequence[Law]) -> Law:
        """The weighted sum of the members' laws; that of a single member is itself."""
        return laws[0] if len(laws) == 1 else StackedLaw(tuple(laws), self.weights)

    def params(self) -> dict[str, Any]:
        """What a fit's run logs of it, as names and values."""
        if len(self.members) == 1:
            return {key: value for key, value in vars(self.best).items() if key != "ridges"}
        named = zip(self.members, self.shares, strict=True)
        values: dict[str, Any] = {"method": "stack"}
        for i, (member, weight) in enumerate(named):
            again = sum(other.method == member.method for other in self.members[:i])
            name = member.method + (f"_{again + 1}" if again else "")
            values[f"{name}/weight"] = round(weight, 4)
            values |= {f"{name}/{k}": getattr(member, k) for k in CHOICES[member.method]}
        return values

    def __str__(self) -> str:
        if len(self.members) == 1:
            return str(self.best)
        named = sorted(zip(self.shares, self.members, strict=True), key=lambda one: -one[0])
        return "weighted sum of " + "; ".join(f"{weight:.2f} {member}" for weight, member in named)


PLAIN = Candidate("joint").scale_form  # the scale terms that published laws start from

Memory = dict[Any, Any]  # what a fit found, for similar fits to start from
Known = dict[Candidate, Any]  # scale terms or curves, for other fits to the same observations


def starts(memory: Memory) -> Memory:
    """A part that fits to fewer mixtures can start from, which fill it no further."""
    return {key: value for key, value in memory.items() if isinstance(key, Candidate)}


def fit(
    observations: Observations,
    way: Candidate | Stack,
    target: Target,
    memory: Memory | None = None,
) -> Law:
    """The law of one candidate, or of a stack of them, on all observations.

    `memory` is of a fit to similar data, where the solvers start.
    """
    if isinstance(way, Candidate):
        return fit_all(observations, [way], target, memory)[way]
    laws = fit_all(observations, way.members, target, memory)
    return way.law([laws[member] for member in way.members])


def fit_all(
    observations: Observations,
    wanted: Sequence[Candidate],
    target: Target,
    memory: Memory | None = None,
    known: Known | None = None,
) -> dict[Candidate, Law]:
    """The laws of several candidates; what they share is computed once, all ridges in a batch.

    An empty `memory` is filled, a filled one is where the solvers start and the first fits of the
    published laws are. `known` keeps what is found of these very observations, for another call to
    use.
    """
    memory, known = {} if memory is None else memory, {} if known is None else known
    laws: dict[Candidate, Law] = {}
    ours = [c for c in wanted if c.method in OWN]
    domains = len(observations.val_domains)
    for candidate in wanted:
        if candidate.method not in OWN:
            scales = _known_scales(observations, PLAIN, memory, known)
            form, method = candidate.form, candidate.method
            if form not in memory:
                memory[form] = published.begin(observations, method, scales)
            own, first = candidate.of_domains(domains), memory[form]
            laws[candidate], parameters = published.fit(
                observations, method, own, scales, first, _start(candidate, memory)
            )
            memory.setdefault(candidate, parameters)
    for form in dict.fromkeys(c.scale_form for c in ours):
        same = [c for c in ours if c.scale_form == form]
        mix = _scale_step(observations, form, target, memory, known)
        for power, terms in dict.fromkeys((c.power, c.terms) for c in same):
            group = tuple(c for c in same if (c.power, c.terms) == (power, terms))
            ridges = np.array([c.of_domains(domains) for c in group])
            start = memory.get(group) or _near(memory.get((form, power, terms)), len(group))
            found, exponentials = mix(power, ridges, start or terms)
            memory.setdefault(group, exponentials)
            memory[(form, power, terms)] = exponentials.part(slice(0, domains))
            laws.update(zip(group, found, strict=True))
    return laws


def _start(candidate: Candidate, memory: Memory) -> Array:
    """Where the solver of a published law starts, (V, k): for each domain where its ridge has led
    before, else the first fit."""
    if candidate in memory:
        return np.asarray(memory[candidate])
    start = memory[candidate.form].copy()
    for v, ridge in enumerate(candidate.of_domains(len(start))):
        start[v] = memory.get(replace(candidate, ridge=ridge, ridges=()), start)[v]
    return np.asarray(start)


def _near(found: Exponentials | None, fits: int) -> Exponentials | None:
    """Exponentials of one fit as the start of several."""
    return found and found.part(np.tile(np.arange(len(found.floor)), fits))


def _scale_step(
    observations: Observations, form: Candidate, target: Target, memory: Memory, known: Known
) -> Callable[..., tuple[Sequence[Law], Exponentials]]:
    """Fit what does not depend on φ, ridge and terms; the rest as a function of those."""
    if form.method == "nested":
        if form not in known:
            known[form] = _curves(observations, form, target)
        return partial(nested.fit_mixing, known[form])
    scales = _known_scales(observations, form, memory, known)

    def mix(
        power: float, ridges: Array, start: Exponentials | int
    ) -> tuple[Sequence[Law], Exponentials]:
        return joint.fit_mixing([scales] * len(ridges), observations.mixtures, power, ridges, start)

    return mix


def bootstrap(
    observations: Observations,
    way: Candidate | Stack,
    target: Target,
    counts: Array,
    memory: Memory | None = None,
) -> list[Law]:
    """The laws of one candidate, or of a stack of them, on mixtures drawn with replacement.

    counts (draws, m): how often each draw took each mixture. The nested law's curves stay as
    they are; a draw changes its mixing law alone.
    """
    if isinstance(way, Stack):
        drawn = [bootstrap(observations, m, target, counts, memory) for m in way.members]
        return [way.law(laws) for laws in zip(*drawn, strict=True)]
    candidate, memory = way, dict(memory or {})
    domains = len(observations.val_domains)
    fit_all(observations, [candidate], target, memory)
    if candidate.method not in OWN:
        return published.bootstrap(
            observations,
            candidate.method,
            candidate.of_domains(domains),
            memory[PLAIN],
            counts,
            memory[candidate.form],
            memory[candidate],
        )
    found: Exponentials = memory[(candidate,)]
    starts = found.part(np.tile(np.arange(len(found.floor)), len(counts)))
    ridges = np.tile(candidate.of_domains(domains), (len(counts), 1))
    if candidate.method == "nested":
        curves = _curves(observations, candidate, target)
        return list(nested.fit_mixing(curves, candidate.power, ridges, starts, counts)[0])
    scales = [_scales(observations, candidate.scale_form, memory, draw) for draw in counts]
    mixtures = observations.mixtures
    return list(joint.fit_mixing(scales, mixtures, candidate.power, ridges, starts, counts)[0])


def _scales(
    observations: Observations, form: Candidate, memory: Memory, counts: Array | None = None
) -> ScaleFit:
    """The scale terms of the joint law, from those in the memory, or put there."""
    fitted = joint.fit_scales(
        observations,
        shrinking=form.shrinking,
        tie=form.tie,
        counts=counts,
        start=memory.get(form),
    )
    memory.setdefault(form, fitted)
    return fitted


def _known_scales(
    observations: Observations, form: Candidate, memory: Memory, known: Known
) -> ScaleFit:
    """As `_scales`, but once for the same observations."""
    if form not in known:
        known[form] = _scales(observations, form, memory)
    scales: ScaleFit = known[form]
    return scales


def _curves(observations: Observations, form: Candidate, target: Target) -> Curves:
    return nested.fit_curves(
        observations, target.n_params, target.tokens, form.tie, form.huber or None
    )
