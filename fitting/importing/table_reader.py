"""Tables of run histories in files → runs; every error names the file, row and column."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from fitting.importing import table_file
from fitting.importing.table_file import numbers
from training.record import keys
from training.record.errors import InputError
from training.record.history import History
from training.record.mixtures import MIXTURE_TOLERANCE

RUN, STEP = "run", "step"
SCALE = (keys.N_PARAMS, keys.TOKENS, STEP)
IDS = (RUN, "run_id", "index", "name")  # columns that may name runs; read as text
RUN_NAME_LIMIT = 250  # characters, of MLflow's database
SHOWN = 60  # characters of a name in an error
MAX_DECIMALS = 6
MAX_ROUNDING = 0.05  # by which a sum of rounded proportions may miss 1
OF_TASKS = (keys.ACCURACY, keys.CHANCE, keys.QUESTIONS)  # prefixes of columns of tasks
EXACT = 1e-12  # a sum this near 1 stays as it is, so that a table survives export and import


@dataclass(frozen=True)
class ImportedRun:
    """A run that was trained elsewhere."""

    name: str
    n_params: int  # non-embedding parameters
    mixture: dict[str, float]  # sums to one
    history: History
    params: dict[str, str] = field(default_factory=dict)  # further params from the source
    check: bool = False  # a check run is never fitted
    unit: str = keys.NATS  # of its losses


@dataclass(frozen=True)
class RunTable:
    """The runs of a source, and notes for the user on how they were read."""

    runs: tuple[ImportedRun, ...]
    notes: tuple[str, ...] = ()
    unit: str = ""  # of the losses; empty if the source does not say

    def val_domains(self) -> list[str]:
        """The validation domains of all runs."""
        return list(dict.fromkeys(name for run in self.runs for name in run.history.domains))


def tidy(path: str) -> RunTable:
    """The runs of a CSV or Parquet file in the form that `export` writes.

    Columns run, n_params, tokens, step, mixture/<domain>…, val_loss/<domain>…, and unit if the
    losses are not in nats per token; an empty loss is missing. For a task with choices also
    accuracy/<task>, with chance/<task>, the accuracy of a guess, and questions/<task>, how many
    questions the accuracy is of. For runs that repeat text unique_tokens/<domain>, how many
    different tokens of it they saw. Raises InputError.
    """
    file = table_file.read(path, IDS)
    table, unit = _without_unit(file.cells)
    shares, losses = prefixed_columns(table, keys.MIXTURE), prefixed_columns(table, keys.VAL_LOSS)
    form = f"run, n_params, tokens, step, {keys.MIXTURE}<domain>…, {keys.VAL_LOSS}<domain>…"
    of_tasks = [c for prefix in OF_TASKS for c in prefixed_columns(table, prefix)]
    known = {RUN, *SCALE, *shares, *losses, *of_tasks}
    known |= {keys.UNIQUE_TOKENS + c.removeprefix(keys.MIXTURE) for c in shares}
    if unknown := [c for c in table if c not in known]:
        raise InputError(f"{path}: unknown column {unknown[0]!r}; a tidy table has {form}")
    missing = [c for c in (RUN, *SCALE) if c not in table]
    missing += [
        f"{p}<domain>" for p in (keys.MIXTURE, keys.VAL_LOSS) if not prefixed_columns(table, p)
    ]
    if missing:
        raise InputError(f"{path}: no column {missing[0]!r}; a tidy table has {form}")
    for column in of_tasks:
        task = column.partition("/")[2]
        if lacks := [p + task for p in (keys.VAL_LOSS, *OF_TASKS) if p + task not in table]:
            raise InputError(
                f"{path}: column {shown(column)} needs a column {shown(lacks[0])} beside it"
            )
    table, notes = normalised(checked(table))
    left_out = [f"left out of {path}: {what}" for what in file.left_out]
    return RunTable(runs(table), (*left_out, *notes), unit)


def _without_unit(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The table without its column `unit`, and the unit; empty if there is no such column."""
    if keys.UNIT not in table:
        return table, ""
    column = table[[keys.UNIT]]
    _refuse(table, column.isna(), "must name the unit of the losses")
    unit = str(column.iloc[0, 0])
    if fault := keys.unit_fault(unit):
        raise InputError(f"{table.index[0]}, column {keys.UNIT!r}: {fault}")
    _refuse(table, column != unit, f"is not {unit}: a table has losses of one unit")
    return table.drop(columns=keys.UNIT), unit


def prefixed_columns(table: pd.DataFrame, prefix: str) -> list[str]:
    """The columns whose names start with a prefix."""
    return [c for c in table if c.startswith(prefix)]


