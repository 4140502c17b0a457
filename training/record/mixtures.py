"""Checks of mixtures and of weights by domain."""

import math
from collections.abc import Iterable, Mapping, Sequence

from training.record.errors import InputError

MIXTURE_TOLERANCE = 1e-3
SAME_DECIMALS = 6  # mixtures whose proportions agree to these decimals are the same


def checked_mixture(
    mixture: Mapping[str, float], domains: Sequence[str], where: str = "mixture"
) -> dict[str, float]:
    """Proportions of every domain in `domains` order, summing to exactly one.

    A missing domain has proportion 0. A sum within 1e-3 of one counts as rounding and is
    divided out. Raises InputError for an unknown domain, a negative or non-finite proportion,
    or a sum further from one.
    """
    refuse_unknown(mixture, domains, where)
    for name, value in mixture.items():
        if not math.isfinite(value) or value < 0:
            raise InputError(f"{where}: proportion of {name!r} is {value}; it must be >= 0")
    total = math.fsum(mixture.values())
    if abs(total - 1) > MIXTURE_TOLERANCE:
        raise InputError(
            f"{where}: the proportions sum to {total:.6g}; they must sum to 1 "
            f"(within {MIXTURE_TOLERANCE:g})"
        )
    return {name: mixture.get(name, 0.0) / total for name in domains}


def mixture_key(mixture: Mapping[str, float], domains: Sequence[str]) -> tuple[float, ...]:
    """Rounded proportions in `domains` order, equal for mixtures that are the same.

    A domain that is left out has proportion 0.
    """
    return tuple(round(float(mixture.get(name, 0.0)), SAME_DECIMALS) for name in domains)


def checked_weights(
    weights: Mapping[str, float], domains: Sequence[str], where: str = "weights"
) -> list[float]:
    """Weights of every validation domain in `domains` order, divided by their sum.

    Raises InputError for an unknown domain, a domain without a weight, a negative or non-finite
    weight, and weights that are all 0.
    """
    refuse_unknown(weights, domains, where)
    missing = [name for name in domains if name not in weights]
    if missing:
        raise InputError(f"{where}: no weight for {', '.join(missing)}; give 0 to ignore a domain")
    raw = [weights[name] for name in domains]
    if not all(w >= 0 for w in raw) or not 0 < sum(raw) < math.inf:
        raise InputError(f"{where}: they must be >= 0 and not all 0, and their sum finite")
    return [w / math.fsum(raw) for w in raw]


def refuse_unknown(names: Iterable[str], known: Sequence[str], where: str) -> None:
    """Raise InputError for the first name that is not a known domain."""
    for name in names:
        if name not in known:
            raise InputError(f"{where}: unknown domain {name!r}; known: {', '.join(known)}")
