"""`schedule`: planned, trained, and taken by `train`."""

from io import StringIO
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

from pipelines import entry, schedule, train
from pipelines.prepare import prepare
from pipelines.study import load as studies
from pipelines.study import schedule_section
from tests.support.commands import call
from tests.support.studies import WriteStudy
from training.record import keys
from training.record.errors import InputError


@pytest.mark.slow
def test_a_schedule_is_planned_trained_and_taken_by_train(
    store: str,
    miniature: dict[str, Any],
    write_study: WriteStudy,
    single_worker: None,
) -> None:
    assert store
    assert single_worker is None
    miniature["phases"] = {
        "size": "tiny", "steps": [12, 8], "mixtures": 4, "trunks": 2, "decay": 0.5, "seeds": [1, 2],
    }  # fmt: skip
    study = write_study(miniature)
    with entry.stage(keys.SCHEDULE) as active:
        call(schedule, study=study, workers="1")
    done = mlflow.get_run(active.info.run_id)
    table = pd.read_csv(
        StringIO(mlflow.artifacts.load_text(f"{done.info.artifact_uri}/phases.csv"))
    )
    assert table.groupby("phase").size().tolist() == [4, 8]
    ends = table[table["phase"] == 1].set_index("label")
    for row in table[table["phase"] == 2].to_dict("records"):
        for name in ("news", "code", "math"):
            assert row[f"before/{name}"] == ends.loc[row["trunk"], f"val_loss/{name}"]
    branch = mlflow.get_run(table["run"].iloc[-1])
    assert branch.data.tags[keys.STAGE] == keys.SCHEDULED
    params, metrics = branch.data.params, branch.data.metrics
    assert params["phase/2/from_tokens"] == str(12 * 256)
    assert params["decay_steps"] == "4"
    for name in ("news", "code", "math"):
        mean = 0.6 * float(params[f"phase/1/mixture/{name}"])
        mean += 0.4 * float(params[f"phase/2/mixture/{name}"])
        assert float(params[f"mixture/{name}"]) == pytest.approx(mean)
        assert metrics[f"volume/planned_tokens/{name}"] == pytest.approx(20 * 256 * mean)
        assert metrics[f"volume/trained_tokens/{name}"] == pytest.approx(
            20 * 256 * mean, abs=32 * 10
        )
    client = mlflow.MlflowClient()
    assert [f.path for f in client.list_artifacts(branch.info.run_id, "figures")] == [
        "figures/schedule.png"
    ]

    for key in ("gain", "measured_gain", "predicted/schedule", "predicted/constant"):
        assert np.isfinite(done.data.metrics[key]), key
    assert done.data.metrics["gain"] >= -1e-6
    model = mlflow.pyfunc.load_model(done.data.tags["model_uri"])
    row = {f"phase/{k}/mixture/{d}": 1 / 3 for k in (1, 2) for d in ("news", "code", "math")}
    assert np.isfinite(model.predict(pd.DataFrame([row]))["objective"][0])

    chosen = studies.load(study)
    domains, per_step = list(chosen.domains), chosen.training.tokens_per_step
    phases = schedule_section.read(f"runs:/{done.info.run_id}", domains, per_step)
    assert [phase.from_tokens // per_step for phase in phases] == [0, round(0.6 * 18)]
    planned_by_study = chosen.model_copy(update={"schedule": phases})
    assert train.requested_phases(planned_by_study, "", "") == phases
    with pytest.raises(InputError, match="a phase begins at 2,816 tokens, the run ends at 2,816"):
        prepare(chosen).run("short", phases[0].mixture, size="tiny", seed=0, steps=11,
                   later=phases[1:])  # fmt: skip
