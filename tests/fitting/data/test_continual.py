"""Runs that continue a base: the losses of the base, and which domains are whose."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from fitting.data import continual
from pipelines.runs import fitted_runs
from pipelines.runs.fitted_runs import Checkpoints
from training.record.errors import InputError

TABLE = pd.DataFrame(
    {
        "run": ["a", "a", "a", "b", "b", "b"],
        "n_params": 1000,
        "tokens": [0, 5, 10, 0, 10, 20],
        "mixture/old": [0.2] * 3 + [0.6] * 3,
        "mixture/new": [0.8] * 3 + [0.4] * 3,
        "val_loss/old": [3.0, 3.1, 3.2, 3.0, 2.9, 2.8],
        "val_loss/pile": 3.0,
        "val_loss/new": 2.0,
    }
)
NAMES = {"a": "run-a", "b": "run-b"}


def test_what_a_table_tells_of_both_sides() -> None:
    assert continual.base_losses(TABLE, NAMES) == {"old": 3.0, "pile": 3.0, "new": 2.0}
    assert continual.at_tokens(TABLE, None)["tokens"].tolist() == [10, 10]
    original, new = continual.sides(TABLE, ["old"], [], {"old": 3, "pile": 1})
    assert original.weights == {"old": 0.75, "pile": 0.25}
    assert new.weights == {"new": 1.0}
    trained, notes = fitted_runs.usable(TABLE.assign(step=TABLE["tokens"]), Checkpoints())
    assert trained["tokens"].tolist() == [5, 10, 10, 20]
    assert notes == ["2 evaluations before training left out: no law describes them"]
    objective = {"old": 3, "pile": 1, "new": 0}  # of which the new side has no part
    assert continual.sides(TABLE, ["old"], [], {}, objective) == (original, new)
    original, new = continual.sides(TABLE, ["old"], ["pile"], {})
    assert (original.weights, new.weights) == ({"old": 1.0}, {"pile": 0.5, "new": 0.5})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: continual.base_losses(TABLE[1:], NAMES), "run 'run-a' has no evaluation at step"),
        (
            lambda: continual.base_losses(TABLE.assign(**{"val_loss/new": range(6)}), NAMES),
            "'run-a' and 'run-b' begin with losses that differ by 3: they",
        ),
        (lambda: continual.at_tokens(TABLE, 20), "tokens: not every run was evaluated at 20; all"),
        (
            lambda: continual.at_tokens(TABLE.assign(n_params=range(6)), None),
            "the runs are of 6 sizes",
        ),
        (lambda: continual.sides(TABLE, [], [], {}), "original: name the training domains that"),
        (lambda: continual.sides(TABLE, ["pile"], [], {}), "original: unknown domain 'pile'"),
        (lambda: continual.sides(TABLE, ["old", "new"], [], {}), "some but not all of old, new"),
        (
            lambda: continual.sides(TABLE.drop(columns="val_loss/new"), ["old"], [], {}),
            "new_validation: no validation domain measures the loss on the new data",
        ),
        (
            lambda: continual.base_losses(TABLE.replace({"val_loss/old": 3.0}, np.nan), NAMES),
            "run 'run-a' has no val_loss/old at step 0",
        ),
        (
            lambda: continual.sides(TABLE, ["old"], [], {"old": 1, "pile": 1, "new": 0}),
            "weights: new of the new data are all 0",
        ),
        (
            lambda: continual.sides(TABLE, ["old"], [], {"old": -1, "pile": 2}),
            "weights: they must be >= 0",
        ),
        (
            lambda: continual.sides(TABLE.assign(**{"mixture/gone": 0.0}), ["gone"], [], {}),
            "original: name the training domains that",
        ),
        (
            lambda: continual.sides(TABLE, ["old"], [], {"old": 1}),
            "weights: no weight for pile of the original data",
        ),
    ],
)
def test_what_is_asked_wrongly_is_one_clear_error(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
