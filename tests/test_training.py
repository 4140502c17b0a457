"""One model's training: the same losses however it is run, and after every kind of end."""

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
import transformers
from mlflow.entities import Run as MlflowRun

from tests.benchmarks import stores
from tests.conftest import ROOT
from tests.tiny_runs import DOMAINS, TRAINING, evaluations, planned, random_corpus
from training.config import Engine, Size, Training
from training.data.corpus import Corpus
from training.data.sampling import validation_windows
from training.engine import checkpoint, devices, loop, model
from training.engine.evaluation import standard_error
from training.record import keys
from training.record.errors import InputError
from training.record.history import Evaluation, history_from_tags
from training.run import Run
from training.workers import launcher, ledger, pool, worker
from training.workers.messages import Event, Failed, Finished, Job, Queue


@pytest.fixture(scope="module", autouse=True)
def cpu() -> None:
    devices.use_device(0, 1)
    loop.quiet()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return random_corpus(tmp_path_factory.mktemp("corpus"))


def apart(one: list[tuple[int, Evaluation]], other: list[tuple[int, Evaluation]]) -> float:
    """The largest difference between two runs' validation losses."""
    assert [step for step, _ in one] == [step for step, _ in other]
    pairs = zip(one, other, strict=True)
    return max(abs(a.losses[d] - b.losses[d]) for (_, a), (_, b) in pairs for d in DOMAINS)


ENGINES = [
    {"zero_stage": 1},
    {"zero_stage": 2, "micro_batch_size": 2},
    {"zero_stage": 3},
    {"micro_batch_size": 4},
    {"activation_checkpointing": True},
]


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


