"""Runs of phases made from a known law of a schedule."""

import numpy as np
import pandas as pd

from fitting.artifact.laws import ScheduleLaw
from fitting.data.phase_observations import LABEL, PHASE, TRUNK
from training.record import keys

Array = np.ndarray
DOMAINS = ("web", "code", "papers", "books")
SCRATCH = "scratch"
MIXTURES = 12
NOISE = 0.003  # nats per token


def truth(domains: int = 4, seed: int = 0) -> ScheduleLaw:
    """Three phases in each of which a domain helps itself most, and others a little."""
    rng = np.random.default_rng(seed)
    shape = (3, domains)
    slope = rng.normal(0, 0.2, (*shape, 1, domains))
    slope[:, range(domains), 0, range(domains)] -= 1.8
    kept = rng.uniform(0.2, 0.7, shape)
    kept[0] = 0
    return ScheduleLaw(
        power=0.5,
        tokens=np.array([1e8, 2e8, 3e8]),
        kept=kept,
        floor=rng.uniform(0.8, 1.6, shape),
        log_scale=np.log(rng.uniform(0.6, 1.2, (*shape, 1))),
        slope=slope,
    )


def table(law: ScheduleLaw, noise: float = NOISE, trunks: int = 3, seed: int = 0) -> pd.DataFrame:
    """Each mixture from each trunk in every phase; a trunk goes on unchanged."""
    rng = np.random.default_rng(seed)
    count = law.slope.shape[-1]
    mixtures = np.vstack([np.eye(count)[:trunks] * 0.6 + 0.4 / count, _drawn(rng, count, trunks)])
    names = [f"m{i:02d}" for i in range(MIXTURES)]
    rows = []
    states = {SCRATCH: np.full(count, np.nan)}
    for k in range(len(law.tokens)):
        ends = {}
        for trunk, before in states.items():
            adds = law.phase(k).predict(mixtures) + noise * rng.standard_normal((MIXTURES, count))
            after = law.kept[k] * np.nan_to_num(before) + adds
            for name, mixture, losses in zip(names, mixtures, after, strict=True):
                ends[trunk, name] = losses
                rows.append(
                    {PHASE: k + 1, TRUNK: trunk, LABEL: name}
                    | _named(keys.MIXTURE, mixture)
                    | _named(keys.BEFORE, before)
                    | _named(keys.VAL_LOSS, losses)
                )
        states = {t: ends[t if k else SCRATCH, t] for t in names[:trunks]}
    return pd.DataFrame(rows)


def _drawn(rng: np.random.Generator, count: int, trunks: int) -> Array:
    return rng.dirichlet(np.ones(count), MIXTURES - trunks)


def _named(prefix: str, values: Array) -> dict[str, float]:
    return {prefix + d: x for d, x in zip(DOMAINS[: len(values)], values.tolist(), strict=True)}
