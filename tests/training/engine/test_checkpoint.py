"""Checkpoints of runs with a schedule: runs go on from them, and begin at the state of others."""

from typing import Any

import pytest

from tests.support.tiny_runs import CODE, PER_STEP, PHASES, TRAINING, evaluations, planned
from training.data.corpus import Corpus
from training.engine import checkpoint
from training.engine import trainer as trainers
from training.run import Phase

pytestmark = pytest.mark.usefixtures("cpu")


def test_a_schedule_goes_on_to_the_same_losses(corpus: Corpus) -> None:
    run = planned(corpus, later=PHASES)
    whole = evaluations(run, corpus)
    assert evaluations(planned(corpus), corpus)[-1] != whole[-1]
    trainer = trainers.Trainer(run, corpus)
    for report in trainer.reports():
        if report.step == 20:  # in the middle of a phase
            checkpoint.save(run, trainer.engine, 20, 1, dict)
            break
    saved = checkpoint.find(run, 1)
    assert saved is not None
    assert evaluations(run, corpus, saved=saved) == [
        (step, found) for step, found in whole if step > 20
    ]
    checkpoint.remove(run)


def test_a_run_begins_at_the_kept_state_of_one_that_ends_where_its_phase_begins(
    corpus: Corpus,
) -> None:
    short = TRAINING.model_copy(update={"steps": 25, "first_evaluation": 25})
    trunk = planned(corpus, training=short, later=PHASES[:1], keep_state=True, seed=3)
    branch = planned(corpus, later=PHASES, seed=3)
    whole = evaluations(branch, corpus)
    assert checkpoint.find(branch, 1) is None
    trainer = trainers.Trainer(trunk, corpus)
    list(trainer.reports())
    trainer.keep_state()
    trainer.close()
    begun = checkpoint.find(branch, 1)
    assert begun is not None
    assert begun.step == 25
    assert evaluations(branch, corpus, saved=begun) == [
        (step, found) for step, found in whole if step > 25
    ]
    others: list[dict[str, Any]] = [
        {"seed": 4},
        {"mixture": CODE},
        {"later": (PHASES[0],)},
        {"later": (Phase(from_tokens=11 * PER_STEP, mixture=CODE), PHASES[1])},
        {"training": TRAINING.model_copy(update={"decay_steps": 20})},
    ]
    for other in others:  # none of which had this state after 25 steps
        assert checkpoint.find(branch.model_copy(update=other), 1) is None, other
