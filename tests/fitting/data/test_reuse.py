"""Old runs beside those of a study with a domain more, or with one that was split."""

import re
from collections.abc import Iterator
from dataclasses import replace

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.entities import Dataset, DatasetInput, InputTag, Param

from fitting import fit as fits
from fitting.artifact.laws import JointLaw, Law
from fitting.artifact.spec import Target
from fitting.data import histories, reuse
from fitting.data.observations import Observations
from fitting.data.reuse import Reuse
from fitting.diagnostics.optimum import apart
from fitting.selection.forms import Options
from optimization.domain.constraints import Constraints
from optimization.domain.feasible import Feasible, feasible
from pipelines import fit
from pipelines.command import texts
from tests.support import synthetic
from tests.support.stores import empty_store
from training.record import keys
from training.record.errors import InputError
from training.record.history import History, history_tags

AT = Target(16e6, 8e8)
NOISE = 0.002  # nats per token
OPTIONS = Options(("joint",), compare=False)
ADDED = ("web", "code", "papers", "math")
SPLIT = ("web", "python", "cpp", "papers")
SHARES = {"python": 0.6, "cpp": 0.4}
TRAINING = {"vocab_size": "512", "tokens_per_step": "2048", "learning_rate": "0.002"}


def truth(*slopes: list[float], kept: tuple[int, ...]) -> JointLaw:
    """A law of the kept domains of `synthetic` and of others with these slopes, by φ = √r."""
    law = synthetic.joint_law(power=0.5)
    columns = [*(law.slope[..., j] for j in kept), *(np.array(s)[:, None] for s in slopes)]
    return replace(law, slope=np.stack(columns, axis=2))


MATH = truth([0.3, -1.0, -1.6, -0.2], kept=(0, 1, 2))
PARTS = truth([0.1, -1.2, 0.0, -0.9], [0.2, -1.8, -0.2, 0.1], kept=(0, 2))  # web, papers, …
PARTS = replace(PARTS, slope=PARTS.slope[..., [0, 2, 3, 1]])  # as SPLIT


def predict(law: Law, mixtures: np.ndarray) -> np.ndarray:
    ones = np.ones(len(mixtures))
    return law.predict(mixtures, AT.n_params * ones, AT.tokens * ones)


def table(name: str, domains: tuple[str, ...], mixtures: np.ndarray, law: Law) -> pd.DataFrame:
    """The tidy table of one noisy evaluation of every mixture, (n, M)."""
    rng = np.random.default_rng(list(name.encode()))
    losses = predict(law, mixtures)
    losses = losses + NOISE * rng.standard_normal(losses.shape)
    return pd.DataFrame(
        {
            "run": [f"{name}{i:02d}" for i in range(len(mixtures))],
            keys.N_PARAMS: AT.n_params,
            keys.TOKENS: AT.tokens,
            "step": 8000,
            **{keys.MIXTURE + d: mixtures[:, j] for j, d in enumerate(domains)},
            **{keys.VAL_LOSS + d: losses[:, j] for j, d in enumerate(synthetic.VAL_DOMAINS)},
        }
    )


def law_of(runs: pd.DataFrame) -> Law:
    weights = np.full(len(synthetic.VAL_DOMAINS), 1 / len(synthetic.VAL_DOMAINS))
    o = Observations.from_tidy(runs)
    return fits.fit(o, weights, AT, OPTIONS, keep_transients=True).law


def best(law: Law, among: Feasible) -> np.ndarray:
    """The best of many allowed mixtures, (M,)."""
    points = np.random.default_rng(0).random((20_000, among.free))
    mixtures = among.from_cube(points)
    return np.asarray(mixtures[np.argmin(predict(law, mixtures).mean(axis=1))])


def missed(law: Law, true: Law) -> float:
    """Rms error of the objective on mixtures that no run had."""
    unseen = np.random.default_rng(9).dirichlet(np.ones(4), 500)
    error = (predict(law, unseen) - predict(true, unseen)).mean(axis=1)
    return float(np.sqrt((error**2).mean()))


