"""What a registered predictor refuses in its input: every mistake by its row, column and rule.

A registered predictor carries a copy of this file, so it imports nothing of the project.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

TOLERANCE = 1e-3  # of the sum of the proportions


def mixtures(rows: pd.DataFrame, prefix: str, domains: Sequence[str]) -> np.ndarray:
    """The proportions in the columns prefix + domain, (n, M), each row divided by its sum.

    Raises MlflowException for a missing or unknown domain, a proportion that is negative or no
    number, and a sum that misses 1.
    """
    names = [prefix + domain for domain in domains]
    unknown = [c for c in rows if str(c).startswith(prefix) and c not in names]
    missing = [c for c in names if c not in rows]
    known = f"the columns are {', '.join(names)}"
    if unknown:
        refuse(f"row {rows.index[0]}, column {unknown[0]!r}: unknown domain; {known}")
    if missing:
        refuse(f"row {rows.index[0]}, column {missing[0]!r}: missing; {known}")
    values = numbers(rows, names)
    for bad, rule in (
        (~np.isfinite(values), "must be a finite number"),
        (values < 0, "must not be negative"),
    ):
        if bad.any():
            i, j = np.argwhere(bad)[0]
            refuse(f"row {rows.index[i]}, column {names[j]!r}: {values[i, j]} {rule}")
    sums = values.sum(axis=1)
    off = np.abs(sums - 1) > TOLERANCE
    if off.any():
        i = int(np.argmax(off))
        refuse(
            f"row {rows.index[i]}, columns {names[0]!r} … {names[-1]!r}: the proportions sum "
            f"to {sums[i]:.6g}; they must sum to 1 within {TOLERANCE:g} ({known})"
        )
    return np.asarray(values / sums[:, None])


def numbers(rows: pd.DataFrame, names: list[str]) -> np.ndarray:
    """The columns as floats, (n, columns); what is no number becomes NaN and is refused later."""
    return rows[names].apply(pd.to_numeric, errors="coerce").to_numpy(float)


def refuse(message: str) -> None:
    """Raise the error that a model server answers with 400 and this text."""
    raise MlflowException(message, error_code=INVALID_PARAMETER_VALUE)
