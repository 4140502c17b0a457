"""Fit the law of a schedule: what each phase's mixture changes, from states that runs share."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd

from fitting.artifact.laws import ScheduleLaw, features
from fitting.data.phase_observations import MIN_MIXTURES, PHASE, TRUNK, PhaseRuns
from fitting.estimators import least_squares
from fitting.selection.choose import POWERS, RIDGES, preferred

Array = np.ndarray

DRAWS = 40  # of the bootstrap over mixtures
MOST_KEPT = 0.999
KEPT_SPREAD = 0.1  # of ρ over the domains of a phase, standard deviation
TINY = 1e-12  # nats² per token², of states that do not differ


@dataclass(frozen=True)
class ScheduleFit:
    """The law of a schedule, and how well it predicts mixtures that it has not seen."""

    runs: PhaseRuns
    weights: Array  # of the validation domains, (V,)
    law: ScheduleLaw
    replicates: tuple[ScheduleLaw, ...]  # fitted to mixtures drawn with replacement
    ridge: float
    scores: pd.DataFrame  # a row a phase, and the chain of all: see `_scores`
    candidates: pd.DataFrame  # power, ridge, error relative to the spread; the chosen one first
    held_out: pd.DataFrame  # of each run: phase, trunk, observed and predicted objective

    @property
    def residual(self) -> float:
        """Error of a whole schedule's predicted objective, its last mixture left out, rms."""
        return float(self.scores["rmse"].iloc[-1])


def fit(runs: PhaseRuns, weights: Array, seed: int = 0) -> ScheduleFit:
    """Choose φ and the ridge by leaving out mixtures, fit the law and its bootstrap.

    weights (V,) sum to one.
    """
    powers = [power for power in POWERS if power > 0]  # with a logarithm bundles prove nothing
    candidates = list(product(powers, RIDGES))
    squares = np.array(
        [
            _squares(runs, predicted, weights)
            for power in powers
            for predicted in _held_out(runs, power, np.array(RIDGES))
        ]
    )
    chosen = preferred(squares, candidates)
    power, ridge = candidates[chosen]
    held_out = _held_out(runs, power, np.array([ridge]))[0]
    order = [chosen, *(i for i in range(len(candidates)) if i != chosen)]
    rng = np.random.default_rng(seed)
    law = _law(runs, power, np.array([ridge]))[0]
    return ScheduleFit(
        runs=runs,
        weights=weights,
        law=law,
        replicates=tuple(
            _law(runs, power, np.array([ridge]), counts)[0]
            for counts in _draws(len(runs.mixtures), rng)
        ),
        ridge=ridge,
        scores=_scores(runs, held_out, _chained(runs, power, ridge), weights),
        candidates=pd.DataFrame(
            [
                {"power": candidates[i][0], "ridge": candidates[i][1],
                 "error": float(np.sqrt(squares[i].mean()))}
                for i in order
            ]
        ),
        held_out=pd.DataFrame(
            {
                PHASE: runs.phase_of + 1,
                TRUNK: runs.trunk,
                "observed": runs.losses @ weights,
                "predicted": held_out @ weights,
            }
        ),
    )  # fmt: skip


def _law(
    runs: PhaseRuns, power: float, ridges: Array, counts: Array | None = None
) -> list[ScheduleLaw]:
    """Laws, one a ridge; counts (m,): how often each mixture counts, 0 leaves it out."""
    counts = np.ones(len(runs.mixtures)) if counts is None else counts
    phi, domains = features(runs.mixtures, power), len(runs.val_domains)
    parts = []
    for k in range(len(runs.tokens)):
        kept, levels = _levels(runs, k, counts)
        w = np.tile(counts, (len(ridges) * domains, 1))
        found = least_squares.exponentials(
            phi, np.tile(levels.T, (len(ridges), 1)), w, np.repeat(ridges, domains)
        )
        parts.append((kept, found))
    laws = []
    for i in range(len(ridges)):
        rows = slice(i * domains, (i + 1) * domains)
        mixing = [found.part(rows) for _, found in parts]
        laws.append(
            ScheduleLaw(
                power=power,
                tokens=runs.tokens,
                kept=np.array([kept for kept, _ in parts]),
                floor=np.array([m.floor for m in mixing]),
                log_scale=np.array([m.log_scale for m in mixing]),
                slope=np.array([m.slope for m in mixing]),
            )
        )
    return laws


