"""Tokens a second of our engine, a bare PyTorch loop and `transformers.Trainer`, in one run.

    python -m tests.benchmarks.train_speed

Same model, batch, optimizer, clipping and schedule. The three take turns of ten steps in one
process, of one thread on a CPU; the median turn counts. Where a GPU is there, 70M and 410M in
bf16, with model FLOPs utilisation. Then what a proxy costs inside a sweep before and after its
steps, and what reading batches takes.
"""

import dataclasses
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
import transformers
from torch.nn.functional import cross_entropy

from training.config import LADDER, Size, Training
from training.data.corpus import Corpus, TokenFiles
from training.data.sampling import MixtureSampler
from training.delivery.courier import Courier
from training.engine import devices, model
from training.engine import trainer as trainers
from training.record import keys
from training.run import Run
from training.workers import ledger, worker
from training.workers.messages import Event, Finished, Job, Queue

VOCABULARY = 1024
CPU_CASES = {  # size, training, steps timed
    "57k, 16 x 64": (Size(hidden_size=48, layers=2, heads=3), (64, 16), 400),
    "0.8M, 16 x 128": (LADDER["0.8M"], (128, 16), 100),
}
GPU_CASES = {
    "70M, 32 x 2048": (LADDER["70M"], (2048, 32), 60),
    "410M, 16 x 2048": (LADDER["410M"], (2048, 16), 40),
}
CASES = GPU_CASES if torch.cuda.is_available() else CPU_CASES
TRAINER = "Trainer"
WARM = 20  # steps that do not count
PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bf16 FLOP/s


def corpus(folder: Path, tokens: int) -> Corpus:
    """Five domains of random tokens."""
    rng = np.random.default_rng(0)
    domains = {}
    for name in "abcde":
        (folder / name).mkdir(parents=True)
        for part in ("train", "validation"):
            rng.integers(0, VOCABULARY, tokens).astype("uint16").tofile(
                folder / name / f"{part}.bin"
            )
            np.arange(100, tokens + 1, 100, dtype="uint64").tofile(folder / name / f"{part}.idx")
        domains[name] = TokenFiles(str(folder / name), "uint16", tokens, tokens, 2.0, 1, name)
    manifest = folder / "corpora" / "corpus.json"
    manifest.parent.mkdir()
    files = {name: dataclasses.asdict(part) for name, part in domains.items()}
    manifest.write_text(json.dumps({"tokenizer": "", "vocab_size": VOCABULARY, "domains": files}))
    return Corpus(manifest, "", VOCABULARY, domains)


def planned(text: Corpus, size: Size, shape: tuple[int, int], steps: int, seed: int = 0) -> Run:
    precision = "bf16" if torch.cuda.is_available() else "fp32"
    return Run(
        name=f"run{seed}",
        stage=keys.PROXY,
        study="benchmark",
        workspace=text.manifest.parent.parent,
        corpus=text.manifest,
        corpus_digest="",
        mixture=dict.fromkeys("abcde", 0.2),
        size_name="",
        size=size,
        training=Training(
            sequence_length=shape[0],
            batch_size=shape[1],
            steps=steps,
            first_evaluation=steps,
            evaluations=1,
            precision=precision,  # type: ignore[arg-type]
        ),
        validation_tokens=shape[0],
        seed=seed,
    )


def ours(run: Run, text: Corpus) -> Iterator[object]:
    trainer = trainers.Trainer(run, text)
    yield from trainer.reports()
    trainer.close()


def bare(run: Run, text: Corpus) -> Iterator[object]:
    """The loop that one would write by hand."""
    training = run.training
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = model.build(run.size, VOCABULARY, training.sequence_length, run.seed).to(device)
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: model.rate_factor(step, training)
    )
    sampler = _sampler(run, text)
    for step in range(training.steps):
        windows = torch.from_numpy(sampler.batch(step)).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bf16"):
            logits = module(input_ids=windows[:, :-1], use_cache=False).logits
        loss: Any = cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), training.gradient_clipping)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % trainers.REPORT_EVERY == 0:
            yield float(loss.detach())


