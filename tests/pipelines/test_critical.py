"""`critical` of a study: the base, the runs that continue it, and the answer."""

from typing import Any

import mlflow
import numpy as np
import pytest

from pipelines import critical, entry
from pipelines.runs import continual_runs
from pipelines.runs.continual_law import Question
from pipelines.study import load as studies
from tests.support.studies import WriteStudy
from training.engine.devices import Machines
from training.record import keys
from training.record.history import history_from_tags
from training.record.mlflow_runs import search


@pytest.mark.slow
def test_a_study_trains_its_base_what_it_becomes_and_the_answer(
    store: str,
    miniature: dict[str, Any],
    write_study: WriteStudy,
    single_worker: None,
) -> None:
    assert store
    assert single_worker is None
    miniature["critical"] = {
        "size": "tiny",
        "base_steps": 40,
        "original": {"news": 0.5, "code": 0.5},
        "new": {"math": 1},
        "steps": 24,
        "shares": [0.1, 0.4, 0.7, 0.95],
        "tolerances": [5.0],
        "seeds": [1],
    }
    plan = studies.load(write_study(miniature))
    section = plan.critical
    assert section is not None
    more = continual_runs.mixtures(plan, section.model_copy(update={"mixtures": 3}))
    assert len(more) == 7
    assert {k: v["math"] for k, v in more.items() if k.startswith("original")} == pytest.approx(
        {f"original-{share:g}": 1 - share for share in section.shares}
    )
    assert all(sum(mixture.values()) == pytest.approx(1) for mixture in more.values())
    inner = [m["news"] / (m["news"] + m["code"]) for k, m in more.items() if k.startswith("mix")]
    assert np.abs(np.array(inner) - 0.5).max() > 0.05  # these domains move freely
    wanted = Question(
        list(section.original), [], plan.weights(), None, section.tolerances, "continual"
    )
    with entry.stage(keys.CRITICAL) as active:
        given = critical.of_study(plan, section, wanted, Machines(1), active)
    found = given.forgetting
    assert found.one_dimensional
    assert found.allowed.upper.max() == pytest.approx(0.95)
    tolerated = found.answers[-1]
    assert tolerated.new is not None  # all may be forgotten: what learns most
    assert tolerated.new[0] <= found.curve["new"].min() + 1e-6
    checks = given.checks
    assert len(checks) == sum(answer.mixture is not None for answer in found.answers)
    assert np.allclose(checks["share"], [a.share for a in found.answers if a.share is not None])
    known = found.predictor.spec.continual
    assert known is not None
    for run in search(["0"], "tags.study LIKE 'miniature-continued-%'"):
        told = history_from_tags(run.data.tags)
        assert told is not None
        assert told.steps[0] == 0
        assert run.data.params[keys.BASE_DIGEST]
        before = dict(zip(told.domains, told.losses[0], strict=True))
        assert before == pytest.approx(known.base, abs=1e-6)

    with entry.stage(keys.CRITICAL) as active:  # again: nothing is trained
        again = critical.of_study(plan, section, wanted, Machines(1), active)
        assert active is not None
        assert mlflow.get_run(active.info.run_id).data.metrics["runs_trained"] == 0
    assert again.forgetting.answers[0].share == found.answers[0].share
