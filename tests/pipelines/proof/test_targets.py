"""What a trained target proves."""

import numpy as np
import pytest

from pipelines.proof.targets import steps_to


@pytest.mark.parametrize(
    ("losses", "goal", "steps"),
    [
        ((4.0, 3.0, 2.0), 2.5, 250.0),
        ((4.0, 3.0, 2.0), 2.0, 300.0),
        ((4.0, 3.0, 2.0), 5.0, 100.0),  # before the first evaluation: no earlier than it
        ((4.0, 3.0, 2.0), 1.9, None),
        ((4.0, 2.0, 3.0, 1.0), 2.5, 325.0),  # to stay: not the first time
        ((4.0, 2.0, 3.0), 2.5, None),
    ],
)
def test_steps_to_a_loss(losses: tuple[float, ...], goal: float, steps: float | None) -> None:
    evaluated = [100 * (i + 1) for i in range(len(losses))]
    assert steps_to(evaluated, np.array(losses), goal) == steps
