"""How well a best mixture is determined: near-optimal ranges, sensitivity, gain in steps."""

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

STRENGTHS = np.logspace(1, -5, 25)  # of the pull, nats per token for a nat of divergence
FACTORS = (0.5, 2.0)  # by which each validation domain's weight is multiplied
CLOUD = 512  # Sobol points of the allowed set
SHRUNK = (1.0, 0.5, 0.25, 0.1)  # distances from the best mixture to which each point is scaled
GAIN_SHARE = 0.9  # of the gain without a pull, that the automatic pull preserves
POINTS = 41  # of a curve
FEWEST, MOST = 1e-3, 1e3  # range, in the target's tokens, of the search for equal losses


@dataclass(frozen=True)
class Steps:
    """The gain in training steps, as shares of the target's."""

    fewer: float | None  # steps of the best mixture to the compared one's final loss
    more: float | None  # steps of the compared one to the best one's final loss; None: never


@dataclass(frozen=True)
class Sensitivity:
    """How well the data determine the best mixture."""

    ranges: pd.DataFrame  # domain, lowest, highest: proportions over the near-optimal set
    optima: Array  # the best mixture by each law of the bootstrap, (B, M)
    regrets: Array  # advantage of each over the best mixture by that law, nats per token, (B,)
    by_weight: pd.DataFrame  # domain, factor, moved, cost; only for the weighted loss
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
    """domain, lowest, highest: the range of its proportion over the near-optimal mixtures, which
    cannot be distinguished from the base of the differences."""
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
    """The best mixture by each law of the bootstrap, (B, M), and its advantage over `best` by that
    law, nats per token, (B,)."""
    optima, regrets = [], []
    for surface in predictor.replicates:
        replicate = replace(objective, surface=surface, risk=None)
        optima.append(descend(replicate, feasible, best))
        regrets.append(float(replicate(best[None])[0] - replicate(optima[-1][None])[0]))
    return np.array(optima), np.array(regrets)


def by_weight(
    objective: Objective, feasible: Feasible, best: Array, val_domains: Sequence[str]
) -> pd.DataFrame:
    """domain, factor, moved, cost: how far the best mixture moves (share of tokens) when one
    weight of the weighted loss is multiplied, and the cost of that by the original weights."""
    weights, least = objective.sums[:, 0], float(objective(best[None])[0])
    rows = []
    for i, domain in enumerate(val_domains):
        for factor in FACTORS if weights[i] > 0 else ():
            changed = weights * np.where(np.arange(len(weights)) == i, factor, 1.0)
            reweighted = replace(objective, sums=changed[:, None] / changed.sum(), risk=None)
            optimum = descend(reweighted, feasible, best)[None]
            moved = float(distances(optimum, best[None])[0, 0])
            cost = float(objective(optimum)[0]) - least
            rows.append((domain, factor, moved, cost))
    return pd.DataFrame(rows, columns=["domain", "factor", "moved", "cost"])


def by_scale(
    objective: Objective, feasible: Feasible, best: Array, predictor: Predictor
) -> pd.DataFrame:
    """n_params, tokens, mixture/<domain>…: the best mixture at each proxy scale, by the law of the
    runs at that scale alone; the last row is the target."""
    rows = []
    for n_params, tokens, law in predictor.artifact_model.scales:
        surface = predictor.at(n_params, tokens).surface_of(law)
        optimum = descend(replace(objective, surface=surface, risk=None), feasible, best)
        rows.append([n_params, tokens, *optimum])
    rows.append([predictor.n_params, predictor.tokens, *best])
    return pd.DataFrame(rows, columns=["n_params", "tokens", *feasible.columns])


def pull_path(
    objective: Objective, feasible: Feasible, best: Array, strength: float | None
) -> pd.DataFrame:
    """strength, divergence, objective, gain, mixture/<domain>…: the best mixture for a
    range of strengths of the pull, `strength` among them.

    The strength is the gain that a nat of divergence must bring: the slope of gain over divergence.
    """
    assert objective.reference is not None
    free = objective.pulled(0.0)
    at_reference = float(free(objective.reference[None])[0])
    optimum, rows = best, []
    for s in np.unique([0.0, strength or 0.0, *STRENGTHS]):
        optimum = descend(objective.pulled(s), feasible, optimum)
        value = float(free(optimum[None])[0])
        apart = float(divergence(optimum[None], objective.reference)[0])
        rows.append([s, apart, value, at_reference - value, *optimum])
    columns = ["strength", "divergence", "objective", "gain", *feasible.columns]
    return pd.DataFrame(rows, columns=columns)


def strongest_pull(path: pd.DataFrame) -> float:
    """The strongest pull that preserves `GAIN_SHARE` of the gain without a pull."""
    enough = path["gain"] >= GAIN_SHARE * path["gain"].max()
    return float(path.loc[enough, "strength"].max())


def in_steps(predictor: Predictor, weights: Array, best: Array, compared: Array) -> Steps | None:
    """The gain of the best mixture over a compared one, in training steps of the target.

    None if the predictor has no step law.
    """
    if predictor.spec.only.tokens is not None:
        return None

    def loss(mixture: Array, share: float) -> float:
        scaled = predictor.at(predictor.n_params, share * predictor.tokens)
        return float(scaled.surface.predict(mixture[None])[0] @ weights)

    return Steps(
        _crossing(lambda share: loss(best, share) - loss(compared, 1.0)),
        _crossing(lambda share: loss(compared, share) - loss(best, 1.0)),
    )


def loss_curves(
    predictor: Predictor, weights: Array, feasible: Feasible, differences: Differences
) -> dict[str, pd.DataFrame]:
    """Domain → proportion, objective, low, high, difference, difference_low, difference_high, near:
    the weighted loss and its interval as the domain's proportion changes and the others keep their
    ratios, where that is allowed. The difference is from the base of the differences; `near` is
    whether the mixture cannot be distinguished from it."""
    curves, best = {}, differences.base
    v = feasible.variables(best[None])[0]
    for j, domain in enumerate(feasible.domains):
        own = int(np.argmax(feasible.spread[j]))  # the domain's variable: a bundle moves as one
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
        above, half = differences.mean(mixtures), differences.half_width(mixtures)
        ends |= {
            "difference": above,
            "difference_low": above - half,
            "difference_high": above + half,
        }
        curves[domain] = pd.DataFrame({"proportion": mixtures[:, j], **ends, "near": above <= half})
    return curves


def _crossing(difference: Callable[[float], float]) -> float | None:
    """The share of the target's tokens at which a falling difference of losses is 0."""
    ends = np.log([FEWEST, MOST])
    if difference(FEWEST) <= 0 or difference(MOST) >= 0:
        return None
    return float(np.exp(brentq(lambda log_share: difference(np.exp(log_share)), *ends)))
