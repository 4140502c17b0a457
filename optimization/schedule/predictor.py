"""A registered schedule predictor, as a search sees it."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException

from training.record import keys
from training.record.errors import InputError

Array = np.ndarray


@dataclass(frozen=True)
class SchedulePredictor:
    """A loaded schedule predictor."""

    uri: str
    domains: tuple[str, ...]
    val_domains: tuple[str, ...]
    weights: Array  # of the validation domains, (V,)
    tokens: Array  # at the end of each phase, (K,)
    fitted: Array  # the mixtures of the fitted runs, (m, M)
    law: Any
    replicates: list[Any]  # the laws of the bootstrap
    loaded: Any  # mlflow.pyfunc.PyFuncModel
    unit: str = keys.NATS  # of the losses

    def objectives(self, law: Any, schedules: Array) -> Array:
        """Weighted losses at the end of each phase, (n, K), of schedules (n, K, M)."""
        return np.asarray(law.predict(schedules) @ self.weights)

    def values(self, law: Any, last: int) -> list[Array]:
        """λ of each phase up to phase `last`, a list of (V,): the weight of the losses that the
        phase adds, at the end of `last`."""
        values = [self.weights]
        for k in range(last, 0, -1):
            values.insert(0, law.kept[k] * values[0])
        return values

    def predict_one(self, schedule: Array) -> dict[str, float]:
        """The prediction for one schedule (K, M)."""
        row = {
            f"{keys.PHASE}{k}/{keys.MIXTURE}{domain}": share
            for k, mixture in enumerate(schedule, 1)
            for domain, share in zip(self.domains, mixture, strict=True)
        }
        return {
            str(k): float(x) for k, x in self.loaded.predict(pd.DataFrame([row])).iloc[0].items()
        }


def load(uri: str) -> SchedulePredictor:
    """Load a registered schedule predictor. Raises InputError for any other model."""
    try:
        loaded = mlflow.pyfunc.load_model(uri)
    except MlflowException as error:
        raise InputError(f"model {uri!r} cannot be loaded: {error.message}") from error
    artifact_model = loaded.unwrap_python_model()
    if not hasattr(artifact_model, "replicates"):
        raise InputError(f"model {uri!r} is not a schedule predictor; `schedule` registers one")
    spec = artifact_model.spec
    if isinstance(spec, dict):  # of version 0.1
        spec = SimpleNamespace(**spec)
    return SchedulePredictor(
        uri=uri,
        domains=tuple(spec.domains),
        val_domains=tuple(spec.val_domains),
        weights=np.array(spec.weights),
        tokens=np.array(artifact_model.law.tokens),
        fitted=np.array(spec.mixtures),
        law=artifact_model.law,
        replicates=artifact_model.replicates,
        loaded=loaded,
        unit=getattr(spec, keys.UNIT, keys.NATS),
    )
