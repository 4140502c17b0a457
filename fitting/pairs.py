"""Two CSV files, mixtures and losses, one row a run: the form that RegMix and Olmix publish."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fitting import foreign
from fitting.foreign import IDS, RUN, SCALE, STEP, Found
from training import record
from training.errors import InputError

NEAR_ONE = 0.05  # by which most rows of a file of mixtures may miss 1


def pair(source: str, n_params: int | None, tokens: int | None, strip: Sequence[str]) -> Found:
    """The runs of two CSV files, joined by the values of the column `index` or `run`.

    `source` names both files or their folder. `n_params` and `tokens` hold for all runs when the
    files have no such columns. The texts in `strip` are removed from the ends of column names.
    Raises InputError.
    """
    mixtures_path, losses_path, mixtures, losses = _told_apart(_paths(source))
    by = _joined_by(mixtures, losses, f"{mixtures_path} and {losses_path}")
    mixtures = _renamed(mixtures, by, record.MIXTURE, strip, mixtures_path)
    losses = _renamed(losses, by, record.VAL_LOSS, strip, losses_path)
    if shared := [c for c in SCALE if c in mixtures and c in losses]:
        raise InputError(f"{mixtures_path} and {losses_path} both have a column {shared[0]!r}")
    mixtures, notes = foreign.normalised(foreign.checked(mixtures))
    losses = foreign.checked(losses)
    if not foreign.named(losses, record.VAL_LOSS):
        raise InputError(f"{losses_path}: no column of losses")
    _refuse_unmatched(mixtures, losses, mixtures_path, losses_path)
    table = losses.join(mixtures.set_index(RUN), on=RUN)
    given = {record.N_PARAMS: n_params, record.TOKENS: tokens, STEP: 1}
    if twice := [c for c, value in given.items() if c in table and c != STEP and value]:
        raise InputError(f"{twice[0]}: it is a column of the files already; give it once")
    unknown = [c for c, value in given.items() if c not in table and value is None]
    for column in (c for c in SCALE if c not in table):
        table[column] = given[column] or 1
    if unknown:
        options = " ".join(f"-P {column}=…" for column in unknown)
        notes += (
            f"{' and '.join(unknown)} of the runs: not known, taken as 1 for all; a fit then tells "
            f"mixtures apart but nothing about scale; give {options} where you know it",
        )
    return Found(foreign.runs(table), notes)


def _paths(source: str) -> list[str]:
    """The two files that a comma-separated list or a folder holds."""
    folder = Path(source)
    if folder.is_dir():
        paths = sorted(str(path) for path in folder.glob("*.csv"))
    else:
        paths = [part.strip() for part in source.split(",")]
    if len(paths) != 2:
        raise InputError(
            f"source: {source} is {len(paths)} CSV files; a pair is two, mixtures.csv,losses.csv, "
            "or a folder that holds only these"
        )
    return paths


def _told_apart(paths: Sequence[str]) -> tuple[str, str, pd.DataFrame, pd.DataFrame]:
    """Paths and tables of the mixtures and the losses, whichever comes first."""
    tables = [foreign.read(path) for path in paths]
    holds = [_holds_mixtures(table) for table in tables]
    if sum(holds) != 1:
        raise InputError(
            f"source: the rows of {' and '.join(paths)} {'both' if all(holds) else 'do not'} sum "
            "to 1, so that mixtures and losses cannot be told apart; proportions must sum to 1"
        )
    m, v = (0, 1) if holds[0] else (1, 0)
    return paths[m], paths[v], tables[m], tables[v]


def _holds_mixtures(table: pd.DataFrame) -> bool:
    """Whether the columns say so, or else most rows sum to 1."""
    for prefix in (record.MIXTURE, record.VAL_LOSS):
        if foreign.named(table, prefix):
            return prefix == record.MIXTURE
    domains = table.drop(columns=[*IDS, *SCALE], errors="ignore")
    values = domains.apply(pd.to_numeric, errors="coerce")
    return bool(((values.sum(axis=1) - 1).abs() < NEAR_ONE).mean() >= 0.5)


def _joined_by(mixtures: pd.DataFrame, losses: pd.DataFrame, files: str) -> str:
    ids = [c for c in IDS if c in mixtures or c in losses]
    if len(ids) != 1 or ids[0] not in mixtures or ids[0] not in losses:
        raise InputError(
            f"{files}: both need the same one column 'index' or 'run' that tells which row of one "
            f"belongs to which of the other; found {', '.join(ids) or 'none'}"
        )
    return ids[0]


def _renamed(
    table: pd.DataFrame, by: str, prefix: str, strip: Sequence[str], path: str
) -> pd.DataFrame:
    """The table with the tidy names: run, n_params, tokens, step and prefix + domain."""
    names = {by: RUN}
    for column in (c for c in table if c not in (by, *SCALE)):
        domain = column.removeprefix(prefix)
        for text in strip:
            domain = domain.removeprefix(text).removesuffix(text)
        if not domain or prefix + domain in names.values():
            raise InputError(
                f"strip: it leaves {domain!r} of column {column!r} of {path}, which "
                + ("another column is called already" if domain else "is no name")
            )
        names[column] = prefix + domain
    return table.rename(columns=names)


def _refuse_unmatched(
    mixtures: pd.DataFrame, losses: pd.DataFrame, mixtures_path: str, losses_path: str
) -> None:
    """Raise InputError for runs that one file has twice, or that only one file has."""
    if (twice := mixtures[RUN].duplicated()).any():
        row = int(np.argmax(twice))
        raise InputError(f"{mixtures.index[row]}: run {mixtures[RUN].iloc[row]!r} is there twice")
    for one, path, other, other_path in (
        (mixtures, mixtures_path, losses, losses_path),
        (losses, losses_path, mixtures, mixtures_path),
    ):
        if alone := list(dict.fromkeys(one[RUN][~one[RUN].isin(other[RUN])])):
            raise InputError(
                f"{len(alone)} runs are in {path} but not in {other_path}: "
                f"{', '.join(alone[:5])}{' …' if len(alone) > 5 else ''}; remove or complete them"
            )
