"""The models: counted parameters and reproducible initial weights."""

import pytest
import torch

from training.config import Size
from training.engine import model

PYTHIA = {  # non-embedding parameters as published for these shapes (hidden, layers, heads)
    (512, 6, 8): 18_915_328,
    (768, 12, 12): 85_056_000,
    (1024, 16, 16): 201_541_632,
    (1024, 24, 16): 302_311_424,
    (2048, 16, 8): 805_736_448,
}


@pytest.mark.parametrize("shape", PYTHIA)
def test_the_planned_count_is_the_published_one(shape: tuple[int, int, int]) -> None:
    size = Size(hidden_size=shape[0], layers=shape[1], heads=shape[2])
    assert size.n_params == PYTHIA[shape]


def test_the_built_model_has_the_planned_count() -> None:
    size = Size(hidden_size=48, layers=3, heads=3)
    built = model.build(size, 500, 32, seed=0)
    assert model.count_parameters(built) == (size.n_params, 2 * 500 * 48)


def test_the_same_seed_gives_the_same_weights() -> None:
    size = Size(hidden_size=16, layers=1, heads=1)
    first, same, other = (
        torch.cat([p.flatten() for p in model.build(size, 64, 16, seed).parameters()])
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
