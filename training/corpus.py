"""Text → token files: one folder a domain, kept until its text or the tokenizer changes.

    <workspace>/tokenizers/<key>/              a saved tokenizer
    <workspace>/tokens/<key>/{train,validation}.bin, domain.json
    <workspace>/corpora/<key>.json             the manifest: which of these a study uses

A token file is a flat array of token ids, documents separated by the end-of-text token, read
through a memory map. `domain.json` and the manifest are written last, so that what exists is
whole; an interrupted preparation starts again at the domain where it stopped.
"""

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from training import sources
from training.errors import InputError
from training.settings import Domain, Tokenizer, Validation

FORMAT = 1  # raise when the files' layout or the held-out rule changes
END_OF_TEXT = "<|endoftext|>"
BPE_SAMPLE = 1_000_000  # characters a domain that a trained tokenizer sees
BATCH = 256  # documents encoded at once


@dataclass(frozen=True)
class TokenFiles:
    """One domain's tokens on disk."""

    folder: str
    dtype: str
    train_tokens: int
    validation_tokens: int
    bytes_per_token: float
    """UTF-8 bytes a token of the held-out part; turns nats per token into bits per byte."""
    documents: int
    digest: str
    """Of the tokens, both parts."""

    def train(self) -> np.ndarray:
        """Token ids, (train_tokens,), memory-mapped."""
        return np.memmap(Path(self.folder, "train.bin"), dtype=self.dtype, mode="r")

    def validation(self) -> np.ndarray:
        """Token ids, (validation_tokens,), memory-mapped."""
        return np.memmap(Path(self.folder, "validation.bin"), dtype=self.dtype, mode="r")


@dataclass(frozen=True)
class Corpus:
    """The token files of a study's domains, in the study's order."""

    manifest: Path
    tokenizer: str
    vocab_size: int
    domains: dict[str, TokenFiles]

    @property
    def digest(self) -> str:
        """Of all tokens of all domains."""
        parts = [f"{name}:{files.digest}" for name, files in self.domains.items()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def proportional_mixture(self) -> dict[str, float]:
        """Each domain in proportion to its training tokens."""
        total = sum(files.train_tokens for files in self.domains.values())
        return {name: files.train_tokens / total for name, files in self.domains.items()}


def load(manifest: Path) -> Corpus:
    """A prepared corpus from its manifest."""
    raw = json.loads(manifest.read_text())
    domains = {name: TokenFiles(**files) for name, files in raw["domains"].items()}
    return Corpus(manifest, raw["tokenizer"], raw["vocab_size"], domains)


def prepare(
    domains: Mapping[str, Domain],
    tokenizer: Tokenizer,
    validation: Validation,
    sequence_length: int,
    workspace: Path,
) -> Corpus:
    """Tokenise what is not yet tokenised and return the corpus.

    Raises InputError for a source that cannot be read, an empty domain, and a domain whose
    held-out or training part is smaller than what the study reads from it.
    """
    digests = workspace / "digests.json"
    texts = {name: sources.fingerprint(name, d, digests) for name, d in domains.items()}
    key = _key([FORMAT, list(texts.items()), tokenizer.model_dump(), validation.fraction])
    manifest = workspace / "corpora" / f"{key}.json"
    if not _whole(manifest):
        folder = _tokenizer_folder(domains, texts, tokenizer, validation, workspace)
        found = {
            name: _tokenise(name, domain, texts[name], folder, validation, workspace)
            for name, domain in domains.items()
        }
        _write_json(
            manifest,
            {
                "tokenizer": str(folder),
                "vocab_size": len(_load_tokenizer(folder)),
                "domains": {name: asdict(files) for name, files in found.items()},
            },
        )
    corpus = load(manifest)
    for name, files in corpus.domains.items():
        _check_size(name, files, validation, sequence_length)
    return corpus


def _whole(manifest: Path) -> bool:
    """Whether a manifest exists and every file it names is still there."""
    if not manifest.exists():
        return False
    folders = [files.folder for files in load(manifest).domains.values()]
    return all(Path(folder, "domain.json").exists() for folder in folders)


def _check_size(name: str, files: TokenFiles, validation: Validation, sequence_length: int) -> None:
    needed = max(validation.tokens, sequence_length) + 1
    if files.validation_tokens < needed:
        raise InputError(
            f"domain {name!r}: its held-out part has {files.validation_tokens:,} tokens, an "
            f"evaluation reads {needed:,}; add text, raise validation.fraction "
            f"({validation.fraction:g}) or lower validation.tokens ({validation.tokens:,})"
        )
    if files.train_tokens <= sequence_length:
        raise InputError(
            f"domain {name!r}: its training part has {files.train_tokens:,} tokens, less than "
            f"one sequence ({sequence_length}); add text or lower validation.fraction"
        )


def _held_out(text: str, fraction: float) -> bool:
    """Whether a document is held out: by its text's hash, so copies never cross the parts."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) < fraction * 2**64


def _tokenizer_folder(
    domains: Mapping[str, Domain],
    texts: Mapping[str, str],
    tokenizer: Tokenizer,
    validation: Validation,
    workspace: Path,
) -> Path:
    """The folder of the study's tokenizer, trained or fetched if it is not there yet."""
    trained_on = [texts, validation.fraction] if tokenizer.vocab_size else None
    folder = workspace / "tokenizers" / _key([FORMAT, tokenizer.model_dump(), trained_on])
    if not folder.exists():
        scratch = _scratch(folder)
        if tokenizer.vocab_size:
            _train_bpe(domains, tokenizer.vocab_size, validation.fraction, scratch)
        else:
            _load_tokenizer(tokenizer.name).save_pretrained(scratch)
        os.replace(scratch, folder)
    return folder


def _train_bpe(
    domains: Mapping[str, Domain], vocab_size: int, fraction: float, folder: Path
) -> None:
    """Train a byte-level BPE on an equal amount of training text from each domain."""
    import tokenizers
    import transformers

    def sample() -> Iterator[str]:
        for name, domain in domains.items():
            left = BPE_SAMPLE
            for text in sources.documents(name, domain):
                if not _held_out(text, fraction):
                    yield text[:left]
                    left -= len(text)
                    if left <= 0:
                        break

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(sample(), trainer)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END_OF_TEXT
    ).save_pretrained(folder)


