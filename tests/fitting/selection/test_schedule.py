"""The law of a schedule, fitted to runs of phases."""

from dataclasses import replace

import numpy as np
import pytest

from fitting.data.phase_observations import PHASE, TRUNK, PhaseRuns
from fitting.selection import schedule
from tests.support.schedules import table, truth
from training.record import keys


def test_what_is_kept_is_drawn_to_its_mean_where_the_states_hardly_differ() -> None:
    law = truth()
    law = replace(law, kept=np.where(law.kept > 0, 0.5, 0.0))
    seen = table(law)
    before, after = keys.BEFORE + "web", keys.VAL_LOSS + "web"
    alike = 2 + 1e-4 * seen[TRUNK].str[1:].where(seen[PHASE] == 3, np.nan).astype(float)
    seen[after] += (0.5 * (alike - seen[before])).fillna(0.0)
    seen[before] = alike.fillna(seen[before])
    kept = schedule.fit(PhaseRuns.from_table(seen, law.tokens), np.full(4, 0.25)).law.kept
    assert kept[1:] == pytest.approx(0.5, abs=0.1)
