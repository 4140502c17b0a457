"""Train one model on one mixture with a DeepSpeed engine, yielding reports.

The same code runs in one process or in several started by DeepSpeed's launcher. Each process
computes its rows of every batch, and reports are reduced over all processes.
"""

import functools
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
import transformers
from torch import distributed

from training.config import Training
from training.data.corpus import Corpus
from training.data.sampling import MixtureSampler
from training.engine import checkpoint, kernels
from training.engine import model as models
from training.engine.checkpoint import Checkpoint
from training.engine.devices import free_port
from training.engine.evaluation import Evaluator, window_losses
from training.record.errors import DivergedError
from training.record.history import Evaluation
from training.record.quiet import quiet
from training.run import Run

logger = logging.getLogger("training")

REPORT_EVERY = 10  # steps between reports, at which processes synchronise and losses are checked
VALIDATION_BATCH = 32  # maximum sequences that a process evaluates at once
CHECKPOINT_SHARE = 0.05  # maximum share of time spent on checkpoints

Batch = tuple[torch.Tensor, torch.Tensor]  # (rows, sequence_length + 1) tokens, (rows,) domains


@dataclass(frozen=True)
class Report:
    """Measurements of the steps since the last report."""

    step: int  # optimizer steps done; 0 for a base model before training
    tokens: int
    train_loss: float  # mean over these steps; NaN at step 0
    tokens_per_second: float  # over these steps, without evaluations and checkpoints
    evaluation: Evaluation | None


def evaluation_steps(training: Training) -> list[int]:
    """Evaluated steps: log-spaced from the first evaluation to the last step, both included."""
    first = min(training.first_evaluation, training.steps)
    steps = np.geomspace(first, training.steps, training.evaluations)
    return sorted({*np.rint(steps).astype(int).tolist(), training.steps})


