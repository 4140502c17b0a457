"""A trained model as a Transformers checkpoint: where its files are, and which run trained it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from training.record.errors import InputError, first_line

ARTIFACT = "model"  # of a run that saved its model
KINDS = "a model is runs:/<id>/model, models:/<name>/<version>, a folder or a hub id"


@dataclass(frozen=True)
class SavedModel:
    """A checkpoint of Transformers."""

    location: str  # an MLflow URI, a folder or a hub id
    run_id: str | None  # of the run that trained it, if it is in MLflow

    @contextmanager
    def files(self) -> Iterator[str]:
        """The folder of its files, which are downloaded for the time being; or the hub id.

        Raises InputError for files that are missing, or that hold no model or no tokenizer.
        """
        from training.engine.base_model import TOKENIZER_FILES  # slow: torch

        with tempfile.TemporaryDirectory() as scratch:
            source = _local(self.location, Path(scratch))
            folder = Path(source)
            if folder.is_dir() and not any((folder / name).exists() for name in TOKENIZER_FILES):
                raise InputError(
                    f"model: {self.location!r} holds no tokenizer ({', '.join(TOKENIZER_FILES)}); "
                    "save it beside the model"
                )
            yield source


def find(location: str) -> SavedModel:
    """The model at `runs:/<id>`, `runs:/<id>/model`, `models:/<name>/<version>`, a folder or a hub
    id. Raises InputError for a run or a version that does not exist, and a run without a model."""
    if not location.strip():
        raise InputError(f"model: name one; {KINDS}")
    client = mlflow.MlflowClient()
    try:
        if location.startswith("runs:/"):
            run_id, _, path = location.removeprefix("runs:/").strip("/").partition("/")
            run_id = client.get_run(run_id).info.run_id
            path = path or ARTIFACT
            if not is_saved(run_id, path):
                raise InputError(
                    f"model: run {run_id} has no artifact {path!r}; a run saves its model with "
                    "engine.save_models: true in its study, or train -P save_model=true"
                )
            return SavedModel(f"runs:/{run_id}/{path}", run_id)
        if location.startswith("models:/"):
            return SavedModel(location, _run_of(location, client))
    except (MlflowException, OSError) as error:
        raise InputError(f"model: {location!r}: {first_line(error)}") from error
    folder = Path(location).expanduser()
    if not folder.exists() and location.startswith(("/", ".", "~")):
        raise InputError(f"model: {location!r} is not a folder; {KINDS}")
    return SavedModel(str(folder.absolute()) if folder.exists() else location, None)


def is_saved(run_id: str, path: str = ARTIFACT) -> bool:
    """Whether a run has its model among its artifacts."""
    return bool(mlflow.MlflowClient().list_artifacts(run_id, path))


def _run_of(uri: str, client: mlflow.MlflowClient) -> str | None:
    """The run of a registered version, if it names one."""
    name, at, alias = uri.removeprefix("models:/").partition("@")
    if at:
        return client.get_model_version_by_alias(name, alias).run_id or None
    name, slash, version = name.rpartition("/")
    return client.get_model_version(name, version).run_id or None if slash else None


def _local(location: str, scratch: Path) -> str:
    """The folder with the checkpoint's config, or the hub id."""
    if ":/" not in location:
        return location
    try:
        mlflow.artifacts.download_artifacts(location, dst_path=str(scratch))
    except (MlflowException, OSError) as error:
        raise InputError(
            f"model: {location!r} cannot be downloaded: {first_line(error)}"
        ) from error
    folders = sorted(path.parent for path in scratch.rglob("config.json"))
    if not folders:
        raise InputError(f"model: {location!r} holds no config.json: it is no Transformers model")
    return str(folders[0])