def checked(table: pd.DataFrame) -> pd.DataFrame:
    """The table with numbers in all columns except `run`; InputError names the first bad cell."""
    _refuse_names(table)
    values = table.drop(columns=RUN).apply(numbers)
    rule = "must be a number, such as 0.25 or 1e6: a decimal point, no thousands separator, no %"
    _refuse(table, values.isna() & table[list(values)].notna(), rule)
    _refuse_counts(table, values[[c for c in SCALE if c in values]])
    shares = values[prefixed_columns(values, keys.MIXTURE)]
    rule = "must be a proportion from 0 to 1; write 0 for a domain that is not used"
    _refuse(table, ~((shares >= 0) & (shares <= 1)), rule)
    losses = values[prefixed_columns(values, keys.VAL_LOSS)]
    rule = "must be a loss >= 0 and finite; leave it empty where there is none"
    _refuse(table, (losses < 0) | np.isinf(losses), rule)
    _refuse_accuracies(table, values)
    unique = values[prefixed_columns(values, keys.UNIQUE_TOKENS)]
    rule = "must be a number of tokens of at least 1; leave it empty where it is not known"
    _refuse(table, (unique < 1) | np.isinf(unique), rule)
    return pd.concat([table[[RUN]].astype(str), values], axis=1)


def _refuse_accuracies(table: pd.DataFrame, values: pd.DataFrame) -> None:
    """Raise InputError for a bad accuracy, chance or number of questions of a task."""
    accuracies = values[prefixed_columns(values, keys.ACCURACY)]
    rule = "must be a number from 0 to 1; leave it empty where there is none"
    _refuse(table, (accuracies < 0) | (accuracies > 1), rule)
    chances = values[prefixed_columns(values, keys.CHANCE)]
    _refuse(table, ~((chances > 0) & (chances < 1)), "must be a number between 0 and 1")
    questions = values[prefixed_columns(values, keys.QUESTIONS)]
    _refuse(table, ~((questions >= 1) & (questions % 1 == 0)), "must be a whole number above 0")
    constant = pd.concat([chances, questions], axis=1)
    _refuse(table, constant != constant.iloc[0], "is not what the first row has")


def _refuse_names(table: pd.DataFrame) -> None:
    """Raise InputError for names of domains and runs that MLflow cannot store."""
    for column in table:
        prefixes = (keys.MIXTURE, keys.VAL_LOSS, *OF_TASKS)
        prefix = next((p for p in prefixes if column.startswith(p)), "")
        domain = column.removeprefix(prefix)
        if fault := keys.name_fault(domain):
            path = table.index[0].rsplit(", ", 1)[0]
            raise InputError(f"{path}: column {shown(column)}: {fault}; rename it")
    _refuse(table, table[[RUN]].isna(), "must name the run")
    names = table[RUN].astype(str)
    valid = (names.str.len() <= RUN_NAME_LIMIT) & ~names.str.contains(r"[\x00-\x1f\x7f]")
    rule = f"must name the run in 1 to {RUN_NAME_LIMIT} characters without tabs and line breaks"
    _refuse(table, ~(valid & (names.str.strip() != "")).to_frame(RUN), rule)


def _refuse_counts(table: pd.DataFrame, counts: pd.DataFrame) -> None:
    """Raise InputError for a bad number of parameters, tokens or steps."""
    for column in counts:
        least = 1 if column == keys.N_PARAMS else 0
        values = counts[[column]]
        valid = (values >= least) & (values % 1 == 0)
        _refuse(table, ~valid, f"must be a whole number of at least {least}")
        rule = f"must be less than {keys.MAX_INTEGER:.2g}, the most that MLflow's stores hold"
        _refuse(table, values >= float(keys.MAX_INTEGER), rule)
    if {keys.TOKENS, STEP} <= set(counts):
        early = (counts[keys.TOKENS] == 0) & (counts[STEP] != 0)
        _refuse(
            table,
            early.to_frame(keys.TOKENS),
            "must be more than 0 after step 0, which is before training",
        )


def shown(name: str) -> str:
    """A user's text as an error shows it, truncated if it is long."""
    return repr(name if len(name) <= SHOWN else name[:SHOWN] + "…")


