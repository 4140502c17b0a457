"""`design`: what it proposes waits in the sweep's ledger."""

from typing import Any

import mlflow
import numpy as np
import pytest

from pipelines import design as designs
from pipelines import entry
from pipelines.prepare import prepare
from pipelines.runs.proxy_runs import ledger, planned_runs, proxy_runs
from pipelines.study import load as studies
from tests.support.commands import call
from tests.support.studies import WriteStudy
from training.record import keys


@pytest.mark.slow
def test_proposals_wait_in_the_ledger_for_the_next_sweep(
    store: str, miniature: dict[str, Any], write_study: WriteStudy
) -> None:
    """Without a predictor: what is proposed fills what is planned, under the study's bundle."""
    assert store
    miniature["bundles"] = {"text": {"news": 0.75, "math": 0.25}}
    miniature["default_mixture"] = {"news": 0.6, "code": 0.2, "math": 0.2}
    path = write_study(miniature)
    plan = studies.load(path)
    for _ in range(2):
        with entry.stage(keys.DESIGN):
            call(designs, study=path, count="2", enqueue="true")
    with entry.stage(keys.SWEEP) as active:
        prepared = prepare(plan)
        planned, waiting = proxy_runs(prepared), planned_runs(prepared, active)
        ledger(prepared, active).enqueue(waiting)  # those that wait are there once
        assert planned_runs(prepared, active) == waiting
    assert waiting[: len(planned)] == planned
    new = waiting[len(planned) :]
    assert len(new) == 2 * 2 * 2  # two designs of two mixtures at two sizes
    assert len({run.name for run in waiting}) == len(waiting)
    mixtures = np.unique([[*run.mixture.values()] for run in waiting], axis=0)
    assert len(mixtures) == 4 + 4
    assert mixtures[:, 0] == pytest.approx(3 * mixtures[:, 2], abs=1e-9)  # the bundle's
    last = mlflow.search_runs(filter_string="tags.stage = 'design'").iloc[0]
    assert last["metrics.flops"] == pytest.approx(last["metrics.sweep_flops"] / 2)
