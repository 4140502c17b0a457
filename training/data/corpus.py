"""Text → token files: one folder per domain, kept until its text or the tokenizer changes.

    <workspace>/tokenizers/<key>/              a saved tokenizer
    <workspace>/tokens/<key>/{train,validation}.{bin,idx}, domain.json    of a domain or set
    <workspace>/corpora/<key>.json             the manifest: what a study uses of these

A `.bin` file is a flat array of token ids, with an end-of-text token after each document. An
`.idx` file is the array of the documents' ends in it, counted in tokens. Both are memory-mapped.
`domain.json` and the manifest are written last, so a folder that has one is complete. Until then a
domain's files are in `tokens/<key>.partial/`, from which an interrupted preparation resumes.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from training.config import Domain, Tokenizer, Validation
from training.data import leaks, sources, tokenise
from training.data.sources import DOMAIN, SET
from training.record.errors import InputError
from training.record.files import write_json

logger = logging.getLogger("training")

FORMAT = 2  # increase when the files' layout or the held-out rule changes
END_OF_TEXT = "<|endoftext|>"
DONE = {"drop": "left out of the training text", "warn": "kept in the training text"}  # of leaks
MUCH_COMMON = 0.05  # share of a set's passages
DOCUMENTS = 256  # of a set, read at once
BPE_SAMPLE = 1_000_000  # characters per domain that a tokenizer is trained on


@dataclass(frozen=True)
class TokenFiles:
    """One domain's tokens on disk."""

    folder: str
    dtype: str
    train_tokens: int
    validation_tokens: int
    bytes_per_token: float
    """UTF-8 bytes per held-out token; converts nats per token into bits per byte."""
    documents: int
    digest: str
    """Hash of the tokens of both parts."""
    skipped: int = 0
    """Rows skipped under `on_error: skip`."""
    leaks: dict[str, Any] = field(default_factory=dict)
    """Set → documents and tokens of training text that hold text of it, and an example."""

    def train(self) -> np.ndarray:
        """Token ids, (train_tokens,), memory-mapped."""
        return np.memmap(Path(self.folder, "train.bin"), dtype=self.dtype, mode="r")

    def validation(self) -> np.ndarray:
        """Token ids, (validation_tokens,), memory-mapped."""
        return np.memmap(Path(self.folder, "validation.bin"), dtype=self.dtype, mode="r")

    def validation_documents(self) -> np.ndarray:
        """End of each held-out document, including its end-of-text token, (documents,)."""
        return np.memmap(Path(self.folder, "validation.idx"), dtype=tokenise.ENDS, mode="r")


