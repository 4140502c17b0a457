"""Run tables made from a known law."""

from dataclasses import replace

import numpy as np
import pandas as pd

from fitting.artifact.laws import JointLaw, Law, MixingLaw, StackedLaw
from fitting.data.observations import Observations
from fitting.estimators import joint, published
from training.record import keys

DOMAINS = ("web", "code", "papers")
VAL_DOMAINS = ("news", "code", "papers", "books")
SIZES = (1e6, 4e6, 16e6)
TOKENS = (1e8, 2e8, 4e8, 8e8)
TARGET = {"n_params": 64e6, "tokens": 3.2e9}
MIXTURE = {"mixture/web": 0.5, "mixture/code": 0.3, "mixture/papers": 0.2}  # as columns


def joint_law(*, power: float = 1.0, g: float = 0.0, terms: int = 1) -> JointLaw:
    """A law like those seen: each validation domain is helped most by one training domain.

    With g the mixture's effect shrinks with the tokens, around a mixture's mean effect of 0.
    """
    slope = np.array([[-1.5, 0.3, -0.2], [0.4, -2.5, 0.1], [0.1, 0.2, -2.0], [-0.8, 0.2, -0.9]])
    slope = slope if power else slope / 4  # a logarithm has a longer range
    slopes = np.stack([slope, -2 * slope][:terms], axis=1)
    log_scale = np.log([[0.8, 0.1], [1.1, 0.1], [0.9, 0.1], [0.6, 0.1]])[:, :terms]
    floor = np.array([1.8, 0.9, 1.5, 2.1])
    law = JointLaw(
        power=power,
        n0=16e6,
        d0=8e8,
        alpha=np.full(4, 0.35),
        beta=np.full(4, 0.5),
        g=np.full(4, g),
        h=np.zeros(4),
        constant=np.zeros(4),
        floor=floor,
        log_scale=log_scale,
        slope=slopes,
        size=np.array([0.30, 0.25, 0.35, 0.28]),
        step=np.array([0.20, 0.15, 0.18, 0.22]),
    )
    if not g:
        return law
    effect = MixingLaw(power, np.zeros(4), log_scale, slopes).predict(mixtures(200)).mean(axis=0)
    return replace(law, constant=floor + effect, floor=-effect)


def mixtures(count: int, seed: int = 0, domains: tuple[str, ...] = DOMAINS) -> np.ndarray:
    """Seeded Dirichlet mixtures, (count, M)."""
    return np.random.default_rng(seed).dirichlet(np.ones(len(domains)), count)


def table(
    law: Law,
    count: int = 12,
    *,
    noise: float = 0.0,
    sizes: tuple[float, ...] = SIZES,
    tokens: tuple[float, ...] = TOKENS,
    seed: int = 0,
    domains: tuple[str, ...] = DOMAINS,
) -> pd.DataFrame:
    """The tidy table of every mixture at every size, with noise of this standard deviation."""
    rng = np.random.default_rng(seed + 1)
    rows = []
    for m, mixture in enumerate(mixtures(count, seed, domains)):
        for n in sizes:
            losses = law.predict(
                np.tile(mixture, (len(tokens), 1)), np.full(len(tokens), n), np.array(tokens)
            )
            losses = losses + noise * rng.standard_normal(losses.shape)
            for d, row in zip(tokens, losses, strict=True):
                rows.append(
                    {
                        "run": f"mix{m:02d}-{n:.0f}",
                        keys.N_PARAMS: n,
                        keys.TOKENS: d,
                        "step": d / 1e5,
                        **{f"{keys.MIXTURE}{d}": r for d, r in zip(domains, mixture, strict=True)},
                        **{f"{keys.VAL_LOSS}{v}": x for v, x in zip(VAL_DOMAINS, row, strict=True)},
                    }
                )
    return pd.DataFrame(rows)


def published_law(method: str, seed: int = 0) -> Law:
    """A law of another form, near where its fit would start."""
    o = Observations.from_tidy(table(joint_law(power=0.5)))
    o = replace(o, val_domains=("papers", "code", "web", "code"))
    rows = published.rows_of(o, method, joint.fit_scales(o, shrinking=False))
    _, start, law = published.METHODS[method]
    theta = start(rows)
    return law(rows, theta + np.random.default_rng(seed).normal(0, 0.2, theta.shape))


def stacked_law() -> StackedLaw:
    """A weighted sum of laws of four kinds."""
    others = [published_law(m) for m in ("shukor_additive", "shukor_joint", "power_sum")]
    return StackedLaw((joint_law(power=0.5, g=0.1), *others), np.array([0.4, 0.1, 0.3, 0.2]))
