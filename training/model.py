"""The models: GPT-NeoX shapes, or any causal language model that Transformers knows."""

import functools
import math
from typing import Any

import torch
import transformers

from training.errors import InputError, first_line
from training.settings import Size, Training

INIT_STD_WIDTH = 0.5  # std of the initial weights × √hidden size


def learning_rate(size: Size, training: Training) -> float:
    """Peak learning rate: the size's own, else `rate_times_width` / hidden size.

    Adam's best rate falls as 1/width (Tensor Programs V, arXiv 2203.03466); without it, and the
    initial scale 1/√width of `build`, tiny models of different widths do not lie on one size law.
    Pythia's rates (arXiv 2304.01373) times their widths are 0.3 to 0.6.
    """
    return size.learning_rate or training.rate_times_width / size.width


def rate_factor(step: int, training: Training) -> float:
    """What a step's learning rate is of the peak (steps from 0): warm-up, constant, decay."""
    warm = min(1.0, (step + 1) / max(1, training.warmup_steps))
    decay = min(1.0, (training.steps - step) / (training.decay_steps + 1))
    return warm * decay


def build(size: Size, vocab_size: int, sequence_length: int, seed: int) -> Any:
    """A freshly initialised model; the same for the same arguments."""
    torch.manual_seed(seed)
    config = _config(size, vocab_size, sequence_length)
    return transformers.AutoModelForCausalLM.from_config(config)


def _config(size: Size, vocab_size: int, sequence_length: int) -> Any:
    if size.config is not None:
        config = _load_config(size.config)
        config.vocab_size = vocab_size
        config.use_cache = False
        longest = getattr(config, "max_position_embeddings", None)
        if longest is not None and longest < sequence_length:
            raise InputError(
                f"config {size.config!r} has max_position_embeddings {longest}, less than "
                f"training.sequence_length ({sequence_length})"
            )
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


def _load_config(name: str) -> Any:
    try:
        config = transformers.AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(f"sizes: config {name!r} cannot be loaded: {first_line(error)}") from error
    if type(config) not in transformers.AutoModelForCausalLM._model_mapping:
        raise InputError(
            f"sizes: config {name!r} ({config.model_type}) is no causal language model"
        )
    return config


@functools.cache
def width_and_parameters(name: str) -> tuple[int, int]:
    """Hidden size and non-embedding parameters of a Transformers config, counted on the model."""
    config = _load_config(name)
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
