"""Tables of run histories in files → runs; every mistake is named by its file, row and column."""

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from training import record
from training.errors import InputError

RUN, STEP = "run", "step"
SCALE = (record.N_PARAMS, record.TOKENS, STEP)
IDS = ("index", RUN)  # columns that name runs: read as text
NAME = re.compile(r"[\w.\-: ]+(/[\w.\-: ]+)*")  # what MLflow takes
MOST_DECIMALS = 6
MOST_ROUNDING = 0.05  # by which a sum of rounded proportions may miss 1
EXACT = 1e-12  # a sum this near 1 stays as it is, so that a table survives export and import


@dataclass(frozen=True)
class ForeignRun:
    """A run that was trained elsewhere."""

    name: str
    n_params: int  # non-embedding parameters
    mixture: dict[str, float]  # sums to one
    history: record.History
    params: dict[str, str] = field(default_factory=dict)  # what else its source tells
    check: bool = False  # never fitted


@dataclass(frozen=True)
class Found:
    """The runs of a source, and what the user should know about how they were read."""

    runs: tuple[ForeignRun, ...]
    notes: tuple[str, ...] = ()

    def val_domains(self) -> list[str]:
        """The validation domains of all runs."""
        return list(dict.fromkeys(name for run in self.runs for name in run.history.domains))


def tidy(path: str) -> Found:
    """The runs of a CSV or Parquet file in the form that `export` writes.

    Columns run, n_params, tokens, step, mixture/<domain>…, val_loss/<domain>…; an empty loss is
    a missing one. Raises InputError.
    """
    table = read(path)
    shares, losses = named(table, record.MIXTURE), named(table, record.VAL_LOSS)
    form = f"run, n_params, tokens, step, {record.MIXTURE}<domain>…, {record.VAL_LOSS}<domain>…"
    if unknown := [c for c in table if c not in (RUN, *SCALE, *shares, *losses)]:
        raise InputError(f"{path}: unknown column {unknown[0]!r}; a tidy table has {form}")
    missing = [c for c in (RUN, *SCALE) if c not in table]
    missing += [f"{p}<domain>" for p in (record.MIXTURE, record.VAL_LOSS) if not named(table, p)]
    if missing:
        raise InputError(f"{path}: no column {missing[0]!r}; a tidy table has {form}")
    table, notes = normalised(checked(table))
    return Found(runs(table), notes)


def read(path: str) -> pd.DataFrame:
    """The table in a CSV or Parquet file; its index names each row's place in the file."""
    file = Path(path)
    try:
        if file.suffix == ".parquet":
            table, word, first = pd.read_parquet(file), "row", 1
            header = list(table)
        else:
            ids = dict.fromkeys(IDS, str)
            table, word, first = pd.read_csv(file, dtype=ids, skip_blank_lines=False), "line", 2
            header = pd.read_csv(file, header=None, nrows=1, dtype=str).loc[0].tolist()
    except (OSError, ValueError) as error:  # what pandas raises for no or bad CSV is a ValueError
        raise InputError(f"{file.absolute()} cannot be read as a table: {error}") from error
    if not isinstance(table.index, pd.RangeIndex):
        raise InputError(f"{path}: its rows have more fields than its header")
    for i, name in enumerate(header):
        if not isinstance(name, str):
            raise InputError(f"{path}: column {i + 1} has no name; name or remove it")
        if name in header[:i]:
            raise InputError(f"{path}: column {name!r} is there twice")
    table.index = [f"{path}, {word} {first + i}" for i in range(len(table))]
    table = table.dropna(how="all")  # blank lines
    if table.empty:
        raise InputError(f"{path}: it has no rows")
    return table


def named(table: pd.DataFrame, prefix: str) -> list[str]:
    """The columns whose names begin with a prefix."""
    return [c for c in table if c.startswith(prefix)]


def checked(table: pd.DataFrame) -> pd.DataFrame:
    """The table with numbers in all columns but `run`; InputError names the first bad cell."""
    for column in (c for c in table if not NAME.fullmatch(c)):
        raise InputError(
            f"{table.index[0].rsplit(',', 1)[0]}: column {column!r}: MLflow takes letters, digits, "
            "spaces and _ - . : / in the name of a domain; rename it"
        )
    _refuse(table, table[[RUN]].isna(), "must name the run")
    numbers = table.drop(columns=RUN).apply(pd.to_numeric, errors="coerce").astype(float)
    _refuse(table, numbers.isna() & table[list(numbers)].notna(), "must be a number")
    for column, least in ((record.N_PARAMS, 1), (record.TOKENS, 0), (STEP, 0)):
        counts = numbers[[c for c in [column] if c in numbers]]
        whole = (counts >= least) & (counts % 1 == 0)
        _refuse(table, ~whole, f"must be a whole number of at least {least}")
    if {record.TOKENS, STEP} <= set(numbers):
        early = (numbers[record.TOKENS] == 0) & (numbers[STEP] != 0)
        _refuse(
            table,
            early.to_frame(record.TOKENS),
            "must be more than 0 after step 0, which is before training",
        )
    shares = numbers[named(numbers, record.MIXTURE)]
    rule = "must be a proportion from 0 to 1; write 0 for a domain that is not used"
    _refuse(table, ~((shares >= 0) & (shares <= 1)), rule)
    losses = numbers[named(numbers, record.VAL_LOSS)]
    rule = "must be a loss >= 0 in nats per token; leave it empty where there is none"
    _refuse(table, (losses < 0) | np.isinf(losses), rule)
    return pd.concat([table[[RUN]].astype(str), numbers], axis=1)


