"""Schedules and bases: a mixture that changes while a model trains, and weights that go on."""

from io import StringIO
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import transformers

from pipelines import entry, schedule, train
from pipelines.prepare import prepare
from pipelines.study import load as studies
from pipelines.study import schedule_section
from pipelines.study.study import Study
from tests.support.commands import call
from tests.support.studies import WriteStudy
from tests.support.tiny_runs import DOMAINS, TRAINING, evaluations, planned
from training.data.corpus import Corpus
from training.data.sampling import MixtureSampler
from training.engine import base_model as bases
from training.engine import checkpoint, loop
from training.engine import model as models
from training.record import keys
from training.record.errors import InputError
from training.run import Base, Phase, Run, fingerprint

TABLE = "phases.csv"
PER_STEP = TRAINING.tokens_per_step
CODE = {"news": 0.1, "code": 0.9, "math": 0.0}
MATH = {"news": 0.0, "code": 0.25, "math": 0.75}
LATER = (
    Phase(from_tokens=12 * PER_STEP, mixture=CODE),
    Phase(from_tokens=25 * PER_STEP, mixture=MATH),
)


pytestmark = pytest.mark.usefixtures("cpu")


def sampler(corpus: Corpus, run: Run) -> MixtureSampler:
    training = run.training
    length, steps = training.sequence_length, training.steps
    return MixtureSampler(
        corpus.domains, run.mixture, training.batch_size, length, steps, run.seed, 1.0,
        run.phases[1:],
    )  # fmt: skip


def test_a_schedule_deals_each_phase_its_mixture(corpus: Corpus) -> None:
    training = TRAINING.model_copy(update={"steps": 900})
    later = [
        Phase(from_tokens=300 * PER_STEP, mixture=CODE),
        Phase(from_tokens=500 * PER_STEP, mixture=MATH),
    ]
    run = planned(corpus, training=training, later=later)
    drawn = sampler(corpus, run)
    for (start, mixture), end in zip(run.phases, (300, 500, 900), strict=True):
        shares = np.array([mixture[name] for name in DOMAINS])
        counts = drawn.counts[start:end]
        assert (np.abs(counts - training.batch_size * shares) < 1 + 1e-9).all()
        assert counts.mean(axis=0) == pytest.approx(training.batch_size * shares, abs=0.1)
    whole = training.batch_size * training.steps
    mean = [run.mean_mixture()[name] for name in DOMAINS]
    assert drawn.planned(900) == pytest.approx(whole * np.array(mean))
    assert np.abs(drawn.drawn(900) - drawn.planned(900)).max() < 40
    constant = planned(corpus, training=training)
    for step in (0, 299):
        assert (drawn.batch(step) == sampler(corpus, constant).batch(step)).all()
    assert (drawn.batch(300) != sampler(corpus, constant).batch(300)).any()


def test_a_schedule_goes_on_to_the_same_losses(corpus: Corpus) -> None:
    run = planned(corpus, later=LATER)
    whole = evaluations(run, corpus)
    assert evaluations(planned(corpus), corpus)[-1] != whole[-1]
    trainer = loop.Trainer(run, corpus)
    for report in trainer.reports():
        if report.step == 20:  # in the middle of a phase
            checkpoint.save(run, trainer.engine, 20, 1, dict)
            break
    saved = checkpoint.find(run, 1)
    assert saved is not None
    assert evaluations(run, corpus, saved=saved) == [
        (step, found) for step, found in whole if step > 20
    ]
    checkpoint.remove(run)


def test_a_run_begins_at_the_kept_state_of_one_that_ends_where_its_phase_begins(
    corpus: Corpus,
) -> None:
    short = TRAINING.model_copy(update={"steps": 25, "first_evaluation": 25})
    trunk = planned(corpus, training=short, later=LATER[:1], keep_state=True, seed=3)
    branch = planned(corpus, later=LATER, seed=3)
    whole = evaluations(branch, corpus)
    assert checkpoint.find(branch, 1) is None
    trainer = loop.Trainer(trunk, corpus)
    list(trainer.reports())
    trainer.keep_state()
    trainer.close()
    begun = checkpoint.find(branch, 1)
    assert begun is not None
    assert begun.step == 25
    assert evaluations(branch, corpus, saved=begun) == [
        (step, found) for step, found in whole if step > 25
    ]
    others: list[dict[str, Any]] = [
        {"seed": 4},
        {"mixture": CODE},
        {"later": (LATER[0],)},
        {"later": (Phase(from_tokens=11 * PER_STEP, mixture=CODE), LATER[1])},
        {"training": TRAINING.model_copy(update={"decay_steps": 20})},
    ]
    for other in others:  # none of which had this state after 25 steps
        assert checkpoint.find(branch.model_copy(update=other), 1) is None, other


