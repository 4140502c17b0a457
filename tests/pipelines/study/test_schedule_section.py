"""The schedule of a study: one clear error for each mistake in it."""

from typing import Any

import pytest

from pipelines.study import schedule_section
from tests.support.tiny_runs import CODE, DOMAINS, MATH, PER_STEP
from training.record.errors import InputError
from training.run import Phase


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ([(5, CODE)], r"\[0\].from_tokens: 5 tokens are not a multiple of the tokens of a step"),
        ([(256, CODE)], r"schedule\[0\].from_tokens: 256; the first phase begins at 0"),
        ([(0, CODE), (512, MATH), (512, CODE)], r"\[2\].from_tokens: 512 is not after the phase"),
        ([(0, CODE), (512, {"news": 0.5})], r"schedule\[1\].mixture: the proportions sum to 0.5"),
        ([(0, CODE), (512, {"new": 1})], r"schedule\[1\].mixture: unknown domain 'new'"),
    ],
)
def test_a_schedule_that_is_none(schedule: list[Any], message: str) -> None:
    phases = [Phase(from_tokens=tokens, mixture=mixture) for tokens, mixture in schedule]
    with pytest.raises(InputError, match=message):
        schedule_section.checked(phases, DOMAINS, PER_STEP, "schedule")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", r"schedule: {}: must hold a JSON list"),
        ("[1", "not JSON"),
        ("[]", "must hold a JSON list"),
        ('[{"tokens": 0}]', "mixture: Field required"),
        ("runs:/none", "schedule: runs:/none: "),
    ],
)
def test_a_schedule_parameter_that_is_none(text: str, message: str, store: str) -> None:
    assert store
    with pytest.raises(InputError, match=message):
        schedule_section.read(text, DOMAINS, PER_STEP)
