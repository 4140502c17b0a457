"""What repeated text is worth, beside the published law: held-out larger models.

    python -m tests.benchmarks.repeated_text [--data ../shared/data/datablations/runs.csv]

Runs of one domain (C4) with up to thousands of passes, of Muennighoff et al., arXiv 2305.16264.
Models of up to a size are fitted, and the losses of the larger ones predicted: by the project's
law, and by the published form fitted to the same runs, by least squares and by the Huber loss of
log losses that its source uses. In the file the headers of the columns of tokens and unique tokens
are swapped.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from fitting.artifact.laws import RepetitionLaw, effective
from fitting.data.observations import Observations
from fitting.estimators import repetition

Array = np.ndarray

DATA = "../shared/data/datablations/runs.csv"
SIZES = (7e8, 1.2e9)  # parameters; no model of the data lies near
PASSES = (np.inf, 100.0)  # of the runs that are looked at
STARTS = 40
HUBER = 1e-3  # of log losses


def observations(table: pd.DataFrame) -> Observations:
    unique = table["tokens"].to_numpy(float)
    tidy = pd.DataFrame(
        {
            "run": [f"{name}-{i}" for i, name in enumerate(table["id"])],
            "n_params": table["params"],
            "tokens": table["unique_tokens"],
            "mixture/c4": 1.0,
            "unique_tokens/c4": unique,
            "val_loss/c4": table["loss"],
        }
    )
    return Observations.from_tidy(tidy)


def published(parameters: Array, o: Observations) -> Array:
    """E + A N'^-α + B D'^-β: both the tokens beyond the unique ones and the parameters beyond those
    that the unique tokens call for wear out."""
    log_a, log_b, log_e, alpha, beta, log_r_n, log_r_d = parameters
    assert o.unique is not None
    unique, one = o.unique[:, 0], np.ones((len(o.tokens), 1))
    _, tokens = effective(one, o.tokens, 1 / o.unique, np.exp(log_r_d) * one)
    g = (alpha * np.exp(log_a) / (beta * np.exp(log_b))) ** (1 / (alpha + beta))
    enough = np.minimum(o.n_params, (unique * g) ** (beta / alpha) * g)
    more, r_n = np.maximum(o.n_params / enough - 1, 0), np.exp(log_r_n)
    params = enough * (1 - r_n * np.expm1(-more / r_n))
    return np.exp(log_e) + np.exp(log_a) * params**-alpha + np.exp(log_b) * tokens**-beta


def fit_published(o: Observations, loss: str) -> Callable[[Observations], Array]:
    rng = np.random.default_rng(0)
    usual = np.array([6.2, 7.3, 0.6, 0.35, 0.35, 1.7, 2.7])
    huber = loss == "huber"

    def residual(parameters: Array) -> Array:
        with np.errstate(all="ignore"):
            found = published(parameters, o)
            off = np.log(found / o.losses[:, 0]) if huber else found - o.losses[:, 0]
        return np.nan_to_num(off, nan=9.0, posinf=9.0, neginf=-9.0)

    best = None
    for _ in range(STARTS):
        start = usual + rng.normal(size=len(usual)) * np.maximum(0.1, 0.2 * usual)
        found = least_squares(residual, start, loss=loss, f_scale=HUBER if huber else 1.0)
        if best is None or found.cost < best.cost:
            best = found
    assert best is not None
    return lambda other: published(best.x, other)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=DATA)
    table = pd.read_csv(parser.parse_args().data)
    print("mean |error| of the larger models, nats per token (root mean square)\n")
    print("up to   passes   fitted  held out   project          published         its Huber fit")
    told = []
    for size in SIZES:
        for most in PASSES:
            taken = table[table["unique_tokens"] <= most * table["tokens"]]
            small, large = (
                observations(taken[rows])
                for rows in (taken["params"] <= size, taken["params"] > size)
            )
            began = time.process_time()
            worth = repetition.estimate(small)
            law: RepetitionLaw = worth.law(repetition.law_behind(small, worth), np.zeros(1))
            seconds = time.process_time() - began
            assert large.unique is not None
            place = large.proportions(), large.n_params, large.tokens
            ours = replace(law, scarcity=1 / large.unique).predict(*place)[:, 0]
            found = [ours, *(fit_published(small, loss)(large) for loss in ("linear", "huber"))]
            errors = [f - large.losses[:, 0] for f in found]
            cells = [f"{np.abs(e).mean():.4f} ({np.sqrt((e**2).mean()):.4f})" for e in errors]
            print(
                f"{size:.1e} {most:>6.0f} {len(small.tokens):>8} {len(large.tokens):>9}   "
                + "  ".join(cells)
            )
            r, low, high = (float(x[0]) for x in worth.at(1e9))
            told.append(
                f"up to {size:.1e}, {most:.0f} passes: R at 1e9 parameters {r:.2f} "
                f"[{low:.2f}, {high:.2f}], ρ {worth.wear:.2f} ± {worth.drawn[:, -1].std():.2f}, "
                f"{seconds:.1f} CPU s"
            )
    print("", *told, sep="\n")


if __name__ == "__main__":
    main()
