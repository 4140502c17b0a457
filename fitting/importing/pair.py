"""Two tables, mixtures and losses, a row a run: the form that RegMix and Olmix publish."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fitting.importing import table_file, table_reader
from fitting.importing.table_file import TableFile, numbers
from fitting.importing.table_reader import IDS, RUN, SCALE, STEP, RunTable
from training.record import keys
from training.record.errors import InputError

FEW = 0.2  # of the cells of a column of texts that may look like numbers
NEAR_ONE = 0.05  # by which most rows of a file of mixtures may miss 1
SUFFIXES = (".csv", ".csv.gz", ".tsv", ".parquet")  # of the tables in a folder
FIGURE = (
    r"[-+]?[$€£]?[\d.,'’\s]*\d[\d.,'’\s]*([eE][-+]?\d+)?\s*[%$€£]?"  # a number, as any may write it
)


def pair(source: str, n_params: int | None, tokens: int | None, strip: Sequence[str]) -> RunTable:
    """The runs of two tables, joined by the values of a column that names them: `run`, `run_id`,
    `index` or `name`, the first that does so in both.

    `source` names both files or their folder. `n_params` and `tokens` hold for all runs when the
    files have no such columns. The texts in `strip` are removed from the ends of column names.
    Columns of texts are left out and noted. Raises InputError.
    """
    mixtures_file, losses_file = _told_apart(_paths(source))
    mixtures_path, losses_path = mixtures_file.path, losses_file.path
    by = _joined_by(mixtures_file, losses_file)
    mixtures, left_out = _renamed(mixtures_file, by, keys.MIXTURE, strip)
    losses, left_out_too = _renamed(losses_file, by, keys.VAL_LOSS, strip)
    if shared := [c for c in SCALE if c in mixtures and c in losses]:
        raise InputError(f"{mixtures_path} and {losses_path} both have a column {shared[0]!r}")
    mixtures, notes = table_reader.normalised(table_reader.checked(mixtures))
    losses = table_reader.checked(losses)
    if not table_reader.named(losses, keys.VAL_LOSS):
        raise InputError(f"{losses_path}: no column of losses")
    _refuse_unmatched(mixtures, losses, mixtures_path, losses_path)
    table = losses.join(mixtures.set_index(RUN), on=RUN)
    given = {keys.N_PARAMS: n_params, keys.TOKENS: tokens, STEP: 1}
    if twice := [c for c, value in given.items() if c in table and c != STEP and value]:
        raise InputError(f"{twice[0]}: it is a column of the files already; give it once")
    unknown = [c for c, value in given.items() if c not in table and value is None]
    table = table.assign(**{c: given[c] or 1 for c in SCALE if c not in table})
    if others := list(dict.fromkeys((*left_out, *left_out_too))):
        notes = (f"the files are joined by {by!r}; left out: {', '.join(others)}", *notes)
    if unknown:
        options = " ".join(f"-P {column}=…" for column in unknown)
        notes += (
            f"{' and '.join(unknown)} of the runs: not known, taken as 1 for all; a fit then tells "
            f"mixtures apart but nothing about scale; give {options} where you know it",
        )
    return RunTable(table_reader.runs(table), notes)


def _paths(source: str) -> list[str]:
    """The two files that a comma-separated list or a folder holds."""
    folder = Path(source)
    if folder.is_dir():
        paths = sorted(str(path) for path in folder.iterdir() if path.name.endswith(SUFFIXES))
    else:
        paths = [part.strip() for part in source.split(",")]
    if len(paths) != 2:
        raise InputError(
            f"source: {source} is {len(paths)} tables; a pair is two, mixtures.csv,losses.csv, or "
            f"a folder that holds only these ({', '.join(SUFFIXES)})"
        )
    return paths


def _told_apart(paths: Sequence[str]) -> tuple[TableFile, TableFile]:
    """The tables of the mixtures and the losses, whichever comes first."""
    files = [table_file.read(path, IDS) for path in paths]
    holds = [_holds_mixtures(file.cells) for file in files]
    if sum(holds) != 1:
        raise InputError(
            f"source: the rows of {' and '.join(paths)} {'both' if all(holds) else 'do not'} sum "
            "to 1, so that mixtures and losses cannot be told apart; proportions must sum to 1, "
            f"and beside them a table may have columns of texts, {', '.join((*IDS, *SCALE))}"
        )
    return (files[0], files[1]) if holds[0] else (files[1], files[0])


def _holds_mixtures(table: pd.DataFrame) -> bool:
    """Whether the columns say so, or else most rows sum to 1."""
    for prefix in (keys.MIXTURE, keys.VAL_LOSS):
        if table_reader.named(table, prefix):
            return prefix == keys.MIXTURE
    values = table.drop(columns=[*IDS, *SCALE], errors="ignore").apply(numbers)
    return bool(((values.sum(axis=1) - 1).abs() < NEAR_ONE).mean() >= 0.5)


def _joined_by(mixtures: TableFile, losses: TableFile) -> str:
    """The column that names the runs: the first one by which every row finds its other half."""
    both = [c for c in IDS if c in mixtures.cells and c in losses.cells]
    if not both:
        ids = ", ".join(repr(c) for c in IDS if c in mixtures.cells or c in losses.cells)
        raise InputError(
            f"{mixtures.path} and {losses.path}: both need the same column, {', '.join(IDS[:-1])} "
            f"or {IDS[-1]}, that tells which row of one belongs to which of the other; found "
            f"{ids or 'none'}"
        )
    for column in both:
        names = [_names(file.cells[column]) for file in (mixtures, losses)]
        if names[0].is_unique and set(names[0]) == set(names[1]) and names[0].notna().all():
            return column
    return both[0]


def _names(cells: pd.Series) -> pd.Series:
    """Names of runs as texts; whole numbers without the decimals that a program gave them."""
    texts = cells.where(cells.isna(), cells.astype(str)).astype(object)
    whole = texts.dropna().str.fullmatch(r"-?\d+\.0+")
    return texts.str.replace(r"\.0+$", "", regex=True) if len(whole) and whole.all() else texts


def _renamed(
    file: TableFile, by: str, prefix: str, strip: Sequence[str]
) -> tuple[pd.DataFrame, list[str]]:
    """The table with the tidy names, run, n_params, tokens, step and prefix + domain; and what is
    left out of it: other names of the runs, and texts."""
    table = file.cells.assign(**{by: _names(file.cells[by])})
    others = [c for c in table if c in IDS and c != by]
    named = [c for c in table if c not in (*IDS, *SCALE)]
    others += [c for c in named if not c.startswith(prefix) and _holds_texts(table[c])]
    names = {by: RUN}
    for column in (c for c in named if c not in others):
        domain = column.removeprefix(prefix)
        for text in strip:
            domain = domain.removeprefix(text).removesuffix(text)
        if not domain or prefix + domain in names.values():
            raise InputError(
                f"strip: it leaves {domain!r} of column {column!r} of {file.path}, which "
                + ("another column is called already" if domain else "is no name")
            )
        names[column] = prefix + domain
    left_out = [*file.left_out, *(f"column {table_reader.shown(c)}" for c in others)]
    return table.drop(columns=others).rename(columns=names), left_out


def _holds_texts(cells: pd.Series) -> bool:
    """Whether few cells are numbers, in whatever way they are written: some ids look like one."""
    if pd.api.types.is_numeric_dtype(cells):
        return False
    texts = cells.dropna().astype(str)
    return bool(len(texts) and texts.str.fullmatch(FIGURE).mean() < FEW)


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