class TurnTaking(transformers.TrainerCallback):  # type: ignore[misc]
    """Times the Trainer's steps, and lets the other ways run theirs in between."""

    def __init__(self, others: dict[str, Iterator[object]]) -> None:
        self._others = others
        self.seconds: dict[str, list[float]] = {way: [] for way in (*others, TRAINER)}

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._started = _clock()

    def on_step_end(self, _arguments: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step % trainers.REPORT_EVERY:
            return
        self.seconds[TRAINER].append(_clock() - self._started)
        self.others()
        self._started = _clock()

    def others(self) -> None:
        for way, steps in self._others.items():
            started = _clock()
            next(steps)
            self.seconds[way].append(_clock() - started)


def with_trainer(run: Run, text: Corpus, turns: TurnTaking) -> None:
    """`transformers.Trainer`, the others taking turns with it."""
    training = run.training
    module = model.build(run.size, VOCABULARY, training.sequence_length, run.seed)
    sampler = _sampler(run, text)
    rows = [row for step in range(training.steps) for row in sampler.batch(step)]
    data = [{"input_ids": row[:-1], "labels": row[:-1]} for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            per_device_train_batch_size=training.batch_size,
            max_steps=training.steps,
            optim="adamw_torch_fused",
            max_grad_norm=training.gradient_clipping,
            lr_scheduler_type="constant_with_warmup",
            bf16=training.precision == "bf16",
            logging_steps=trainers.REPORT_EVERY,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )
        trainer = transformers.Trainer(module, arguments, train_dataset=data, callbacks=[turns])
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()


def _sampler(run: Run, text: Corpus) -> MixtureSampler:
    training = run.training
    return MixtureSampler(
        text.domains,
        run.mixture,
        training.batch_size,
        training.sequence_length,
        training.steps,
        run.seed,
    )


def _clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def compare(folder: Path, name: str) -> None:
    """A table of the median times of ten steps; the ways take turns, ten steps each."""
    text = corpus(folder, 4_000_000)
    size, shape, steps = CASES[name]
    run = planned(text, size, shape, steps + WARM)
    turns = TurnTaking({"ours": ours(run, text), "bare loop": bare(run, text)})
    if importlib.util.find_spec("accelerate"):
        with_trainer(run, text, turns)
    else:
        print("transformers.Trainer is left out: pip install accelerate")
        for _ in range(run.training.steps // trainers.REPORT_EVERY):
            turns.others()
    times = {
        way: statistics.median(seconds[WARM // trainers.REPORT_EVERY :]) / trainers.REPORT_EVERY
        for way, seconds in turns.seconds.items()
        if seconds
    }
    print(f"{name:<18}{'tokens/s':>12}{'ms a step':>12}{'ours / it':>12}")
    for way, seconds in times.items():
        speed = run.training.tokens_per_step / seconds
        ratio = seconds / times["ours"]
        print(f"  {way:<16}{speed:>12,.0f}{1000 * seconds:>12.1f}{ratio:>12.2f}")
    if torch.cuda.is_available():
        _utilisation(run, run.training.tokens_per_step / times["ours"])


def _utilisation(run: Run, speed: float) -> None:
    """Model FLOPs utilisation: 6 a parameter and token, and 12 · layers · width · length for
    attention (PaLM, arXiv 2204.02311, appendix B)."""
    size, length = run.size, run.training.sequence_length
    attention = 12 * (size.layers or 0) * size.width * length
    flops = 6 * (size.n_params + VOCABULARY * size.width) + attention
    device = torch.cuda.get_device_name()
    peak = next((value for key, value in PEAK.items() if key in device), None)
    if peak:
        print(f"  {device}: model FLOPs utilisation {flops * speed / peak:.1%}")


def start_up(folder: Path) -> None:
    """Seconds a proxy takes in a worker beside its steps: model, engine, MLflow, ledger."""
    text = corpus(folder, 200_000)
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    parent = mlflow.MlflowClient().create_run("0").info.run_id
    size, shape, _ = CPU_CASES["57k, 16 x 64"]
    runs = [planned(text, size, shape, 20, seed) for seed in range(8)]
    url = f"sqlite:///{folder}/ledger.db"
    queue = Queue(url, "sweep", "0", parent, runs[0].workspace, runs[0].engine)
    ledger.Ledger(queue.ledger_url, queue.name).enqueue(runs)
    ends: list[float] = []

    def tell(event: Event) -> None:
        if isinstance(event, Finished):
            ends.append(time.perf_counter())

    job = Job(queue, mlflow.get_tracking_uri(), text.manifest, devices.Machines(devices.cores()))
    with Courier(runs[0].workspace).running():
        assert worker.main(job, 0, tell) == 0
    *_, report = trainers.Trainer(planned(text, size, shape, 100), text).reports()
    steps = 20 * runs[0].training.tokens_per_step / report.tokens_per_second
    seconds = statistics.median(np.diff(ends)) - steps
    print(f"start-up and end of a proxy: {seconds:.2f} s, {seconds / 30:.1%} of a 30-second proxy")


def loading(folder: Path) -> None:
    """Tokens a second of reading batches, in one thread."""
    text = corpus(folder, 20_000_000)
    for shape in ((64, 16), (2048, 64)):
        steps = 400_000 // (shape[0] * shape[1]) + 200
        sampler = _sampler(planned(text, LADDER["0.1M"], shape, steps), text)
        started = time.perf_counter()
        for step in range(steps):
            sampler.batch(step)
        speed = steps * shape[0] * shape[1] / (time.perf_counter() - started)
        print(f"reading batches of {shape[1]} x {shape[0]}: {speed / 1e6:.0f} M tokens/s")


def measured(part: Callable[..., None], *arguments: str) -> None:
    """Run a part in a process of its own: an engine leaves the process changed for a Trainer."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        pool.submit(_alone, part, arguments).result()


def _alone(part: Callable[..., None], arguments: tuple[str, ...]) -> None:
    devices.use_device(0, 1)  # as the workers of a sweep
    trainers.silence_libraries()
    with tempfile.TemporaryDirectory() as folder:
        part(Path(folder), *arguments)


def main() -> None:
    for name in CASES:
        measured(compare, name)
    measured(start_up)
    measured(loading)


if __name__ == "__main__":
    main()