@dataclass(frozen=True)
class Corpus:
    """The token files of a study's domains and validation sets, in the study's order."""

    manifest: Path
    tokenizer: str
    vocab_size: int
    domains: dict[str, TokenFiles]
    sets: dict[str, TokenFiles] = field(default_factory=dict)

    @property
    def evaluated(self) -> dict[str, TokenFiles]:
        """What losses are measured on."""
        return {**self.domains, **self.sets}

    @property
    def digest(self) -> str:
        """Hash of all tokens."""
        parts = [f"{name}:{files.digest}" for name, files in self.domains.items()]
        parts += [f"set {name}:{files.digest}" for name, files in self.sets.items()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def proportional_mixture(self) -> dict[str, float]:
        """The mixture in proportion to each domain's training tokens."""
        total = sum(files.train_tokens for files in self.domains.values())
        return {name: files.train_tokens / total for name, files in self.domains.items()}


def load(manifest: Path) -> Corpus:
    """A prepared corpus from its manifest."""
    return _corpus(manifest, json.loads(manifest.read_text()))


def _corpus(manifest: Path, raw: Mapping[str, Any]) -> Corpus:
    domains, sets = (
        {name: TokenFiles(**files) for name, files in raw.get(part, {}).items()}
        for part in ("domains", "sets")
    )
    return Corpus(manifest, raw["tokenizer"], raw["vocab_size"], domains, sets)


def prepare(
    domains: Mapping[str, Domain],
    tokenizer: Tokenizer,
    validation: Validation,
    sequence_length: int,
    workspace: Path,
) -> Corpus:
    """Tokenise what is not yet tokenised and return the corpus.

    Only one process at a time prepares in a workspace. Raises InputError for a source that cannot
    be read, an empty domain, and a domain whose held-out or training part is smaller than what the
    study reads from it.
    """
    sets = validation.sets
    texts, set_texts = _fingerprints(domains, workspace), _fingerprints(sets, workspace, SET)
    manifest = _manifest(texts, set_texts, tokenizer, validation, workspace)
    if not _whole(manifest):
        with _locked(workspace):
            sources.check(domains)  # before tokenising the first
            sources.check(sets, SET)
            folder = _tokenizer_folder(domains, texts, tokenizer, validation, workspace)
            loaded = tokenise.load_tokenizer(folder)
            texts_of = _Texts(workspace / "tokens", folder.name, loaded)
            searched = (validation, set_texts) if sets else None
            summary = {
                "tokenizer": str(folder),
                "vocab_size": len(loaded),
                "domains": texts_of.tokenised(domains, texts, validation.fraction, searched),
            }
            if sets:
                summary["sets"] = texts_of.tokenised(sets, set_texts, 1.0, kind=SET)
            _check(_corpus(manifest, summary), validation, sequence_length)
            write_json(manifest, summary, indent=1)
    corpus = load(manifest)
    _check(corpus, validation, sequence_length)
    for line in _leaks(corpus):
        logger.warning(f"{DONE[validation.decontaminate]}: {line}")
    return corpus


def find(
    domains: Mapping[str, Domain], tokenizer: Tokenizer, validation: Validation, workspace: Path
) -> Corpus | None:
    """The corpus if it is prepared and up to date, else None; prepares nothing.

    Raises InputError for files that cannot be read.
    """
    if not (workspace / "corpora").exists():
        return None  # avoids hashing the source files
    texts = _fingerprints(domains, workspace)
    sets = _fingerprints(validation.sets, workspace, SET)
    manifest = _manifest(texts, sets, tokenizer, validation, workspace)
    return load(manifest) if _whole(manifest) else None


def _fingerprints(
    domains: Mapping[str, Domain], workspace: Path, kind: str = DOMAIN
) -> dict[str, str]:
    digests = workspace / "digests.json"
    return {name: sources.fingerprint(name, d, digests, kind) for name, d in domains.items()}


def _manifest(
    texts: Mapping[str, str],
    set_texts: Mapping[str, str],
    tokenizer: Tokenizer,
    validation: Validation,
    workspace: Path,
) -> Path:
    parts = [FORMAT, list(texts.items()), tokenizer.model_dump(), validation.fraction]
    if set_texts:
        parts += [list(set_texts.items()), validation.decontaminate]
    return workspace / "corpora" / f"{_key(parts)}.json"


def _whole(manifest: Path) -> bool:
    """Whether a manifest and every file it names exist."""
    if not manifest.exists():
        return False
    folders = [files.folder for files in load(manifest).evaluated.values()]
    return all(Path(folder, "domain.json").exists() for folder in folders)


def _check(corpus: Corpus, validation: Validation, sequence_length: int) -> None:
    """Raise InputError for leaks that are to be refused, and for too little text."""
    if validation.decontaminate == "refuse" and (lines := _leaks(corpus)):
        raise InputError(
            f"validation.sets: {'; '.join(lines)}; remove them, or set validation.decontaminate to "
            "drop"
        )
    for name, files in corpus.domains.items():
        _check_size(name, files, validation, sequence_length)
    for name, files in corpus.sets.items():
        _check_held_out(f"set {name!r}", files, validation, sequence_length)


def _leaks(corpus: Corpus) -> list[str]:
    """Which training text holds text of a set, one line for each domain and set."""
    return [
        f"{leak['documents']:,} documents ({leak['tokens']:,} tokens) of {domain!r} hold text of "
        f"the set {name!r}, for one: {leak['example']!r}"
        for domain, files in corpus.domains.items()
        for name, leak in files.leaks.items()
    ]


def _check_held_out(
    what: str, files: TokenFiles, validation: Validation, sequence_length: int, more: str = ""
) -> None:
    needed = max(validation.tokens, sequence_length) + 1
    if files.validation_tokens < needed:
        raise InputError(
            f"{what}: its held-out part has {files.validation_tokens:,} tokens, an evaluation "
            f"reads {needed:,}; add text{more} or lower validation.tokens "
            f"({validation.tokens:,})"
        )


def _check_size(name: str, files: TokenFiles, validation: Validation, sequence_length: int) -> None:
    more = f", raise validation.fraction ({validation.fraction:g})"
    _check_held_out(f"domain {name!r}", files, validation, sequence_length, more)
    if files.train_tokens <= sequence_length:
        if files.leaks and validation.decontaminate == "drop":
            raise InputError(
                f"domain {name!r}: its training part has {files.train_tokens:,} tokens, since all "
                f"else holds text of the sets {', '.join(map(repr, files.leaks))}; give the domain "
                "other text, or set validation.decontaminate to warn"
            )
        raise InputError(
            f"domain {name!r}: its training part has {files.train_tokens:,} tokens, less than "
            f"one sequence ({sequence_length}); add text or lower validation.fraction"
        )


@contextmanager
def _locked(workspace: Path) -> Iterator[None]:
    """Exclude other processes that prepare in this workspace."""
    workspace.mkdir(parents=True, exist_ok=True)
    lock = FileLock(workspace / "prepare.lock")
    try:
        lock.acquire(timeout=1)
    except Timeout:
        logger.warning(f"waiting: another process prepares in {workspace}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _tokenizer_folder(
    domains: Mapping[str, Domain],
    texts: Mapping[str, str],
    tokenizer: Tokenizer,
    validation: Validation,
    workspace: Path,
) -> Path:
    """The folder of the study's tokenizer, which is trained or fetched if missing."""
    trained_on = [texts, validation.fraction] if tokenizer.vocab_size else None
    folder = workspace / "tokenizers" / _key([FORMAT, tokenizer.model_dump(), trained_on])
    if not folder.exists():
        scratch = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        if tokenizer.vocab_size:
            _train_bpe(domains, tokenizer.vocab_size, validation.fraction, scratch)
        else:
            tokenise.load_tokenizer(tokenizer.name).save_pretrained(scratch)
        os.replace(scratch, folder)
    return folder


def _train_bpe(
    domains: Mapping[str, Domain], vocab_size: int, fraction: float, folder: Path
) -> None:
    """Train a byte-level BPE on an equal amount of training text from each domain."""
    import tokenizers
    import transformers

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_bpe_sample(domains, fraction), trainer)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END_OF_TEXT
    ).save_pretrained(folder)


