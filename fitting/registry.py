"""Log a fit as a registered model version and decide which version is champion."""

import hashlib
import json
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType

from fitting import laws, predictor
from training import record

DEFAULT_NAME = "mixture-predictor"
CHAMPION, CHALLENGER = "champion", "challenger"
CV_ERROR, FITTED_FOR = "cv_error", "fitted_for"  # tags of a model version


@dataclass(frozen=True)
class Registered:
    """A new version of the predictor, its alias, and why it is no champion if it is none."""

    name: str
    version: str
    alias: str
    reason: str

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"


def register(
    name: str, spec: dict[str, Any], metadata: dict[str, Any], cv_error: float
) -> Registered:
    """Log the predictor in the active run as the next version of `name` and set its alias.

    `spec` is what `predictor.json` holds, `metadata` what users of the model may want to know.
    """
    example = pd.DataFrame([dict.fromkeys(_inputs(spec), 1 / len(spec["domains"]))])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "predictor.json")
        path.write_text(json.dumps(spec))
        info = mlflow.pyfunc.log_model(
            name="predictor",
            python_model=predictor.__file__,
            artifacts={"predictor": str(path), "laws": laws.__file__},
            signature=_signature(spec),
            input_example=example,
            registered_model_name=name,
            pip_requirements=[f"{p}=={version(p)}" for p in ("mlflow", "numpy", "pandas")],
            metadata=metadata,
        )
    number = str(info.registered_model_version)
    purpose = [spec["target"], spec["domains"], spec["val_domains"], spec["weights"]]
    fitted_for = hashlib.sha256(json.dumps(purpose).encode()).hexdigest()[:16]
    client = mlflow.MlflowClient()
    client.set_model_version_tag(name, number, CV_ERROR, repr(cv_error))
    client.set_model_version_tag(name, number, FITTED_FOR, fitted_for)
    reason = _why_not_champion(client, name, fitted_for, cv_error)
    alias = CHALLENGER if reason else CHAMPION
    client.set_registered_model_alias(name, alias, number)
    return Registered(name, number, alias, reason)


def _why_not_champion(
    client: mlflow.MlflowClient, name: str, fitted_for: str, cv_error: float
) -> str:
    """Why the present champion stays; empty when the new version takes its place."""
    try:
        champion = client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException:
        return ""
    if champion.tags.get(FITTED_FOR) != fitted_for:
        return (
            f"champion is version {champion.version}, fitted for another target, other domains "
            "or other weights"
        )
    theirs = float(champion.tags[CV_ERROR])
    if cv_error > theirs:
        return (
            f"champion is version {champion.version}, whose cross-validated error {theirs:.4f} "
            f"is less than {cv_error:.4f}"
        )
    return ""


def _inputs(spec: dict[str, Any]) -> list[str]:
    return [record.MIXTURE + domain for domain in spec["domains"]]


def _signature(spec: dict[str, Any]) -> ModelSignature:
    outputs = [
        *(record.VAL_LOSS + domain for domain in spec["val_domains"]),
        *("objective", "objective_low", "objective_high", "distance"),
    ]
    return ModelSignature(
        inputs=Schema(
            [ColSpec(AnyType(), name) for name in _inputs(spec)]
            + [ColSpec(AnyType(), name, required=False) for name in ("n_params", "tokens")]
        ),
        outputs=Schema([ColSpec("double", name) for name in outputs]),
        params=ParamSchema([ParamSpec("domain_intervals", "boolean", default=False)]),
    )