def test_two_processes_have_the_losses_of_one(corpus: Corpus, tmp_path: Path) -> None:
    engines = [{}, {"zero_stage": 1}, {"zero_stage": 2, "micro_batch_size": 2}]
    runs = [planned(corpus, engine=Engine.model_validate(options)) for options in engines]
    plan = tmp_path / "runs.json"
    plan.write_text(json.dumps([run.model_dump(mode="json") for run in runs]))
    done = subprocess.run(
        [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", "--no_local_rank"]
        + ["--num_gpus", "2", "--master_port", str(devices.free_port())]
        + ["--module", "tests.train_together", str(plan)],
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


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_checkpoint_goes_on_to_the_same_losses(corpus: Corpus, stage: int) -> None:
    run = planned(corpus, engine=Engine(zero_stage=stage, checkpoint_minutes=0), seed=stage)
    checkpoint.remove(run)
    whole = evaluations(run, corpus)
    trainer = loop.Trainer(run, corpus)
    for report in trainer.reports(lambda: {"note": "kept"}):
        if report.step == 30:
            break
    saved = checkpoint.find(run, 1)
    assert saved is not None
    assert 5 <= saved.step < 30
    assert saved.kept == {"note": "kept"}
    rest = evaluations(run, corpus, saved=saved)
    assert rest == [(step, found) for step, found in whole if step > saved.step]
    assert checkpoint.find(run, 2) is None  # of another number of processes


@pytest.mark.parametrize("moment", ["engine.save_checkpoint", "os.replace"])
def test_a_kill_while_saving_leaves_the_checkpoint_before(
    corpus: Corpus, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned(corpus, seed=9)
    checkpoint.remove(run)
    trainer = loop.Trainer(run, corpus)
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


def queue(store: str, folder: Path, run: Run) -> Queue:
    """A sweep whose study has the workspace and the engine of `run`."""
    mlflow.set_tracking_uri(store)
    parent = mlflow.MlflowClient().create_run("0").info.run_id
    url = f"sqlite:///{folder}/ledger.db"
    return Queue(url, "sweep", "0", parent, run.workspace, run.engine)


def work(job: Job, events: Any) -> None:
    """A worker's process, whose death is seen soon."""
    ledger.HEARTBEAT_SECONDS, ledger.GRACE_SECONDS = 1, 2
    sys.exit(worker.main(job, 0, events.put))


def start(job: Job) -> tuple[Any, Any]:
    """A worker's process and the queue of what it tells."""
    context = multiprocessing.get_context("spawn")
    events = context.Queue()
    process = context.Process(target=work, args=(job, events))
    process.start()
    return process, events


def wait_for_checkpoint(run: Run, process: Any) -> None:
    deadline = time.monotonic() + 120
    while (saved := checkpoint.find(run, 1)) is None or saved.step < 60:
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def points(run: MlflowRun, key: str) -> dict[int, float]:
    """A metric by step, each step once."""
    found = mlflow.MlflowClient().get_metric_history(run.info.run_id, key)
    assert len({m.step for m in found}) == len(found), key
    return {m.step: m.value for m in found}


def test_a_killed_worker_goes_on_in_the_same_run(
    corpus: Corpus, store: str, tmp_path: Path
) -> None:
    training = TRAINING.model_copy(update={"steps": 300, "evaluations": 6})
    run = planned(corpus, training=training, engine=Engine(checkpoint_minutes=0))
    checkpoint.remove(run)
    job = Job(
        queue(store, tmp_path, run), store, corpus.manifest, devices.Machines(devices.cores())
    )
    book = ledger.Ledger(job.work.ledger_url, job.work.name)
    book.enqueue([run])
    first, _ = start(job)
    wait_for_checkpoint(run, first)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    (dead,) = proxies()
    assert dead.info.status == "RUNNING"
    assert keys.COMPLETE not in dead.data.tags

    second, _ = start(job)
    second.join(120)
    assert second.exitcode == 0
    (done,) = proxies()
    assert done.info.run_id == dead.info.run_id
    assert done.info.status == "FINISHED"
    assert done.data.tags[keys.COMPLETE] == "true"
    assert checkpoint.find(run, 1) is None
    expected = dict(evaluations(run, corpus))
    for name in DOMAINS:
        losses = {step: found.losses[name] for step, found in expected.items()}
        assert points(done, keys.VAL_LOSS + name) == losses
        errors = {step: found.standard_errors[name] for step, found in expected.items()}
        assert points(done, keys.VAL_LOSS_SE + name) == errors
    history = history_from_tags(done.data.tags)
    assert history is not None
    assert history.steps == tuple(expected)
    assert list(points(done, keys.TRAIN_LOSS)) == list(range(10, 301, 10))


def test_a_run_goes_on_when_the_server_is_back(
    corpus: Corpus, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    training = TRAINING.model_copy(update={"steps": 300, "evaluations": 6})
    engine = Engine(checkpoint_minutes=0)
    run = planned(corpus, training=training, engine=engine, seed=11)
    with stores.http(tmp_path) as server:
        work_queue = queue(server, tmp_path, run)
        ledger.Ledger(work_queue.ledger_url, work_queue.name).enqueue([run])
        one_thread = devices.Machines(devices.cores())
        job = Job(work_queue, server, corpus.manifest, one_thread)
        worker_of, events = start(job)
        wait_for_checkpoint(run, worker_of)
    told = []
    while not isinstance(event := events.get(timeout=120), Failed):
        told.append(event)
    assert isinstance(event.error, InputError)
    assert "when it answers, start again to go on" in str(event.error)
    worker_of.join(60)
    assert worker_of.exitcode == 1

    with stores.http(tmp_path) as server:
        mlflow.set_tracking_uri(server)
        book = ledger.Ledger(work_queue.ledger_url, work_queue.name)
        book.enqueue([run])
        again, _ = start(dataclasses.replace(job, tracking_uri=server))
        again.join(120)
        assert again.exitcode == 0
        (done,) = proxies()
        assert done.data.tags[keys.COMPLETE] == "true"
        losses = {step: found.losses["news"] for step, found in evaluations(run, corpus)}
        assert points(done, keys.VAL_LOSS + "news") == losses


def test_a_model_that_goes_on_in_another_run_brings_its_points(corpus: Corpus, store: str) -> None:
    mlflow.set_tracking_uri(store)
    client = mlflow.MlflowClient()
    run = planned(corpus, engine=Engine(checkpoint_minutes=0), seed=5)
    checkpoint.remove(run)
    first, second = (client.create_run("0").info.run_id for _ in range(2))

    class Impatient(loop.Trainer):
        def _evaluate(self, step: int) -> Evaluation:
            if step == 37:
                raise KeyboardInterrupt
            return super()._evaluate(step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Trainer", Impatient)
        with pytest.raises(KeyboardInterrupt):
            worker.train_and_log(run, corpus, first, None, lambda _: None)
    saved = checkpoint.find(run, 1)
    assert saved is not None
    worker.train_and_log(run, corpus, second, saved, lambda _: None)
    found = client.get_run(second)
    for name in DOMAINS:
        losses = {step: e.losses[name] for step, e in evaluations(run, corpus)}
        assert points(found, keys.VAL_LOSS + name) == losses
    assert found.data.params["mixture/code"] == "0.3"


def test_what_was_drawn_is_logged(corpus: Corpus, store: str) -> None:
    mlflow.set_tracking_uri(store)
    run_id = mlflow.MlflowClient().create_run("0").info.run_id
    run = planned(corpus, data_share=0.05, seed=6)
    worker.train_and_log(run, corpus, run_id, None, lambda _: None)
    inputs = mlflow.get_run(run_id).inputs.dataset_inputs
    assert {json.loads(i.dataset.profile)["skipped"] for i in inputs} == {3}
    metrics = mlflow.get_run(run_id).data.metrics
    drawn = np.array([metrics[f"trained_tokens/{name}"] for name in DOMAINS])
    expected = np.array(list(run.mixture.values())) * TRAINING.steps * TRAINING.tokens_per_step
    assert drawn.sum() == TRAINING.steps * TRAINING.tokens_per_step
    assert np.abs(drawn - expected).max() <= TRAINING.sequence_length
    windows = int((50_000 - 1) // TRAINING.sequence_length * 0.05)
    epochs = np.array([metrics[f"epochs/{name}"] for name in DOMAINS])
    assert epochs == pytest.approx(drawn / (windows * TRAINING.sequence_length))


def test_divergence_ends_a_run_and_not_the_sweep(
    corpus: Corpus, store: str, tmp_path: Path
) -> None:
    bad = planned(corpus, size=Size(hidden_size=32, layers=2, heads=2, learning_rate=1e30))
    good = planned(corpus, name="good", engine=Engine(micro_batch_size=3))  # mended meanwhile
    job = Job(
        queue(store, tmp_path, bad), store, corpus.manifest, devices.Machines(devices.cores())
    )
    ledger.Ledger(job.work.ledger_url, job.work.name).enqueue([bad, good])
    told: list[Event] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    code = worker.main(job, 0, told.append)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert code == 0, told
    ends = [event for event in told if isinstance(event, Finished)]
    message = "training loss not finite at step 2: news, code, math"
    assert ends == [Finished("run", diverged=message), Finished("good")]
    runs = {run.info.run_name: run for run in proxies()}
    assert runs["run"].info.status == "FAILED"
    assert runs["run"].data.tags["error"] == message
    assert runs["good"].data.tags["complete"] == "true"


def test_a_batch_that_cannot_be_shared_is_one_clear_error(corpus: Corpus) -> None:
    run = planned(corpus, engine=Engine(micro_batch_size=3))
    with pytest.raises(InputError, match=r"engine.micro_batch_size: 3 does not divide the 8 seq"):
        loop.Trainer(run, corpus)


def test_a_trained_model_loads_with_from_pretrained(corpus: Corpus, tmp_path: Path) -> None:
    for stage in (0, 3):
        run = planned(corpus, engine=Engine(zero_stage=stage))
        trainer = loop.Trainer(run, corpus)
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
    trainer = loop.Trainer(planned(corpus, size=size), corpus)
    assert (trainer.n_params, trainer.n_embedding) == (size.n_params, 320 * 32)
    losses = [report.train_loss for report in trainer.reports()]
    assert losses[-1] < losses[0]
    trainer.close()
    with pytest.raises(InputError, match=r"max_position_embeddings 64, less than training.sequenc"):
        model.build(size, 320, 65, seed=0)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(InputError, match=r"\(vit\) is no causal language model"):
        model.build(Size(config=str(tmp_path)), 320, 32, seed=0)


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
    for report in loop.Trainer(run, corpus).reports():
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


def test_a_sweep_on_the_machines_of_a_hostfile(corpus: Corpus, store: str, tmp_path: Path) -> None:
    """With programs in place of ssh and pdsh that stay on this machine."""
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, script in (("ssh", SSH), ("pdsh", PDSH)):
        (commands / name).write_text(script)
        (commands / name).chmod(0o755)
    hosts = tmp_path / "hosts"
    hosts.write_text("one slots=1  # the first\ntwo slots=1\n")
    bad = planned(corpus, size=Size(hidden_size=32, layers=2, heads=2, learning_rate=1e30))
    runs = [bad, planned(corpus, seed=7), planned(corpus, seed=8, name="last")]
    machines = devices.Machines(1, launcher.slots(hosts), hosts)
    assert machines.ranks == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
        pool.train(runs, corpus, queue(store, tmp_path, bad), machines)
    last, first, failed = proxies()
    assert failed.info.status == "FAILED"
    for run, done in ((runs[1], first), (runs[2], last)):
        assert done.data.params["processes"] == "2"
        history = history_from_tags(done.data.tags)
        assert history is not None
        alone = evaluations(run, corpus)[-1][1].losses
        assert dict(zip(DOMAINS, history.losses[-1], strict=True)) == pytest.approx(alone, abs=1e-6)
    assert not list(corpus.manifest.parent.glob("job-*"))

    hosts.write_text("one slots=1\ntwo\n")
    with pytest.raises(InputError, match=r"hosts, line 2: 'two' is not 'host slots=n'"):
        launcher.slots(hosts)


SSH = """#!/bin/sh
# ssh [options] host command…: only asked for the first host's addresses
case "$*" in *"hostname -I"*) echo 127.0.0.1 ;; esac
"""

PDSH = """#!/bin/bash
# pdsh -S -f n -w one,two command: %n is the number of the host
while [ "$1" != "-w" ]; do shift; done
IFS=, read -ra hosts <<< "$2"
shift 2
for i in "${!hosts[@]}"; do bash -c "${*//%n/$i}" & done
wait
"""


def proxies() -> list[MlflowRun]:
    return mlflow.MlflowClient().search_runs(["0"], "tags.stage = 'proxy'")
