"""The names and rules that `training` writes and `fitting` reads."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.strategies import mixtures, names
from training.record import keys
from training.record.errors import InputError
from training.record.history import History, history_from_tags, history_tags
from training.record.mixtures import MIXTURE_TOLERANCE, checked_mixture, mixture_key


def test_history_survives_its_tags_in_pieces() -> None:
    domains = tuple(f"domain{i}" for i in range(30))
    losses = tuple(tuple(1 / (3 + i + step) for i in range(30)) for step in range(40))
    history = History(domains, tuple(range(40)), tuple(range(0, 4000, 100)), losses)
    tags = history_tags(history)
    assert len(tags) > 1
    assert max(map(len, tags.values())) <= keys.TAG_LIMIT
    read = history_from_tags({**tags, "other": "tag"})
    assert read is not None
    assert read.domains == domains
    assert read.tokens == history.tokens
    for got, want in zip(read.losses, losses, strict=True):
        assert got == pytest.approx(want, rel=1e-8)


@st.composite
def histories(draw: st.DrawFn) -> History:
    domains = draw(st.lists(names, min_size=1, max_size=6, unique=True))
    count = draw(st.integers(1, 30))
    numbers = st.lists(st.integers(0, 10**15), min_size=count, max_size=count)
    loss = st.just(math.nan) | st.floats(1e-6, 1e6)
    rows = st.lists(st.tuples(*[loss] * len(domains)), min_size=count, max_size=count)
    return History(tuple(domains), tuple(draw(numbers)), tuple(draw(numbers)), tuple(draw(rows)))


@given(histories(), st.data())
def test_every_history_is_read_as_it_was_written_or_not_at_all(
    history: History, data: st.DataObject
) -> None:
    tags = history_tags(history)
    read = history_from_tags(tags)
    assert read is not None
    assert (read.domains, read.steps, read.tokens) == (
        history.domains,
        history.steps,
        history.tokens,
    )
    for row, written in zip(read.losses, history.losses, strict=True):
        assert row == pytest.approx(written, rel=1e-8, nan_ok=True)
    del tags[data.draw(st.sampled_from(sorted(tags)))]
    assert history_from_tags(tags) is None


def test_a_history_cut_short_is_no_history() -> None:
    losses = tuple((i / 7,) * 9 for i in range(200))
    history = History(tuple("abcdefghi"), tuple(range(200)), tuple(range(200)), losses)
    tags = history_tags(history)
    del tags["history/1"]
    assert history_from_tags(tags) is None
    assert history_from_tags({}) is None


def test_mixtures_that_agree_to_six_decimals_are_the_same() -> None:
    key = mixture_key({"b": 0.7, "a": 0.3}, ["a", "b", "c"])
    assert key == (0.3, 0.7, 0.0)
    assert mixture_key({"a": 0.3 + 1e-8, "b": 0.7 - 1e-8}, ["a", "b", "c"]) == key
    assert mixture_key({"a": 0.3 + 1e-5, "b": 0.7 - 1e-5}, ["a", "b", "c"]) != key


def test_rounding_is_divided_out_and_absent_domains_are_zero() -> None:
    mixture = checked_mixture({"b": 0.50005, "a": 0.5}, ["a", "b", "c"])
    assert list(mixture) == ["a", "b", "c"]
    assert sum(mixture.values()) == pytest.approx(1, abs=1e-12)
    assert mixture["c"] == 0


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"a": 0.5, "b": 0.48}, "sum to 0.98; they must sum to 1"),
        ({"a": 1.5, "b": -0.5}, "proportion of 'b' is -0.5; it must be >= 0"),
        ({"a": float("nan"), "b": 1}, "proportion of 'a' is nan"),
        ({"a": 0.5, "d": 0.5}, "unknown domain 'd'; known: a, b"),
    ],
)
def test_a_mixture_that_is_none_is_refused(mixture: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        checked_mixture(mixture, ["a", "b"])


@given(
    st.integers(1, 8).flatmap(lambda domains: mixtures(domains)),
    st.floats(-2 * MIXTURE_TOLERANCE, 2 * MIXTURE_TOLERANCE),
)
def test_a_mixture_is_rounded_within_the_tolerance_and_refused_beyond(
    shares: list[float], error: float
) -> None:
    domains = [f"d{i}" for i in range(len(shares))]
    written = {name: share * (1 + error) for name, share in zip(domains, shares, strict=True)}
    if abs(math.fsum(written.values()) - 1) > MIXTURE_TOLERANCE:
        with pytest.raises(InputError, match="must sum to 1"):
            checked_mixture(written, domains)
        return
    read = checked_mixture(written, domains)
    assert math.fsum(read.values()) == pytest.approx(1, abs=1e-12)
    assert list(read.values()) == pytest.approx(shares, abs=1e-12)
