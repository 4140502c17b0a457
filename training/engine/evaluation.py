"""Validation: losses and standard errors on the held-out windows of all domains and sets."""

import math
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.nn.functional import cross_entropy

from training.data.corpus import Corpus
from training.data.sampling import validation_documents, validation_windows
from training.record.history import Evaluation
from training.run import Run


class Evaluator:
    """The held-out windows of all domains and sets, evaluated in one pass."""

    def __init__(self, run: Run, corpus: Corpus, batch_size: int) -> None:
        tokens, length = run.validation_tokens, run.training.sequence_length
        windows = [validation_windows(files, tokens, length) for files in corpus.evaluated.values()]
        self._windows = torch.from_numpy(np.concatenate(windows))
        self._documents = {
            name: validation_documents(files, tokens, length)
            for name, files in corpus.evaluated.items()
        }
        self._batch_size = batch_size

    def evaluate(self, engine: Any, rank: int, ranks: int) -> Evaluation:
        """All losses; each process computes every `ranks`-th window."""
        count = len(self._windows)
        # the same for all processes, since ZeRO 3 communicates in each round
        rounds = -(-count // (ranks * self._batch_size))
        indices = torch.arange(rank, rounds * ranks * self._batch_size, ranks)
        losses = torch.zeros(count, dtype=torch.float64, device=engine.device)
        with torch.no_grad():
            for rows in torch.split(indices, self._batch_size):
                values = window_losses(
                    engine, self._windows[rows % count].to(engine.device)
                ).double()
                inside = rows < count
                losses[rows[inside]] = values[inside]
        if ranks > 1:
            distributed.all_reduce(losses)
        lengths = [len(documents) for documents in self._documents.values()]
        parts = [part.cpu().numpy() for part in torch.split(losses, lengths)]
        pairs = list(zip(self._documents.items(), parts, strict=True))
        return Evaluation(
            losses={name: float(part.mean()) for (name, _), part in pairs},
            standard_errors={
                name: standard_error(part, documents) for (name, documents), part in pairs
            },
        )


def standard_error(losses: np.ndarray, documents: np.ndarray) -> float:
    """Standard error of the mean of `losses`, (windows,), given each window's document, (windows,).

    Windows of one document are not independent samples, but documents are (cluster-robust
    variance). It is infinite for a single document.
    """
    residuals = np.bincount(documents - documents.min(), losses - losses.mean())
    count = len(np.unique(documents))
    if count < 2:
        return math.inf
    return float(np.sqrt((residuals**2).sum() * count / (count - 1)) / len(losses))


def window_losses(engine: Any, windows: torch.Tensor) -> torch.Tensor:
    """Mean loss of each window, (rows, sequence_length + 1) → (rows,), nats per token."""
    logits = engine(input_ids=windows[:, :-1], use_cache=False).logits
    targets = windows[:, 1:]
    losses = cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view(targets.shape).mean(dim=1)
