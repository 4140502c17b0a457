"""Tables of runs as a fit takes them, and the noise between runs that differ by their seed."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from fitting.artifact.spec import Target
from fitting.data.observations import Noise, Observations
from fitting.diagnostics import diagnostics
from fitting.estimators import joint
from fitting.fit import fit
from fitting.selection.forms import Options
from tests.support import synthetic
from training.record.errors import InputError

NOISE, AGAIN = 0.01, 8
WEIGHTS = np.full(4, 0.25)


def runs(noise: tuple[float, ...] = (NOISE,) * 4, seed: int = 9) -> Observations:
    """Runs of a known law with this noise of each loss; the first mixture has eight further seeds
    at each of three sizes."""
    law = synthetic.joint_law()
    every, first = synthetic.table(law, 12), synthetic.table(law, 1)
    losses = [column for column in first if str(column).startswith("val_loss/")]
    rng = np.random.default_rng(seed)

    def noisy(table: pd.DataFrame, name: str = "") -> pd.DataFrame:
        drawn = table[losses] + rng.standard_normal((len(table), len(losses))) * noise
        return table.assign(run=table["run"] + name, **drawn)

    again = [noisy(first, f"-seed{k}") for k in range(1, AGAIN + 1)]
    return Observations.from_tidy(pd.concat([noisy(every), *again]))


def test_the_noise_is_what_repeated_runs_differ_by() -> None:
    found = Noise.of(runs())
    assert found is not None
    assert found.freedom == 3 * AGAIN
    deviations = np.sqrt(np.diag(found.covariance))
    np.testing.assert_allclose(deviations, NOISE, rtol=0.4)
    assert Noise.of(Observations.from_tidy(synthetic.table(synthetic.joint_law(), 5))) is None


def test_a_noisy_loss_says_less_of_the_exponents_that_all_share() -> None:
    def miss(o: Observations) -> float:
        scales = joint.fit_scales(o, shrinking=False)
        truth = synthetic.joint_law()
        exponents = np.log([scales.alpha[0] / truth.alpha[0], scales.beta[0] / truth.beta[0]])
        return float(np.abs(exponents).mean())

    drawn = [runs((0.001, 0.001, 0.001, 0.1), seed) for seed in range(6)]
    known = np.mean([miss(o) for o in drawn])
    unknown = np.mean([miss(replace(o, noise=None)) for o in drawn])
    assert known < 0.4 * unknown
    assert known < 0.1


def test_a_fit_says_whether_its_errors_are_the_noise() -> None:
    o = runs()
    fitted = fit(o, WEIGHTS, Target(**synthetic.TARGET), Options(methods=("joint",), compare=False))
    (told,) = [d for d in fitted.diagnostics if d.name == "noise_between_seeds"]
    assert told.value == pytest.approx(NOISE / 2, rel=0.4)  # a mean of four losses
    assert not told.warning
    noise = fitted.noise
    assert noise is not None
    scores = fitted.choice.scores
    least = Noise(noise.covariance * 1e-4, noise.freedom)
    assert "seeds can" not in diagnostics.noise_floor(least, scores, WEIGHTS).line
    most = Noise(noise.covariance * 1e4, noise.freedom)
    assert "no more than that" in diagnostics.noise_floor(most, scores, WEIGHTS).line


def test_a_bad_table_names_the_run_and_the_column() -> None:
    table = synthetic.table(synthetic.joint_law())
    missing = table.copy()
    for bad in (np.nan, np.inf):
        missing.loc[7, "val_loss/code"] = bad
        with pytest.raises(InputError, match="'mix00-4000000' has no finite value of 'val_loss/co"):
            Observations.from_tidy(missing)
    off = table.copy()
    off.loc[30, "mixture/web"] += 0.1
    with pytest.raises(InputError, match=r"run 'mix02-4000000': proportions .* sum to 1"):
        Observations.from_tidy(off)
    with pytest.raises(InputError, match="no column 'tokens'"):
        Observations.from_tidy(table.drop(columns="tokens"))
