"""How far a fit can be trusted: cross-validation over mixtures, choice of the law, backtests."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from fitting import joint, nested
from fitting.laws import Law
from fitting.table import Observations
from training.errors import InputError

Array = np.ndarray

POWERS = (1.0, 0.5)  # φ(r) = r (paper) and √r
RIDGES = np.geomspace(1e-6, 1.0, 13)
METHODS = ("joint", "nested")
LEAVE_ONE_OUT_UP_TO = 30  # mixtures; beyond, ten folds
FOLDS = 10
MIN_MIXTURES = 3
MIN_SIZES, MIN_CHECKPOINTS = 2, 3  # that a backtest fits on, where there are more
PARSIMONY = 1.1  # how much worse a simpler form may be
Z90 = 1.645


@dataclass(frozen=True)
class Candidate:
    """One way to fit: the choices that cross-validation makes."""

    method: str
    power: float
    ridge: float
    shrinking: bool = False  # joint only


@dataclass(frozen=True)
class Target:
    """The run whose losses are wanted."""

    n_params: float
    tokens: float


@dataclass(frozen=True)
class Scores:
    """Out-of-fold errors at each run's last evaluation; the objective is Σ w_i L_i."""

    objective_mae: float
    objective_rmse: float
    mean_prediction_mae: float  # of predicting the mean of the other mixtures at the same scale
    objective_spread: float  # standard deviation of the observed objective
    domain_mae: float  # Σ w_i |error_i|
    spearman: float
    r2: float


@dataclass(frozen=True)
class Backtest:
    """Fitted on small and short runs alone, the end of the largest predicted."""

    bias: float  # of the objective, predicted − observed
    rmse: float
    tokens_factor: float  # how far beyond the fitted tokens and size it predicted
    n_params_factor: float


@dataclass(frozen=True)
class Validation:
    """All candidates' errors, and what the chosen one predicts of mixtures it has not seen."""

    table: pd.DataFrame  # a row a candidate, the chosen one first
    best: Candidate
    scores: Scores
    tested: Backtest | None  # None: the target lies inside the data, or nothing can be left out
    half_width: float  # of the 90 % interval of a predicted objective, nats per token
    held_out: Observations  # each run's last evaluation
    predictions: Array  # of the chosen candidate for held_out, its mixture left out, (runs, V)


def candidates(methods: Sequence[str]) -> list[Candidate]:
    """Every combination of choices for these methods."""
    return [
        Candidate(method, power, float(ridge), shrinking)
        for method in methods
        for shrinking in ((False, True) if method == "joint" else (False,))
        for power in POWERS
        for ridge in RIDGES
    ]


def fit(observations: Observations, candidate: Candidate, target: Target) -> Law:
    """The law of one candidate on all observations."""
    return fit_all(observations, [candidate], target)[candidate]


def fit_all(
    observations: Observations, wanted: Sequence[Candidate], target: Target
) -> dict[Candidate, Law]:
    """The laws of several candidates; what they share is computed once, all ridges in a batch."""
    laws: dict[Candidate, Law] = {}
    kinds = {(c.method, c.shrinking) for c in wanted}
    for method, shrinking in sorted(kinds):
        mix: Callable[[float, Array], Sequence[Law]]
        if method == "joint":
            scales = joint.fit_scales(observations, shrinking=shrinking)
            mix = partial(joint.fit_mixing, scales, observations.mixtures)
        else:
            curves = nested.fit_curves(observations, target.n_params, target.tokens)
            mix = partial(nested.fit_mixing, curves)
        same = [c for c in wanted if (c.method, c.shrinking) == (method, shrinking)]
        for power in {c.power for c in same}:
            group = [c for c in same if c.power == power]
            found = mix(power, np.array([c.ridge for c in group]))
            laws.update(zip(group, found, strict=True))
    return laws


def validate(
    observations: Observations,
    weights: Array,
    target: Target,
    methods: Sequence[str] = METHODS,
    seed: int = 0,
) -> Validation:
    """Choose the law and tell its expected error at the target.

    φ and ridge are those with the least error on left-out mixtures. The form (method, shrinking)
    is the one with the least expected error, which joins that error and, where the target lies
    outside the data, the backtest's error of extrapolation as independent; a simpler form is
    kept when it is less than 10 % worse. weights (V,) sum to one. Raises InputError with fewer
    than three mixtures.
    """
    wanted = candidates(methods)
    held_out = observations.rows(observations.last())
    predictions, mean = _leave_mixtures_out(observations, held_out, weights, wanted, target, seed)
    scores = [_score(held_out, p, weights, mean) for p in predictions]
    o = observations
    beyond = target.n_params > o.n_params.max() or target.tokens > o.tokens.max()
    tests = _backtests(o, wanted, weights, target) if beyond else [None] * len(wanted)
    expected = [_expected_error(s, t) for s, t in zip(scores, tests, strict=True)]
    table = pd.DataFrame(
        [
            {
                **vars(candidate),
                "expected_error": error,
                **vars(score),
                **({f"backtest_{k}": v for k, v in vars(test).items()} if test else {}),
            }
            for candidate, error, score, test in zip(wanted, expected, scores, tests, strict=True)
        ]
    )
    best = _choose(table)
    table["chosen"] = table.index == best
    return Validation(
        table=table.sort_values(["chosen", "expected_error"], ascending=[False, True]),
        best=wanted[best],
        scores=scores[best],
        tested=tests[best],
        half_width=Z90 * expected[best],
        held_out=held_out,
        predictions=predictions[best],
    )