OLD = np.random.default_rng(2).dirichlet(np.ones(3), 14)
OLD_RUNS = table("old", ADDED[:3], OLD, truth(kept=(0, 1, 2)))
BASE = OLD[np.argmin(OLD_RUNS.filter(like=keys.VAL_LOSS).mean(axis=1))]
NEW = np.array([[*(BASE * v), 1 - v] for v in (0.95, 0.85, 0.7, 0.5, 0.3)])
NEW_RUNS = table("new", ADDED, NEW, MATH)


def log(runs: pd.DataFrame, study: str, digest: str, **params: str) -> str:
    """Write a table as the proxy runs of a study below a sweep; returns the experiment's id."""
    client = mlflow.MlflowClient()
    domains = [c.removeprefix(keys.MIXTURE) for c in runs if c.startswith(keys.MIXTURE)]
    even = {keys.WEIGHT + d: "1" for d in synthetic.VAL_DOMAINS}
    sweep = client.create_run("0", tags={keys.STAGE: keys.SWEEP}).info.run_id
    client.log_batch(sweep, params=[Param(key, value) for key, value in even.items()])
    dataset = Dataset("web/validation", digest, "local", "{}")
    held_out = DatasetInput(dataset, [InputTag("mlflow.data.context", "validation")])
    for row in runs.to_dict("records"):
        losses = {k: v for k, v in row.items() if k.startswith(keys.VAL_LOSS)}
        names = tuple(k.removeprefix(keys.VAL_LOSS) for k in losses)
        done = History(names, (row["step"],), (int(AT.tokens),), (tuple(losses.values()),))
        tags = {keys.STAGE: keys.PROXY, keys.STUDY: study, keys.COMPLETE: "true"}
        tags |= {keys.PARENT: sweep, **history_tags(done)}
        run_id = client.create_run("0", tags=tags, run_name=row["run"]).info.run_id
        shares = {keys.MIXTURE + d: row[keys.MIXTURE + d] for d in domains}
        held = {**shares, keys.N_PARAMS: int(AT.n_params), **TRAINING, **params}
        client.log_batch(run_id, params=[Param(k, str(v)) for k, v in held.items()])
        client.log_inputs(run_id, [held_out])
        client.set_terminated(run_id)
    return "0"


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An old study of three domains, a new one of four, and runs that cannot join them."""
    with empty_store(tmp_path_factory.mktemp("reuse")):
        log(OLD_RUNS, "old-1", "aa")
        log(OLD_RUNS[:1].assign(run="longer"), "old-2", "aa", tokens_per_step="4096")
        log(OLD_RUNS[:1].assign(run="retold"), "old-3", "bb")
        log(OLD_RUNS[:1].assign(run="faster"), "old-4", "aa", learning_rate="0.004")
        books = OLD_RUNS.rename(columns={"mixture/papers": "mixture/books"})
        log(books[:1].assign(run="bookish"), "old-5", "aa")
        yield log(NEW_RUNS, "new-1", "aa")


def test_old_runs_find_the_optimum_of_a_domain_that_was_added(
    experiment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    both = "tags.study LIKE '%-1'"
    with pytest.raises(InputError, match=r"\(new-1, old-1\), whose losses are not comparable"):
        histories.pull([experiment], both)
    old = Reuse("tags.study = 'old-1'")
    assert len(reuse.pull([experiment], both, old).parents) == 1  # the new sweep tells the purpose
    with mlflow.start_run(tags={keys.STAGE: keys.FIT}):
        law = fit.fit([experiment], both, "with-math", OPTIONS, old=old).fit.law
    said = capsys.readouterr().out
    assert "note: 14 of 19 runs are reused; none of them was trained on math" in said
    alone = law_of(NEW_RUNS)
    everywhere = feasible(Constraints(), ADDED, AT.tokens)
    bundle = dict(zip(ADDED, BASE, strict=False))
    within = feasible(Constraints(bundles={"base": bundle}), ADDED, AT.tokens)
    wanted = best(MATH, everywhere)
    assert wanted.min() > 0.15  # no corner, which a wrong law could hit by chance
    assert apart(best(law, everywhere), wanted) < 0.06
    assert apart(best(law, everywhere), wanted) < apart(best(alone, everywhere), wanted) / 2
    assert apart(best(law, within), best(MATH, within)) < 0.03
    assert missed(law, MATH) < missed(alone, MATH) / 3


def test_old_runs_find_the_optimum_of_a_domain_that_was_split() -> None:
    in_parts = OLD @ np.array([[1, 0, 0, 0], [0, 0.6, 0.4, 0], [0, 0, 0, 1]])
    none = {"mixture/python": 0.0, "mixture/cpp": 0.0}
    old = table("old", SPLIT, in_parts, PARTS).assign(**none, **{"mixture/code": OLD[:, 1]})
    turns = np.array([[0.3, 0.4 * v, 0.4 * (1 - v), 0.3] for v in (0.0, 0.2, 0.4, 0.8, 1.0)])
    new = table("new", SPLIT, turns, PARTS)
    told = reuse.split(pd.concat([old, new.assign(**{"mixture/code": 0.0})]), {"code": SHARES}, {})
    assert told[[keys.MIXTURE + d for d in SPLIT]].to_numpy()[:14] == pytest.approx(in_parts)
    law, alone = law_of(told), law_of(new)
    everywhere = feasible(Constraints(), SPLIT, AT.tokens)
    wanted = best(PARTS, everywhere)
    assert wanted.min() > 0.1
    assert apart(best(law, everywhere), wanted) < 0.06 < apart(best(alone, everywhere), wanted)
    assert missed(law, PARTS) < missed(alone, PARTS) / 3


def test_the_loss_of_a_domain_that_was_split_is_the_mean_of_its_parts() -> None:
    runs = pd.DataFrame(
        {
            "run": ["old", "new"],
            "mixture/code": [1.0, 0.0],
            "mixture/python": [0.0, 0.3],
            "mixture/cpp": [0.0, 0.7],
            "val_loss/code": [2.5, np.nan],
            "val_loss/python": [np.nan, 2.0],
            "val_loss/cpp": [np.nan, 3.0],
        }
    )
    told = reuse.split(runs, {"code": SHARES}, {})
    assert told["val_loss/code"].tolist() == pytest.approx([2.5, 0.6 * 2 + 0.4 * 3])
    weights = {"code": 1.0, "python": 0.0, "cpp": 0.0}
    kept, left, notes = reuse.common_losses(told, weights, {"old"})
    assert list(kept.filter(like=keys.VAL_LOSS)) == ["val_loss/code"]
    assert left == {"code": 1.0}
    assert notes[0] == (
        "validation domain 'python' left out: its weight is 0, and 1 runs have no loss for it"
    )
    said = r"1 of 2 runs have no loss for validation domain 'python', which counts in the objective"
    for unequal in ({}, {"code": 0.0, "python": 1.0, "cpp": 1.0}):
        with pytest.raises(InputError, match=said):
            reuse.common_losses(told, unequal, {"old"})


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ("old-2", "'longer' has the tokens_per_step 4096; the new runs have 2048"),
        ("old-3", "'retold' has the digest of the dataset 'web/validation' bb; the new runs"),
        ("old-4", "'faster' has the learning_rate of 16,000,000 parameters 0.004; the new runs"),
        ("old-5", "1 runs were trained on 'books', which is not a domain of the new"),
        ("old-6", "no complete proxy run in experiment 0 matches \"tags.study = 'old-6'\""),
    ],
)
def test_runs_that_were_not_trained_alike_are_not_reused(
    study: str, message: str, experiment: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        reuse.pull([experiment], "tags.study = 'new-1'", Reuse(f"tags.study = '{study}'"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("code=papers:0.6+math:0.3", "split: 'code': the proportions sum to 0.9; they must sum"),
        ("code=papers:0.6+mth:0.4", "split: 'code': unknown domain 'mth'; known: web, papers, mat"),
        ("cod=papers:0.6+math:0.4", "split: unknown domain 'cod'; known: web, code, papers, math"),
        ("code=code:0.6+math:0.4", "split: 'code': a part has the name of a domain that is split"),
        ("code=papers:0.6+math:0.4", "split: run 'new00' has the domain 'code' and a part of it"),
        ("code=math", "split: 'code': 'math' is not part:share+part:share"),
        ("code=math:1,code=math:1", "split: 'code' is given twice"),
    ],
)
def test_a_split_that_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        reuse.split(NEW_RUNS, texts.shares("split", text), {})
