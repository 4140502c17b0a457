"""The tokenizer of a study: trained on its text or fetched, saved in the workspace."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from training.config import Domain, Tokenizer
from training.data import sources
from training.data.hashing import FORMAT, held_out, key_of
from training.record.errors import InputError, first_line

END_OF_TEXT = "<|endoftext|>"
BPE_SAMPLE = 1_000_000  # characters per domain that a tokenizer is trained on

Encode = Callable[[list[str]], Iterable[list[int]]]


def prepared(
    domains: Mapping[str, Domain],
    texts: Mapping[str, str],
    tokenizer: Tokenizer,
    fraction: float,
    workspace: Path,
) -> Path:
    """The folder of the study's tokenizer, which is trained or fetched if missing; `texts` are the
    fingerprints of the domains."""
    trained_on = [texts, fraction] if tokenizer.vocab_size else None
    folder = workspace / "tokenizers" / key_of([FORMAT, tokenizer.model_dump(), trained_on])
    if not folder.exists():
        scratch = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        if tokenizer.vocab_size:
            _train_bpe(domains, tokenizer.vocab_size, fraction, scratch)
        else:
            load(tokenizer.name).save_pretrained(scratch)
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
                for name in names if not held_out(text, fraction) else ():
                    part = text[: left[name]]
                    left[name] -= len(part)
                    bar.update(len(part))
                    yield part
                if not any(left[name] for name in group):
                    break


def load(name: str | Path | None) -> Any:
    """A Transformers tokenizer with an end-of-text token."""
    import transformers

    transformers.logging.set_verbosity_error()
    try:
        loaded = transformers.AutoTokenizer.from_pretrained(str(name))
    except (OSError, ValueError) as error:
        raise InputError(
            f"tokenizer.name {str(name)!r} cannot be loaded: {first_line(error)}"
        ) from error
    if loaded.eos_token_id is None:
        raise InputError(f"tokenizer.name {str(name)!r} has no end-of-text token to end documents")
    return loaded


def dtype_of(tokenizer: Any) -> str:
    """The type of token ids on disk."""
    return "uint16" if len(tokenizer) <= 2**16 else "uint32"


def encoder(tokenizer: Any) -> Encode:
    """A function from texts to token ids without special tokens; a fast one uses all cores."""
    if not tokenizer.is_fast:
        return lambda texts: tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # often turned off to silence a warning
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens

    def encode(texts: list[str]) -> Iterable[list[int]]:
        encoded = backend.encode_batch_fast(texts, add_special_tokens=False)
        return (encoding.ids for encoding in encoded)

    return encode
