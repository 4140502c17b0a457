"""Whether what a search says of differences between mixtures holds, on made-up studies.

    python -m tests.benchmarks.verdicts [studies] [first seed]

Each study has 3 to 6 domains, a true law of a kind and noise drawn at random, mixtures at three
sizes, and a target four times beyond the largest. It is fitted and searched as `fit` and
`optimize` do. Printed: how often the true best mixture lies in the near-optimal set, how often the
true gain over a random default mixture lies in its 90 % interval, and how often a gain that is
called sure is one.
"""

import json
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from fitting import fit as fits
from fitting import registry
from fitting.artifact import predictor
from fitting.artifact.spec import Explored, Target
from fitting.data.observations import Observations
from fitting.registry import CODE
from fitting.selection.forms import Options
from optimization.design import space_filling
from optimization.domain.constraints import Constraints
from optimization.domain.feasible import feasible
from optimization.domain.predictor import Predictor
from optimization.mixture import solve
from optimization.mixture.solve import Answer, Problem
from training.record import keys

Array = np.ndarray
SIZES, TOKENS, TARGET = (1e6, 4e6, 16e6), (1e8, 2e8, 4e8, 8e8), Target(64e6, 3.2e9)
SAMPLES = 50_000


@dataclass(frozen=True)
class Truth:
    """L_i = E_i + A_i n^-α + B_i d^-β + s(n, d) Σ_k e^(b_ik + t_ik·r^a_i), or with a sum of powers
    Σ_j W_ij r_j^a_i in the place of the exponentials."""

    powers: Array  # a, (V,)
    log_scale: Array  # b, (V, K); empty for a sum of powers
    slope: Array  # t, (V, K, M), or W as (V, 1, M)
    floor: Array  # (V,)
    size: Array
    step: Array
    shrinking: float

    @classmethod
    def drawn(cls, domains: int, rng: np.random.Generator) -> "Truth":
        """Every validation domain is helped most by its own training domain."""
        terms = int(rng.integers(1, 3))
        slope = rng.uniform(-0.8, 0.3, (domains, terms, domains))
        slope -= rng.uniform(0.5, 2.5, (domains, 1, 1)) * np.eye(domains)[:, None]
        sums = rng.random() < 0.3
        return cls(
            powers=rng.uniform(0.3, 1.0, domains),
            log_scale=np.empty((domains, 0))
            if sums
            else np.log(rng.uniform(0.2, 1, (domains, terms))),
            slope=0.4 * slope[:, :1] if sums else slope,
            floor=rng.uniform(1, 2.5, domains),
            size=rng.uniform(0.1, 0.4, domains),
            step=rng.uniform(0.1, 0.3, domains),
            shrinking=float(rng.choice([0.0, 0.05])),
        )

    def predict(self, mixtures: Array, n_params: float, tokens: float) -> Array:
        """(n, V)."""
        n, d = n_params / SIZES[-1], tokens / TOKENS[-1]
        features = mixtures[:, None] ** self.powers[:, None]
        effects = np.einsum("nvm,vkm->nvk", features, self.slope)
        if self.log_scale.shape[1]:
            effects = np.exp(self.log_scale + effects)
        shrink = (n * d) ** -self.shrinking
        scale = self.size * n**-0.3 + self.step * d**-0.4
        return self.floor + scale + shrink * effects.sum(axis=2)


def table(truth: Truth, mixtures: Array, noise: float, rng: np.random.Generator) -> pd.DataFrame:
    """The tidy table of every mixture at every size; a run's noise is that of its seed."""
    rows = []
    names = [f"d{j}" for j in range(mixtures.shape[1])]
    for m, mixture in enumerate(mixtures):
        for n in SIZES:
            own = noise * rng.standard_normal(len(names))
            for d in TOKENS:
                losses = truth.predict(mixture[None], n, d)[0] + own
                losses += noise / 4 * rng.standard_normal(len(names))
                rows.append(
                    {
                        "run": f"{m}-{n:.0f}",
                        keys.N_PARAMS: n,
                        keys.TOKENS: d,
                        "step": d,
                        **keys.with_prefix(keys.MIXTURE, dict(zip(names, mixture, strict=True))),
                        **keys.with_prefix(keys.VAL_LOSS, dict(zip(names, losses, strict=True))),
                    }
                )
    return pd.DataFrame(rows)