def _load_tokenizer(name: str | Path | None) -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    try:
        loaded = transformers.AutoTokenizer.from_pretrained(str(name))
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"tokenizer.name {str(name)!r} cannot be loaded: {first}") from error
    if loaded.eos_token_id is None:
        raise InputError(f"tokenizer.name {str(name)!r} has no end-of-text token to end documents")
    return loaded


def _tokenise(
    name: str,
    domain: Domain,
    text_key: str,
    tokenizer: Path,
    validation: Validation,
    workspace: Path,
) -> TokenFiles:
    """One domain's token files, written if they are not there yet."""
    key = _key([FORMAT, text_key, tokenizer.name, validation.fraction])
    folder = workspace / "tokens" / key
    done = folder / "domain.json"
    if not done.exists():
        scratch = _scratch(folder)
        stats = _write_tokens(name, domain, tokenizer, validation.fraction, scratch)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(scratch, folder)
        _write_json(done, {"folder": str(folder), **stats})
    return TokenFiles(**json.loads(done.read_text()))


def _write_tokens(
    name: str, domain: Domain, tokenizer: Path, fraction: float, folder: Path
) -> dict[str, object]:
    """Encode a domain's documents into `folder`; what `TokenFiles` records of them."""
    loaded = _load_tokenizer(tokenizer)
    dtype = "uint16" if len(loaded) <= 2**16 else "uint32"
    tokens = [0, 0]  # train, validation
    bytes_held_out = count = 0
    digest = hashlib.sha256()
    with (
        Path(folder, "train.bin").open("wb") as train,
        Path(folder, "validation.bin").open("wb") as held_out,
        tqdm(desc=f"tokenising {name}", unit="B", unit_scale=True, mininterval=2) as progress,
    ):
        for texts in _batches(sources.documents(name, domain)):
            encoded = loaded(texts, add_special_tokens=False, verbose=False)["input_ids"]
            for text, ids in zip(texts, encoded, strict=True):
                part = int(_held_out(text, fraction))
                data = np.asarray([*ids, loaded.eos_token_id], dtype=dtype).tobytes()
                (held_out if part else train).write(data)
                digest.update(bytes([part]) + data)
                size = len(text.encode("utf-8", "surrogatepass"))
                tokens[part] += len(ids) + 1
                bytes_held_out += size * part
                count += 1
                progress.update(size)
    if not sum(tokens):
        raise InputError(f"domain {name!r}: its source holds no text")
    return {
        "dtype": dtype,
        "train_tokens": tokens[0],
        "validation_tokens": tokens[1],
        "bytes_per_token": bytes_held_out / max(tokens[1], 1),
        "documents": count,
        "digest": digest.hexdigest()[:16],
    }


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    nonempty = (text for text in texts if text)
    while batch := list(itertools.islice(nonempty, BATCH)):
        yield batch


def _scratch(folder: Path) -> Path:
    """An empty folder beside `folder`, to be renamed to it when it is whole."""
    scratch = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    return scratch


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".partial")
    scratch.write_text(json.dumps(value, indent=1))
    os.replace(scratch, path)


def _key(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
