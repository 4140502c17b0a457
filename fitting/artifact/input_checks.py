"""What a registered predictor accepts: a table with named columns, every cell checked.

A predictor is logged without an input schema: MLflow would drop the columns that a schema does not
name before the model sees them, and could not read a CSV. So each route of MLflow hands over what
the caller gave, and this file refuses what is wrong by its row, column, value and rule. A
registered predictor carries a copy of this file, so it imports nothing of the project.
"""

import math
from collections.abc import Sequence
from decimal import Decimal
from difflib import get_close_matches
from numbers import Real
from typing import Any, NoReturn

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

TOLERANCE = 1e-3  # of the sum of the proportions
PROPORTION = "a proportion is a number from 0 to 1"
RUN, STEP, TOKENS, UNIT, VAL_LOSS = (
    "run",
    "step",
    "tokens",
    "unit",
    "val_loss/",
)  # of an exported table
SAVED_INDEX = "Unnamed: 0"  # what pandas calls the index that `to_csv` wrote without a name
SHOWN = 60  # characters of a value in an error
LISTED = 12  # columns in an error
NEAR = 0.85  # how alike a name must be to be suggested


def table(given: Any, required: Sequence[str], optional: Sequence[str] = ()) -> pd.DataFrame:
    """The rows to predict, with every required column and no column that is not an input.

    Columns of an exported table that are not inputs may stay: run, unit, val_loss/…, and step
    where tokens says the same.
    """
    inputs = f"the input columns are {_listed(required)}"
    if optional:
        inputs += f" and, optionally, {_listed(optional)}"
    rows = _frame(given, inputs)
    known = {*required, *optional, RUN, UNIT} | ({STEP} if TOKENS in rows else set())
    for j, column in enumerate(rows.columns):
        saved_index = j == 0 and column == SAVED_INDEX
        if column not in known and not saved_index and not str(column).startswith(VAL_LOSS):
            filled = np.flatnonzero(rows.iloc[:, j].notna())  # a column of some records only
            near = get_close_matches(str(column), known, 1, NEAR)
            meant = f" (did you mean {near[0]!r}?)" if near else ""
            i = int(filled[0]) if len(filled) else 0
            refuse(f"{place(rows, i, column)}: unknown column{meant}; {inputs}")
    for column in rows.columns[rows.columns.duplicated()]:
        refuse(f"{place(rows, 0, column)}: the column is given twice; keep one of the two")
    for column in required:
        if column not in rows:
            refuse(f"{place(rows, 0, column)}: missing column; {inputs}")
    return rows


def _frame(given: Any, inputs: str) -> pd.DataFrame:
    """The table in what MLflow hands over: a DataFrame, or records or columns parsed from JSON."""
    if isinstance(given, pd.DataFrame):
        return given
    if isinstance(given, list) and all(isinstance(record, dict) for record in given):
        return pd.DataFrame([{k: _plain(x) for k, x in record.items()} for record in given])
    if not isinstance(given, dict):
        refuse(
            f"the input is of type {type(given).__name__}, not a table with named columns; give a "
            f"pandas DataFrame, a list of records or a dictionary of columns; {inputs}"
        )
    columns = {k: _plain(x) for k, x in given.items()}
    if not any(pd.api.types.is_list_like(x) for x in columns.values()):
        return pd.DataFrame([columns])
    try:
        return pd.DataFrame(columns)
    except ValueError as error:
        refuse(f"the columns are not a table: {error}; {inputs}")


def _plain(value: Any) -> Any:
    """The number or text in an array of no dimension, as which MLflow hands over JSON values."""
    return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value


def mixtures(rows: pd.DataFrame, names: list[str]) -> np.ndarray:
    """The proportions in these columns, (n, M), each row divided by its sum.

    Raises MlflowException for a proportion that is negative or not a number, and for a sum that
    misses 1.
    """
    values = numbers(rows, names, PROPORTION)
    if (values < 0).any():
        i, j = np.argwhere(values < 0)[0]
        cell = _shown(rows[names[j]].iloc[i])
        refuse(f"{place(rows, i, names[j])}: {cell} must not be negative; {PROPORTION}")
    sums = values.sum(axis=1)
    off = np.abs(sums - 1) > TOLERANCE
    if off.any():
        i = int(np.argmax(off))
        refuse(
            f"{place(rows, i, names[0], names[-1])}: the proportions sum to {sums[i]:.6g}; they "
            f"must sum to 1 within {TOLERANCE:g}; divide each by their sum"
        )
    return np.asarray(values / sums[:, None])


def positive(rows: pd.DataFrame, name: str, rule: str) -> np.ndarray:
    """The positive numbers in a column, (n,)."""
    values = numbers(rows, [name], rule)[:, 0]
    if (values <= 0).any():
        i = int(np.argmax(values <= 0))
        refuse(f"{place(rows, i, name)}: {_shown(rows[name].iloc[i])} is not positive; {rule}")
    return values


def numbers(rows: pd.DataFrame, names: list[str], rule: str) -> np.ndarray:
    """The finite numbers in these columns, (n, columns); text that spells one is a number.

    Raises MlflowException for the first cell that is not a finite number, with the rule.
    """
    values = np.column_stack([_floats(rows[name]) for name in names])
    bad = ~np.isfinite(values)
    if bad.any():
        i, j = np.argwhere(bad)[0]
        cell = rows[names[j]].iloc[i]
        if pd.api.types.is_scalar(cell) and pd.isna(cell):
            what = f"the value is missing ({cell})"
        elif np.isinf(values[i, j]):
            what = f"{_shown(cell)} is not a finite number"
        else:
            what = f"{_shown(cell)} is not a number"
        refuse(f"{place(rows, i, names[j])}: {what}; {rule}")
    return values


def _floats(column: "pd.Series[Any]") -> np.ndarray:
    """A column as floats, (n,); NaN where a cell is not a number."""
    kind = pd.api.types
    if kind.is_numeric_dtype(column) and not (
        kind.is_bool_dtype(column) or kind.is_complex_dtype(column)
    ):
        return np.asarray(column.to_numpy(float, na_value=np.nan))
    return np.array([_float(cell) for cell in column], float)


def _float(cell: Any) -> float:
    """A cell's number; NaN for what is none, truth values and dates among it."""
    if isinstance(cell, bool) or not isinstance(cell, str | Real | Decimal):
        return math.nan
    try:
        return float(cell)
    except ValueError:
        return math.nan
    except OverflowError:
        return math.inf


def place(rows: pd.DataFrame, i: int, *columns: Any) -> str:
    """Where a mistake is, to begin its error with: the row by its label, and the columns.

    The labels of a table without an index of its own count from 0; where several rows share one,
    the position tells them apart.
    """
    where = f"column{'s' * (len(columns) > 1)} {' … '.join(map(_shown, columns))}"
    if not len(rows):
        return where
    position = "" if rows.index.is_unique else f" (position {i}, counted from 0)"
    return f"row {str(rows.index[i])[:SHOWN]}{position}, {where}"


def _listed(names: Sequence[str]) -> str:
    more = f", … ({len(names)} in all)" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _shown(value: Any) -> str:
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def refuse(message: str) -> NoReturn:
    """Raise the error that a model server answers with 400 and this text."""
    raise MlflowException(message, error_code=INVALID_PARAMETER_VALUE)
