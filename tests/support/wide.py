"""A predictor of many domains and losses, registered without a fit."""

import mlflow
import numpy as np

from fitting import registry
from fitting.artifact import laws
from fitting.artifact.laws import Interval, JointLaw, StackedLaw
from fitting.artifact.spec import Explored, Only, Spec, Target
from training.record import keys

REPLICATES = 40


def law(domains: int, losses: int, seed: int) -> JointLaw:
    """Every loss falls with a few of the domains."""
    rng = np.random.default_rng(seed)
    helped = rng.random((losses, 1, domains)) < 3 / domains
    slope = -rng.uniform(1, 3, helped.shape) * helped
    each = np.ones(losses)
    return JointLaw(
        power=0.5, n0=1e9, d0=1e11, alpha=0.3 * each, beta=0.3 * each, g=0 * each, h=0 * each,
        constant=0 * each, floor=rng.uniform(1, 3, losses), log_scale=np.zeros((losses, 1)),
        slope=slope, size=0.2 * each, step=0.2 * each,
    )  # fmt: skip


def spec(domains: int, losses: int, members: int = 1) -> Spec:
    """What a fit of 2 · domains mixtures would register; `members` laws are summed."""
    rng = np.random.default_rng(0)
    names = [f"domain-{i:03d}" for i in range(domains)]
    mixtures = rng.dirichlet(np.full(domains, 0.5), 2 * domains)
    parts = [law(domains, losses, seed) for seed in range(members)]

    def summed(scale: float) -> StackedLaw | JointLaw:
        shifted = [JointLaw(**{**vars(part), "slope": scale * part.slope}) for part in parts]
        return (
            StackedLaw(tuple(shifted), np.full(members, 1 / members)) if members > 1 else shifted[0]
        )

    interval = Interval(
        bootstrap=tuple(summed(x) for x in rng.normal(1, 0.05, REPLICATES)),
        residual=1e-4 * np.eye(losses), extrapolation=1e-4 * np.eye(losses),
        varying=1e-5 * np.eye(losses), quantile=1.7, n0=1e9, d0=1e11,
    )  # fmt: skip
    return Spec(
        domains=tuple(names),
        val_domains=tuple(f"loss-{i:03d}" for i in range(losses)),
        target=Target(2e9, 2e11),
        unit=keys.NATS,
        weights=tuple([1 / losses] * losses),
        law=laws.to_json(summed(1.0)),
        interval=laws.to_json(interval),
        scales=(),
        only=Only(None, None),
        mixtures=tuple(map(tuple, mixtures.tolist())),
        explored=Explored(dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.4), {}),
        val_weights={f"loss-{i:03d}": 1 / losses for i in range(losses)},
        default_mixture=dict(zip(names, rng.dirichlet(np.ones(domains)).tolist(), strict=True)),
        best_observed=dict(zip(names, mixtures[0].tolist(), strict=True)),
    )


def register(domains: int, losses: int, members: int = 1) -> str:
    """Register it in the active store; returns the version's URI."""
    with mlflow.start_run():
        return registry.register(f"wide-{domains}", spec(domains, losses, members), 0.01).uri
