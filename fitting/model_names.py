"""The names of registered predictors, and the versions that their URIs name."""

import re
from contextlib import suppress

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from training.record.errors import InputError

DEFAULT_NAME = "mixture-predictor"
CHAMPION = "champion"  # the alias of the version to use
MAX_NAME_LENGTH = 256  # characters, the limit of MLflow's SQL stores


def version_of(uri: str) -> ModelVersion | None:
    """The version that `models:/name/version` or `models:/name@alias` names; None if there is none,
    and for other models."""
    client = mlflow.MlflowClient()
    with suppress(MlflowException):
        if match := re.fullmatch(r"models:/(.+)@(.+)", uri):
            return client.get_model_version_by_alias(*match.groups())
        if match := re.fullmatch(r"models:/(.+)/(\d+)", uri):
            return client.get_model_version(*match.groups())
    return None


def refuse_bad_name(name: str, where: str) -> None:
    """Raise InputError for a name that MLflow does not accept or that a URI cannot contain."""
    if bad := re.search(r"[/:?]|[^ -~\w]", name):
        fault = f"contains {bad[0]!r}, which the name of a registered model cannot"
    elif name != name.strip() or name in ("", ".", ".."):
        fault = "is not a name: it is empty, '.', '..', or begins or ends with a space"
    elif len(name) > MAX_NAME_LENGTH:
        fault = (
            f"has {len(name)} characters; a registered model's name has at most {MAX_NAME_LENGTH}"
        )
    else:
        return
    raise InputError(f"{where}: {name!r} {fault}")
