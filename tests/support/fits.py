"""Fits of tables made from a known law."""

from typing import Any

import numpy as np
import pandas as pd

from fitting import fit
from fitting.artifact.spec import Target
from fitting.data.observations import Observations
from fitting.fit import Fit
from fitting.selection.forms import Options
from tests.support import synthetic

TARGET = Target(**synthetic.TARGET)
WEIGHTS = np.full(4, 0.25)
QUICK = Options(methods=("joint",), compare=False)
FOUR_SIZES = (5e5, 1e6, 4e6, 16e6)
NINE_LENGTHS = tuple(np.geomspace(1e8, 8e8, 9).tolist())


def fitted(table: pd.DataFrame, options: Options = QUICK, **more: Any) -> Fit:
    target = more.pop("target", TARGET)
    return fit.fit(Observations.from_tidy(table), WEIGHTS, target, options, **more)
