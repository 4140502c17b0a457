"""What a best mixture decides and what it leaves free: ranges, sensitivity, gain in steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import qmc

from optimization.domain.differences import Differences
from optimization.domain.feasible import Feasible, distances
from optimization.domain.objective import Objective, divergence
from optimization.domain.predictor import Predictor
from optimization.search.descent import descend, furthest

Array = np.ndarray

STRENGTHS = np.logspace(1, -5, 25)  # of the pull, nats per token a nat of divergence
FACTORS = (0.5, 2.0)  # by which each validation domain's weight is multiplied
CLOUD = 512  # points of the allowed set, each moved towards the best by these shares of the way
SHRUNK = (1.0, 0.5, 0.25, 0.1)
KEPT = 0.9  # share of the gain that a chosen pull keeps
POINTS = 41  # of a curve
FEWEST, MOST = 1e-3, 1e3  # of the target's tokens, between which equal losses are looked for


@dataclass(frozen=True)
class Steps:
    """The gain in training steps, as shares of the target's."""

    fewer: float | None  # steps after which the best mixture has the other's final loss
    more: float | None  # steps that the other needs for the best one's final loss; None: never


@dataclass(frozen=True)
class Sensitivity:
    """How well the data determine the best mixture."""

    ranges: pd.DataFrame  # domain, lowest, highest: proportions over the near-optimal set
    optima: Array  # the best mixture by each law of the bootstrap, (B, M)
    regrets: Array  # by how much it beats the best one there, nats per token, (B,)
    by_weight: pd.DataFrame  # domain, factor, moved, cost; empty but for the weighted loss
    by_scale: pd.DataFrame  # n_params, tokens, mixture/<domain>…; the target last


def analyse(
    objective: Objective, feasible: Feasible, best: Array, predictor: Predictor
) -> Sensitivity:
    """How well the data determine the best mixture of an objective."""
    differences = Differences.of(predictor, objective, best)
    optima, regrets = by_replicate(objective, feasible, best, predictor)
    one_sum = len(objective.offsets) == 1
    return Sensitivity(
        near_optimal(differences, feasible),
        optima,
        regrets,
        by_weight(objective, feasible, best, predictor.val_domains if one_sum else ()),
        by_scale(objective, feasible, best, predictor),
    )


def near_optimal(differences: Differences, feasible: Feasible) -> pd.DataFrame:
    """domain, lowest, highest: its proportions over the mixtures that cannot be told from the base
    of the differences."""
    cube = qmc.Sobol(feasible.free, seed=0).random(CLOUD) if feasible.free else np.empty((0, 0))
    cloud = feasible.from_cube(cube)
    towards = differences.base + np.multiply.outer(SHRUNK, cloud - differences.base)
    cloud = towards.reshape(-1, len(differences.base))
    cloud = cloud[feasible.inside(cloud)]
    near = cloud[differences(cloud) <= 0]
    rows = []
    for j, domain in enumerate(feasible.domains):
        unit = np.eye(len(feasible.domains))[j]
        ends = [furthest(differences, feasible, near, sign * unit)[j] for sign in (-1, 1)]
        rows.append({"domain": domain, "lowest": ends[0], "highest": ends[1]})
    return pd.DataFrame(rows)


def by_replicate(
    objective: Objective, feasible: Feasible, best: Array, predictor: Predictor
) -> tuple[Array, Array]:
    """The best mixture by each law of the bootstrap, (B, M), and by how much it beats `best`
    there, nats per token, (B,)."""
    optima, regrets = [], []
    for surface in predictor.replicates:
        other = replace(objective, surface=surface, risk=None)
        optima.append(descend(other, feasible, best))
        regrets.append(float(other(best[None])[0] - other(optima[-1][None])[0]))
    return np.array(optima), np.array(regrets)


def by_weight(
    objective: Objective, feasible: Feasible, best: Array, val_domains: Sequence[str]
) -> pd.DataFrame:
    """domain, factor, moved, cost: how far the best mixture moves (share of tokens) when one
    weight of the weighted loss is multiplied, and what that costs by the given weights."""
    weights, least = objective.sums[:, 0], float(objective(best[None])[0])
    rows = []
    for i, domain in enumerate(val_domains):
        for factor in FACTORS if weights[i] > 0 else ():
            changed = weights * np.where(np.arange(len(weights)) == i, factor, 1.0)
            other = replace(objective, sums=changed[:, None] / changed.sum(), risk=None)
            there = descend(other, feasible, best)[None]
            moved = float(distances(there, best[None])[0, 0])
            cost = float(objective(there)[0]) - least
            rows.append((domain, factor, moved, cost))
    return pd.DataFrame(rows, columns=["domain", "factor", "moved", "cost"])


