"""The name of a run of an entry point: what it does, and to what."""

from collections.abc import Mapping
from pathlib import Path

import mlflow
from mlflow.utils import name_utils

from fitting.model_names import CHAMPION, DEFAULT_NAME, version_of
from training.record import keys

LONGEST = 100  # characters
COMMANDS = {keys.PROXY: "train"}  # stage → command, where they differ


def title(stage: str, parameters: Mapping[str, str], experiment_id: str) -> str:
    """The name of a run of this stage with these parameters; `study` is the study's name."""
    name = f"{COMMANDS.get(stage, stage)} {_subject(stage, parameters, experiment_id)}"
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def _subject(stage: str, parameters: Mapping[str, str], experiment_id: str) -> str:
    parameters = {key: value for key, value in parameters.items() if value}
    searched = stage in (keys.OPTIMIZE, keys.EXPLORE)
    if searched and ("model" in parameters or "study" not in parameters):
        return model_title(parameters.get("model", f"models:/{DEFAULT_NAME}@{CHAMPION}"))
    if stage == keys.EVALUATE and "model" in parameters:
        model = parameters["model"]
        return model_title(model) if model.startswith("models:/") else model
    if "source" in parameters:
        return ", ".join(Path(source).name for source in parameters["source"].split(","))
    if "study" in parameters:
        size = f" {parameters['size']}" if "size" in parameters else ""
        return parameters["study"] + size
    if stage == keys.CRITICAL and "experiment" not in parameters:
        return "quickstart"
    return parameters.get("experiment") or str(mlflow.get_experiment(experiment_id).name)


def model_title(uri: str) -> str:
    """`models:/name/3` and `models:/name@alias` as `name v3`; an alias of nothing as it is."""
    version = version_of(uri)
    text = f"{version.name}/{version.version}" if version else uri.removeprefix("models:/")
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