def test_what_losses_depend_on_is_in_the_fingerprint(corpus: Corpus) -> None:
    plain = planned(corpus)
    base = Base(source="/somewhere", digest="abc")
    runs = [
        plain,
        planned(corpus, later=LATER),
        planned(corpus, later=LATER[:1]),
        planned(corpus, base=base),
        planned(corpus, base=base.model_copy(update={"digest": "other"})),
    ]
    assert len({fingerprint(run) for run in runs}) == len(runs)
    moved = planned(corpus, base=base.model_copy(update={"source": "/elsewhere"}), keep_state=True)
    assert fingerprint(moved) == fingerprint(runs[3])
    params = keys.phases(runs[1].phases, PER_STEP)
    assert params["phase/2/from_tokens"] == 12 * PER_STEP
    assert params["phase/3/mixture/math"] == 0.75


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ([(5, CODE)], r"\[0\].from_tokens: 5 tokens are not a multiple of the tokens of a step"),
        ([(256, CODE)], r"schedule\[0\].from_tokens: 256; the first phase begins at 0"),
        ([(0, CODE), (512, MATH), (512, CODE)], r"\[2\].from_tokens: 512 is not after the phase"),
        ([(0, CODE), (512, {"news": 0.5})], r"schedule\[1\].mixture: the proportions sum to 0.5"),
        ([(0, CODE), (512, {"new": 1})], r"schedule\[1\].mixture: unknown domain 'new'"),
    ],
)
def test_a_schedule_that_is_none(schedule: list[Any], message: str) -> None:
    phases = [Phase(from_tokens=tokens, mixture=mixture) for tokens, mixture in schedule]
    with pytest.raises(InputError, match=message):
        schedule_section.checked(phases, DOMAINS, PER_STEP, "schedule")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", r"schedule: {}: must hold a JSON list"),
        ("[1", "not JSON"),
        ("[]", "must hold a JSON list"),
        ('[{"tokens": 0}]', "mixture: Field required"),
        ("runs:/none", "schedule: runs:/none: "),
    ],
)
def test_a_schedule_parameter_that_is_none(text: str, message: str, store: str) -> None:
    assert store
    with pytest.raises(InputError, match=message):
        schedule_section.read(text, DOMAINS, PER_STEP)


@pytest.fixture
def prepared(miniature: dict[str, Any]) -> Corpus:
    return prepare(Study.model_validate(_absolute(miniature))).corpus


def _absolute(study: dict[str, Any]) -> dict[str, Any]:
    folder = Path(study["workspace"]).parent
    domains = {name: {"files": str(folder / d["files"])} for name, d in study["domains"].items()}
    return {**study, "domains": domains}


def saved_model(folder: Path, corpus: Corpus, **shape: int) -> Path:
    """A checkpoint like those that runs log as the artifact `model`."""
    settings = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    settings |= {"max_position_embeddings": 32, "vocab_size": corpus.vocab_size, **shape}
    config = transformers.GPTNeoXConfig(intermediate_size=64, **settings)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(corpus.tokenizer).save_pretrained(folder)
    return folder


def test_a_continued_model_begins_with_the_losses_of_its_base(
    prepared: Corpus, tmp_path: Path
) -> None:
    mixture = dict.fromkeys(prepared.domains, 1 / 3)
    run = planned(prepared, mixture=mixture, workspace=tmp_path)
    trainer = loop.Trainer(run, prepared)
    last = [report.evaluation for report in trainer.reports()][-1]
    trainer.save_model(tmp_path / "model")
    trainer.close()
    transformers.AutoTokenizer.from_pretrained(prepared.tokenizer).save_pretrained(
        tmp_path / "model"
    )
    base, size = bases.find(str(tmp_path / "model"), prepared, 32, tmp_path)
    continued = planned(prepared, mixture=mixture, workspace=tmp_path, base=base, size=size)
    (step, before), *rest = evaluations(continued, prepared)
    assert step == 0
    assert last is not None
    assert before.losses == pytest.approx(last.losses, abs=1e-6)
    assert [step for step, _ in rest] == [5, 10, 19, 37]
    assert sum(rest[-1][1].losses.values()) < sum(before.losses.values())


