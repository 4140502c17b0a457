"""What the data cannot identify, however well a law fits them."""

import numpy as np

from fitting.artifact.spec import Target
from fitting.data.observations import Observations
from training.record import keys, layout
from training.record.errors import InputError

Array = np.ndarray

SAME_SCALE = 1e-3  # relative difference of scales that are the same
SAME = 1e-9  # spread of a proportion that does not vary
SIZE_LAW = 3  # parameters of L = E + A n^-α; a step law has as many


def only_scale(observations: Observations) -> dict[str, float | None]:
    """The n_params and tokens that all runs share, the only ones a law predicts; else None."""
    o = observations
    return {
        name: float(values[0]) if np.ptp(values) == 0 else None
        for name, values in ((keys.N_PARAMS, o.n_params), (keys.TOKENS, o.tokens))
    }


def refuse_unreachable(observations: Observations, target: Target) -> None:
    """Raise InputError for a target whose scale differs from one that all runs share."""
    needed = {keys.N_PARAMS: "model sizes", keys.TOKENS: "checkpoints per run"}
    for name, only in only_scale(observations).items():
        value = getattr(target, name)
        if only is not None and abs(value / only - 1) > SAME_SCALE:
            raise InputError(
                f"{name}: the target has {value:,.0f}, every run {only:,.0f}: no law can predict "
                f"another {name}; fit runs with three or more {needed[name]}, or leave {name} out "
                "to predict at the runs' own"
            )


def refuse_constant(observations: Observations) -> None:
    """Raise InputError where no loss differs between runs."""
    if (np.ptp(observations.losses, axis=0) == 0).all():
        raise InputError(
            "every run has the same losses: there is no effect of the mixture to fit; look at the "
            "columns val_loss/<domain> of the runs"
        )


def constant_domains(observations: Observations) -> list[str]:
    """Domains whose proportion is the same in every mixture."""
    spread = np.ptp(observations.mixtures, axis=0)
    return [d for d, s in zip(observations.domains, spread, strict=True) if s < SAME]


def unidentified(observations: Observations, target: Target) -> list[str]:
    """What a fit of these observations cannot identify, one sentence for each problem."""
    o = observations
    problems = []
    domains = len(o.domains)
    constant = constant_domains(o)
    shares = {d: float(o.mixtures[0, o.domains.index(d)]) for d in constant}
    if len(constant) == 1:
        problems.append(
            f"domain {constant[0]!r} has the proportion {shares[constant[0]]:.3g} in every "
            "mixture: its effect cannot be separated from what all mixtures share"
        )
    elif constant:
        names = layout.short(constant)
        ordered = sorted(constant, key=lambda d: -shares[d])
        listed = layout.some([f"{names[d]} {shares[d]:.3g}" for d in ordered])
        problems.append(
            f"{len(constant)} domains have the same proportion in every mixture ({listed}): their "
            "effects cannot be separated from what all mixtures share"
        )
    if same := [d for d, x in zip(o.val_domains, o.losses.T, strict=True) if np.ptp(x) == 0]:
        problems.append(
            f"validation domains with the same loss in all runs ({layout.some(same)}): they say "
            "nothing of the mixture"
        )
    rank = int(np.linalg.matrix_rank(o.mixtures - o.mixtures.mean(axis=0), tol=1e-6))
    free = domains - len(constant) - 1
    if rank < free:
        problems.append(
            f"the mixtures vary in {rank} of {free} directions: some domains' effects cannot be "
            "separated"
        )
    if len(o.mixtures) < domains + 2:
        problems.append(
            f"{len(o.mixtures)} mixtures for the {domains + 2} parameters of a mixing law of "
            f"{domains} domains: the ridge determines the rest"
        )
    sizes, lengths = len(np.unique(o.n_params)), _most_checkpoints(o)
    if 1 < sizes < SIZE_LAW and target.n_params > o.n_params.max():
        problems.append(
            f"{sizes} sizes for the three parameters of the size law: its exponent is assumed, "
            "not fitted; train a third size before you trust a larger target"
        )
    if 1 < lengths < SIZE_LAW and target.tokens > o.tokens.max():
        problems.append(
            f"{lengths} checkpoints per run for the three parameters of the step law: its exponent "
            "is assumed, not fitted; evaluate more often before you trust a longer target"
        )
    scales = np.column_stack([np.ones(len(o.losses)), np.log(o.n_params), np.log(o.tokens)])
    if sizes > 1 and lengths == 1 and np.ptp(o.tokens) > 0 and np.linalg.matrix_rank(scales) < 3:
        problems.append(
            "sizes and lengths vary together: their effects cannot be separated; train a size for "
            "two lengths before you trust a target beyond that line"
        )
    return problems


def _most_checkpoints(observations: Observations) -> int:
    return int(np.bincount(observations.run_of).max())
