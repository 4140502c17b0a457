"""The constraints on a mixture, as named linear inequalities.

No constraint is ever relaxed. Domains that keep their proportions to each other (a bundle) are one
variable: v (M',) are the variables' proportions, r = P v the domains'.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from training.record.errors import InputError
from training.record.mixtures import checked_mixture, refuse_unknown

Array = np.ndarray
Limits = tuple[float, float]


@dataclass(frozen=True)
class Constraints:
    """The constraints on a mixture, by domain name."""

    bounds: Mapping[str, Limits] = field(default_factory=dict)
    """Lowest and highest proportion of a domain, or of several together: `web+books`."""
    available: Mapping[str, float] = field(default_factory=dict)
    """Tokens of a domain that exist; the target may see them `epochs` times."""
    epochs: float = 4.0
    bundles: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Name → domains with the proportions that they keep to each other."""
    trust: float | None = None
    """Largest distance (share of tokens) from the nearest fitted mixture."""

    def within(self, bounds: Mapping[str, Limits]) -> Self:
        """The same constraints with further bounds.

        Raises InputError if two bounds of one name do not overlap.
        """
        both = dict(self.bounds)
        for name, (low, high) in bounds.items():
            lowest, highest = both.get(name, (0.0, 1.0))
            if low > highest or high < lowest:
                raise InputError(
                    f"bounds: {name}: [{low:g}, {high:g}] and [{lowest:g}, {highest:g}] have "
                    "nothing in common; change one of them"
                )
            both[name] = (max(low, lowest), min(high, highest)) if low <= high else (low, high)
        return replace(self, bounds=both)


@dataclass(frozen=True)
class LinearConstraint:
    """coefficients · r ≤ limit."""

    name: str
    coefficients: Array  # (M,)
    limit: float


def spread(bundles: Mapping[str, Mapping[str, float]], domains: Sequence[str]) -> Array:
    """P of r = P v, (M, M'): a column for each bundle, then one for each unbundled domain."""
    columns: list[list[float]] = []
    bundled: set[str] = set()
    for name, shares in bundles.items():
        checked = checked_mixture(shares, domains, f"bundle {name!r}")
        inside = [d for d in shares if checked[d] > 0]
        if twice := bundled & set(inside):
            raise InputError(f"bundle {name!r}: {min(twice)!r} is in another bundle already")
        bundled |= set(inside)
        columns.append([checked[d] for d in domains])
    singles = [i for i, d in enumerate(domains) if d not in bundled]
    return np.array([*columns, *np.eye(len(domains))[singles]]).T


def rows(
    constraints: Constraints, domains: Sequence[str], tokens: float
) -> tuple[LinearConstraint, ...]:
    """Every rule as inequalities, each named in words."""
    unit = dict(zip(domains, np.eye(len(domains)), strict=True))
    rules = [
        LinearConstraint(f"the proportion of {d!r} is at least 0", -unit[d], 0.0) for d in domains
    ]

    for name, (low, high) in constraints.bounds.items():
        members = [name] if name in unit else name.split("+")
        refuse_unknown(members, domains, f"bounds: {name}")
        if not 0 <= low <= high <= 1:
            raise InputError(
                f"bounds: {name}: [{low:g}, {high:g}] is not 0 <= lowest <= highest <= 1"
            )
        total = np.sum([unit[d] for d in dict.fromkeys(members)], axis=0)
        if low > 0:
            rules.append(LinearConstraint(f"bounds: {name} at least {low:.9g}", -total, -low))
        if high < 1:
            rules.append(LinearConstraint(f"bounds: {name} at most {high:.9g}", total, high))
    refuse_unknown(constraints.available, domains, "available")
    if not constraints.epochs > 0:
        raise InputError(f"epochs: {constraints.epochs:g}; it must be more than 0")
    for d, supply in constraints.available.items():
        if not supply >= 0:
            raise InputError(f"available: {d!r} has {supply:g} tokens; it must be at least 0")
        highest = constraints.epochs * supply / tokens
        if highest < 1:
            name = (
                f"available: {d!r} has {supply:.4g} tokens, {constraints.epochs:g} epochs of which "
                f"are at most {highest:.4g} of {tokens:.4g}"
            )
            rules.append(LinearConstraint(name, unit[d], highest))
    return tuple(rules)