def silence_libraries() -> None:
    """Limit training libraries to errors, so that the terminal shows the progress."""
    quiet()
    for name in ("DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


class Trainer:
    """One model, its engine and its data, resumed from a checkpoint if given.

    Raises InputError for a batch that cannot be split evenly over the processes.
    """

    def __init__(self, run: Run, corpus: Corpus, saved: Checkpoint | None = None) -> None:
        connect()
        self.run = run
        self.rank, self.ranks = distributed.get_rank(), distributed.get_world_size()
        training = run.training
        self._micro = run.engine.micro_batch(training, self.ranks)
        module = models.build(
            run.size, corpus.vocab_size, training.sequence_length, run.seed, run.base
        )
        self.n_params, self.n_embedding = models.count_parameters(module)
        self.learning_rate = models.learning_rate(run.size, training)
        self.engine = _engine(module, run, self.learning_rate, self._micro, self.ranks)
        self.sampler = MixtureSampler(
            corpus.domains,
            run.mixture,
            training.batch_size,
            training.sequence_length,
            training.steps,
            run.seed,
            run.data_share,
            run.phases[1:],
        )
        self._validation = Evaluator(run, corpus, min(VALIDATION_BATCH, self._micro))
        self._domains = tuple(corpus.domains)
        cuda = self.engine.device.type == "cuda"
        self._generator = (
            torch.cuda.default_generators[self.engine.device.index]
            if cuda
            else torch.default_generator
        )
        self._sums = torch.zeros(REPORT_EVERY, len(self._domains), device=self.engine.device)
        self._done = 0
        if saved is not None:
            self._done = saved.step
            saved.load_into(self.engine)

    def reports(
        self,
        log_state: Callable[[], object] = dict,
        is_interrupted: Callable[[], bool] = lambda: False,
    ) -> Iterator[Report]:
        """Train to the last step, reporting every `REPORT_EVERY` steps and at evaluations.

        `log_state` returns what the first process stores in a checkpoint; it is called after a
        report was consumed. If `is_interrupted` in the first process, a checkpoint is saved and
        KeyboardInterrupt raised. Raises DivergedError if a loss is not finite.
        """
        training = self.run.training
        evaluate_at = set(evaluation_steps(training))
        saving = 0.0
        if self.run.base is not None and not self._done:
            yield Report(0, 0, math.nan, math.nan, self._evaluate(0))
        saved_at = started = time.perf_counter()
        for step, batch in self._batches():
            self._train_step(step, *batch)
            evaluating = step in evaluate_at
            if not (evaluating or step % REPORT_EVERY == 0):
                continue
            loss = self._mean_loss(step)
            tokens = (step - self._done) * training.tokens_per_step
            speed = tokens / (time.perf_counter() - started)
            evaluation = self._evaluate(step) if evaluating else None
            self._done = step
            yield Report(step, step * training.tokens_per_step, loss, speed, evaluation)
            started = time.perf_counter()
            if step == training.steps:
                return
            due, interrupted = self._due(started - saved_at, saving, is_interrupted())
            if due:
                self._save(step, log_state)
                saved_at = time.perf_counter()
                saving, started = saved_at - started, saved_at
            if interrupted:
                raise KeyboardInterrupt

    def keep_state(self) -> None:
        """Keep the final state as a branch point for other runs; every process calls it."""
        if self.run.training.decay_steps:
            raise ValueError("no other run can start from a decayed learning rate")
        steps = self.run.training.steps
        checkpoint.save(
            self.run.until(steps), self.engine, steps, self.ranks, dict, branch_point=True
        )

    def save_model(self, folder: Path | None = None) -> None:
        """Save the model for `from_pretrained`; every process calls it, one with a folder."""
        weights = list(self.engine.module.parameters())
        split = self.run.engine.zero_stage == 3
        with deepspeed.zero.GatheredParameters(weights, enabled=split):
            if folder is not None:
                self.engine.module.save_pretrained(folder)

    def close(self) -> None:
        """Free the memory for the next model of this process."""
        self.engine.destroy()
        del self.engine, self._sums
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _batches(self) -> Iterator[tuple[int, Batch]]:
        """The remaining steps (from 1) and their batches; read one step ahead on a GPU."""
        steps = range(self._done + 1, self.run.training.steps + 1)
        if self.engine.device.type == "cpu":
            yield from ((step, self._share(step)) for step in steps)
            return
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self._share, steps[0]) if steps else None
            for step in steps:
                assert ahead is not None
                batch = ahead.result()
                if step < steps[-1]:
                    ahead = reader.submit(self._share, step + 1)
                yield step, batch

    def _share(self, step: int) -> Batch:
        """This process's part of a step's sequences, and their domains."""
        size = self.run.training.batch_size // self.ranks
        rows = slice(self.rank * size, (self.rank + 1) * size)
        windows = torch.from_numpy(self.sampler.batch(step - 1, rows))
        domains = torch.from_numpy(self.sampler.domains(step - 1)[rows])
        if self.engine.device.type == "cpu":
            return windows, domains
        return windows.pin_memory(), domains.pin_memory()

    def _train_step(self, step: int, windows: torch.Tensor, domains: torch.Tensor) -> None:
        """One optimizer step; adds each domain's losses to the sums of this report."""
        device = self.engine.device
        # makes dropout independent of earlier steps, so that a resumed run repeats it
        seed = (self.run.seed * 2**31 + step) * self.ranks + self.rank
        self._generator.manual_seed(seed % 2**63)
        sums = self._sums[step % REPORT_EVERY]
        for rows, ids in zip(
            torch.split(windows, self._micro), torch.split(domains, self._micro), strict=True
        ):
            losses = window_losses(self.engine, rows.to(device, non_blocking=True))
            self.engine.backward(losses.mean())
            self.engine.step()
            sums.index_add_(0, ids.to(device, non_blocking=True), losses.detach())

    def _mean_loss(self, step: int) -> float:
        """Mean training loss since the last report; raises DivergedError if it is not finite."""
        if self.ranks > 1:
            distributed.all_reduce(self._sums)
        steps = range(self._done + 1, step + 1)
        sums = self._sums.cpu().numpy()[[s % REPORT_EVERY for s in steps]]
        self._sums.zero_()
        for bad, row in zip(steps, np.isfinite(sums), strict=True):
            if not row.all():
                names = [name for name, fine in zip(self._domains, row, strict=True) if not fine]
                raise DivergedError(f"training loss not finite at step {bad}: {', '.join(names)}")
        return float(sums.sum() / (len(steps) * self.run.training.batch_size))

    def _evaluate(self, step: int) -> Evaluation:
        self.engine.eval()
        evaluation = self._validation.evaluate(self.engine, self.rank, self.ranks)
        self.engine.train()
        bad = [name for name, loss in evaluation.losses.items() if not math.isfinite(loss)]
        if bad:
            raise DivergedError(f"validation loss not finite at step {step}: {', '.join(bad)}")
        return evaluation

    def _due(self, waited: float, saving: float, interrupted: bool) -> tuple[bool, bool]:
        """Whether to save a checkpoint now, and to end then; the first process decides."""
        wait = max(self.run.engine.checkpoint_minutes * 60, saving / CHECKPOINT_SHARE)
        flags = [waited >= wait or interrupted, interrupted]
        due = torch.tensor(flags, device=self.engine.device)
        if self.ranks > 1:
            distributed.broadcast(due, 0)
        return bool(due[0]), bool(due[1])

    def _save(self, step: int, log_state: Callable[[], object]) -> None:
        """Save a checkpoint; a single process whose disk is full goes on without one."""
        try:
            checkpoint.save(self.run, self.engine, step, self.ranks, log_state)
        except checkpoint.NoSpaceError as error:
            if self.ranks > 1:
                raise
            logger.warning(f"{self.run.name}: {error}; training goes on without a checkpoint")


