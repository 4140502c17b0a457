"""The allowed mixtures: rules that cannot hold are named."""

import re

import numpy as np
import pytest

from optimization.domain.constraints import Constraints
from optimization.domain.feasible import feasible
from tests.support.objectives import DOMAINS
from training.record.errors import InputError


@pytest.mark.parametrize(
    ("constraints", "named"),
    [
        (
            Constraints({"a": (0.5, 1), "b": (0, 0.1), "a+c": (0, 0.4)}),
            "no mixture satisfies all of: bounds: a at least 0.5; bounds: a+c at most 0.4; change",
        ),
        (
            Constraints({"a+b+c": (0, 0.3), "d": (0, 0.5)}),
            "no mixture satisfies all of: bounds: a+b+c at most 0.3; bounds: d at most 0.5; change",
        ),
        (
            Constraints({"a": (0.3, 1)}, {"a": 0.1e9}, 2),
            "bounds: a at least 0.3; available: 'a' has 1e+08 tokens, 2 epochs of which are at "
            "most 0.2 of 1e+09",
        ),
        (Constraints({"a": (0.2, 0.3)}, bundles={"x": {"a": 0.1, "b": 0.9}}), "bounds: a at least"),
        (
            Constraints({"a": (0.5, 1), "b": (0.50000005, 1)}),
            "no mixture satisfies all of: bounds: a at least 0.5; bounds: b at least 0.50000005;",
        ),
        (Constraints({"e": (0, 1)}), "bounds: e: unknown domain 'e'; known: a, b, c, d"),
        (Constraints({"a": (0.6, 0.2)}), "bounds: a: [0.6, 0.2] is not 0 <= lowest <= highest"),
        (Constraints(bundles={"x": {"a": 1, "b": 1}}), "bundle 'x': the proportions sum to 2"),
        (
            Constraints(bundles={"x": {"a": 0.5, "b": 0.5}, "y": {"b": 0.5, "c": 0.5}}),
            "bundle 'y': 'b' is in another bundle already",
        ),
        (
            Constraints({"a": (0.9, 1)}, trust=0.1),
            "no mixture within 0.1 of a fitted one satisfies the other constraints; the nearest "
            "that does is 0.65 away",
        ),
        (Constraints(trust=1.5), "trust_region: 1.5; it is a share of tokens"),
        (Constraints(available={"a": -1.0}), "available: 'a' has -1 tokens"),
        (Constraints(epochs=0), "epochs: 0; it must be more than 0"),
    ],
)
def test_rules_that_cannot_hold_are_named(constraints: Constraints, named: str) -> None:
    with pytest.raises(InputError, match=re.escape(named)):
        feasible(constraints, DOMAINS, 1e9, np.full((1, 4), 0.25))
