"""Runs that continue a base model: its losses, and what tells of the original data and the new."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from training.record import keys
from training.record.errors import InputError
from training.record.mixtures import checked_weights, refuse_unknown

SAME = 1e-6  # between what two runs tell of their base


@dataclass(frozen=True)
class Side:
    """The original data, or the new."""

    name: str
    domains: tuple[str, ...]  # training domains
    weights: dict[str, float]  # validation domain → weight in the side's loss; sums to one


def base_losses(table: pd.DataFrame, names: Mapping[str, str]) -> dict[str, float]:
    """What the base loses, by validation domain: the evaluation at 0 tokens of every run.

    `names` are those of the runs. Raises InputError where there is none, and where runs disagree.
    """
    before = table[table[keys.TOKENS] == 0]
    columns = [c for c in table if c.startswith(keys.VAL_LOSS)]
    if lacking := sorted({*table["run"]} - {*before["run"]}):
        raise InputError(
            f"run {names[lacking[0]]!r} has no evaluation at step 0, the losses of the model that "
            "it continues; import them (tidy: rows with step 0 and tokens 0; mixinglaws: base=…)"
        )
    losses = before[columns].to_numpy(float)
    if (gaps := np.argwhere(np.isnan(losses))).size:
        row, column = gaps[0]
        raise InputError(
            f"run {names[before['run'].iloc[row]]!r} has no {columns[column]} at step 0; every run "
            "needs the base's loss on every validation domain"
        )
    off = np.abs(losses - losses[0]).max(axis=1)
    if off.max() > SAME:
        one, other = before["run"].iloc[0], before["run"].iloc[int(off.argmax())]
        raise InputError(
            f"runs {names[one]!r} and {names[other]!r} begin with losses that differ by "
            f"{off.max():.4g}: they do not continue the same base; choose with runs=…"
        )
    return {c.removeprefix(keys.VAL_LOSS): float(before[c].iloc[0]) for c in columns}


def at_tokens(table: pd.DataFrame, tokens: int | None) -> pd.DataFrame:
    """The evaluations at one number of tokens; by default the most that all runs have.

    Raises InputError where not every run has one, and for runs of several sizes.
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
    wanted = int(shared.max()) if tokens is None else tokens
    if wanted not in shared:
        raise InputError(
            f"tokens: not every run was evaluated at {wanted:,}; all were at "
            f"{', '.join(f'{n:,}' for n in shared)}"
        )
    return table[table[keys.TOKENS] == wanted].reset_index(drop=True)


def sides(
    table: pd.DataFrame,
    original: Sequence[str],
    new_validation: Sequence[str],
    weights: Mapping[str, float],
    objective: Mapping[str, float] | None = None,
) -> tuple[Side, Side]:
    """The original data and the new, by the training domains that are original.

    A validation domain belongs to the side that trains on a domain of its name; those that are
    named like no training domain to the original side, or to the new one by `new_validation`.
    A side for which no weights are given has those of the objective, or equal ones where it counts
    nothing in that. Raises InputError.
    """
    shares = table[[c for c in table if c.startswith(keys.MIXTURE)]]
    domains = [c.removeprefix(keys.MIXTURE) for c in shares]
    trained = [c.removeprefix(keys.MIXTURE) for c in shares if (shares[c] > 0).any()]
    val_domains = [c.removeprefix(keys.VAL_LOSS) for c in table if c.startswith(keys.VAL_LOSS)]
    refuse_unknown(original, domains, "original")
    refuse_unknown(new_validation, val_domains, "new_validation")
    refuse_unknown(weights, val_domains, "weights")
    others = [d for d in trained if d not in original]
    if not set(original) & set(trained) or not others:
        raise InputError(
            "original: name the training domains that the base was trained on, some but not all "
            f"of {', '.join(trained)}"
        )
    other = [d for d in val_domains if d not in domains and d not in new_validation]
    told = {
        "original": [d for d in val_domains if d in {*original, *other} - {*new_validation}],
        "new": [d for d in val_domains if d in {*others, *new_validation}],
    }
    if not told["new"] or not told["original"]:
        lacking = "new" if not told["new"] else "original"
        raise InputError(
            f"new_validation: no validation domain tells the loss on the {lacking} data; say which "
            f"of {', '.join(val_domains)} are new"
        )

    def side(name: str, names: Sequence[str]) -> Side:
        return Side(name, tuple(names), _weights(name, told[name], weights, objective or {}))

    return side("original", original), side("new", others)


def _weights(
    side: str,
    val_domains: Collection[str],
    given: Mapping[str, float],
    objective: Mapping[str, float],
) -> dict[str, float]:
    own = {d: w for d, w in given.items() if d in val_domains}
    inherited = {d: w for d, w in objective.items() if d in val_domains}
    own = own or (inherited if any(inherited.values()) else dict.fromkeys(val_domains, 1.0))
    if lacking := [d for d in val_domains if d not in own]:
        raise InputError(
            f"weights: no weight for {', '.join(lacking)} of the {side} data; give 0 to ignore one"
        )
    if not any(own.values()):
        raise InputError(
            f"weights: {', '.join(own)} of the {side} data are all 0; give weights of that side"
        )
    checked = zip(own, checked_weights(own, list(own)), strict=True)
    return {d: w for d, w in checked if w}
