"""What a trained target proves."""

import numpy as np
import pytest

from pipelines.verify import _steps_to
from training.record import History


def history(*objective: float) -> History:
    """A run of one domain with these losses at steps 100, 200, …"""
    steps = tuple(100 * (i + 1) for i in range(len(objective)))
    return History(("a",), steps, steps, tuple((x,) for x in objective))


@pytest.mark.parametrize(
    ("losses", "goal", "steps"),
    [
        ((4.0, 3.0, 2.0), 2.5, 250.0),
        ((4.0, 3.0, 2.0), 2.0, 300.0),
        ((4.0, 3.0, 2.0), 5.0, 100.0),  # before the first evaluation: no earlier than it
        ((4.0, 3.0, 2.0), 1.9, None),
        ((4.0, 2.0, 3.0, 1.0), 2.5, 175.0),  # the first time, though it rises again
        ((4.0, 2.0, 3.0), 2.5, 175.0),
    ],
)
def test_steps_to_a_loss(losses: tuple[float, ...], goal: float, steps: float | None) -> None:
    assert _steps_to(history(*losses), np.ones(1), goal) == steps
