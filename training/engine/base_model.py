"""The base model: the trained model that continual pretraining starts from."""

import hashlib
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import transformers
from mlflow.exceptions import MlflowException

from training.config import Size
from training.data.corpus import Corpus
from training.engine import model as models
from training.record.errors import InputError, first_line
from training.run import Base

MLFLOW_SCHEMES = ("runs:/", "models:/", "mlflow-artifacts:/")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
PROBE_TOKENS = 2000  # tokens per domain on which two tokenizers must agree


def find(location: str, corpus: Corpus, sequence_length: int, workspace: Path) -> tuple[Base, Size]:
    """The base model at a folder, a hub id or an MLflow URI (`runs:/<id>/model`), and its size.

    Raises InputError for a base that is missing, is not a causal language model, has too short a
    context for the sequences, or has another tokenizer than the corpus.
    """
    what = f"critical.base: {location!r}"
    source = _downloaded(location, what, workspace)
    config = models.load_config(source, what)
    models.refuse_short(config, what, sequence_length)
    if config.vocab_size < corpus.vocab_size:
        raise InputError(
            f"{what} has embeddings of {config.vocab_size:,} tokens, the study's tokenizer "
            f"{corpus.vocab_size:,}; name the base's own tokenizer in the study (tokenizer.name)"
        )
    _refuse_other_tokenizer(source, what, corpus)
    return Base(source=source, digest=_digest(source, what, config)), models.resolve(
        Size(config=source)
    )


def refuse_missing(location: str) -> None:
    """Raise InputError for a base that is missing or not a causal language model.

    Reads no weights.
    """
    what = f"critical.base: {location!r}"
    if location.startswith(MLFLOW_SCHEMES):
        try:
            artifacts = mlflow.artifacts.list_artifacts(artifact_uri=location)
        except (MlflowException, OSError) as error:
            raise InputError(f"{what} cannot be downloaded: {first_line(error)}") from error
        if not artifacts:
            raise InputError(f"{what} cannot be downloaded: it does not exist")
    else:
        models.load_config(_local(location, what), what)


def _local(location: str, what: str) -> str:
    """The absolute path of a folder, or the hub id itself."""
    folder = Path(location).expanduser()
    if location.startswith(("/", ".", "~")) and not folder.is_dir():
        raise InputError(
            f"{what} is not a folder; a base is a folder, a hub id or runs:/<id>/model"
        )
    return str(folder.absolute()) if folder.exists() else location


def _downloaded(location: str, what: str, workspace: Path) -> str:
    """The folder of the base's files, or the hub id itself."""
    if not location.startswith(MLFLOW_SCHEMES):
        return _local(location, what)
    folder = workspace / "bases" / hashlib.sha256(location.encode()).hexdigest()[:16]
    if not (folder / "config.json").exists():
        try:
            mlflow.artifacts.download_artifacts(location, dst_path=str(folder))
        except (MlflowException, OSError) as error:
            raise InputError(f"{what} cannot be downloaded: {first_line(error)}") from error
    folders = [path.parent for path in folder.rglob("config.json")]
    if not folders:
        raise InputError(
            f"{what} holds no config.json; a base is a Transformers checkpoint, as "
            "engine.save_models logs one (runs:/<id>/model)"
        )
    return str(folders[0])


def _refuse_other_tokenizer(source: str, what: str, corpus: Corpus) -> None:
    """Raise InputError unless both tokenizers agree on the corpus's held-out text."""
    folder = Path(source)
    if folder.is_dir() and not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise InputError(
            f"{what} holds no tokenizer ({', '.join(TOKENIZER_FILES)}), so its token ids "
            "cannot be compared with the study's; save it beside the model"
        )
    study_tokenizer = transformers.AutoTokenizer.from_pretrained(corpus.tokenizer)
    try:
        base_tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{what}: its tokenizer cannot be loaded: {first_line(error)}") from error
    for name, files in corpus.domains.items():
        text = study_tokenizer.decode(np.asarray(files.validation()[:PROBE_TOKENS]).tolist())
        if study_tokenizer(text)["input_ids"] != base_tokenizer(text)["input_ids"]:
            raise InputError(
                f"{what} has another tokenizer than the study: they cut text of domain {name!r} "
                "differently; name the base's own in the study (tokenizer.name)"
            )


def _digest(source: str, what: str, config: Any) -> str:
    """Hash of the weight files and the config, or the hub's commit."""
    folder = Path(source)
    if not folder.is_dir():
        return str(getattr(config, "_commit_hash", None) or source)
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    if not weights:
        raise InputError(f"{what} holds no weights (*.safetensors or *.bin)")
    digest = hashlib.sha256()
    for file in (folder / "config.json", *weights):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:32]
