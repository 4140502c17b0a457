"""Scores and their parts: the standard error of a ratio, and what stands in a table."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from pipelines.benchmarks import scores

RNG = np.random.default_rng(0)
SIZES = RNG.integers(5, 60, 400)
LOGS = -SIZES * RNG.normal(2.0, 0.5, 400)


def bits_per_byte(chosen: np.ndarray) -> float:
    return float(-LOGS[chosen].sum() / SIZES[chosen].sum() / math.log(2))


def perplexity(chosen: np.ndarray) -> float:
    return math.exp(-LOGS[chosen].sum() / SIZES[chosen].sum())


@pytest.mark.parametrize("metric", [bits_per_byte, perplexity])
def test_parts_of_a_ratio_give_its_standard_error(metric: Callable[[np.ndarray], float]) -> None:
    everything = np.arange(400)
    parts = scores.parts(list(zip(LOGS, SIZES, strict=True)), metric(everything))
    assert parts is not None
    assert parts.mean() == pytest.approx(metric(everything))
    resampled = [metric(RNG.integers(0, 400, 400)) for _ in range(2000)]
    assert parts.std(ddof=1) / 20 == pytest.approx(np.std(resampled), rel=0.08)


def test_only_what_averages_to_the_score_is_its_parts() -> None:
    assert scores.parts([1, 0, 0, 1], 0.5) is not None
    assert scores.parts([1, 0, 0, 1], 0.6) is None  # a mean weighed otherwise, say
    assert scores.parts([["a", "b"]], 0.5) is None
    assert scores.parts([], 0.5) is None


def test_a_group_stands_for_its_tasks() -> None:
    raw = {
        "results": {
            "whole": {"alias": "whole", "acc,none": 0.5, "acc_stderr,none": 0.1},
            "one": {"acc,none": 1.0, "acc_stderr,none": "N/A", "name": "one"},
            "two": {"acc,none": 0.0, "acc_stderr,none": 0.0},
        },
        "samples": {
            "one": [{"filter": "none", "acc": 1.0}] * 2,
            "two": [{"filter": "none", "acc": 0.0}] * 2,
        },
        "group_subtasks": {"whole": ["one", "two"]},
        "higher_is_better": {"one": {"acc": True}, "two": {"acc": True}},
        "n-samples": {
            "one": {"original": 2, "effective": 2},
            "two": {"original": 9, "effective": 2},
        },
        "n-shot": {"one": 0, "two": 5},
    }
    outcome = scores.outcome("whole", raw)
    assert [score.name for score in outcome.shown] == ["whole/acc"]
    parts = outcome.shown[0].parts
    assert parts is not None
    assert parts.tolist() == [1, 1, 0, 0]
    assert outcome.size == "4 of 11 questions, 0 to 5 examples in the prompt"
    assert outcome.metrics == {
        "benchmark/whole/acc": 0.5,
        "benchmark/whole/acc_stderr": 0.1,
        "benchmark/one/acc": 1.0,
        "benchmark/one/acc_stderr": 0.0,  # which the harness did not give
        "benchmark/two/acc": 0.0,
        "benchmark/two/acc_stderr": 0.0,
    }
