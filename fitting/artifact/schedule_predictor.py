"""The registered schedule predictor: an MLflow pyfunc model of the law of a schedule.

As with `predictor.py`, MLflow saves and runs this file, beside `predictor.json`, the parameters,
and copies of `laws.py`, `spec.py` and `input_checks.py`; it imports nothing from the project.
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow
import numpy as np
import pandas as pd

VAL_LOSS = "val_loss/"


class SchedulePredictor(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """The mixtures of all phases → validation losses at the end of the last.

    `spec` is what was fitted, `law` the law, and `replicates` the laws of its bootstrap; a search
    reads them through MLflow's `unwrap_python_model()`.
    """

    def load_context(self, context: Any) -> None:
        """Read the law and its code from the artifact."""
        code = {
            name: _load_module(Path(context.artifacts[name])) for name in ("laws", "rows", "spec")
        }
        raw = json.loads(Path(context.artifacts["predictor"]).read_text())
        self.spec = code["spec"].ScheduleSpec.from_json(raw)
        self._checks = code["rows"]
        self.law = code["laws"].from_json(self.spec.law)
        self.replicates = [code["laws"].from_json(law) for law in self.spec.replicates]

    def predict(
        self,
        context: Any,  # noqa: ARG002 - the interface is MLflow's
        model_input: pd.DataFrame,  # or records or columns, which MLflow's routes parse from JSON
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> pd.DataFrame:
        """Per row, a schedule: val_loss/<domain>… at its end in the unit of the fitted losses;
        objective (Σ w_i L_i) with its 90 % interval objective_low, objective_high; and
        phase/<number>/objective at the end of each phase.

        Raises InvalidInput for invalid input, with its row, column, value and rule.
        """
        phases = range(1, len(self.law.tokens) + 1)
        names = [[f"phase/{k}/mixture/{d}" for d in self.spec.domains] for k in phases]
        rows = self._checks.table(model_input, [column for phase in names for column in phase])
        schedules = np.stack([self._checks.mixtures(rows, phase) for phase in names], axis=1)
        weights = np.array(self.spec.weights)
        losses = self.law.predict(schedules)
        objective = losses @ weights
        replicated = [law.predict(schedules)[:, -1] @ weights for law in self.replicates]
        variance = np.var(replicated, axis=0) + self.spec.residual**2
        half_width = self.spec.quantile * np.sqrt(variance)
        ends = losses[:, -1]
        return pd.DataFrame(
            {
                **{VAL_LOSS + d: ends[:, i] for i, d in enumerate(self.spec.val_domains)},
                "objective": objective[:, -1],
                "objective_low": objective[:, -1] - half_width,
                "objective_high": objective[:, -1] + half_width,
                **{f"phase/{k}/objective": objective[:, k - 1] for k in phases},
            },
            index=rows.index,
        )


def _load_module(path: Path) -> ModuleType:
    """A module of the artifact, loaded under a unique name."""
    name = f"mixture_{path.stem}_{abs(hash(str(path)))}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


mlflow.models.set_model(SchedulePredictor())
