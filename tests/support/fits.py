"""Fits of tables made from a known law."""

from typing import Any

import mlflow
import numpy as np
import pandas as pd

from fitting import fit, registry
from fitting.artifact.spec import Explored, Target
from fitting.data.observations import Observations
from fitting.fit import Fit
from fitting.model_names import DEFAULT_NAME
from fitting.registry import Registered
from fitting.selection.forms import Options
from tests.support import synthetic
from training.record import keys

TARGET = Target(**synthetic.TARGET)
WEIGHTS = np.full(4, 0.25)
QUICK = Options(methods=("joint",), compare=False)
FOUR_SIZES = (5e5, 1e6, 4e6, 16e6)
NINE_LENGTHS = tuple(np.geomspace(1e8, 8e8, 9).tolist())


def fitted(table: pd.DataFrame, options: Options = QUICK, **more: Any) -> Fit:
    target = more.pop("target", TARGET)
    return fit.fit(Observations.from_tidy(table), WEIGHTS, target, options, **more)


def registered(found: Fit) -> Registered:
    """The predictor of a fit, in a run of its own."""
    o = found.observations
    spec = registry.spec_of(
        found,
        keys.NATS,
        explored=Explored(dict.fromkeys(o.domains, 0.0), dict.fromkeys(o.domains, 1.0), {}),
        val_weights=dict(zip(o.val_domains, found.weights.tolist(), strict=True)),
        default_mixture={},
    )
    with mlflow.start_run():
        return registry.register(DEFAULT_NAME, spec, found.choice.scores.objective_mae)