def normalised(
    table: pd.DataFrame, check_runs: Collection[str] = ()
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The table with proportions that sum to one, and notes on larger corrections.

    A sum may miss 1 by 1e-3, or by as much as rounding to the decimals of the table explains; the
    sum of a check run, which no fit reads, by 0.05. Raises InputError for the first row that
    misses 1 by more.
    """
    columns = prefixed_columns(table, keys.MIXTURE)
    shares = table[columns].to_numpy()
    sums = shares.sum(axis=1)
    errors = np.abs(sums - 1)
    candidates = (d for d in range(1, MAX_DECIMALS) if np.array_equal(shares.round(d), shares))
    decimals = next(candidates, MAX_DECIMALS)
    rounding = min(len(columns) * 0.5 * 10.0**-decimals, MAX_ROUNDING)
    too_far = errors > max(rounding, MIXTURE_TOLERANCE) + EXACT
    tolerated = table[RUN].isin(check_runs).to_numpy() & (errors <= MAX_ROUNDING)
    for row in np.flatnonzero(too_far & ~tolerated)[:1]:
        raise InputError(
            f"{table.index[row]}: the proportions of run {table[RUN].iloc[row]!r} sum to "
            f"{sums[row]:.6g}; they must sum to 1"
        )
    exact = np.where(errors[:, None] > EXACT, shares / sums[:, None], shares)
    normalised_table = table.assign(**dict(zip(columns, exact.T, strict=True)))
    by_run = pd.Series(sums, table[RUN]).groupby(level=0).first()
    notes = [
        f"the proportions of check run {name} sum to {total:.6g}: they are divided by it"
        for name, total in by_run[sorted(set(table[RUN][too_far]))].items()
    ]
    rounded = by_run[sorted(set(table[RUN][~too_far & (errors > MIXTURE_TOLERANCE + EXACT)]))]
    if len(rounded):
        notes.append(
            f"the proportions of {len(rounded)} of {len(by_run)} mixtures sum to "
            f"{rounded.min():.4g} … {rounded.max():.4g}, as rounding to {decimals} decimals "
            "explains: they are divided by their sum"
        )
    return normalised_table, tuple(notes)


def runs(table: pd.DataFrame) -> tuple[ImportedRun, ...]:
    """The runs of a checked tidy table; raises InputError if its rows contradict each other."""
    shares, losses = prefixed_columns(table, keys.MIXTURE), prefixed_columns(table, keys.VAL_LOSS)
    for column in (STEP, keys.TOKENS):
        again = table.duplicated([RUN, column]).to_frame(column)
        _refuse(table, again, "appears twice for its run")
    unique = prefixed_columns(table, keys.UNIQUE_TOKENS)
    constant = table[[keys.N_PARAMS, *shares, *unique]].fillna(0.0)
    first = constant.groupby(table[RUN]).transform("first")
    rule = "is not what the first row of its run has; a run has one size, mixture and text"
    _refuse(table, constant != first, rule)
    codes, names = pd.factorize(table[RUN])
    order = np.lexsort((table[STEP], codes))
    table = table.iloc[order]
    bounds = np.flatnonzero(np.diff(codes[order])) + 1
    steps, tokens = (np.split(table[c].to_numpy(int), bounds) for c in (STEP, keys.TOKENS))
    n_params = table[keys.N_PARAMS].to_numpy(int)[[0, *bounds]]
    mixtures = table[shares].to_numpy()[[0, *bounds]]
    supplies = table[unique].iloc[[0, *bounds]].to_dict("records")
    domains = tuple(c.removeprefix(keys.VAL_LOSS) for c in losses)
    accuracies = {
        c.removeprefix(keys.ACCURACY): np.split(table[c].to_numpy(float), bounds)
        for c in prefixed_columns(table, keys.ACCURACY)
    }
    params = {
        **{c: repr(float(table[c].iloc[0])) for c in prefixed_columns(table, keys.CHANCE)},
        **{c: str(int(table[c].iloc[0])) for c in prefixed_columns(table, keys.QUESTIONS)},
    }
    return tuple(
        ImportedRun(
            name=str(name),
            n_params=int(n_params[i]),
            mixture={
                c.removeprefix(keys.MIXTURE): float(x)
                for c, x in zip(shares, mixtures[i], strict=True)
            },
            history=History(
                domains,
                tuple(steps[i].tolist()),
                tuple(tokens[i].tolist()),
                tuple(map(tuple, rows.tolist())),
                {task: tuple(series[i].tolist()) for task, series in accuracies.items()},
            ),
            params={
                **params,
                **{c: f"{number:.15g}" for c, number in supplies[i].items() if pd.notna(number)},
            },
        )
        for i, (name, rows) in enumerate(
            zip(names, np.split(table[losses].to_numpy(), bounds), strict=True)
        )
    )


def _refuse(table: pd.DataFrame, bad: pd.DataFrame, rule: str) -> None:
    """Raise InputError for the first bad cell, with the rule that it breaks."""
    rows, columns = np.nonzero(bad.to_numpy())
    if not len(rows):
        return
    column = bad.columns[columns[0]]
    value: Any = table[column].iloc[rows[0]]
    number = pd.notna(pd.to_numeric(pd.Series([value]), errors="coerce")[0])
    text = "an empty cell" if pd.isna(value) else value if number else shown(str(value))
    more = f" ({len(rows) - 1} more such cells)" if len(rows) > 1 else ""
    raise InputError(f"{table.index[rows[0]]}, column {shown(column)}: {text} {rule}{more}")
