"""Which runs to train next, by replay: the proposed batches against random and spread ones.

    python -m tests.benchmarks.replay_design [first seed [seeds]]   # about a minute on two cores

Some mixtures are kept aside for the test; from a few random ones on, batches grow from the pool of
the others, and the same law is fitted after each. RegMix and RedPajama are real runs, whose pools
are random mixtures already; in the synthetic part the truth is a law of two exponentials fitted to
all of RegMix, with noise, and thousands of mixtures of the whole simplex can be chosen.
"""

import multiprocessing
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pandas as pd
from scipy.stats import qmc
from threadpoolctl import threadpool_limits

from fitting.artifact.laws import Law
from fitting.artifact.spec import Target
from fitting.data.observations import Observations
from fitting.estimators import candidates
from fitting.estimators.candidates import Candidate
from fitting.importing import mixinglaws
from fitting.selection.cross_validation import spearman
from optimization.design import acquisition
from optimization.domain import simplex
from optimization.domain.predictor import Numeric
from tests.benchmarks import fit_redpajama
from tests.support.tables import MIXINGLAWS, swarm, tidy
from training.record import keys

Array = np.ndarray

WAYS = ("random", "spread", "proposed")
DRAWS, DISTINCT = 40, 3  # of the bootstrap, as in a fit
LEAST_NOISE = 0.05
SYNTHETIC, NOISE = 2048, 0.02  # mixtures, nats/token
MEASURES = ("rmse", "rmse of the best", "spearman", "regret")
COLUMNS = ["runs", "rmse"]
BEST = 0.25  # share of the test part
REACHED = (1.10, 1.05)  # of the error with the whole pool
PROCESSES, FIRST, SEEDS = 2, 1000, 20  # developed on seeds from 100 on


@dataclass(frozen=True)
class History:
    """Runs to replay, and the sizes to which the design grows, in mixtures."""

    observations: Observations
    truth: Array  # losses at the target's scale, (m, V), to be predicted
    candidate: Candidate
    target: Target
    test: int
    sizes: tuple[int, ...]

    @property
    def weights(self) -> Array:
        return np.full(self.truth.shape[1], 1 / self.truth.shape[1])


def at(law: Law, target: Target) -> Numeric:
    """A law at the target's scale."""
    return Numeric(law, target.n_params, target.tokens)


@cache
def regmix() -> History:
    """512 runs of one scale, 17 domains."""
    o = swarm("regmix")
    target = Target(float(o.n_params[0]), float(o.tokens[0]))
    sizes = (24, 32, 40, 48, 64, 80, 96, 128, 160, 200, 256, 320)
    return History(o, at_target(o, target), Candidate("joint", 0.5, 1e-4), target, 112, sizes)


@cache
def redpajama() -> History:
    """20 mixtures of 7 domains at four sizes, each run's last evaluation up to step 30,000."""
    folder = MIXINGLAWS / "RedPajama"
    table = tidy(mixinglaws.logs(str(folder), fit_redpajama.DOMAINS, {}))
    large = table[keys.N_PARAMS] == fit_redpajama.TARGET.n_params
    table = table[~table["check"] & ~large & (table["step"] == fit_redpajama.LAST_STEP)]
    o = Observations.from_tidy(table.drop(columns="check"))
    target = Target(float(o.n_params.max()), float(o.tokens.max()))
    sizes = (6, 9, 12, 16, 20, 26)
    return History(o, at_target(o, target), Candidate("joint", 0.5, 1e-3), target, 6, sizes)


