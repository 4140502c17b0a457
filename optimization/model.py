"""A registered predictor as the search sees it: through MLflow alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException

from training import record
from training.errors import InputError

Array = np.ndarray


@dataclass(frozen=True)
class Prediction:
    """What the predictor says of one mixture."""

    losses: dict[str, float]
    objective: float
    low: float
    high: float
    distance: float


@dataclass(frozen=True)
class Predictor:
    """A loaded predictor, asked at one scale."""

    uri: str
    domains: tuple[str, ...]
    n_params: float
    tokens: float
    metadata: dict[str, Any]
    loaded: Any  # mlflow.pyfunc.PyFuncModel

    def table(self, mixtures: Array) -> pd.DataFrame:
        """The predictor's answer for mixtures (n, M), a row each."""
        rows = pd.DataFrame(mixtures, columns=[record.MIXTURE + d for d in self.domains])
        rows["n_params"], rows["tokens"] = self.n_params, self.tokens
        return self.loaded.predict(rows)

    def objective(self, mixtures: Array) -> Array:
        """Weighted validation loss, (n,)."""
        return self.table(mixtures)["objective"].to_numpy()

    def ask(self, mixture: Mapping[str, float]) -> Prediction:
        """The prediction for one mixture."""
        row = self.table(np.array([[mixture[d] for d in self.domains]])).iloc[0]
        return Prediction(
            record.without_prefix(record.VAL_LOSS, dict(row)),
            *(float(row[c]) for c in ("objective", "objective_low", "objective_high", "distance")),
        )


def load(uri: str, n_params: float | None = None, tokens: float | None = None) -> Predictor:
    """Load a registered predictor; at another scale than its target when given."""
    try:
        loaded = mlflow.pyfunc.load_model(uri)
    except MlflowException as error:
        raise InputError(f"model {uri!r} cannot be loaded: {error.message}") from error
    metadata = loaded.metadata.metadata or {}
    if "target" not in metadata:
        raise InputError(f"model {uri!r} is no mixture predictor; `fit` registers one")
    target = metadata["target"]
    return Predictor(
        uri,
        tuple(metadata["domains"]),
        n_params or target["n_params"],
        tokens or target["tokens"],
        metadata,
        loaded,
    )
