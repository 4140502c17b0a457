"""The models: GPT-NeoX shapes, or any causal language model in Transformers."""

import functools
import math
from typing import Any

import torch
import transformers

from training.config import Size, Training
from training.record.errors import InputError, first_line
from training.run import Base

INIT_STD_WIDTH = 0.5  # std of the initial weights × √hidden size


def learning_rate(size: Size, training: Training) -> float:
    """Peak learning rate: the size's own, else `rate_times_width` / hidden size.

    Adam's best rate falls as 1/width (Tensor Programs V, arXiv 2203.03466). Without this and the
    initial scale 1/√width of `build`, tiny models of different widths do not follow one size law.
    Pythia's rates (arXiv 2304.01373) times their widths are 0.3 to 0.6.
    """
    return size.learning_rate or training.rate_times_width / size.width


def rate_factor(step: int, training: Training) -> float:
    """A step's learning rate relative to the peak (steps from 0): warm-up, constant, decay.

    Without decay it stays constant beyond the last step, for runs that start from a kept state.
    """
    warm = min(1.0, (step + 1) / max(1, training.warmup_steps))
    if not training.decay_steps:
        return warm
    return warm * min(1.0, (training.steps - step) / (training.decay_steps + 1))


def build(
    size: Size, vocab_size: int, sequence_length: int, seed: int, base: Base | None = None
) -> Any:
    """The base model, or a randomly initialised model that depends only on the arguments."""
    if base is not None:
        model = load(base.source, f"base {base.source!r}")
        model.config.use_cache = False
        return model
    torch.manual_seed(seed)
    config = _config(size, vocab_size, sequence_length)
    return transformers.AutoModelForCausalLM.from_config(config)


def load(source: str, what: str, dtype: str = "float32") -> Any:
    """A saved model with its weights; raises InputError if any are missing.

    `source` is a folder or a hub id; `what` names it in errors.
    """
    try:
        model, loading = transformers.AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{what} cannot be loaded: {first_line(error)}") from error
    if wrong := sorted(
        [*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])]
    ):
        raise InputError(
            f"{what}: its files hold no weights for {len(wrong)} parameters of its config "
            f"({wrong[0]} …): they belong to another architecture"
        )
    return model


def _config(size: Size, vocab_size: int, sequence_length: int) -> Any:
    if size.config is not None:
        config = load_config(size.config, f"sizes: config {size.config!r}")
        config.vocab_size = vocab_size
        config.use_cache = False
        refuse_short(config, f"config {size.config!r}", sequence_length)
        return config
    return transformers.GPTNeoXConfig(
        vocab_size=vocab_size,
        hidden_size=size.hidden_size,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.width,
        max_position_embeddings=sequence_length,
        initializer_range=INIT_STD_WIDTH / math.sqrt(size.width),
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )


def refuse_short(config: Any, what: str, sequence_length: int) -> None:
    """Raise InputError for a model whose context is shorter than a sequence."""
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and longest < sequence_length:
        raise InputError(
            f"{what} has max_position_embeddings {longest}, less than "
            f"training.sequence_length ({sequence_length})"
        )


def load_config(name: str, what: str) -> Any:
    """A Transformers config; raises InputError unless it is of a causal language model."""
    try:
        config = transformers.AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(f"{what} cannot be loaded: {first_line(error)}") from error
    known = transformers.AutoModelForCausalLM._model_mapping
    saved = getattr(config, "architectures", None) or []  # in a checkpoint: the model's class
    if type(config) not in known or (saved and known[type(config)].__name__ not in saved):
        kind = ", ".join([config.model_type, *saved])
        raise InputError(f"{what} ({kind}) is not a causal language model")
    return config


def resolve(size: Size, name: str = "") -> Size:
    """The size with its width and non-embedding parameters, read from its Transformers config.

    `name` is the size's name in the study, for errors.
    """
    if size.config is None:
        return size
    what = f"sizes{name and '.'}{name}: config {size.config!r}"
    return size.resolved(*_width_and_parameters(size.config, what))


@functools.cache
def _width_and_parameters(name: str, what: str) -> tuple[int, int]:
    """Hidden size and non-embedding parameters of a Transformers config, counted on the model."""
    config = load_config(name, what)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    return config.hidden_size, count_parameters(model)[0]


def count_parameters(model: Any) -> tuple[int, int]:
    """(non-embedding parameters, embedding parameters, input and output)."""
    embeddings = {
        id(p)
        for module in (model.get_input_embeddings(), model.get_output_embeddings())
        for p in module.parameters()
    }
    sizes = {id(p): p.numel() for p in model.parameters()}
    embedding = sum(n for key, n in sizes.items() if key in embeddings)
    return sum(sizes.values()) - embedding, embedding
