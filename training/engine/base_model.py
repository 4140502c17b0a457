"""The base: a trained model that continued training begins with, found and checked."""

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
PROBE_TOKENS = 2000  # a domain, on which two tokenizers must agree


def find(given: str, corpus: Corpus, sequence_length: int, workspace: Path) -> tuple[Base, Size]:
    """The base at a folder, a hub id or an MLflow URI (`runs:/<id>/model`), and its size.

    Raises InputError for a base that is missing, no causal language model, too short for the
    sequences, or of another tokenizer than the corpus.
    """
    what = f"critical.base: {given!r}"
    source = _downloaded(given, what, workspace)
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


def refuse_missing(given: str) -> None:
    """Raise InputError for a base that is not there or no causal language model; reads no
    weights."""
    what = f"critical.base: {given!r}"
    if given.startswith(MLFLOW_SCHEMES):
        try:
            there = mlflow.artifacts.list_artifacts(artifact_uri=given)
        except (MlflowException, OSError) as error:
            raise InputError(f"{what} cannot be downloaded: {first_line(error)}") from error
        if not there:
            raise InputError(f"{what} cannot be downloaded: there is nothing")
    else:
        models.load_config(_local(given, what), what)


def _local(given: str, what: str) -> str:
    """An absolute folder, or the hub id itself."""
    folder = Path(given).expanduser()
    if given.startswith(("/", ".", "~")) and not folder.is_dir():
        raise InputError(
            f"{what} is not a folder; a base is a folder, a hub id or runs:/<id>/model"
        )
    return str(folder.absolute()) if folder.exists() else given


def _downloaded(given: str, what: str, workspace: Path) -> str:
    """A folder with the base's files, or the hub id itself."""
    if not given.startswith(MLFLOW_SCHEMES):
        return _local(given, what)
    folder = workspace / "bases" / hashlib.sha256(given.encode()).hexdigest()[:16]
    if not (folder / "config.json").exists():
        try:
            mlflow.artifacts.download_artifacts(given, dst_path=str(folder))
        except (MlflowException, OSError) as error:
            raise InputError(f"{what} cannot be downloaded: {first_line(error)}") from error
    holds = [path.parent for path in folder.rglob("config.json")]
    if not holds:
        raise InputError(
            f"{what} holds no config.json; a base is a Transformers checkpoint, as "
            "engine.save_models logs one (runs:/<id>/model)"
        )
    return str(holds[0])


def _refuse_other_tokenizer(source: str, what: str, corpus: Corpus) -> None:
    """Compare the base's tokenizer with the corpus's on the corpus's own held-out text."""
    folder = Path(source)
    if folder.is_dir() and not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise InputError(
            f"{what} holds no tokenizer ({', '.join(TOKENIZER_FILES)}), so that nobody knows "
            "whether its token ids are the study's; save it beside the model"
        )
    ours = transformers.AutoTokenizer.from_pretrained(corpus.tokenizer)
    try:
        theirs = transformers.AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{what}: its tokenizer cannot be loaded: {first_line(error)}") from error
    for name, files in corpus.domains.items():
        text = ours.decode(np.asarray(files.validation()[:PROBE_TOKENS]).tolist())
        if ours(text)["input_ids"] != theirs(text)["input_ids"]:
            raise InputError(
                f"{what} has another tokenizer than the study: they cut text of domain {name!r} "
                "differently; name the base's in the study (tokenizer.name)"
            )


def _digest(source: str, what: str, config: Any) -> str:
    """Of the weights: of their files and the config's, or the hub's commit."""
    folder = Path(source)
    if not folder.is_dir():
        return str(getattr(config, "_commit_hash", None) or source)
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    if not weights:
        raise InputError(f"{what} holds no weights (*.safetensors or *.bin)")
    whole = hashlib.sha256()
    for file in (folder / "config.json", *weights):
        with file.open("rb") as stream:
            whole.update(hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()[:32]