def _choose(table: pd.DataFrame) -> int:
    """The row of the chosen candidate; forms stand in the table from simple to flexible."""
    forms = table.groupby(["method", "shrinking"], sort=False)["objective_mae"].idxmin()
    expected = table.loc[forms, "expected_error"]
    return int(expected.index[expected <= PARSIMONY * expected.min()][0])


def _expected_error(scores: Scores, tested: Backtest | None) -> float:
    return float(np.hypot(scores.objective_rmse, tested.rmse if tested else 0.0))


def _leave_mixtures_out(
    observations: Observations,
    held_out: Observations,
    weights: Array,
    wanted: Sequence[Candidate],
    target: Target,
    seed: int,
) -> tuple[Array, Array]:
    """Every candidate's predictions of held_out, each mixture by a fit without it, (candidates,
    runs, V), and the mean objective of the other mixtures at each run's scale, (runs,).

    Leaves one mixture out at a time up to 30 mixtures, one of ten seeded folds beyond.
    """
    count = len(observations.mixtures)
    if count < MIN_MIXTURES:
        raise InputError(
            f"{count} distinct mixtures were trained; a mixing law and its cross-validation "
            f"need at least {MIN_MIXTURES}, and about two more than there are domains to be good"
        )
    fold_of = np.arange(count)
    if count > LEAVE_ONE_OUT_UP_TO:
        fold_of = np.random.default_rng(seed).permutation(count) % FOLDS
    predictions = np.empty((len(wanted), *held_out.losses.shape))
    for fold in range(fold_of.max() + 1):
        left_out = fold_of == fold
        train = observations.rows(~left_out[observations.mixture_of])
        rows = left_out[held_out.mixture_of]
        laws = fit_all(train, wanted, target)
        for i, candidate in enumerate(wanted):
            predictions[i, rows] = laws[candidate].predict(
                held_out.proportions()[rows], held_out.n_params[rows], held_out.tokens[rows]
            )
    return predictions, _mean_of_other_folds(held_out, weights, fold_of)


def _mean_of_other_folds(held_out: Observations, weights: Array, fold_of: Array) -> Array:
    """For each run, the mean objective of the other folds' runs at its scale, (runs,)."""
    objective = held_out.losses @ weights
    folds = fold_of[held_out.mixture_of]
    means = np.empty(len(objective))
    for i in range(len(objective)):
        others = folds != folds[i]
        same = others & (held_out.n_params == held_out.n_params[i])
        same &= held_out.tokens == held_out.tokens[i]
        means[i] = objective[same if same.any() else others].mean()
    return means


def _score(held_out: Observations, predictions: Array, weights: Array, mean: Array) -> Scores:
    observed, predicted = held_out.losses @ weights, predictions @ weights
    error = predicted - observed
    baseline = mean - observed
    return Scores(
        objective_mae=float(np.abs(error).mean()),
        objective_rmse=float(np.sqrt((error**2).mean())),
        mean_prediction_mae=float(np.abs(baseline).mean()),
        objective_spread=float(observed.std()),
        domain_mae=float((np.abs(predictions - held_out.losses) @ weights).mean()),
        spearman=float(spearmanr(observed, predicted).statistic),
        r2=float(1 - (error**2).sum() / max((baseline**2).sum(), 1e-300)),
    )


def _backtests(
    observations: Observations, wanted: Sequence[Candidate], weights: Array, target: Target
) -> list[Backtest | None]:
    """Predict the end of the largest size's runs from as far away as the target is from the data.

    Fitted on what is as many times smaller and shorter than the data as the target is larger and
    longer, as far as enough sizes and checkpoints are left. None for every candidate when there
    is one size and one length.
    """
    o = observations
    past = _past(o.n_params, target.n_params, MIN_SIZES) & _past(
        o.tokens, target.tokens, MIN_CHECKPOINTS
    )
    if past.all():
        return [None] * len(wanted)
    train, future = o.rows(past), o.rows((o.n_params == o.n_params.max()) & o.last())
    end = Target(float(future.n_params[0]), float(future.tokens.max()))
    laws = fit_all(train, wanted, end)
    tests: list[Backtest | None] = []
    for candidate in wanted:
        predicted = laws[candidate].predict(future.proportions(), future.n_params, future.tokens)
        error = (predicted - future.losses) @ weights
        tests.append(
            Backtest(
                bias=float(error.mean()),
                rmse=float(np.sqrt((error**2).mean())),
                tokens_factor=float(o.tokens.max() / train.tokens.max()),
                n_params_factor=float(o.n_params.max() / train.n_params.max()),
            )
        )
    return tests


def _past(scale: Array, target: float, least: int) -> Array:
    """Which rows a backtest fits on, (rows,) bool: those below the largest value by the factor
    by which the target lies above it, but all values except the largest at the most, and
    `least` values where there are more."""
    values = np.unique(scale)
    if len(values) == 1:
        return np.ones(len(scale), bool)
    factor = max(1.0, target / values[-1])
    kept = int(np.sum(values <= values[-1] / factor * (1 + 1e-9)))
    kept = min(max(kept, least), len(values) - 1)
    return scale <= values[kept - 1]
