"""The names and rules that `training` writes and `fitting` reads."""

import re

import pytest

from training.record import keys
from training.record.errors import InputError
from training.record.history import History, history_from_tags, history_tags
from training.record.mixtures import checked_mixture


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


def test_a_history_cut_short_is_no_history() -> None:
    losses = tuple((i / 7,) * 9 for i in range(200))
    history = History(tuple("abcdefghi"), tuple(range(200)), tuple(range(200)), losses)
    tags = history_tags(history)
    del tags["history/1"]
    assert history_from_tags(tags) is None
    assert history_from_tags({}) is None


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
