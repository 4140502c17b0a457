"""What the data cannot tell is said or refused."""

import pytest

from fitting.artifact.spec import Target
from fitting.data.observations import Observations
from fitting.diagnostics import identifiability
from tests.support import synthetic
from tests.support.fits import TARGET, fitted
from training.record.errors import InputError

TWO = (4e8, 8e8)


def test_what_the_data_cannot_tell_is_said() -> None:
    truth = synthetic.joint_law()
    two = Observations.from_tidy(synthetic.table(truth, sizes=(1e6, 16e6), tokens=TWO))
    said = "\n".join(identifiability.unidentified(two, TARGET))
    assert "2 sizes for the three parameters of the size law" in said
    assert "2 checkpoints per run" in said
    assert not identifiability.unidentified(two, Target(16e6, 8e8))
    fixed = synthetic.table(truth)
    rest = 1 - fixed["mixture/papers"]
    fixed["mixture/web"] *= 0.8 / rest
    fixed["mixture/code"] *= 0.8 / rest
    fixed["mixture/papers"] = 0.2
    constant = Observations.from_tidy(fixed)
    assert identifiability.constant_domains(constant) == ["papers"]
    assert (
        "'papers' has the proportion 0.2 in every mixture"
        in identifiability.unidentified(constant, TARGET)[0]
    )
    few = Observations.from_tidy(synthetic.table(truth, 3))
    assert "3 mixtures for the 5 parameters" in identifiability.unidentified(few, TARGET)[0]


def test_a_target_that_no_law_reaches_is_refused() -> None:
    one = synthetic.table(synthetic.joint_law(), sizes=(16e6,))
    with pytest.raises(InputError, match="n_params: the target has 64,000,000, every run 16,000"):
        fitted(one)
    assert fitted(one, target=Target(16e6, 3.2e9)).choice.best.method == "joint"
    with pytest.raises(InputError, match="2 distinct mixtures were trained"):
        fitted(synthetic.table(synthetic.joint_law(), 2))