@cache
def synthetic() -> History:
    """A law as truth, candidates from the whole simplex and from its corners and edges."""
    real = regmix()
    truth = candidates.fit(real.observations, Candidate("joint", 0.35, 1e-4, 2), real.target)
    domains, rng = len(real.observations.domains), np.random.default_rng(0)
    cube = qmc.Sobol(domains - 1, seed=0).random(SYNTHETIC // 2)
    inside = simplex.from_cube(cube, np.zeros(domains), np.ones(domains))
    mixtures = np.vstack([inside, rng.dirichlet(np.full(domains, 0.3), SYNTHETIC // 2)])
    losses = at(truth, real.target).predict(mixtures)
    each = np.arange(len(mixtures))
    o = replace(
        real.observations,
        runs=tuple(map(str, each)),
        mixtures=mixtures,
        mixture_of=each,
        run_of=each,
        n_params=np.full(len(each), real.target.n_params),
        tokens=np.full(len(each), real.target.tokens),
        losses=losses + NOISE * rng.standard_normal(losses.shape),
    )
    return replace(real, observations=o, truth=losses, test=512)


def at_target(o: Observations, target: Target) -> Array:
    """Observed losses of each mixture at the target's scale, (m, V); NaN where there is no run."""
    there = (o.n_params == target.n_params) & (o.tokens == target.tokens)
    losses = np.full((len(o.mixtures), o.losses.shape[1]), np.nan)
    losses[o.mixture_of[there]] = o.losses[there]
    return losses


HISTORIES = {"RegMix": regmix, "RedPajama": redpajama, "synthetic": synthetic}


def of(history: History, chosen: Sequence[int]) -> Observations:
    return history.observations.rows(np.isin(history.observations.mixture_of, chosen))


def spread(mixtures: Array, have: list[int], left: list[int], count: int) -> list[int]:
    """Each time the mixture farthest, in √r, from those there are."""
    roots, new = np.sqrt(mixtures), list[int]()
    apart = ((roots[left, None] - roots[have]) ** 2).sum(axis=2).min(axis=1)
    while len(new) < count:
        new.append(left[int(apart.argmax())])
        apart = np.minimum(apart, ((roots[left] - roots[new[-1]]) ** 2).sum(axis=1))
    return new


def ensemble(
    history: History, have: list[int], left: list[int], rng: np.random.Generator
) -> acquisition.Ensemble:
    """What the fit of some mixtures says of others: a bootstrap, its errors out of the bag.

    As in a fit, noise is their mean square less what the bootstrap's spread shows of it.
    """
    o, target = of(history, have), history.target
    m = len(o.mixtures)
    counts = rng.multinomial(m, np.full(m, 1 / m), size=DRAWS).astype(float)
    counts = counts[(counts > 0).sum(axis=1) >= DISTINCT]
    laws = candidates.bootstrap(o, history.candidate, target, counts)
    drawn = np.array([law.predict(o.proportions(), o.n_params, o.tokens) for law in laws])
    out = (counts == 0)[:, o.mixture_of, None]
    error = np.where(out, drawn - o.losses, 0).sum(axis=0) / np.maximum(out.sum(axis=0), 1)
    square = (error[out.any(axis=0)[:, 0]] ** 2).mean(axis=0)
    noise = np.maximum(square - drawn.var(axis=0).mean(axis=0), LEAST_NOISE * square)
    law = at(candidates.fit(o, history.candidate, target), target)
    replicates = [at(law, target) for law in laws]
    left_out = history.observations.mixtures[left]
    return acquisition.ensemble(law, replicates, left_out, noise, history.weights)


def score(history: History, have: list[int], test: Array) -> dict[str, float]:
    """Errors on the test part and on its best quarter, the mean Spearman of the validation
    domains, and how far the mixture that the law takes for the best lies above the best."""
    law = at(candidates.fit(of(history, have), history.candidate, history.target), history.target)
    said, truth = law.predict(history.observations.mixtures[test]), history.truth[test]
    wanted, found = truth @ history.weights, said @ history.weights
    square, best = (found - wanted) ** 2, wanted <= np.quantile(wanted, BEST)
    return {
        "rmse": float(np.sqrt(square.mean())),
        "rmse of the best": float(np.sqrt(square[best].mean())),
        "spearman": float(spearman(truth, said).mean()),
        "regret": float(wanted[found.argmin()] - wanted.min()),
    }


def replay(job: tuple[str, str, int]) -> list[dict[str, object]]:
    """One history by one way from one seed: a row a size of the design."""
    name, way, seed = job
    with threadpool_limits(1):
        history, rng = HISTORIES[name](), np.random.default_rng(seed)
        there = np.flatnonzero(np.isfinite(history.truth).all(axis=1))
        test = rng.permutation(there)[: history.test]
        pool = [int(i) for i in rng.permutation(len(history.truth)) if i not in test]
        have, left = pool[: history.sizes[0]], pool[history.sizes[0] :]
        row: dict[str, object] = {"history": name, "way": way, "seed": seed}
        rows = [row | {"runs": len(have)} | score(history, have, test)]
        for size in history.sizes[1:]:
            new = batch(history, way, have, left, size - len(have), rng)
            have, left = have + new, [i for i in left if i not in new]
            rows.append(row | {"runs": len(have)} | score(history, have, test))
        return [*rows, row | {"runs": len(pool)} | score(history, pool, test)]


def batch(
    history: History, way: str, have: list[int], left: list[int], count: int,
    rng: np.random.Generator,
) -> list[int]:  # fmt: skip
    if way == "random":
        return left[:count]
    if way == "spread":
        return spread(history.observations.mixtures, have, left, count)
    return [left[i] for i in acquisition.propose(ensemble(history, have, left, rng), count)]


def reached(rows: pd.DataFrame, factor: float) -> float:
    """Runs after which the error stays within a factor of that with the whole pool."""
    runs, rmse = rows["runs"].to_numpy(), rows["rmse"].to_numpy()
    over = np.flatnonzero(rmse > factor * rmse[-1])
    return float(runs[over[-1] + 1]) if len(over) else float(runs[0])


def tell(table: pd.DataFrame) -> None:
    """Means over the seeds ± their standard errors."""
    for name, rows in table.groupby("history", sort=False):
        cells = rows.groupby(["runs", "way"], sort=False)[list(MEASURES)].agg(pm)
        print(f"\n{name} (nats/token)\n{cells.to_string()}")
        for factor in REACHED:
            told = [
                f"{way} {pm(found.groupby('seed')[COLUMNS].apply(reached, factor=factor), 0)}"
                for way, found in rows.groupby("way", sort=False)
            ]
            print(f"within {factor - 1:.0%} of the pool's error after: {', '.join(told)}")


def pm(values: pd.Series, digits: int = 4) -> str:
    return f"{values.mean():.{digits}f} ± {values.sem():.{digits}f}"


def main() -> None:
    given = [int(argument) for argument in sys.argv[1:]]
    first, seeds = (given + [FIRST, SEEDS][len(given) :])[:2]
    began = time.perf_counter()
    jobs = [
        (name, way, seed)
        for name in HISTORIES
        for way in WAYS
        for seed in range(first, first + seeds)
    ]
    with multiprocessing.Pool(PROCESSES) as workers:
        rows = workers.map(replay, jobs, chunksize=1)
    tell(pd.DataFrame([row for found in rows for row in found]))
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
