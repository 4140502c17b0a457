"""Fit runs of an earlier study together with those of a study that has different domains.

In the old runs, a domain that was added since has the proportion 0, and a domain that was split is
the sum of its parts (docs/math.md, "Reuse"). Tables are tidy: each row is one evaluation.
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
    """Which old runs are fitted too, and how their domains were split."""

    runs: str = ""
    """An MLflow filter string; empty selects none."""
    splits: Splits = field(default_factory=dict)


def pull(
    experiment_ids: Sequence[str],
    runs: str,
    old: Reuse,
    *,
    unplanned: bool = True,
    unit: str = "",
) -> Histories:
    """The histories of the new runs that a filter string selects and of the old runs, on the
    domains of the new runs; in a unit, as `histories.pull` reads them.

    Raises InputError as `histories.pull` and `split` do, and for an old domain that the new runs
    do not have.
    """
    pulled = histories.pull(experiment_ids, runs, old.runs, unplanned=unplanned, unit=unit)
    if old.splits and pulled.unit == keys.BITS:
        raise InputError(
            "split: the parts of a domain are shares of its tokens, by which bits per byte cannot "
            f"be averaged; fit with unit={keys.NATS}"
        )
    table = split(pulled.table, old.splits, pulled.names)
    _refuse_unknown_domains(table, pulled)
    return replace(pulled, table=table)


def _refuse_unknown_domains(table: pd.DataFrame, pulled: Histories) -> None:
    """Raise InputError for reused runs that were trained on a domain the new runs do not have."""
    old = table[table["run"].isin(pulled.reused)]
    for name in _domain_names(table, keys.MIXTURE):
        trained = old.loc[old[keys.MIXTURE + name] > 0, "run"].nunique()
        if trained and name not in pulled.domains:
            raise InputError(
                f"reuse: {trained} runs were trained on {name!r}, which is not a domain of the new "
                f"runs; say what it became (split={name}=…), keep it in the new study within the "
                "bounds [0, 0], or choose other runs"
            )


def split(table: pd.DataFrame, splits: Splits, names: Mapping[str, str]) -> pd.DataFrame:
    """The table with the proportion of each old domain moved to the new domains that hold its text.

    A loss is a mean over tokens. So where a run has no loss for the old validation domain but
    losses for its parts, the old domain's loss is their mean, weighted by the shares. `names`: run
    id → name. Raises InputError for shares that do not sum to one, an unknown domain, and a run
    that has the old domain and a part of it.
    """
    domains = _domain_names(table, keys.MIXTURE)
    refuse_unknown(splits, domains, "split")
    unsplit = [name for name in domains if name not in splits]
    new = table.copy()
    for old, parts in splits.items():
        if both := splits.keys() & parts:
            raise InputError(
                f"split: {old!r}: a part has the name of a domain that is split, {min(both)!r}; "
                "give the part another name in the new study"
            )
        shares = checked_mixture(parts, unsplit, f"split: {old!r}")
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
        raise InputError(f"split: run {name!r} has the domain {old!r} and a part of it")


def weights(purpose: Purpose, pulled: Histories) -> dict[str, float]:
    """The weights of the sweeps above the runs; a validation domain that only reused runs have
    gets weight 0."""
    if not (purpose.weights and pulled.reused):
        return purpose.weights
    return {**dict.fromkeys(_domain_names(pulled.table, keys.VAL_LOSS), 0.0), **purpose.weights}


def common_losses(
    table: pd.DataFrame, weights: Mapping[str, float], reused: Collection[str]
) -> tuple[pd.DataFrame, dict[str, float], list[str]]:
    """The table and the weights without the validation domains that have weight 0 and that some
    runs have no loss for; and notes that name those domains.

    Empty weights stand for equal ones. With reused runs, raises InputError for a domain that has a
    weight and that some runs lack, since a fit would have to leave all those runs out.
    """
    columns = [c for c in table if c.startswith(keys.VAL_LOSS)]
    missing = table.groupby("run")[columns].count() == 0  # (runs, V)
    without = {c.removeprefix(keys.VAL_LOSS): missing[c] for c in columns if missing[c].any()}
    ignored = [name for name in without if weights.get(name) == 0]
    for name, lacks in without.items():
        if reused and name not in ignored:
            raise InputError(_not_common(name, int(lacks.sum()), len(lacks)))
    notes = [
        f"validation domain {name!r} left out: its weight is 0, and {without[name].sum()} runs "
        "have no loss for it"
        for name in ignored
    ]
    table = table.drop(columns=[keys.VAL_LOSS + name for name in ignored])
    return table, {name: w for name, w in weights.items() if name not in ignored}, notes


def _not_common(name: str, lacking: int, runs: int) -> str:
    return (
        f"reuse: {lacking} of {runs} runs have no loss for validation domain {name!r}, which "
        f"counts in the objective; give it weight 0 in weights ({name}=0; for a domain that was "
        "split, weight the old domain instead of its parts), or fit the new runs without reuse: "
        "within a bundle of the unchanged domains a handful of mixtures is enough"
    )


def summary(table: pd.DataFrame, reused: Collection[str], splits: Splits) -> list[str]:
    """Lines for a fit's summary: how many old runs it reuses, and which domains they lack."""
    old = table["run"].isin(reused)
    notes = [
        f"split: {name!r} taken as "
        + " + ".join(f"{share:g} {part}" for part, share in parts.items())
        + "; where a run has losses for the parts only, its loss is their mean in these shares"
        for name, parts in splits.items()
    ]
    if not old.any():
        return notes
    shares = table[[keys.MIXTURE + name for name in _domain_names(table, keys.MIXTURE)]] > 0
    absent = shares[~old].any() & ~shares[old].any()
    new_domains = [c.removeprefix(keys.MIXTURE) for c in shares.columns[absent]]
    runs = table["run"]
    line = f"{runs[old].nunique()} of {runs.nunique()} runs are reused" + (
        f"; none of them was trained on {layout.some(new_domains)}" if new_domains else ""
    )
    return [line, *notes]


def _domain_names(table: pd.DataFrame, prefix: str) -> list[str]:
    return [c.removeprefix(prefix) for c in table if c.startswith(prefix)]