def connect() -> None:
    """Join the process group of the launcher, or create one with a single process."""
    if distributed.is_initialized():
        return
    if not torch.cuda.is_available():
        kernels.load()
    if "RANK" in os.environ:
        deepspeed.init_distributed(verbose=False)
    else:
        os.environ.setdefault("LOCAL_RANK", "0")
        deepspeed.init_distributed(
            auto_mpi_discovery=False,
            verbose=False,
            init_method=f"tcp://127.0.0.1:{free_port()}",
            rank=0,
            world_size=1,
        )


def _engine(module: Any, run: Run, learning_rate: float, micro: int, ranks: int) -> Any:
    """A DeepSpeed engine with AdamW (fused) and the learning-rate schedule."""
    training, engine = run.training, run.engine
    if engine.activation_checkpointing:
        module.gradient_checkpointing_enable({"use_reentrant": False})
    if engine.compile:
        module.compile()
    optimizer = torch.optim.AdamW(
        module.parameters(),
        lr=learning_rate,
        betas=(0.9, 0.95),
        weight_decay=training.weight_decay,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: models.rate_factor(step, training)
    )
    config = {
        "train_batch_size": training.batch_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": training.batch_size // (micro * ranks),
        "gradient_clipping": training.gradient_clipping,
        "zero_optimization": {"stage": engine.zero_stage},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": training.precision == "bf16"},
        "steps_per_print": 2**31,
    }
    built = deepspeed.initialize(
        model=module, optimizer=optimizer, lr_scheduler=schedule, config=config
    )[0]
    if engine.zero_stage == 0 and training.precision == "fp32":
        # without ZeRO, DeepSpeed clips tensor by tensor and copies all gradients to reduce them
        # even over a single process: a tenth of the time of tiny models
        parameters = list(module.parameters())
        built.clip_fp32_gradients = functools.partial(
            torch.nn.utils.clip_grad_norm_, parameters, training.gradient_clipping
        )
        built.enable_backward_allreduce = ranks > 1
    return built
