"""Runs of an earlier study, fitted together with those of one that has other domains.

A domain that was added since has the proportion 0 in them, and one that was split is the sum of its
parts (docs/math.md, "Reuse"). Tables are tidy: a row an evaluation.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from fitting.data import histories
from fitting.data.histories import Histories, Purpose
from training.record import keys, layout
from training.record.errors import InputError
from training.record.mixtures import checked_mixture, refuse_unknown

Splits = Mapping[str, Mapping[str, float]]  # old domain → new domain → its share of the old one


@dataclass(frozen=True)
class Reuse:
    """Which old runs are fitted too, and what became of their domains."""

    runs: str = ""
    """An MLflow filter string; empty: none."""
    splits: Splits = field(default_factory=dict)


def pull(
    experiment_ids: Sequence[str], runs: str, old: Reuse, *, unplanned: bool = True
) -> Histories:
    """The histories of the runs that a filter string selects and of the old ones, on the domains
    of the former.

    Raises InputError as `histories.pull` and `split` do, and for an old domain that is unknown now.
    """
    pulled = histories.pull(experiment_ids, runs, old.runs, unplanned=unplanned)
    table = split(pulled.table, old.splits, pulled.names)
    _refuse_unknown_domains(table, pulled)
    return replace(pulled, table=table)


def _refuse_unknown_domains(table: pd.DataFrame, pulled: Histories) -> None:
    """Raise InputError for reused runs that were trained on a domain which the others know not."""
    old = table[table["run"].isin(pulled.reused)]
    for name in _named(table, keys.MIXTURE):
        trained = old.loc[old[keys.MIXTURE + name] > 0, "run"].nunique()
        if trained and name not in pulled.domains:
            raise InputError(
                f"reuse: {trained} runs were trained on {name!r}, which the runs that they would "
                f"join do not have; say what it became (split={name}=…), keep it in the new study "
                "within the bounds [0, 0], or choose other runs"
            )


def split(table: pd.DataFrame, splits: Splits, names: Mapping[str, str]) -> pd.DataFrame:
    """The table with the proportion of each old domain given to the new ones that hold its text.

    A loss is a mean over tokens: a run that has none of the old validation domain, but those of
    its parts, has their mean in the same shares. names are those of the runs, by id. Raises
    InputError for shares that do not sum to one, an unknown domain, and a run that has the old
    domain and a part of it.
    """
    domains = _named(table, keys.MIXTURE)
    refuse_unknown(splits, domains, "split")
    left = [name for name in domains if name not in splits]
    new = table.copy()
    for old, parts in splits.items():
        if both := splits.keys() & parts:
            raise InputError(
                f"split: {old!r}: a part has the name of a domain that is split, {min(both)!r}; "
                "give the part another name in the new study"
            )
        shares = checked_mixture(parts, left, f"split: {old!r}")
        _refuse_whole_and_part(table, old, parts, names)
        for part in parts:
            new[keys.MIXTURE + part] += shares[part] * table[keys.MIXTURE + old]
        losses = [keys.VAL_LOSS + part for part in parts]
        if {keys.VAL_LOSS + old, *losses} <= set(table):
            mean = table[losses] @ [shares[part] for part in parts]
            new[keys.VAL_LOSS + old] = table[keys.VAL_LOSS + old].fillna(mean)
    return new.drop(columns=[keys.MIXTURE + old for old in splits])


def _refuse_whole_and_part(
    table: pd.DataFrame, old: str, parts: Iterable[str], names: Mapping[str, str]
) -> None:
    trained = table[[keys.MIXTURE + part for part in parts]].gt(0).any(axis=1)
    both = table.loc[trained & (table[keys.MIXTURE + old] > 0), "run"]
    if len(both):
        name = names.get(both.iloc[0], both.iloc[0])
        raise InputError(f"split: run {name!r} has the domain {old!r} and a part of it at once")


def weights(purpose: Purpose, pulled: Histories) -> dict[str, float]:
    """The weights of the sweeps above the runs; a validation domain that they do not know, and
    reused runs do, weighs nothing."""
    if not (purpose.weights and pulled.reused):
        return purpose.weights
    return {**dict.fromkeys(_named(pulled.table, keys.VAL_LOSS), 0.0), **purpose.weights}


def common_losses(
    table: pd.DataFrame, given: Mapping[str, float], reused: Collection[str]
) -> tuple[pd.DataFrame, dict[str, float], list[str]]:
    """The table and the weights given, without the validation domains that weigh nothing and of
    which some runs have no loss at all; and notes that name them.

    No weights are equal ones. With reused runs, raises InputError for a domain that counts and
    that some run lacks: a fit would have to do without all those runs.
    """
    columns = [c for c in table if c.startswith(keys.VAL_LOSS)]
    missing = table.groupby("run")[columns].count() == 0  # (runs, V)
    without = {c.removeprefix(keys.VAL_LOSS): missing[c] for c in columns if missing[c].any()}
    ignored = [name for name in without if given.get(name) == 0]
    for name, lacking in without.items():
        if reused and name not in ignored:
            raise InputError(_not_common(name, int(lacking.sum()), len(lacking)))
    notes = [
        f"validation domain {name!r} left out: it weighs nothing, and {without[name].sum()} runs "
        "have no loss of it"
        for name in ignored
    ]
    kept = table.drop(columns=[keys.VAL_LOSS + name for name in ignored])
    return kept, {name: w for name, w in given.items() if name not in ignored}, notes


def _not_common(name: str, lacking: int, runs: int) -> str:
    return (
        f"reuse: {lacking} of {runs} runs have no loss of validation domain {name!r}, which counts "
        f"in the objective; give it weight 0 in weights ({name}=0; of a domain that was split, "
        "weigh the old one instead of its parts), or fit the new runs without reuse: within a "
        "bundle of the unchanged domains a handful of mixtures is enough"
    )


def told(table: pd.DataFrame, reused: Collection[str], splits: Splits) -> list[str]:
    """How many old runs a fit reuses, and what they lack, for its summary."""
    old = table["run"].isin(reused)
    notes = [
        f"split: {name!r} taken as "
        + " + ".join(f"{share:g} {part}" for part, share in parts.items())
        + ", its loss as their mean in these shares where a run has theirs alone"
        for name, parts in splits.items()
    ]
    if not old.any():
        return notes
    shares = table[[keys.MIXTURE + name for name in _named(table, keys.MIXTURE)]] > 0
    absent = shares[~old].any() & ~shares[old].any()
    lacked = [c.removeprefix(keys.MIXTURE) for c in shares.columns[absent]]
    runs = table["run"]
    line = f"{runs[old].nunique()} of {runs.nunique()} runs are reused" + (
        f"; none of those was trained on {layout.some(lacked)}" if lacked else ""
    )
    return [line, *notes]


def _named(table: pd.DataFrame, prefix: str) -> list[str]:
    return [c.removeprefix(prefix) for c in table if c.startswith(prefix)]
