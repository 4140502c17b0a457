"""Runs that continue a base model: the base's losses, and the original and the new data."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from training.record import keys
from training.record.errors import InputError
from training.record.mixtures import checked_weights, refuse_unknown

LOSS_TOLERANCE = 1e-6  # between the losses that two runs log for the same base


@dataclass(frozen=True)
class Side:
    """The original data or the new data."""

    name: str
    domains: tuple[str, ...]  # training domains
    weights: dict[str, float]  # validation domain → weight in the side's loss; sums to one


def base_losses(table: pd.DataFrame, names: Mapping[str, str]) -> dict[str, float]:
    """Losses of the base by validation domain: every run's evaluation at 0 tokens.

    `names`: run id → name. Raises InputError for a run without that evaluation, and for runs
    whose evaluations differ.
    """
    at_start = table[table[keys.TOKENS] == 0]
    columns = [c for c in table if c.startswith(keys.VAL_LOSS)]
    if missing := sorted({*table["run"]} - {*at_start["run"]}):
        raise InputError(
            f"run {names[missing[0]]!r} has no evaluation at step 0, the losses of the model that "
            "it continues; import them (tidy: rows with step 0 and tokens 0; mixinglaws: base=…)"
        )
    losses = at_start[columns].to_numpy(float)
    if (gaps := np.argwhere(np.isnan(losses))).size:
        row, column = gaps[0]
        raise InputError(
            f"run {names[at_start['run'].iloc[row]]!r} has no {columns[column]} at step 0; every "
            "run needs the base's loss on every validation domain"
        )
    differences = np.abs(losses - losses[0]).max(axis=1)
    if differences.max() > LOSS_TOLERANCE:
        first = at_start["run"].iloc[0]
        second = at_start["run"].iloc[int(differences.argmax())]
        raise InputError(
            f"runs {names[first]!r} and {names[second]!r} begin with losses that differ by "
            f"{differences.max():.4g}: they do not continue the same base; choose with runs=…"
        )
    return {c.removeprefix(keys.VAL_LOSS): float(at_start[c].iloc[0]) for c in columns}


def at_tokens(table: pd.DataFrame, tokens: int | None) -> pd.DataFrame:
    """The evaluations at one number of tokens; by default the largest that all runs share.

    Raises InputError where a run was not evaluated at it, and for runs of several sizes.
    """
    sizes = sorted(table[keys.N_PARAMS].unique())
    if len(sizes) > 1:
        raise InputError(
            f"the runs are of {len(sizes)} sizes ({', '.join(f'{n:,.0f}' for n in sizes)} "
            f"parameters); choose one with runs=\"params.{keys.N_PARAMS} = '{sizes[0]:.0f}'\""
        )
    runs = table[table[keys.TOKENS] > 0].groupby(keys.TOKENS)["run"].nunique()
    shared = runs.index[runs == table["run"].nunique()]
    if shared.empty:
        raise InputError("tokens: there is no number of tokens at which every run was evaluated")
    tokens = int(shared.max()) if tokens is None else tokens
    if tokens not in shared:
        raise InputError(
            f"tokens: not every run was evaluated at {tokens:,}; all were at "
            f"{', '.join(f'{n:,}' for n in shared)}"
        )
    return table[table[keys.TOKENS] == tokens].reset_index(drop=True)


def sides(
    table: pd.DataFrame,
    original: Sequence[str],
    new_validation: Sequence[str],
    weights: Mapping[str, float],
    objective: Mapping[str, float] | None = None,
) -> tuple[Side, Side]:
    """The original and the new data; `original` names the training domains of the original data.

    A validation domain belongs to the side that trains on a domain of its name. Without such a
    training domain it belongs to the original side, or to the new side if `new_validation` names
    it. A side without `weights` takes those of the objective, or equal weights where the objective
    gives all of its domains 0. Raises InputError.
    """
    shares = table[[c for c in table if c.startswith(keys.MIXTURE)]]
    domains = [c.removeprefix(keys.MIXTURE) for c in shares]
    trained = [c.removeprefix(keys.MIXTURE) for c in shares if (shares[c] > 0).any()]
    val_domains = [c.removeprefix(keys.VAL_LOSS) for c in table if c.startswith(keys.VAL_LOSS)]
    refuse_unknown(original, domains, "original")
    refuse_unknown(new_validation, val_domains, "new_validation")
    refuse_unknown(weights, val_domains, "weights")
    new = [d for d in trained if d not in original]
    if not set(original) & set(trained) or not new:
        raise InputError(
            "original: name the training domains that the base was trained on, some but not all "
            f"of {', '.join(trained)}"
        )
    untrained = [d for d in val_domains if d not in domains and d not in new_validation]
    validation = {
        "original": [d for d in val_domains if d in {*original, *untrained} - {*new_validation}],
        "new": [d for d in val_domains if d in {*new, *new_validation}],
    }
    if not validation["new"] or not validation["original"]:
        missing = "new" if not validation["new"] else "original"
        raise InputError(
            f"new_validation: no validation domain measures the loss on the {missing} data; say "
            f"which of {', '.join(val_domains)} are new"
        )

    def side(name: str, names: Sequence[str]) -> Side:
        return Side(name, tuple(names), _weights(name, validation[name], weights, objective or {}))

    return side("original", original), side("new", new)


def _weights(
    side: str,
    val_domains: Collection[str],
    weights: Mapping[str, float],
    objective: Mapping[str, float],
) -> dict[str, float]:
    own = {d: w for d, w in weights.items() if d in val_domains}
    inherited = {d: w for d, w in objective.items() if d in val_domains}
    own = own or (inherited if any(inherited.values()) else dict.fromkeys(val_domains, 1.0))
    if missing := [d for d in val_domains if d not in own]:
        raise InputError(
            f"weights: no weight for {', '.join(missing)} of the {side} data; give 0 to ignore one"
        )
    if not any(own.values()):
        raise InputError(
            f"weights: {', '.join(own)} of the {side} data are all 0; give weights of that side"
        )
    checked = zip(own, checked_weights(own, list(own)), strict=True)
    return {d: w for d, w in checked if w}
