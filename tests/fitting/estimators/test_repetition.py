"""What repeated text is worth is found again, and text that is not repeated changes nothing."""

from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from fitting.artifact.laws import PUBLISHED_WORTH, JointLaw, RepetitionLaw, effective
from fitting.data.observations import Observations
from fitting.estimators import repetition
from tests.support.commands import run_entry

Array = np.ndarray

DOMAINS = ("web", "books", "code")
UNIQUE = np.array([2e8, 5e8, 1e13])
WORTH = np.array([4.0, 12.0, 9.0])
WEAR = 0.5
SIZES, LENGTHS = (2e7, 1e8), (2e9, 4e9, 7e9, 1e10)


def truth(worth: Array = WORTH, unique: Array = UNIQUE) -> RepetitionLaw:
    rng = np.random.default_rng(1)
    domains = len(DOMAINS)
    new = JointLaw(
        power=0.5,
        n0=1e8,
        d0=1e10,
        alpha=np.full(domains, 0.3),
        beta=np.full(domains, 0.35),
        g=np.full(domains, 0.05),
        h=np.full(domains, 0.02),
        constant=2 + rng.random(domains),
        floor=rng.random(domains) * 0.1,
        log_scale=np.log(1 + rng.random((domains, 1))),
        slope=-(0.3 + rng.random((domains, 1, domains))),
        size=0.2 + 0.2 * rng.random(domains),
        step=0.3 + 0.3 * rng.random(domains),
    )
    return RepetitionLaw(new, 1e8, worth, WEAR, 1 / unique)


def table(law: RepetitionLaw, noise: float = 0.002) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    rows = []
    for i, mixture in enumerate(rng.dirichlet(np.ones(len(DOMAINS)), 24)):
        for size in SIZES:
            for tokens in LENGTHS:
                losses = law.predict(mixture[None], np.array([size]), np.array([tokens]))[0]
                losses = losses + noise * rng.normal(size=len(losses))
                rows.append(
                    {"run": f"{i}-{size:.0f}", "n_params": int(size), "tokens": int(tokens)}
                    | {"step": int(tokens / 1e6)}
                    | {f"mixture/{d}": x for d, x in zip(DOMAINS, mixture, strict=True)}
                    | {f"val_loss/{d}": x for d, x in zip(DOMAINS, losses, strict=True)}
                    | {
                        f"unique_tokens/{d}": 1 / s
                        for d, s in zip(DOMAINS, law.scarcity, strict=True)
                    }
                )
    return pd.DataFrame(rows)


def test_the_published_formula_and_its_derivative() -> None:
    tokens, worth = np.array([1e10]), np.full(3, 15.4)
    mixture = np.array([[0.5, 0.3, 0.2]])
    unique = np.array([1e9, 3e9, 1e10])  # five passes, one, a fifth of one
    shares, worth_of = effective(mixture, tokens, 1 / unique, worth)
    web = 1e9 * (1 + 15.4 * (1 - np.exp(-4 / 15.4)))
    assert worth_of == pytest.approx(web + 3e9 + 2e9)
    assert shares[0] == pytest.approx(np.array([web, 3e9, 2e9]) / worth_of)
    surface = truth().mixing(3e8, 2e10)
    numeric = [
        (surface.predict(mixture + step) - surface.predict(mixture - step))[0] / 2e-6
        for step in 1e-6 * np.eye(3)
    ]
    assert pytest.approx(np.array(numeric), abs=1e-5) == surface.jacobian(mixture)[0].T


@pytest.mark.slow
def test_what_repeated_text_is_worth_is_found_again() -> None:
    law = truth()
    observations = Observations.from_tidy(table(law))
    assert repetition.repeats(observations)
    found = repetition.estimate(observations)
    assert found.worth[:2] == pytest.approx(WORTH[:2], rel=0.15)
    assert found.wear == pytest.approx(WEAR, abs=0.1)
    assert found.seen[:2].min() > 10
    assert found.seen[2] < 1
    low, high = found.at(1e8)[1:]
    assert ((low[:2] < WORTH[:2]) & (WORTH[:2] < high[:2])).all()
    new = law.law.predict(observations.proportions(), observations.n_params, observations.tokens)
    before, after = (
        np.abs(o - new).mean()
        for o in (observations.losses, repetition.as_new(observations, found).losses)
    )
    assert after < before / 5


def test_runs_without_repetition_are_left_as_they_are() -> None:
    plenty = table(truth(unique=np.full(3, 1e13)))
    with_column = Observations.from_tidy(plenty)
    without = Observations.from_tidy(plenty[[c for c in plenty if "unique" not in c]])
    assert not repetition.repeats(with_column)
    assert without.unique is None
    found = repetition.estimate(with_column)
    assert (found.worth == PUBLISHED_WORTH).all()
    assert found.wear == 0
    law = found.law(truth().law, np.full(3, 1e-13))
    place = with_column.proportions(), with_column.n_params, with_column.tokens
    assert (law.predict(*place) == law.law.predict(*place)).all()


@pytest.mark.slow
def test_a_predictor_knows_repeated_text(store: str, tmp_path: Path) -> None:
    assert store
    law = truth()
    source = f"{tmp_path}/runs.csv"
    table(law).to_csv(source, index=False)
    done = run_entry("import", "--format", "tidy", "--source", source)
    assert done.returncode == 0, done.stderr
    options = ["--n-params", "1e8", "--tokens", "1e10", "--compare", "false"]
    done = run_entry("fit", *options, "--repetition", "true")
    assert done.returncode == 0, done.stderr
    assert "a repeated token is worth 1/e of a new one" in done.stdout
    exported = f"{tmp_path}/exported.csv"
    assert run_entry("export", "--output", exported).returncode == 0
    assert pd.read_csv(exported)["unique_tokens/books"].eq(5e8).all()

    model = mlflow.pyfunc.load_model("models:/mixture-predictor@champion")
    mixtures = np.random.default_rng(5).dirichlet(np.ones(3), 8)
    rows = pd.DataFrame(mixtures, columns=[f"mixture/{d}" for d in DOMAINS])
    place = mixtures, np.full(8, 1e8), np.full(8, 1e10)
    for unique in (UNIQUE, UNIQUE / 2, np.full(3, 1e15)):
        given = {f"unique_tokens/{d}": x for d, x in zip(DOMAINS, unique, strict=True)}
        unlimited = unique.min() > 1e12
        answer = model.predict(rows if unlimited else rows.assign(**given))
        expected = replace(law, scarcity=1 / unique).predict(*place).mean(axis=1)
        assert answer["objective"].to_numpy() == pytest.approx(expected, abs=0.02)
        inside = (answer["objective_low"] <= expected) & (expected <= answer["objective_high"])
        assert inside.mean() >= 0.75
    mixed = rows.assign(**{"unique_tokens/web": [2e8, None] * 4})  # rows of different text
    for i in (0, 1):
        alone = model.predict(mixed.iloc[[i]])
        assert model.predict(mixed).iloc[i].to_numpy() == pytest.approx(alone.iloc[0].to_numpy())
    bad = rows.assign(**{"unique_tokens/web": 0.0})
    with pytest.raises(mlflow.MlflowException, match=r"row 0, column 'unique_tokens/web': 0"):
        model.predict(bad)
