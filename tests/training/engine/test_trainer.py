"""One model's training: the same losses however it is run, and after every kind of end."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import transformers

from tests.support.commands import ROOT
from tests.support.tiny_runs import DOMAINS, TRAINING, evaluations, planned
from training.config import Engine, Size, Training
from training.data.corpus import Corpus
from training.data.sampling import validation_windows
from training.engine import checkpoint, devices, model
from training.engine import trainer as trainers
from training.engine.evaluation import standard_error
from training.record.errors import InputError
from training.record.history import Evaluation
from training.workers import launcher

pytestmark = pytest.mark.usefixtures("cpu")


def apart(one: list[tuple[int, Evaluation]], other: list[tuple[int, Evaluation]]) -> float:
    """The largest difference between two runs' validation losses."""
    assert [step for step, _ in one] == [step for step, _ in other]
    pairs = zip(one, other, strict=True)
    return max(abs(a.losses[d] - b.losses[d]) for (_, a), (_, b) in pairs for d in a.losses)


ENGINES = [
    {"zero_stage": 1},
    {"zero_stage": 2, "micro_batch_size": 2},
    {"zero_stage": 3},
    {"micro_batch_size": 4},
    {"activation_checkpointing": True},
]


@pytest.mark.slow
def test_losses_do_not_depend_on_the_engine(corpus: Corpus) -> None:
    plain = evaluations(planned(corpus), corpus)
    assert [step for step, _ in plain] == [5, 10, 19, 37]
    first, last = plain[0][1].losses, plain[-1][1].losses
    assert all(last[name] < first[name] for name in DOMAINS)
    assert apart(plain, evaluations(planned(corpus), corpus)) == 0
    for options in ENGINES:
        engine = Engine.model_validate(options)
        assert apart(plain, evaluations(planned(corpus, engine=engine), corpus)) < 1e-6, options
    other = evaluations(planned(corpus, seed=2), corpus)
    assert apart(plain, other) > 1e-3


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(corpus: Corpus, tmp_path: Path) -> None:
    engines = [{}, {"zero_stage": 1}, {"zero_stage": 2, "micro_batch_size": 2}]
    runs = [planned(corpus, engine=Engine.model_validate(options)) for options in engines]
    plan = tmp_path / "runs.json"
    plan.write_text(json.dumps([run.model_dump(mode="json") for run in runs]))
    done = subprocess.run(
        [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", "--no_local_rank"]
        + ["--num_gpus", "2", "--master_port", str(devices.free_port())]
        + ["--module", "tests.support.train_together", str(plan)],
        cwd=ROOT,
        env=launcher.environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    alone = evaluations(runs[0], corpus)
    for found in json.loads(plan.with_suffix(".found").read_text()):
        together = [(step, Evaluation(*evaluation)) for step, evaluation in found]
        assert apart(alone, together) < 1e-6
        errors = [evaluation.standard_errors for _, evaluation in together]
        assert errors[-1] == pytest.approx(alone[-1][1].standard_errors, rel=1e-3)
        accuracies = [evaluation.accuracies for _, evaluation in together]
        assert accuracies == [evaluation.accuracies for _, evaluation in alone]
        assert set(accuracies[0]) == {"quiz"}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_checkpoint_goes_on_to_the_same_losses(
    corpus: Corpus, stage: Literal[0, 1, 2, 3]
) -> None:
    run = planned(corpus, engine=Engine(zero_stage=stage, checkpoint_minutes=0), seed=stage)
    checkpoint.remove(run)
    whole = evaluations(run, corpus)
    trainer = trainers.Trainer(run, corpus)
    for report in trainer.reports(lambda: {"note": "kept"}):
        if report.step == 30:
            break
    saved = checkpoint.find(run, 1)
    assert saved is not None
    assert 5 <= saved.step < 30
    assert saved.log_state == {"note": "kept"}
    rest = evaluations(run, corpus, saved=saved)
    assert rest == [(step, found) for step, found in whole if step > saved.step]
    assert checkpoint.find(run, 2) is None  # of another number of processes


@pytest.mark.parametrize("moment", ["engine.save_checkpoint", "os.replace"])
def test_a_kill_while_saving_leaves_the_checkpoint_before(
    corpus: Corpus, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned(corpus, seed=9)
    checkpoint.remove(run)
    trainer = trainers.Trainer(run, corpus)
    checkpoint.save(run, trainer.engine, 10, 1, dict)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    owner: Any = trainer.engine if moment.startswith("engine") else os
    with monkeypatch.context() as patch:
        patch.setattr(owner, moment.split(".")[1], killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(run, trainer.engine, 20, 1, dict)
    saved = checkpoint.find(run, 1)
    assert saved is not None
    assert saved.step == 10
    saved.load_into(trainer.engine)
    checkpoint.save(run, trainer.engine, 30, 1, dict)
    saved = checkpoint.find(run, 1)
    assert saved is not None
    for path in (saved.folder / "30").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"cannot be loaded: .*; delete this folder to train the"):
        saved.load_into(trainer.engine)
    (saved.folder / "state.json").write_text("{")
    with pytest.raises(InputError, match="cannot be loaded"):
        checkpoint.find(run, 1)
    assert sorted(p.name for p in saved.folder.iterdir() if p.is_dir()) == ["30"]
    checkpoint.remove(run)


def test_a_batch_that_cannot_be_shared_is_one_clear_error(corpus: Corpus) -> None:
    run = planned(corpus, engine=Engine(micro_batch_size=3))
    with pytest.raises(InputError, match=r"engine.micro_batch_size: 3 does not divide the 8 seq"):
        trainers.Trainer(run, corpus)


def test_a_trained_model_loads_with_from_pretrained(corpus: Corpus, tmp_path: Path) -> None:
    for stage in (0, 3):
        run = planned(corpus, engine=Engine(zero_stage=stage))
        trainer = trainers.Trainer(run, corpus)
        *_, last = trainer.reports()
        trainer.save_model(tmp_path / str(stage))
        trainer.close()
        loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / str(stage))
        assert model.count_parameters(loaded)[0] == run.size.n_params
        windows = validation_windows(corpus.domains["news"], 1000, 32)
        batch = torch.from_numpy(windows)[:, :-1]
        with torch.no_grad():
            logits = loaded(input_ids=batch).logits
        targets = torch.from_numpy(windows)[:, 1:]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        assert last.evaluation is not None
        assert float(loss) == pytest.approx(last.evaluation.losses["news"], abs=1e-5)


def test_any_transformers_config_trains(corpus: Corpus, tmp_path: Path) -> None:
    llama = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    llama.save_pretrained(tmp_path)
    size = model.resolve(Size(config=str(tmp_path)))
    attention, mlp, norms = 4 * 32 * 32, 3 * 32 * 48, 2 * 32
    assert size.n_params == 2 * (attention + mlp + norms) + 32
    trainer = trainers.Trainer(planned(corpus, size=size), corpus)
    assert (trainer.n_params, trainer.n_embedding) == (size.n_params, 320 * 32)
    losses = [report.train_loss for report in trainer.reports()]
    assert losses[-1] < losses[0]
    trainer.close()
    with pytest.raises(InputError, match=r"max_position_embeddings 64, less than training.sequenc"):
        model.build(size, 320, 65, seed=0)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(InputError, match=r"\(vit\) is not a causal language model"):
        model.build(Size(config=str(tmp_path)), 320, 32, seed=0)


@pytest.mark.long
@pytest.mark.slow
def test_compiled_models_have_the_same_losses(corpus: Corpus) -> None:
    run = planned(corpus, training=TRAINING.model_copy(update={"steps": 10}))
    compiled = run.model_copy(update={"engine": Engine(compile=True)})
    assert apart(evaluations(run, corpus), evaluations(compiled, corpus)) < 1e-5


def test_dropout_goes_on_as_it_would_have(corpus: Corpus, tmp_path: Path) -> None:
    transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=64).save_pretrained(
        tmp_path
    )
    run = planned(
        corpus, size=model.resolve(Size(config=str(tmp_path))), engine=Engine(checkpoint_minutes=0)
    )
    checkpoint.remove(run)
    whole = evaluations(run, corpus)
    for report in trainers.Trainer(run, corpus).reports():
        if report.step == 20:
            break
    rest = evaluations(run, corpus, saved=checkpoint.find(run, 1))
    assert rest == whole[-len(rest) :]
    checkpoint.remove(run)


def test_the_standard_error_is_that_of_documents() -> None:
    rng = np.random.default_rng(0)
    documents = np.repeat(np.arange(50), 8)
    means, errors = [], []
    for _ in range(300):
        losses = 3 + rng.normal(0, 0.5, 50)[documents] + rng.normal(0, 0.2, 400)
        means.append(losses.mean())
        errors.append(standard_error(losses, documents))
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)
    assert standard_error(np.array([1.0, 2.0]), np.array([7, 7])) == np.inf


def test_the_rate_warms_up_stays_and_decays() -> None:
    training = Training(steps=100, warmup_steps=10, decay_steps=20, first_evaluation=5)
    rates = [model.rate_factor(step, training) for step in range(100)]
    assert rates[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert rates[10:80] == [1.0] * 70
    assert rates[80:] == pytest.approx(np.arange(20, 0, -1) / 21)
    size = Size(hidden_size=64, layers=2, heads=4)
    assert model.learning_rate(size, training) == 0.25 / 64
    own = size.model_copy(update={"learning_rate": 0.01})
    assert model.learning_rate(own, training) == 0.01