def normalised(
    table: pd.DataFrame, check_runs: Collection[str] = ()
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The table with proportions that sum to one, and notes on what was more than a trifle.

    A sum may miss 1 by 1e-3, or by as much as the number of decimals explains with which all
    proportions are written; that of a check run, which no fit reads, by 0.05. Raises InputError
    for the first row beyond.
    """
    columns = named(table, record.MIXTURE)
    shares = table[columns].to_numpy()
    sums = shares.sum(axis=1)
    off = np.abs(sums - 1)
    candidates = (d for d in range(1, MOST_DECIMALS) if np.array_equal(shares.round(d), shares))
    decimals = next(candidates, MOST_DECIMALS)
    rounding = min(len(columns) * 0.5 * 10.0**-decimals, MOST_ROUNDING)
    far = off > max(rounding, record.MIXTURE_TOLERANCE) + EXACT
    spared = table[RUN].isin(check_runs).to_numpy() & (off <= MOST_ROUNDING)
    for row in np.flatnonzero(far & ~spared)[:1]:
        raise InputError(
            f"{table.index[row]}: the proportions of run {table[RUN].iloc[row]!r} sum to "
            f"{sums[row]:.6g}; they must sum to 1"
        )
    exact = np.where(off[:, None] > EXACT, shares / sums[:, None], shares)
    whole = table.assign(**dict(zip(columns, exact.T, strict=True)))
    by_run = pd.Series(sums, table[RUN]).groupby(level=0).first()
    notes = [
        f"the proportions of check run {name} sum to {total:.6g}: they are divided by it"
        for name, total in by_run[sorted(set(table[RUN][far]))].items()
    ]
    rounded = by_run[sorted(set(table[RUN][~far & (off > record.MIXTURE_TOLERANCE + EXACT)]))]
    if len(rounded):
        notes.append(
            f"the proportions of {len(rounded)} of {len(by_run)} mixtures sum to "
            f"{rounded.min():.4g} … {rounded.max():.4g}, as rounding to {decimals} decimals "
            "explains: they are divided by their sum"
        )
    return whole, tuple(notes)


def runs(table: pd.DataFrame) -> tuple[ForeignRun, ...]:
    """The runs of a checked tidy table; raises InputError where its rows contradict each other."""
    shares, losses = named(table, record.MIXTURE), named(table, record.VAL_LOSS)
    _refuse(table, table.duplicated([RUN, STEP]).to_frame(STEP), "is there twice for its run")
    constant = table[[record.N_PARAMS, *shares]]
    first = constant.groupby(table[RUN]).transform("first")
    rule = "is not what the first row of its run has; a run has one size and one mixture"
    _refuse(table, constant != first, rule)
    codes, names = pd.factorize(table[RUN])
    order = np.lexsort((table[STEP], codes))
    table = table.iloc[order]
    bounds = np.flatnonzero(np.diff(codes[order])) + 1
    steps, tokens = (np.split(table[c].to_numpy(int), bounds) for c in (STEP, record.TOKENS))
    n_params = table[record.N_PARAMS].to_numpy(int)[[0, *bounds]]
    mixtures = table[shares].to_numpy()[[0, *bounds]]
    domains = tuple(c.removeprefix(record.VAL_LOSS) for c in losses)
    return tuple(
        ForeignRun(
            name=str(name),
            n_params=int(n_params[i]),
            mixture={
                c.removeprefix(record.MIXTURE): float(x)
                for c, x in zip(shares, mixtures[i], strict=True)
            },
            history=record.History(
                domains,
                tuple(steps[i].tolist()),
                tuple(tokens[i].tolist()),
                tuple(map(tuple, rows.tolist())),
            ),
        )
        for i, (name, rows) in enumerate(
            zip(names, np.split(table[losses].to_numpy(), bounds), strict=True)
        )
    )


def _refuse(table: pd.DataFrame, bad: pd.DataFrame, rule: str) -> None:
    """Raise InputError for the first cell that is bad."""
    rows, columns = np.nonzero(bad.to_numpy())
    if not len(rows):
        return
    column = bad.columns[columns[0]]
    value: Any = table[column].iloc[rows[0]]
    shown = "an empty cell" if pd.isna(value) else repr(value) if isinstance(value, str) else value
    more = f" ({len(rows) - 1} more such cells)" if len(rows) > 1 else ""
    raise InputError(f"{table.index[rows[0]]}, column {column!r}: {shown} {rule}{more}")
