"""Train one model on one mixture with a DeepSpeed engine; yields what it measured."""

import logging
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import deepspeed
import numpy as np
import torch
import transformers
from torch.nn.functional import cross_entropy

from training import model as models
from training.corpus import Corpus
from training.errors import DivergedError
from training.sampling import MixtureSampler, validation_windows
from training.settings import Engine, Run, Training

VALIDATION_BATCH = 32  # sequences evaluated at once


@dataclass(frozen=True)
class Report:
    """What one step measured. `val_losses` only at evaluation steps; nats per token."""

    step: int  # optimizer steps done
    tokens: int
    train_loss: float
    tokens_per_second: float
    val_losses: dict[str, float] | None


def evaluation_steps(training: Training) -> list[int]:
    """Log-spaced from the first evaluation to the last step, both included."""
    first = min(training.first_evaluation, training.steps)
    steps = np.geomspace(first, training.steps, training.evaluations)
    return sorted({*np.rint(steps).astype(int).tolist(), training.steps})


def quiet() -> None:
    """Leave the terminal to the progress display: libraries report errors only."""
    for name in ("DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()


class Trainer:
    """One model, its engine and its data."""

    def __init__(self, run: Run, corpus: Corpus) -> None:
        _single_process_environment()
        self.run = run
        training = run.training
        module = models.build(run.size, corpus.vocab_size, training.sequence_length, seed=run.seed)
        self.n_params, self.n_embedding = models.count_parameters(module)
        self.learning_rate = models.learning_rate(run.size, training)
        optimizer = torch.optim.AdamW(
            module.parameters(),
            lr=self.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=training.weight_decay,
            fused=True,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: models.rate_factor(step, training)
        )
        self.engine: Any = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            lr_scheduler=schedule,
            config=_engine_config(training, run.engine),
        )[0]
        self.sampler = MixtureSampler(
            corpus.domains,
            run.mixture,
            training.batch_size,
            training.sequence_length,
            training.steps,
            run.seed,
        )
        self.validation = {
            name: torch.from_numpy(
                validation_windows(files, run.validation_tokens, training.sequence_length)
            )
            for name, files in corpus.domains.items()
        }

    def reports(self) -> Iterator[Report]:
        """Train to the last step, yielding after every step; raises DivergedError."""
        training = self.run.training
        evaluate_at = set(evaluation_steps(training))
        for step in range(1, training.steps + 1):
            started = time.perf_counter()
            loss = self._train_step(step - 1)
            seconds = time.perf_counter() - started
            losses = self.evaluate() if step in evaluate_at else None
            _refuse_non_finite(step, {"train": loss, **(losses or {})})
            yield Report(
                step,
                step * training.tokens_per_step,
                loss,
                training.tokens_per_step / seconds,
                losses,
            )

    def evaluate(self) -> dict[str, float]:
        """Mean loss on each domain's held-out windows, nats per token."""
        self.engine.eval()
        with torch.no_grad():
            losses = {
                name: sum(
                    float(self._loss(batch, "sum"))
                    for batch in torch.split(windows, VALIDATION_BATCH)
                )
                / windows[:, 1:].numel()
                for name, windows in self.validation.items()
            }
        self.engine.train()
        return losses

    def _train_step(self, step: int) -> float:
        loss = self._loss(torch.from_numpy(self.sampler.batch(step)), "mean")
        self.engine.backward(loss)
        self.engine.step()
        return float(loss.detach())

    def _loss(self, windows: torch.Tensor, reduction: str) -> torch.Tensor:
        windows = windows.to(self.engine.device)
        logits = self.engine(input_ids=windows[:, :-1], use_cache=False).logits
        return cross_entropy(
            logits.float().flatten(0, 1), windows[:, 1:].flatten(), reduction=reduction
        )


def _engine_config(training: Training, engine: Engine) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": training.batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": training.gradient_clipping,
        "zero_optimization": {"stage": engine.zero_stage},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": training.precision == "bf16"},
        "steps_per_print": 2**31,
    }


def _refuse_non_finite(step: int, losses: Mapping[str, float]) -> None:
    bad = [name for name, loss in losses.items() if not math.isfinite(loss)]
    if bad:
        raise DivergedError(f"loss not finite at step {step}: {', '.join(bad)}")


def _single_process_environment() -> None:
    """What the DeepSpeed launcher would set for one process; without it MPI is looked for."""
    if "RANK" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
