"""Runs of phases, as a law of a schedule takes them."""

import pytest

from fitting.data.phase_observations import LABEL, PHASE, TRUNK, PhaseRuns
from tests.support.schedules import table, truth
from training.record.errors import InputError


def test_one_state_or_three_mixtures_are_refused() -> None:
    law, one = truth(), table(truth())
    alone = one[(one[PHASE] == 1) | (one[TRUNK] == "m00")]
    with pytest.raises(InputError, match="phase 2 does not continue two different states"):
        PhaseRuns.from_table(alone, law.tokens)
    few = one[one[LABEL].isin(["m00", "m01", "m02"])]
    with pytest.raises(InputError, match="3 mixtures were tried in each phase"):
        PhaseRuns.from_table(few, law.tokens)