def _levels(runs: PhaseRuns, k: int, counts: Array) -> tuple[Array, Array]:
    """ρ (V,) of a phase, and what each mixture adds, (m, V), by least squares of
    L = ρ · L before + a free level for each mixture, ρ drawn to its mean over the domains."""
    here = runs.phase_of == k
    m, losses, before = runs.mixture_of[here], runs.losses[here], runs.before[here]
    times = np.maximum(np.bincount(m, minlength=len(counts)), 1)[:, None]
    levels = _sums(losses, m, len(counts)) / times
    if k == 0:
        return np.zeros(losses.shape[1]), levels
    states = _sums(before, m, len(counts)) / times
    w = counts[m][:, None]
    x, y = before - states[m], losses - levels[m]
    sizes = (w * x**2).sum(axis=0)
    raw = (w * x * y).sum(axis=0) / np.maximum(sizes, TINY)
    freedom = max(1.0, float(w.sum() - counts.sum()) - 1)
    noise = (w * (y - raw * x) ** 2).sum(axis=0) / freedom + TINY
    kept = np.clip(_shrunk(raw, noise / np.maximum(sizes, TINY)), 0, MOST_KEPT)
    return kept, levels - kept * states


def _shrunk(values: Array, variances: Array) -> Array:
    """Estimates (V,) that differ from each other by about KEPT_SPREAD, given their variances."""
    prior = KEPT_SPREAD**2
    shares = 1 / (variances + prior)
    mean = shares @ values / shares.sum()
    return (prior * values + variances * mean) / (prior + variances)


def _sums(values: Array, group: Array, groups: int) -> Array:
    """Sums over the rows of each group, (groups, V)."""
    found = np.zeros((groups, values.shape[1]))
    np.add.at(found, group, values)
    return found


def _held_out(runs: PhaseRuns, power: float, ridges: Array) -> Array:
    """Losses of every run by laws that have not seen its mixture, (ridges, runs, V)."""
    predicted = np.empty((len(ridges), *runs.losses.shape))
    for left_out in range(len(runs.mixtures)):
        rows = runs.mixture_of == left_out
        counts = (np.arange(len(runs.mixtures)) != left_out).astype(float)
        for i, law in enumerate(_law(runs, power, ridges, counts)):
            one = runs.mixtures[left_out][None]
            adds = np.array([law.phase(k).predict(one)[0] for k in range(len(runs.tokens))])
            phases = runs.phase_of[rows]
            state = np.nan_to_num(runs.before[rows])  # none in phase 1
            predicted[i, rows] = law.kept[phases] * state + adds[phases]
    return predicted


def _chained(runs: PhaseRuns, power: float, ridge: float) -> Array:
    """Losses at the end of each whole schedule, by laws that have not seen its last mixture and
    know no state on the way, (runs of the last phase, V)."""
    last = runs.mixture_of[runs.phase_of == len(runs.tokens) - 1]
    schedules = runs.schedules()
    predicted = np.empty((len(schedules), len(runs.val_domains)))
    for left_out in np.unique(last):
        counts = (np.arange(len(runs.mixtures)) != left_out).astype(float)
        law = _law(runs, power, np.array([ridge]), counts)[0]
        predicted[last == left_out] = law.predict(schedules[last == left_out])[:, -1]
    return predicted


def _squares(runs: PhaseRuns, predicted: Array, weights: Array) -> Array:
    """Squared errors relative to each domain's spread in its phase, weighted over the domains and
    averaged over the runs of each mixture, (m,)."""
    spread = np.array(
        [runs.losses[runs.phase_of == k].std(axis=0) for k in range(len(runs.tokens))]
    ).clip(1e-12)
    relative = (predicted - runs.losses) / spread[runs.phase_of]
    sums = np.bincount(runs.mixture_of, relative**2 @ weights)
    return sums / np.bincount(runs.mixture_of)


def _scores(runs: PhaseRuns, held_out: Array, chained: Array, weights: Array) -> pd.DataFrame:
    """A row a phase and one of the whole chain: rms error of the objective for mixtures that were
    left out, and of predicting the mean of the other mixtures from the same state."""
    rows = []
    for k in range(len(runs.tokens)):
        here = runs.phase_of == k
        observed = pd.Series(runs.losses[here] @ weights).groupby(runs.trunk[here])
        others = (observed.transform("sum") - observed.obj) / (observed.transform("size") - 1)
        seen = observed.obj.to_numpy()
        error = held_out[here] @ weights - seen
        rows.append((f"{k + 1}", _rms(error), _rms(others.to_numpy() - seen), float(seen.std())))
    last = runs.losses[runs.phase_of == len(runs.tokens) - 1] @ weights
    rows.append(("chain", _rms(chained @ weights - last), np.nan, float(last.std())))
    return pd.DataFrame(rows, columns=[PHASE, "rmse", "mean_rmse", "spread"])


def _rms(errors: Array) -> float:
    return float(np.sqrt((errors**2).mean()))


def _draws(mixtures: int, rng: np.random.Generator) -> list[Array]:
    """How often each draw with replacement takes each mixture, (draws, m)."""
    counts: list[Array] = []
    while len(counts) < DRAWS:
        drawn = rng.multinomial(mixtures, np.full(mixtures, 1 / mixtures))
        if (drawn > 0).sum() >= MIN_MIXTURES:
            counts.append(drawn.astype(float))
    return counts
