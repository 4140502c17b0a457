"""How much better any mixture could be: a bound that certifies an optimum.

Each law bounds the weighted loss from below by a sum of functions of one proportion each, exact at
a mixture r* (`LowerBound` in `fitting/artifact/laws.py`): for an exponential law, convex in φ(r),
its tangent plane f(r*) + Σ_j g_j (φ(r_j) − φ(r*_j)), g = df/dφ; for a sum of laws the sum of the
members' bounds. A pull is such a sum itself. The least value of a sum over the allowed mixtures is
bounded by one linear program (`optimization/search/envelope.py`).
"""

import heapq
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from optimization.domain.feasible import Ball, Feasible
from optimization.domain.objective import Objective
from optimization.domain.predictor import Bounded, bounded
from optimization.search import envelope
from optimization.search.descent import descend
from optimization.search.envelope import Sum

Array = np.ndarray

TEMPERATURES = np.logspace(-2, -6, 9)  # tried for the shares of the worst domains
MIN_IMPROVEMENT = 1e-9  # nats per token; smaller improvements are not searched for
MAX_SPLITS = 60  # of boxes, by branch and bound
GAP_TOLERANCE = 1e-6  # nats per token; a bound this close is not improved


def prove(objective: Objective, feasible: Feasible, best: Array) -> tuple[Array, float | None]:
    """The best mixture, (M,), and a lower bound of the objective, nats per token.

    In a trust region every ball that may hold a better mixture is searched. The bound is None
    for a law without one (of a predictor from before 0.2, neither joint nor nested), for the upper
    end of an interval, and where the linear program has no answer.
    """
    if feasible.trust is None:
        return best, _bound(objective, feasible, best, None)
    least = float(objective(best[None])[0])
    bounds: list[float | None] = []
    balls = tqdm(feasible.balls, "bounding trust regions", leave=False, disable=None, delay=2)
    for ball in balls:
        bound = _bound(objective, feasible, best, ball, splits=0)
        if bound is None or bound < least - MIN_IMPROVEMENT:
            candidate = descend(objective, feasible, ball.centre)
            value = float(objective(candidate[None])[0])
            if value < least:
                best, least = candidate, value
            bound = _bound(objective, feasible, candidate, ball)
        bounds.append(bound)
    known = [bound for bound in bounds if bound is not None]
    return best, min(known) if len(known) == len(bounds) else None


def _bound(
    objective: Objective,
    feasible: Feasible,
    at: Array,
    ball: Ball | None,
    splits: int = MAX_SPLITS,
) -> float | None:
    surface, several = bounded(objective.surface), len(objective.offsets) > 1
    if objective.risk is not None or surface is None:
        return None
    relaxation = _Relaxation(objective, surface, feasible, ball)
    if several:
        whole = [relaxation.node(feasible.lower, feasible.upper, at, t) for t in TEMPERATURES]
        bound = max(node.bound for node in whole)
    else:
        bound = _branch_and_bound(relaxation, at, splits)
    return bound if np.isfinite(bound) else None


@dataclass(frozen=True)
class _Node:
    """A box of the variables, and what was found of it."""

    low: Array  # (M',)
    high: Array
    bound: float
    point: Array  # where the bound is least, (M',)
    gaps: Array  # by how much the functions lie above their hulls there, (M',)


@dataclass(frozen=True)
class _Relaxation:
    """An objective and the mixtures over which it is bounded from below."""

    objective: Objective
    surface: Bounded
    feasible: Feasible
    ball: Ball | None

    def node(self, low: Array, high: Array, at: Array, temperature: float = 1.0) -> _Node:
        """The bound over a box, by what the law says near one mixture (M,)."""
        functions, constant = self._functions(at, temperature)
        v = np.clip(self.feasible.variables(at[None])[0], low, high)
        hulls = [
            h.hull(*map(float, ends)) for h, *ends in zip(functions, low, high, v, strict=True)
        ]
        f = self.feasible
        matrix, limits = f.shared_rows() if self.ball is None else f.within_ball(self.ball)
        value, point = envelope.least(hulls, matrix, limits, len(hulls))
        gaps = [
            float(h.value(x[None])[0] - np.interp(x, *hull.T))
            for h, hull, x in zip(functions, hulls, point, strict=True)
        ]
        return _Node(low, high, constant + value, point, np.array(gaps))

    def _functions(self, at: Array, temperature: float) -> tuple[list[Sum], float]:
        """The functions of one variable each, and the constant, whose sum lies below."""
        objective = self.objective
        shares = objective.shares(at, temperature)
        bound = self.surface.lower_bound(at, objective.sums @ shares)
        constant = bound.constant - float(shares @ objective.offsets)
        pull = objective.pull if objective.reference is not None else 0.0
        reference = np.ones(len(at)) if objective.reference is None else objective.reference
        functions = []
        for spread in self.feasible.spread.T:  # r_j = spread_j v_b
            inside, pulled = spread > 0, (spread > 0) & (reference > 0)
            # λ Σ_j r_j log(r_j / reference_j), as entropy and a straight line in v
            line = pull * float(spread[pulled] @ np.log(spread[pulled] / reference[pulled]))
            functions.append(
                Sum(
                    np.append(bound.coefficients[:, inside].ravel(), line),
                    np.append(bound.powers[:, inside].ravel(), 1.0),
                    np.append(np.tile(spread[inside], len(bound.powers)), 1.0),
                    0.25 / len(at),
                    pull * float(spread[pulled].sum()),
                )
            )
        return functions, constant


def _branch_and_bound(relaxation: _Relaxation, best: Array, splits: int) -> float:
    """The bound of one sum of the losses, at most its value at `best`.

    Branch and bound: the box with the least bound is split where a function lies furthest above its
    hull, and both parts are bounded by what the law says near `best` and near the split.
    """
    least = float(relaxation.objective(best[None])[0])
    first = relaxation.node(relaxation.feasible.lower, relaxation.feasible.upper, best)
    open_nodes = [(first.bound, 0, first)]
    for number in range(1, 2 * splits, 2):
        bound, _, node = open_nodes[0]
        if least - bound <= GAP_TOLERANCE or not np.isfinite(bound):
            break
        heapq.heappop(open_nodes)
        b = int(node.gaps.argmax())
        width = node.high[b] - node.low[b]
        inner = np.clip(node.point[b], node.low[b] + width / 10, node.high[b] - width / 10)
        at = relaxation.feasible.spread @ node.point
        for half, (name, value) in enumerate((("high", inner), ("low", inner))):
            ends = {"low": node.low.copy(), "high": node.high.copy()}
            ends[name][b] = value
            child = relaxation.node(ends["low"], ends["high"], best)
            if child.bound < least - GAP_TOLERANCE:
                other = relaxation.node(ends["low"], ends["high"], at)
                child = max(child, other, key=lambda node: node.bound)
            bound = max(node.bound, child.bound)  # a part is no lower than the whole
            heapq.heappush(open_nodes, (bound, number + half, replace(child, bound=bound)))
    return min(open_nodes[0][0], least)
