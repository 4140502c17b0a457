"""Fit the law of a schedule: what each phase retains of its start, and what its mixture adds."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd

from fitting.artifact.laws import ScheduleLaw, features
from fitting.data.phase_observations import MIN_MIXTURES, PHASE, TRUNK, PhaseRuns
from fitting.estimators import least_squares
from fitting.selection.forms import POWERS, RIDGES, preferred
from fitting.selection.resampling import draws, rms

Array = np.ndarray

MAX_RETENTION = 0.999
RETENTION_SPREAD = 0.1  # standard deviation of ρ over the domains of a phase
TINY = 1e-12  # nats² per token²; keeps the division finite where states do not differ


@dataclass(frozen=True)
class ScheduleFit:
    """The law of a schedule, and how well it predicts held-out mixtures."""

    runs: PhaseRuns
    weights: Array  # of the validation domains, (V,)
    law: ScheduleLaw
    replicates: tuple[ScheduleLaw, ...]  # fitted to mixtures drawn with replacement
    ridge: float
    scores: pd.DataFrame  # a row for each phase and one for the whole chain: see `_scores`
    candidates: pd.DataFrame  # power, ridge, error relative to the spread; the chosen one first
    held_out: pd.DataFrame  # for each run: phase, trunk, observed and predicted objective

    @property
    def residual(self) -> float:
        """Rms error of a whole schedule's predicted objective, with its last mixture held out."""
        return float(self.scores["rmse"].iloc[-1])


def fit(runs: PhaseRuns, weights: Array, seed: int = 0) -> ScheduleFit:
    """Choose φ and the ridge by leave-one-mixture-out; fit the law and its bootstrap.

    weights (V,) sum to one.
    """
    powers = [
        power for power in POWERS if power > 0
    ]  # log(r + ε) of bundled domains is no log of the bundle
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
            for counts in draws(len(runs.mixtures), MIN_MIXTURES, rng)
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
    """One law for each ridge; counts (m,): how often each mixture counts, 0 leaves it out."""
    counts = np.ones(len(runs.mixtures)) if counts is None else counts
    phi, domains = features(runs.mixtures, power), len(runs.val_domains)
    retentions, fits = [], []
    for k in range(len(runs.tokens)):
        retention, levels = _levels(runs, k, counts)
        retentions.append(retention)
        w = np.tile(counts, (len(ridges) * domains, 1))
        y = np.tile(levels.T, (len(ridges), 1))
        fits.append(least_squares.exponentials(phi, y, w, np.repeat(ridges, domains)))
    laws = []
    for i in range(len(ridges)):
        rows = slice(i * domains, (i + 1) * domains)
        mixing = [exponentials.part(rows) for exponentials in fits]
        laws.append(
            ScheduleLaw(
                power=power,
                tokens=runs.tokens,
                kept=np.array(retentions),
                floor=np.array([m.floor for m in mixing]),
                log_scale=np.array([m.log_scale for m in mixing]),
                slope=np.array([m.slope for m in mixing]),
            )
        )
    return laws


def _levels(runs: PhaseRuns, k: int, counts: Array) -> tuple[Array, Array]:
    """Retention ρ (V,) of a phase, and the level that each mixture adds, (m, V).

    Least squares of L = ρ · L before + a free level for each mixture, with ρ shrunk towards its
    mean over the domains.
    """
    in_phase = runs.phase_of == k
    m, losses, before = runs.mixture_of[in_phase], runs.losses[in_phase], runs.before[in_phase]
    sizes = np.maximum(np.bincount(m, minlength=len(counts)), 1)[:, None]  # runs of each mixture
    levels = _sums(losses, m, len(counts)) / sizes
    if k == 0:
        return np.zeros(losses.shape[1]), levels
    states = _sums(before, m, len(counts)) / sizes
    w = counts[m][:, None]
    x, y = before - states[m], losses - levels[m]
    squares = np.maximum((w * x**2).sum(axis=0), TINY)
    raw = (w * x * y).sum(axis=0) / squares
    freedom = max(1.0, float(w.sum() - counts.sum()) - 1)  # degrees of freedom
    noise = (w * (y - raw * x) ** 2).sum(axis=0) / freedom + TINY
    retention = np.clip(_shrunk(raw, noise / squares), 0, MAX_RETENTION)
    return retention, levels - retention * states