@pytest.mark.slow
def test_a_base_that_is_none_is_one_clear_error(
    prepared: Corpus, texts: dict[str, list[str]], tmp_path: Path
) -> None:
    def load(given: object, length: int) -> None:
        base, size = bases.find(str(given), prepared, length, tmp_path)
        models.build(size, prepared.vocab_size, length, 0, base)

    def refused(given: object, message: str, length: int = 32) -> None:
        with pytest.raises(InputError, match=message):
            load(given, length)

    good = saved_model(tmp_path / "good", prepared)
    refused(tmp_path / "nowhere", r"critical.base: '.*nowhere' is not a folder; a base")
    refused("runs:/0123456789abcdef0123456789abcdef/model", "critical.base: .* cannot be downl")
    refused(good, "max_position_embeddings 32, less than training.sequence_length", 64)
    for config in (
        transformers.T5Config(),
        transformers.BertConfig(architectures=["BertForMaskedLM"]),
    ):
        config.save_pretrained(tmp_path / config.model_type)
        refused(
            tmp_path / config.model_type, rf"\({config.model_type}.*\) is not a causal language"
        )
    small = saved_model(tmp_path / "small", prepared, vocab_size=100)
    refused(small, "embeddings of 100 tokens, the study's tokenizer 320")

    bare = tmp_path / "bare"
    transformers.AutoModelForCausalLM.from_pretrained(good).save_pretrained(bare)
    refused(bare, "holds no tokenizer .tokenizer.json")
    tokenizer = transformers.AutoTokenizer.from_pretrained(good)
    words = [text[::-1] for documents in texts.values() for text in documents]
    tokenizer.train_new_from_iterator(words, 320).save_pretrained(bare)
    refused(bare, "has another tokenizer than the study: they cut text of domain 'news'")

    wider = saved_model(tmp_path / "wider", prepared, hidden_size=32)
    (good / "config.json").write_text((wider / "config.json").read_text())
    refused(good, "base .*good'")
    (good / "model.safetensors").unlink()
    refused(good, r"holds no weights \(\*.safetensors or \*.bin\)")


@pytest.mark.slow
def test_a_schedule_is_planned_trained_and_taken_by_train(
    store: str,
    miniature: dict[str, Any],
    write_study: WriteStudy,
    single_worker: None,
) -> None:
    assert store
    assert single_worker is None
    miniature["phases"] = {
        "size": "tiny", "steps": [12, 8], "mixtures": 4, "trunks": 2, "decay": 0.5, "seeds": [1, 2],
    }  # fmt: skip
    study = write_study(miniature)
    with entry.stage(keys.SCHEDULE) as active:
        call(schedule, study=study, workers="1")
    done = mlflow.get_run(active.info.run_id)
    table = pd.read_csv(
        StringIO(mlflow.artifacts.load_text(f"{done.info.artifact_uri}/phases.csv"))
    )
    assert table.groupby("phase").size().tolist() == [4, 8]
    ends = table[table["phase"] == 1].set_index("label")
    for row in table[table["phase"] == 2].to_dict("records"):
        for name in ("news", "code", "math"):
            assert row[f"before/{name}"] == ends.loc[row["trunk"], f"val_loss/{name}"]
    branch = mlflow.get_run(table["run"].iloc[-1])
    assert branch.data.tags[keys.STAGE] == keys.SCHEDULED
    params, metrics = branch.data.params, branch.data.metrics
    assert params["phase/2/from_tokens"] == str(12 * 256)
    assert params["decay_steps"] == "4"
    for name in ("news", "code", "math"):
        mean = 0.6 * float(params[f"phase/1/mixture/{name}"])
        mean += 0.4 * float(params[f"phase/2/mixture/{name}"])
        assert float(params[f"mixture/{name}"]) == pytest.approx(mean)
        assert metrics[f"planned_tokens/{name}"] == pytest.approx(20 * 256 * mean)
        assert metrics[f"trained_tokens/{name}"] == pytest.approx(20 * 256 * mean, abs=32 * 10)
    client = mlflow.MlflowClient()
    assert [f.path for f in client.list_artifacts(branch.info.run_id, "figures")] == [
        "figures/schedule.png"
    ]

    for key in ("gain", "measured_gain", "predicted/schedule", "predicted/constant"):
        assert np.isfinite(done.data.metrics[key]), key
    assert done.data.metrics["gain"] >= -1e-6
    model = mlflow.pyfunc.load_model(done.data.tags["model_uri"])
    row = {f"phase/{k}/mixture/{d}": 1 / 3 for k in (1, 2) for d in ("news", "code", "math")}
    assert np.isfinite(model.predict(pd.DataFrame([row]))["objective"][0])

    chosen = studies.load(study)
    domains, per_step = list(chosen.domains), chosen.training.tokens_per_step
    phases = schedule_section.read(f"runs:/{done.info.run_id}", domains, per_step)
    assert [phase.from_tokens // per_step for phase in phases] == [0, round(0.6 * 18)]
    planned_by_study = chosen.model_copy(update={"schedule": phases})
    assert train.requested_phases(planned_by_study, "", "") == phases
    with pytest.raises(InputError, match="a phase begins at 2,816 tokens, the run ends at 2,816"):
        prepare(chosen).run("short", phases[0].mixture, size="tiny", seed=0, steps=11,
                   later=phases[1:])  # fmt: skip
