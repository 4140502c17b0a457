"""The models: GPT-NeoX shapes from Transformers, and the ladder of named sizes."""

import math
from typing import Any

import torch
import transformers

from training.settings import Size

LEARNING_RATE_WIDTH = 0.25  # peak learning rate × hidden size
INIT_STD_WIDTH = 0.5  # std of the initial weights × √hidden size


def learning_rate(size: Size) -> float:
    """Peak learning rate: the size's own, else 0.25 / hidden size.

    Adam's best rate falls as 1/width (Tensor Programs V, arXiv 2203.03466); without it, and the
    initial scale 1/√width of `build`, tiny models of different widths do not lie on one size law.
    """
    return size.learning_rate or LEARNING_RATE_WIDTH / size.hidden_size


def build(size: Size, vocab_size: int, sequence_length: int, seed: int) -> Any:
    """A freshly initialised model; the same for the same arguments."""
    config = transformers.GPTNeoXConfig(
        vocab_size=vocab_size,
        hidden_size=size.hidden_size,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.hidden_size,
        max_position_embeddings=sequence_length,
        initializer_range=INIT_STD_WIDTH / math.sqrt(size.hidden_size),
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(seed)
    return transformers.GPTNeoXForCausalLM(config)


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