def by_scale(
    objective: Objective, feasible: Feasible, best: Array, predictor: Predictor
) -> pd.DataFrame:
    """n_params, tokens, mixture/<domain>…: the best mixture of each proxy size by the
    law of its runs alone, and of the target in the last row."""
    rows = []
    for n_params, tokens, law in predictor.python.scales:
        surface = predictor.at(n_params, tokens).surface_of(law)
        own = descend(replace(objective, surface=surface, risk=None), feasible, best)
        rows.append([n_params, tokens, *own])
    rows.append([predictor.n_params, predictor.tokens, *best])
    return pd.DataFrame(rows, columns=["n_params", "tokens", *feasible.columns])


def pull_path(
    objective: Objective, feasible: Feasible, best: Array, given: float | None
) -> pd.DataFrame:
    """strength, divergence, objective, gain, mixture/<domain>…: the best mixture for
    strengths of the pull, the given one among them.

    The strength is what a nat of divergence must gain: the slope of gain over divergence there.
    """
    assert objective.reference is not None
    free = objective.pulled(0.0)
    at_reference = float(free(objective.reference[None])[0])
    found, rows = best, []
    for strength in np.unique([0.0, given or 0.0, *STRENGTHS]):
        found = descend(objective.pulled(strength), feasible, found)
        value = float(free(found[None])[0])
        apart = float(divergence(found[None], objective.reference)[0])
        rows.append([strength, apart, value, at_reference - value, *found])
    columns = ["strength", "divergence", "objective", "gain", *feasible.columns]
    return pd.DataFrame(rows, columns=columns)


def strongest_pull(path: pd.DataFrame) -> float:
    """The strongest pull that keeps nine tenths of the gain that none has."""
    kept = path["gain"] >= KEPT * path["gain"].max()
    return float(path.loc[kept, "strength"].max())


def in_steps(predictor: Predictor, weights: Array, best: Array, other: Array) -> Steps | None:
    """The gain of the best mixture over another one in training steps of the target.

    None where the predictor has no step law.
    """
    if predictor.spec.only.tokens is not None:
        return None

    def loss(mixture: Array, share: float) -> float:
        scaled = predictor.at(predictor.n_params, share * predictor.tokens)
        return float(scaled.surface.predict(mixture[None])[0] @ weights)

    return Steps(
        _crossing(lambda share: loss(best, share) - loss(other, 1.0)),
        _crossing(lambda share: loss(other, share) - loss(best, 1.0)),
    )


def loss_curves(
    predictor: Predictor, weights: Array, feasible: Feasible, differences: Differences
) -> dict[str, pd.DataFrame]:
    """Domain → proportion, objective, low, high, near: the weighted loss, its interval and whether
    the mixture cannot be told from the differences' base, as the domain's proportion moves from it
    and the others keep their ratios, where that is allowed."""
    found, best = {}, differences.base
    v = feasible.variables(best[None])[0]
    for j, domain in enumerate(feasible.domains):
        own = int(np.argmax(feasible.spread[j]))  # its variable: a bundle moves as one
        low, high = feasible.lower[own], feasible.upper[own]
        shares = low + (high - low) * np.linspace(0, 1, POINTS) ** 2  # the loss bends near 0
        shares = np.unique(np.append(shares, v[own]))
        others = np.where(np.arange(len(v)) == own, 0.0, v)
        others = others / others.sum() if others.sum() else others
        line = others * (1 - shares[:, None])
        line[:, own] = shares
        mixtures = line @ feasible.spread.T
        mixtures = mixtures[feasible.inside(mixtures)]
        values = predictor.surface.predict(mixtures) @ weights
        off = predictor.half_width(weights, mixtures)
        ends = {"objective": values, "low": values - off, "high": values + off}
        near = differences(mixtures) <= 0
        found[domain] = pd.DataFrame({"proportion": mixtures[:, j], **ends, "near": near})
    return found


def _crossing(difference: Callable[[float], float]) -> float | None:
    """The share of the target's tokens at which a falling difference of losses is 0."""
    ends = np.log([FEWEST, MOST])
    if difference(FEWEST) <= 0 or difference(MOST) >= 0:
        return None
    return float(np.exp(brentq(lambda log_share: difference(np.exp(log_share)), *ends)))
