"""Check the input of a registered predictor: a table with named columns.

A predictor is logged without an input schema: with one, MLflow would drop the columns that the
schema does not name before the model sees them, and could not read a CSV. So every MLflow route
passes the caller's input on unchanged, and this file's errors name row, column, value and rule. A
registered predictor carries a copy of this file, so it imports nothing from the project.
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
# columns of an exported table
RUN, STEP, TOKENS, UNIT = "run", "step", "tokens", "unit"
MEASURED = ("val_loss/", "accuracy/", "chance/", "questions/")
SAVED_INDEX = "Unnamed: 0"  # pandas' name for the unnamed index that `to_csv` wrote
SHOWN = 60  # characters of a value in an error
LISTED = 12  # columns in an error
LARGEST = 2.0**63  # n_params and tokens are less, as MLflow's stores demand of runs
MIN_SIMILARITY = 0.85  # of a name that is suggested
SEPARATORS = ";\t|"  # of other tables than those that a comma separates


class InvalidInput(MlflowException):  # type: ignore[misc]
    """An error to which a model server answers with status 400 and this text alone.

    MLflow's server puts all of the input before the text; this takes it away again.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, error_code=INVALID_PARAMETER_VALUE)

    def serialize_as_json(self) -> str:
        """The body of the server's answer."""
        self.message = self.args[0]
        return str(super().serialize_as_json())


def table(model_input: Any, required: Sequence[str], optional: Sequence[str] = ()) -> pd.DataFrame:
    """The rows to predict, with every required column and no unknown column.

    Columns of an exported table that are not inputs may stay: run, unit, what was measured, and
    step beside tokens. Raises InvalidInput otherwise.
    """
    inputs = f"the input columns are {_listed(required)}"
    if optional:
        inputs += f" and, optionally, {_listed(optional)}"
    rows = _frame(model_input, inputs)
    if not len(rows):
        refuse(f"the table has no rows; give at least one; {inputs}")
    known = {*required, *optional, RUN, UNIT} | ({STEP} if TOKENS in rows else set())
    for j, column in enumerate(rows.columns):
        saved_index = j == 0 and column == SAVED_INDEX
        if column not in known and not saved_index and not str(column).startswith(MEASURED):
            filled = np.flatnonzero(rows.iloc[:, j].notna())  # only some records may have it
            whole = [name for name in required if name.endswith(f"/{column}")]  # of a bare domain
            similar = sorted(whole, key=len) or get_close_matches(
                str(column), known, 1, MIN_SIMILARITY
            )
            hint = f" (did you mean {similar[0]!r}?)" if similar else ""
            if j == 0 and len(rows.columns) == 1 and set(SEPARATORS) & set(str(column)):
                hint = " (separate the columns of a CSV by commas)"
            i = int(filled[0]) if len(filled) else 0
            refuse(f"{place(rows, i, column)}: unknown column{hint}; {inputs}")
    for column in rows.columns[rows.columns.duplicated()]:
        refuse(f"{place(rows, 0, column)}: the column is given twice; keep one of the two")
    for column in required:
        if column not in rows:
            refuse(f"{place(rows, 0, column)}: missing column; {inputs}")
    return rows


def _frame(model_input: Any, inputs: str) -> pd.DataFrame:
    """MLflow's input as a table: a DataFrame, or records or columns parsed from JSON."""
    if isinstance(model_input, pd.DataFrame):
        return model_input
    if isinstance(model_input, list) and all(isinstance(record, dict) for record in model_input):
        return pd.DataFrame([{k: _plain(x) for k, x in record.items()} for record in model_input])
    if not isinstance(model_input, dict):
        refuse(
            f"the input is of type {type(model_input).__name__}, not a table with named columns; "
            f"give a pandas DataFrame, a list of records or a dictionary of columns; {inputs}"
        )
    columns = {k: _plain(x) for k, x in model_input.items()}
    if not any(pd.api.types.is_list_like(x) for x in columns.values()):
        return pd.DataFrame([columns])
    try:
        return pd.DataFrame(columns)
    except ValueError as error:
        refuse(f"the columns are not a table: {error}; {inputs}")