def loaded(found: fits.Fit, default: Array, folder: Path) -> Predictor:
    """The predictor of a fit as a search sees it, by the artifact's own code."""
    domains = found.observations.domains
    spec = registry.spec_of(
        found,
        keys.NATS,
        explored=Explored(dict.fromkeys(domains, 0.0), dict.fromkeys(domains, 1.0), {}),
        val_weights=dict(zip(found.observations.val_domains, found.weights, strict=True)),
        default_mixture=dict(zip(domains, default.tolist(), strict=True)),
    )
    file = folder / "predictor.json"
    file.write_text(json.dumps(spec.to_json()))
    python = predictor.MixturePredictor()
    artifacts = {"predictor": str(file), **CODE}
    python.load_context(SimpleNamespace(artifacts=artifacts))
    return Predictor(
        uri="",
        domains=domains,
        val_domains=found.observations.val_domains,
        weights=found.weights,
        n_params=found.target.n_params,
        tokens=found.target.tokens,
        spec=python.spec,
        loaded=SimpleNamespace(predict=lambda rows, params: python.predict(None, rows, params)),
        artifact_model=python,
    )


def true_best(truth: Truth, domains: int, rng: np.random.Generator) -> Array:
    """(M,)."""

    def loss(mixtures: Array) -> Array:
        return truth.predict(mixtures, TARGET.n_params, TARGET.tokens).mean(axis=1)

    samples = rng.dirichlet(np.ones(domains), SAMPLES)
    start = samples[loss(samples).argmin()]
    end = minimize(
        lambda r: float(loss(np.maximum(r, 1e-12)[None])[0]),
        start,
        method="SLSQP",
        bounds=[(0, 1)] * domains,
        constraints={"type": "eq", "fun": lambda r: r.sum() - 1},
    ).x
    end = np.maximum(end, 0) / np.maximum(end, 0).sum()
    return end if loss(end[None])[0] < loss(start[None])[0] else start


def study(seed: int, default: Array | None = None) -> tuple[Truth, Answer, Array, Array]:
    """A made-up study: its truth, its answer, the default mixture and the true best one."""
    rng = np.random.default_rng(seed)
    domains = int(rng.integers(3, 7))
    truth = Truth.drawn(domains, rng)
    count = int(rng.integers(2 * domains + 2, 4 * domains + 4))
    allowed = feasible(Constraints(), [f"d{j}" for j in range(domains)], TARGET.tokens)
    if default is None:
        default = rng.dirichlet(np.full(domains, 3.0))
    given = np.array([default, np.full(domains, 1 / domains)])
    mixtures = space_filling.designed(space_filling.SPREAD, count, given, allowed, seed)
    noise = float(rng.choice([0.002, 0.005, 0.015]))
    observed = Observations.from_tidy(table(truth, mixtures, noise, rng))
    weights = np.full(domains, 1 / domains)
    found = fits.fit(observed, weights, TARGET, Options(("joint",), compare=False))
    with tempfile.TemporaryDirectory() as folder:
        asked = loaded(found, default, Path(folder))
        solved = solve.solve(asked, Problem(trials=100))
    return truth, solved, default, true_best(truth, domains, rng)


def judged(seed: int) -> dict[str, float]:
    """A row of the table."""
    truth, solved, default, best = study(seed)
    ours = np.array([[*solved.best.values()]])
    every = np.vstack([ours, default, best])
    at_ours, at_default, at_best = truth.predict(every, TARGET.n_params, TARGET.tokens).mean(axis=1)
    gain, half = at_default - at_ours, solved.gain_half_width
    return {
        "seed": seed,
        "domains": len(default),
        "mixtures": len(solved.predictor.fitted),
        "gain": gain,
        "predicted": solved.gain,
        "half_width": half,
        "gain_held": abs(gain - solved.gain) <= half,
        "regret": at_ours - at_best,
        "best_held": bool(solved.differences(best[None])[0] <= 0),
        "sure": solved.gain > half,
        "sure_and_true": solved.gain > half and gain > 0,
        "free": float(
            np.mean(solved.sensitivity.ranges["highest"] - solved.sensitivity.ranges["lowest"])
        )
        if solved.sensitivity
        else np.nan,
    }


def main(studies: int = 100, first: int = 0) -> pd.DataFrame:
    """Judge so many studies, on both cores."""
    with ProcessPoolExecutor() as pool:
        found = pd.DataFrame(pool.map(judged, range(first, first + studies)))
    sure = found[found["sure"]]
    print(found.round(4).to_string())
    print(f"true best in the near-optimal set: {found['best_held'].mean():.2f}")
    print(f"true gain in its interval:         {found['gain_held'].mean():.2f}")
    print(
        f"called better: {len(sure)}; of these better in truth: {sure['sure_and_true'].mean():.3f}"
    )
    print(f"range of a proportion, mean:       {found['free'].mean():.3f}")
    return found


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