def _bpe_sample(domains: Mapping[str, Domain], fraction: float) -> Iterator[str]:
    """The first `BPE_SAMPLE` characters of each domain's training text."""
    left = dict.fromkeys(domains, BPE_SAMPLE)
    total = BPE_SAMPLE * len(domains)
    with tqdm(desc="reading for a tokenizer", total=total, unit="B", unit_scale=True) as bar:
        for group in sources.groups(domains):
            for names, text in sources.Reading(group):
                for name in names if not tokenise.held_out(text, fraction) else ():
                    part = text[: left[name]]
                    left[name] -= len(part)
                    bar.update(len(part))
                    yield part
                if not any(left[name] for name in group):
                    break


@dataclass(frozen=True)
class _Texts:
    """Token files of domains and sets, made with one tokenizer."""

    folder: Path
    tokenizer_key: str
    tokenizer: Any

    def tokenised(
        self,
        domains: Mapping[str, Domain],
        texts: Mapping[str, str],
        fraction: float,
        searched: tuple[Validation, Mapping[str, str]] | None = None,
        kind: str = DOMAIN,
    ) -> dict[str, Any]:
        """What `domain.json` says of each domain, whose token files are written if missing.

        The training text is searched for that of the validation's sets, which have these
        fingerprints.
        """
        rule = [] if searched is None else [[searched[0].decontaminate, list(searched[1].items())]]
        keys = {
            name: _key([FORMAT, text, self.tokenizer_key, fraction, *rule])
            for name, text in texts.items()
        }
        for scratch in self.folder.glob("*.partial"):
            _move_finished(scratch)
        names = {key: name for name, key in keys.items() if not _done(self.folder / key)}
        missing = {name: domains[name] for name in names.values()}
        validation = searched[0] if searched else None
        index = leaks.Index(_set_texts(validation.sets)) if validation and missing else None
        for name, share in index.common.items() if index else ():
            if share > MUCH_COMMON:
                logger.warning(
                    f"set {name!r}: {share:.0%} of its passages stand in more than {leaks.COMMON} "
                    "of its documents; training text that holds those is not taken for a leak"
                )
        drop = validation is not None and validation.decontaminate == "drop"
        for group in sources.groups(missing):
            parts = {name: keys[name] for name in group}
            scratch = self.folder / f"{_key(parts)}.partial"
            _drop_superseded(scratch, parts.values())
            folders = {name: scratch / key for name, key in parts.items()}
            summaries = tokenise.write(
                group,
                folders,
                self.tokenizer,
                fraction,
                scratch / "progress.json",
                index,
                drop=drop,
                kind=kind,
            )
            for name, key in parts.items():
                summary = {"folder": str(self.folder / key), **summaries[name]}
                write_json(folders[name] / "domain.json", summary, indent=1)
            _move_finished(scratch)
        return {
            name: json.loads((self.folder / key / "domain.json").read_text())
            for name, key in keys.items()
        }


def _set_texts(sets: Mapping[str, Domain]) -> Iterator[tuple[str, list[str]]]:
    """The documents of the sets, in batches of one set each."""
    batches: dict[str, list[str]] = {name: [] for name in sets}
    with tqdm(desc="reading validation sets", unit=" documents", unit_scale=True) as bar:
        for group in sources.groups(sets):
            for names, text in sources.Reading(group, kind=SET):
                bar.update()
                for name in names:
                    batches[name].append(text)
                    if len(batches[name]) == DOCUMENTS:
                        yield name, batches[name]
                        batches[name] = []
    yield from ((name, texts) for name, texts in batches.items() if texts)


def _done(folder: Path) -> bool:
    return (folder / "domain.json").exists()


def _move_finished(scratch: Path) -> None:
    """Move the complete domains of a group to their final folders."""
    finished = [path.parent for path in scratch.glob("*/domain.json")]
    for path in finished:
        place = scratch.parent / path.name
        shutil.rmtree(place, ignore_errors=True)
        os.replace(path, place)
    if finished:
        shutil.rmtree(scratch)


def _drop_superseded(scratch: Path, keys: Iterable[str]) -> None:
    """Remove leftovers of earlier preparations of these domains, except `scratch`."""
    for key in keys:
        for leftover in scratch.parent.glob(f"*.partial/{key}"):
            if leftover.parent != scratch:
                shutil.rmtree(leftover.parent)


def _key(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
