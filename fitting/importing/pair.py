"""Two tables, mixtures and losses, a row for each run: the form that RegMix and Olmix publish."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fitting.importing import table_file, table_reader
from fitting.importing.table_file import TableFile, numbers
from fitting.importing.table_reader import IDS, RUN, SCALE, STEP, RunTable
from training.record import keys
from training.record.errors import InputError

MAX_NUMERIC_SHARE = 0.2  # of a text column's cells that may look like numbers
MAX_SUM_ERROR = 0.05  # by which most rows of a file of mixtures may miss a sum of 1
SUFFIXES = (".csv", ".csv.gz", ".tsv", ".parquet")  # of the tables in a folder
NUMERIC_TEXT = (
    r"[-+]?[$€£]?[\d.,'’\s]*\d[\d.,'’\s]*([eE][-+]?\d+)?\s*[%$€£]?"  # a number in any notation
)


def pair(source: str, n_params: int | None, tokens: int | None, strip: Sequence[str]) -> RunTable:
    """The runs of two tables, joined by the first of the columns `run`, `run_id`, `index` and
    `name` that identifies the runs in both.

    `source` names both files or their folder. `n_params` and `tokens` apply to all runs if the
    files have no such columns. The texts in `strip` are removed from the ends of column names.
    Text columns are left out and noted. Raises InputError.
    """
    mixtures_file, losses_file = _mixtures_and_losses(_paths(source))
    mixtures_path, losses_path = mixtures_file.path, losses_file.path
    by = _join_column(mixtures_file, losses_file)
    mixtures, left_out_of_mixtures = _renamed(mixtures_file, by, keys.MIXTURE, strip)
    losses, left_out_of_losses = _renamed(losses_file, by, keys.VAL_LOSS, strip)
    if shared := [c for c in SCALE if c in mixtures and c in losses]:
        raise InputError(f"{mixtures_path} and {losses_path} both have a column {shared[0]!r}")
    mixtures, notes = table_reader.normalised(table_reader.checked(mixtures))
    losses = table_reader.checked(losses)
    if not table_reader.prefixed_columns(losses, keys.VAL_LOSS):
        raise InputError(f"{losses_path}: no column of losses")
    _refuse_unmatched(mixtures, losses, mixtures_path, losses_path)
    table = losses.join(mixtures.set_index(RUN), on=RUN)
    scale = {keys.N_PARAMS: n_params, keys.TOKENS: tokens, STEP: 1}
    if duplicates := [c for c, value in scale.items() if c in table and c != STEP and value]:
        raise InputError(f"{duplicates[0]}: the files already have this column; give it once")
    unknown = [c for c, value in scale.items() if c not in table and value is None]
    table = table.assign(**{c: scale[c] or 1 for c in SCALE if c not in table})
    if left_out := list(dict.fromkeys((*left_out_of_mixtures, *left_out_of_losses))):
        notes = (f"the files are joined by {by!r}; left out: {', '.join(left_out)}", *notes)
    if unknown:
        options = " ".join(f"-P {column}=…" for column in unknown)
        notes += (
            f"{' and '.join(unknown)} of the runs: not known, taken as 1 for all; a fit then "
            f"compares mixtures but says nothing about scale; give {options} if you know it",
        )
    return RunTable(table_reader.runs(table), notes)


def _paths(source: str) -> list[str]:
    """The two files of a comma-separated list or a folder."""
    folder = Path(source)
    if folder.is_dir():
        paths = sorted(str(path) for path in folder.iterdir() if path.name.endswith(SUFFIXES))
    else:
        paths = [part.strip() for part in source.split(",")]
    if len(paths) != 2:
        raise InputError(
            f"source: {source} is {len(paths)} tables; a pair is two, mixtures.csv,losses.csv, or "
            f"a folder that holds only these two ({', '.join(SUFFIXES)})"
        )
    return paths


def _mixtures_and_losses(paths: Sequence[str]) -> tuple[TableFile, TableFile]:
    """The table of the mixtures and that of the losses, from paths in either order."""
    files = [table_file.read(path, IDS) for path in paths]
    holds = [_holds_mixtures(file.cells) for file in files]
    if sum(holds) != 1:
        raise InputError(
            f"source: the rows of {' and '.join(paths)} {'both' if all(holds) else 'do not'} sum "
            "to 1, so mixtures and losses cannot be told apart; proportions must sum to 1, and "
            f"besides them a table may have text columns and {', '.join((*IDS, *SCALE))}"
        )
    return (files[0], files[1]) if holds[0] else (files[1], files[0])


def _holds_mixtures(table: pd.DataFrame) -> bool:
    """Whether the column prefixes say so or, without prefixes, most rows sum to 1."""
    for prefix in (keys.MIXTURE, keys.VAL_LOSS):
        if table_reader.prefixed_columns(table, prefix):
            return prefix == keys.MIXTURE
    values = table.drop(columns=[*IDS, *SCALE], errors="ignore").apply(numbers)
    return bool(((values.sum(axis=1) - 1).abs() < MAX_SUM_ERROR).mean() >= 0.5)


def _join_column(mixtures: TableFile, losses: TableFile) -> str:
    """The first column that names runs and matches every row of both tables."""
    shared = [c for c in IDS if c in mixtures.cells and c in losses.cells]
    if not shared:
        ids = ", ".join(repr(c) for c in IDS if c in mixtures.cells or c in losses.cells)
        raise InputError(
            f"{mixtures.path} and {losses.path}: both need the same column, {', '.join(IDS[:-1])} "
            f"or {IDS[-1]}, to match the rows of one to the rows of the other; found "
            f"{ids or 'none'}"
        )
    for column in shared:
        names = [_names(file.cells[column]) for file in (mixtures, losses)]
        if names[0].is_unique and set(names[0]) == set(names[1]) and names[0].notna().all():
            return column
    return shared[0]


def _names(cells: pd.Series) -> pd.Series:
    """Names of runs as texts; integers without the decimals that a program gave them."""
    texts = cells.where(cells.isna(), cells.astype(str)).astype(object)
    integers = texts.dropna().str.fullmatch(r"-?\d+\.0+")
    if len(integers) and integers.all():
        return texts.str.replace(r"\.0+$", "", regex=True)
    return texts


def _renamed(
    file: TableFile, by: str, prefix: str, strip: Sequence[str]
) -> tuple[pd.DataFrame, list[str]]:
    """The table with the tidy names, run, n_params, tokens, step and prefix + domain; and what is
    left out of it: other names of the runs, and text columns."""
    table = file.cells.assign(**{by: _names(file.cells[by])})
    dropped = [c for c in table if c in IDS and c != by]
    candidates = [c for c in table if c not in (*IDS, *SCALE)]
    dropped += [c for c in candidates if not c.startswith(prefix) and _holds_texts(table[c])]
    names = {by: RUN}
    for column in (c for c in candidates if c not in dropped):
        domain = column.removeprefix(prefix)
        for text in strip:
            domain = domain.removeprefix(text).removesuffix(text)
        if not domain or prefix + domain in names.values():
            raise InputError(
                f"strip: it leaves {domain!r} of column {column!r} of {file.path}, which "
                + ("is the name of another column" if domain else "is not a name")
            )
        names[column] = prefix + domain
    left_out = [*file.left_out, *(f"column {table_reader.shown(c)}" for c in dropped)]
    return table.drop(columns=dropped).rename(columns=names), left_out


def _holds_texts(cells: pd.Series) -> bool:
    """Whether few cells look like numbers, in any notation; some ids do."""
    if pd.api.types.is_numeric_dtype(cells):
        return False
    texts = cells.dropna().astype(str)
    return bool(len(texts) and texts.str.fullmatch(NUMERIC_TEXT).mean() < MAX_NUMERIC_SHARE)


def _refuse_unmatched(
    mixtures: pd.DataFrame, losses: pd.DataFrame, mixtures_path: str, losses_path: str
) -> None:
    """Raise InputError for runs that have two mixtures, or that only one file has."""
    if (duplicated := mixtures[RUN].duplicated()).any():
        row = int(np.argmax(duplicated))
        raise InputError(f"{mixtures.index[row]}: run {mixtures[RUN].iloc[row]!r} appears twice")
    for runs, path, other_runs, other_path in (
        (mixtures[RUN], mixtures_path, losses[RUN], losses_path),
        (losses[RUN], losses_path, mixtures[RUN], mixtures_path),
    ):
        if unmatched := list(dict.fromkeys(runs[~runs.isin(other_runs)])):
            names = f"{', '.join(unmatched[:5])}{' …' if len(unmatched) > 5 else ''}"
            raise InputError(
                f"{len(unmatched)} runs are in {path} but not in {other_path}: {names}; remove or "
                "complete them"
            )
