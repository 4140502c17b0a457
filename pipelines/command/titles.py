"""What a run of an entry point is called: what it does, and to what."""

from collections.abc import Mapping
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.utils import name_utils

from fitting.registry import CHAMPION, DEFAULT_NAME
from training.record import keys

LONGEST = 100  # characters
COMMANDS = {keys.PROXY: "train"}  # of stages that are called otherwise


def title(stage: str, parameters: Mapping[str, str], experiment_id: str) -> str:
    """The name of a run of this stage with these parameters, as far as they say."""
    name = f"{COMMANDS.get(stage, stage)} {_subject(stage, parameters, experiment_id)}"
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def _subject(stage: str, parameters: Mapping[str, str], experiment_id: str) -> str:
    given = {key: value for key, value in parameters.items() if value}
    if stage == keys.OPTIMIZE and ("model" in given or "study" not in given):
        return _model(given.get("model", f"models:/{DEFAULT_NAME}@{CHAMPION}"))
    if "source" in given:
        return ", ".join(Path(source).name for source in given["source"].split(","))
    if "study" in given:
        study = given["study"]
        size = f" {given['size']}" if "size" in given else ""
        return (Path(study).stem if study.endswith((".yaml", ".yml")) else study) + size
    if stage == keys.CRITICAL and "experiment" not in given:
        return "quickstart"
    return given.get("experiment") or str(mlflow.get_experiment(experiment_id).name)


def _model(uri: str) -> str:
    """`models:/name/3` and `models:/name@alias` as `name v3`, where there is such a version."""
    text = uri.removeprefix("models:/")
    name, _, alias = text.partition("@")
    if alias:
        try:
            version = mlflow.MlflowClient().get_model_version_by_alias(name, alias).version
        except MlflowException:
            return text
        return f"{name} v{version}"
    name, _, number = text.rpartition("/")
    return f"{name} v{number}" if name and number.isdigit() else text


def generated(name: str) -> bool:
    """Whether MLflow made this name up, as it does for runs that nobody named."""
    predicate, _, rest = name.partition("-")
    noun, _, number = rest.partition("-")
    return (
        number.isdigit()
        and predicate in map(str.lower, name_utils._GENERATOR_PREDICATES)
        and noun in map(str.lower, name_utils._GENERATOR_NOUNS)
    )