def _shrunk(values: Array, variances: Array) -> Array:
    """Estimates (V,) with these variances, shrunk towards their mean by a normal prior of standard
    deviation RETENTION_SPREAD."""
    prior = RETENTION_SPREAD**2
    precisions = 1 / (variances + prior)
    mean = precisions @ values / precisions.sum()
    return (prior * values + variances * mean) / (prior + variances)


def _sums(values: Array, group: Array, groups: int) -> Array:
    """Sums over the rows of each group, (groups, V)."""
    sums = np.zeros((groups, values.shape[1]))
    np.add.at(sums, group, values)
    return sums


def _held_out(runs: PhaseRuns, power: float, ridges: Array) -> Array:
    """Losses of every run, predicted by laws fitted without its mixture, (ridges, runs, V)."""
    predicted = np.empty((len(ridges), *runs.losses.shape))
    for left_out in range(len(runs.mixtures)):
        rows = runs.mixture_of == left_out
        counts = (np.arange(len(runs.mixtures)) != left_out).astype(float)
        for i, law in enumerate(_law(runs, power, ridges, counts)):
            mixture = runs.mixtures[left_out][None]
            levels = np.array([law.phase(k).predict(mixture)[0] for k in range(len(runs.tokens))])
            phases = runs.phase_of[rows]
            state = np.nan_to_num(runs.before[rows])  # NaN in phase 1
            predicted[i, rows] = law.kept[phases] * state + levels[phases]
    return predicted


def _chained(runs: PhaseRuns, power: float, ridge: float) -> Array:
    """Losses at the end of each whole schedule, predicted from the mixtures alone by laws fitted
    without its last mixture, (runs of the last phase, V)."""
    last = runs.mixture_of[runs.phase_of == len(runs.tokens) - 1]
    schedules = runs.schedules()
    predicted = np.empty((len(schedules), len(runs.val_domains)))
    for left_out in np.unique(last):
        counts = (np.arange(len(runs.mixtures)) != left_out).astype(float)
        law = _law(runs, power, np.array([ridge]), counts)[0]
        predicted[last == left_out] = law.predict(schedules[last == left_out])[:, -1]
    return predicted


def _squares(runs: PhaseRuns, predicted: Array, weights: Array) -> Array:
    """Squared errors relative to the spread of each domain in each phase, weighted over the
    domains and averaged over the runs of each mixture, (m,)."""
    spread = np.array(
        [runs.losses[runs.phase_of == k].std(axis=0) for k in range(len(runs.tokens))]
    ).clip(1e-12)
    relative = (predicted - runs.losses) / spread[runs.phase_of]
    sums = np.bincount(runs.mixture_of, relative**2 @ weights)
    return sums / np.bincount(runs.mixture_of)


def _scores(runs: PhaseRuns, held_out: Array, chained: Array, weights: Array) -> pd.DataFrame:
    """A row for each phase and one for the whole chain: rms error of the objective for held-out
    mixtures, rms error of the mean of the other mixtures from the same state, and the spread."""
    rows = []
    for k in range(len(runs.tokens)):
        in_phase = runs.phase_of == k
        observed = pd.Series(runs.losses[in_phase] @ weights)
        by_trunk = observed.groupby(runs.trunk[in_phase])
        mean = (by_trunk.transform("sum") - observed) / (by_trunk.transform("size") - 1)
        y = observed.to_numpy()
        error = held_out[in_phase] @ weights - y
        rows.append((f"{k + 1}", rms(error), rms(mean.to_numpy() - y), float(y.std())))
    last = runs.losses[runs.phase_of == len(runs.tokens) - 1] @ weights
    rows.append(("chain", rms(chained @ weights - last), np.nan, float(last.std())))
    return pd.DataFrame(rows, columns=[PHASE, "rmse", "mean_rmse", "spread"])
