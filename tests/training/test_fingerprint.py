"""Runs that earlier versions trained are found again: a run's fingerprint is for ever."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.strategies import mixtures
from tests.support.tiny_runs import PER_STEP, PHASES, planned
from training.data.corpus import Corpus
from training.record import keys
from training.run import Base, Run, fingerprint

PLAIN: dict[str, Any] = {
    "name": "mix03-tiny",
    "stage": "proxy",
    "study": "mini-39305463",
    "workspace": "/w",
    "corpus": "/w/corpora/1/manifest.json",
    "corpus_digest": "39305463d1f0",
    "mixture": {"news": 0.6, "code": 0.3, "math": 0.1},
    "size_name": "tiny",
    "size": {"hidden_size": 16, "layers": 1, "heads": 1},
    "training": {
        "sequence_length": 32,
        "batch_size": 8,
        "steps": 150,
        "warmup_steps": 4,
        "first_evaluation": 40,
        "evaluations": 3,
    },
    "validation_tokens": 1024,
    "seed": 7,
}
LATER = [{"from_tokens": 12800, "mixture": {"news": 0.1, "code": 0.8, "math": 0.1}}]
SCHEDULED = {**PLAIN, "later": LATER, "data_share": 0.5, "keep_state": True}
CONFIG = {
    **PLAIN,
    "size": {"config": "org/llama", "learning_rate": 0.001},
    "training": {**PLAIN["training"], "precision": "bf16", "decay_steps": 20},
}
CONTINUED = {**CONFIG, "base": {"source": "/bases/1", "digest": "0123456789abcdef"}}


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (PLAIN, "039719118c1e152e283ed9cb464ac959"),
        (SCHEDULED, "4dedb41fceb525acfb726d39b55c92e1"),
        (CONFIG, "1b4693c7543c6fdf4263f44b79a55942"),
        (CONTINUED, "5b8636d4adf1099ba60b9945ebbae305"),
    ],
)
def test_the_fingerprints_of_version_0_1(stored: dict[str, Any], expected: str) -> None:
    run = Run.model_validate(stored)
    assert fingerprint(run) == expected
    resolved = run.model_copy(update={"size": run.size.resolved(width=64, n_params=10**6)})
    assert fingerprint(resolved) == expected  # what a config says is no part of it


ELSEWHERE = {  # where a run belongs and how it is computed: nothing that its losses depend on
    "name": st.text(min_size=1),
    "stage": st.sampled_from(["proxy", "target", "train"]),
    "study": st.text(),
    "workspace": st.sampled_from(["/w", "/elsewhere"]),
    "corpus": st.sampled_from(["/w/1.json", "/elsewhere/2.json"]),
    "size_name": st.text(),
    "engine": st.fixed_dictionaries({"zero_stage": st.sampled_from([0, 1, 2, 3])}),
    "keep_state": st.booleans(),
}


@given(st.fixed_dictionaries(ELSEWHERE), st.permutations(list(PLAIN["mixture"].items())))
def test_a_fingerprint_depends_on_nothing_else(
    changes: dict[str, Any], proportions: list[tuple[str, float]]
) -> None:
    run = Run.model_validate({**PLAIN, **changes, "mixture": dict(proportions)})
    assert fingerprint(run) == fingerprint(Run.model_validate(PLAIN))


CHANGES: dict[str, st.SearchStrategy[Any]] = {
    "seed": st.integers(0, 2**31),
    "corpus_digest": st.text(),
    "validation_tokens": st.integers(1, 10**6),
    "data_share": st.floats(0.01, 1),
    "mixture": mixtures(3).map(lambda r: dict(zip(PLAIN["mixture"], r, strict=True))),
    "size": st.integers(1, 8).map(lambda n: {**PLAIN["size"], "layers": n}),
    "training": st.integers(100, 10**5).map(lambda n: {**PLAIN["training"], "steps": n}),
}


@given(st.sampled_from(sorted(CHANGES)), st.data())
def test_a_fingerprint_tells_every_change_that_matters(key: str, data: st.DataObject) -> None:
    plain = Run.model_validate(PLAIN)
    changed = Run.model_validate({**PLAIN, key: data.draw(CHANGES[key])})
    assert (fingerprint(changed) == fingerprint(plain)) == (changed == plain)


def test_what_losses_depend_on_is_in_the_fingerprint(corpus: Corpus) -> None:
    plain = planned(corpus)
    base = Base(source="/somewhere", digest="abc")
    runs = [
        plain,
        planned(corpus, later=PHASES),
        planned(corpus, later=PHASES[:1]),
        planned(corpus, base=base),
        planned(corpus, base=base.model_copy(update={"digest": "other"})),
    ]
    assert len({fingerprint(run) for run in runs}) == len(runs)
    moved = planned(corpus, base=base.model_copy(update={"source": "/elsewhere"}), keep_state=True)
    assert fingerprint(moved) == fingerprint(runs[3])
    params = keys.phases(runs[1].phases, PER_STEP)
    assert params["phase/2/from_tokens"] == 12 * PER_STEP
    assert params["phase/3/mixture/math"] == 0.75
