"""Validation: losses and standard errors on the held-out text of all domains and sets, and on the
answers of all tasks."""

import math
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.nn.functional import cross_entropy

from training.data import tasks
from training.data.corpus import Corpus
from training.data.sampling import validation_documents, validation_windows
from training.data.tasks import Answers
from training.record.history import Evaluation
from training.run import Run

WIDTHS = 16  # to multiples of which batches of answers are padded, so that few shapes occur


class Evaluator:
    """The held-out windows of all domains and sets and the answers of all tasks, evaluated in one
    pass."""

    def __init__(self, run: Run, corpus: Corpus, batch_size: int) -> None:
        tokens, length = run.validation_tokens, run.training.sequence_length
        windows = [validation_windows(files, tokens, length) for files in corpus.texts.values()]
        self._windows = torch.from_numpy(np.concatenate(windows))
        self._documents = {
            name: validation_documents(files, tokens, length)
            for name, files in corpus.texts.items()
        }
        self._tasks = {
            name: tasks.evaluated(task, tokens, length) for name, task in corpus.tasks.items()
        }
        self._with_choices = [n for n, task in corpus.tasks.items() if task.chance is not None]
        self._batch_size, self._length = batch_size, length

    def evaluate(self, engine: Any, rank: int, ranks: int) -> Evaluation:
        """All losses; each process computes every `ranks`-th window and answer."""
        with torch.no_grad():
            every = [self._window_losses(engine, rank, ranks), self._nats(engine, rank, ranks)]
        values = torch.cat(every)
        if ranks > 1:
            distributed.all_reduce(values)
        sizes = [len(documents) for documents in self._documents.values()]
        sizes += [len(task.tokens) for task in self._tasks.values()]
        parts = dict(
            zip(
                (*self._documents, *self._tasks),
                (part.cpu().numpy() for part in torch.split(values, sizes)),
                strict=True,
            )
        )
        answered = {n: answer_loss(task, parts[n]) for n, task in self._tasks.items()}
        return Evaluation(
            losses={
                **{name: float(parts[name].mean()) for name in self._documents},
                **{name: loss for name, (loss, _) in answered.items()},
            },
            standard_errors={
                **{n: standard_error(parts[n], d) for n, d in self._documents.items()},
                **{name: error for name, (_, error) in answered.items()},
            },
            accuracies={n: accuracy(self._tasks[n], parts[n]) for n in self._with_choices},
        )

    def _window_losses(self, engine: Any, rank: int, ranks: int) -> torch.Tensor:
        """Mean loss of each window, (windows,); 0 for those of the other processes."""
        count = len(self._windows)
        # the same for all processes, since ZeRO 3 communicates in each round
        rounds = -(-count // (ranks * self._batch_size))
        indices = torch.arange(rank, rounds * ranks * self._batch_size, ranks)
        losses = torch.zeros(count, dtype=torch.float64, device=engine.device)
        for rows in torch.split(indices, self._batch_size):
            values = window_losses(engine, self._windows[rows % count].to(engine.device)).double()
            inside = rows < count
            losses[rows[inside]] = values[inside]
        return losses

    def _nats(self, engine: Any, rank: int, ranks: int) -> torch.Tensor:
        """Negative log-likelihood of each answer given its prompt, nats, (answers of all tasks,); 0
        for those of the other processes.

        Answers of about the same length are computed together, as many at once as have the tokens
        of a batch of windows.
        """
        tokens = [row for task in self._tasks.values() for row in task.tokens]
        answers = [n for task in self._tasks.values() for n in task.lengths]
        nats = torch.zeros(len(tokens), dtype=torch.float64, device=engine.device)
        left = sorted(range(len(tokens)), key=lambda i: -len(tokens[i]))
        while left:
            width = min(-(-len(tokens[left[0]]) // WIDTHS) * WIDTHS, self._length + 1)
            count = ranks * max(1, self._batch_size * (self._length + 1) // width)
            together, left = left[:count], left[count:]
            mine = together[rank::ranks]
            rows = mine or together[:1]  # every process computes, since ZeRO 3 communicates
            batch = torch.zeros(len(rows), width, dtype=torch.int64)
            counted = torch.zeros(len(rows), width - 1, dtype=torch.bool)
            for k, i in enumerate(rows):
                end = len(tokens[i])
                batch[k, :end] = torch.from_numpy(tokens[i])
                counted[k, end - 1 - answers[i] : end - 1] = True
            losses = token_losses(engine, batch.to(engine.device)).double()
            sums = (losses * counted.to(engine.device)).sum(dim=1)
            if mine:
                nats[mine] = sums
        return nats


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


def answer_loss(answers: Answers, nats: np.ndarray) -> tuple[float, float]:
    """Mean loss per token of the right answers and its standard error over questions, given the
    negative log-likelihood of every answer, (rows,) in nats. Infinite for a single question."""
    right, lengths = nats[answers.right], answers.lengths[answers.right]
    loss, count = right.sum() / lengths.sum(), len(right)
    if count < 2:
        return float(loss), math.inf
    residuals = right - loss * lengths
    error = np.sqrt((residuals**2).sum() * count / (count - 1)) / lengths.sum()
    return float(loss), float(error)


def accuracy(answers: Answers, nats: np.ndarray) -> float:
    """Share of questions whose right answer has the largest likelihood per byte, given the negative
    log-likelihood of every answer, (rows,) in nats."""
    order = np.lexsort((nats / answers.bytes, answers.question))
    _, first = np.unique(answers.question[order], return_index=True)
    return float(answers.right[order][first].mean())


def window_losses(engine: Any, windows: torch.Tensor) -> torch.Tensor:
    """Mean loss of each window, (rows, sequence_length + 1) → (rows,), nats per token."""
    return token_losses(engine, windows).mean(dim=1)


def token_losses(engine: Any, rows: torch.Tensor) -> torch.Tensor:
    """Loss of each token but the first, (rows, tokens) → (rows, tokens − 1), nats."""
    logits = engine(input_ids=rows[:, :-1], use_cache=False).logits
    targets = rows[:, 1:]
    losses = cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view(targets.shape)