def _plain(value: Any) -> Any:
    """The number or text in a zero-dimensional array, the form of MLflow's JSON values."""
    return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value


def mixtures(rows: pd.DataFrame, names: list[str]) -> np.ndarray:
    """The proportions in these columns, (n, M), each row divided by its sum.

    Raises InvalidInput for a proportion that is negative or not a number, and for a sum that
    is not 1.
    """
    values = numbers(rows, names, PROPORTION)
    if (values < 0).any():
        i, j = np.argwhere(values < 0)[0]
        cell = _shown(rows[names[j]].iloc[i])
        refuse(f"{place(rows, i, names[j])}: {cell} must not be negative; {PROPORTION}")
    sums = values.sum(axis=1)
    bad = np.abs(sums - 1) > TOLERANCE
    if bad.any():
        i = int(np.argmax(bad))
        refuse(
            f"{place(rows, i, names[0], names[-1])}: the proportions sum to {sums[i]:.6g}; they "
            f"must sum to 1 within {TOLERANCE:g}; divide each by their sum"
        )
    return np.asarray(values / sums[:, None])


def reference(proportions: dict[str, float], domains: Sequence[str]) -> np.ndarray:
    """The mixture, (M,), to compare with; domains that it does not name have the proportion 0."""
    unknown = [name for name in proportions if name not in domains]
    if unknown:
        known = _listed(domains)
        refuse(f"parameter 'reference': {unknown[0]!r} is not a domain; the domains are {known}")
    rows = pd.DataFrame([{domain: proportions.get(domain, 0.0) for domain in domains}])
    try:
        return np.asarray(mixtures(rows, list(domains))[0])
    except InvalidInput as error:
        refuse(f"parameter 'reference': {error.message.split(', ', 1)[1]}")  # it has one row


def counts(rows: pd.DataFrame, name: str, rule: str) -> np.ndarray:
    """The numbers from 1 to 2^63 in a column, (n,)."""
    values = numbers(rows, [name], rule)[:, 0]
    for bad, fault in ((values < 1, "is less than 1"), (values >= LARGEST, "is too large")):
        if bad.any():
            i = int(np.argmax(bad))
            refuse(f"{place(rows, i, name)}: {_shown(rows[name].iloc[i])} {fault}; {rule}")
    return values


def numbers(rows: pd.DataFrame, names: list[str], rule: str) -> np.ndarray:
    """The finite numbers in these columns, (n, columns); texts such as "0.5" are numbers too.

    Raises InvalidInput, with the rule, for the first cell that is not a finite number.
    """
    values = np.column_stack([_floats(rows[name]) for name in names])
    bad = ~np.isfinite(values)
    if bad.any():
        i, j = np.argwhere(bad)[0]
        cell = rows[names[j]].iloc[i]
        if pd.api.types.is_scalar(cell) and pd.isna(cell):
            fault = f"the value is missing ({cell})"
        elif np.isinf(values[i, j]):
            fault = f"{_shown(cell)} is not a finite number"
        else:
            fault = f"{_shown(cell)} is not a number"
        refuse(f"{place(rows, i, names[j])}: {fault}; {rule}")
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
    """A cell's number; NaN for anything else, such as booleans and dates."""
    if isinstance(cell, bool) or not isinstance(cell, str | Real | Decimal):
        return math.nan
    try:
        return float(cell)
    except ValueError:
        return math.nan
    except OverflowError:
        return math.inf


def place(rows: pd.DataFrame, i: int, *columns: Any) -> str:
    """Where an error is, to begin its message with: the row's label and the columns.

    Labels count from 0 in a table without its own index. If rows share labels, the row's position
    is added.
    """
    where = f"column{'s' * (len(columns) > 1)} {' … '.join(map(_shown, columns))}"
    position = "" if rows.index.is_unique else f" (position {i}, counted from 0)"
    return f"row {str(rows.index[i])[:SHOWN]}{position}, {where}"


def _listed(names: Sequence[str]) -> str:
    more = f", … ({len(names)} in all)" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _shown(value: Any) -> str:
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def refuse(message: str) -> NoReturn:
    """Raise InvalidInput."""
    raise InvalidInput(message)
