"""Tasks → token files: the answers of every question, each with its prompt.

    <folder>/answers.bin    token ids, prompt and answer after each other
    <folder>/rows.npy       for each answer: where it ends in them, what of it is prompt, …

Prompt and answer are split as in EleutherAI's lm-evaluation-harness, which OLMES (arXiv 2406.08446)
builds on: white space at the end of a prompt is moved to the answer, both are tokenised as one
text, and its first tokens, as many as the prompt alone has, are the prompt. An answer without a
prompt is predicted from an end-of-text token.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from training.config import Task
from training.data import sources
from training.data import tokenizer as tokenizers
from training.data.question import Question

Array = np.ndarray

QUESTIONS = 256  # tokenised at once
ROW = np.dtype(
    [
        ("end", np.uint64),  # of its tokens in the file
        ("prompt", np.uint32),  # tokens of the prompt
        ("answer", np.uint32),  # tokens of the answer
        ("bytes", np.uint32),  # UTF-8 bytes of the answer, with the space before it
        ("question", np.uint32),
        ("right", np.bool_),
    ]
)


@dataclass(frozen=True)
class TaskFiles:
    """One task's tokens on disk."""

    folder: str
    dtype: str
    questions: int
    tokens: int
    """Of all answers, each with its prompt."""
    longest_answer: int
    """Tokens."""
    chance: float | None
    """Accuracy of a guess at all questions; None if there are no choices."""
    digest: str
    """Hash of the tokens and rows."""
    skipped: int = 0
    """Rows skipped under `on_error: skip`."""

    def rows(self) -> Array:
        """The answers in the order of their questions, (answers,) of `ROW`."""
        return np.load(Path(self.folder, "rows.npy"))

    def ids(self) -> Array:
        """Token ids, (tokens,), memory-mapped."""
        return np.memmap(Path(self.folder, "answers.bin"), dtype=self.dtype, mode="r")

    def cut(self, sequence_length: int) -> int:
        """How many questions are longer than the context of a model, so that the beginning of
        their prompt is cut off."""
        rows = self.rows()
        long = rows["prompt"].astype(int) + rows["answer"] > sequence_length + 1
        return len(np.unique(rows["question"][long]))


@dataclass(frozen=True)
class Answers:
    """The answers of the questions that an evaluation reads, one row each."""

    tokens: list[Array]  # of each answer with its prompt, which is cut to the context
    lengths: Array  # tokens of each answer, (rows,)
    bytes: Array  # (rows,)
    question: Array  # (rows,)
    right: Array  # (rows,), bool

    @property
    def questions(self) -> int:
        return len(np.unique(self.question))

    @property
    def chance(self) -> float:
        """Accuracy of a guess: the mean of 1 / choices."""
        return float((1 / np.unique(self.question, return_counts=True)[1]).mean())

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes per token of the right answers."""
        return float(self.bytes[self.right].sum() / self.lengths[self.right].sum())


def evaluated(files: TaskFiles, tokens: int, sequence_length: int) -> Answers:
    """The answers of as many questions, spread evenly, as hold about so many tokens; or of all."""
    rows, ids = files.rows(), files.ids()
    lengths = np.minimum(rows["prompt"].astype(int) + rows["answer"], sequence_length + 1)
    count = min(files.questions, -(-tokens * files.questions // int(lengths.sum())))
    chosen = np.isin(rows["question"], np.linspace(0, files.questions - 1, count).astype(int))
    rows, lengths = rows[chosen], lengths[chosen]
    ends = rows["end"].astype(int)
    return Answers(
        [ids[e - n : e].astype(np.int64) for e, n in zip(ends, lengths, strict=True)],
        rows["answer"].astype(int),
        rows["bytes"].astype(int),
        rows["question"].astype(int),
        rows["right"],
    )


def questions(tasks: Mapping[str, Task]) -> Iterator[tuple[str, Question]]:
    """The questions of all tasks, each with the name of its task."""
    for group in sources.groups(tasks):
        for names, question in sources.Reading(group, kind=sources.TASK):
            yield from ((name, question) for name in names)


def write(group: Mapping[str, Task], folders: Mapping[str, Path], tokenizer: Any) -> dict[str, Any]:
    """Write the token files of tasks that share a source; returns the fields of `TaskFiles` without
    the folder of each. Raises InputError as `sources.Reading` does."""
    dtype = np.dtype(tokenizers.dtype_of(tokenizer))
    writers = {name: _AnswerWriter(folder, dtype) for name, folder in folders.items()}
    reading = sources.Reading(group, kind=sources.TASK)
    encode = tokenizers.encoder(tokenizer)
    waiting: list[tuple[list[str], Question]] = []
    with tqdm(desc=f"tokenising {', '.join(group)}", unit=" questions", unit_scale=True) as bar:

        def flush() -> None:
            encoded = split([q for _, q in waiting], encode, tokenizer.eos_token_id)
            for (names, question), answers in zip(waiting, encoded, strict=True):
                for name in names:
                    writers[name].add(question, answers)
            bar.update(len(waiting))
            waiting.clear()

        for item in reading:
            waiting.append(item)
            if len(waiting) == QUESTIONS:
                flush()
        flush()
    skipped = reading.cursor().skipped
    return {name: {**w.finished(), "skipped": skipped[name]} for name, w in writers.items()}


def split(
    questions: Sequence[Question], encode: tokenizers.Encode, end_of_text: int
) -> Iterator[list[tuple[list[int], int]]]:
    """For each question its answers: token ids with the prompt's, and how many are the prompt's."""
    prompts = [question.prompt.rstrip() for question in questions]
    texts = [
        prompt + question.prompt[len(prompt) :] + answer
        for question, prompt in zip(questions, prompts, strict=True)
        for answer in question.answers
    ]
    every = iter(encode(texts))
    for question, ids in zip(questions, encode(prompts), strict=True):
        answers = []
        for _ in question.answers:
            whole, prompt = list(next(every)), len(list(ids))
            prompt = min(prompt, len(whole) - 1)  # where the answer alone has no token
            answers.append((whole, prompt) if prompt else ([end_of_text, *whole], 1))
        yield answers


class _AnswerWriter:
    """Writes one task's token files."""

    def __init__(self, folder: Path, dtype: np.dtype[Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._dtype = folder, dtype
        self._ids: list[Array] = []
        self._rows: list[tuple[int, int, int, int, int, bool]] = []
        self._end = self._questions = 0
        self._chances: list[float] = []

    def add(self, question: Question, answers: Sequence[tuple[list[int], int]]) -> None:
        moved = question.prompt[len(question.prompt.rstrip()) :]
        for number, (ids, prompt) in enumerate(answers):
            self._end += len(ids)
            size = len((moved + question.answers[number]).encode())
            right = number == question.right
            row = (self._end, prompt, len(ids) - prompt, size, self._questions, right)
            self._ids.append(np.array(ids, self._dtype))
            self._rows.append(row)
        self._questions += 1
        self._chances.append(1 / len(answers))

    def finished(self) -> dict[str, Any]:
        """The fields of `TaskFiles` for the finished files."""
        rows, ids = np.array(self._rows, ROW), np.concatenate(self._ids)
        ids.tofile(self._folder / "answers.bin")
        np.save(self._folder / "rows.npy", rows)
        guessed = min(self._chances) < 1
        return {
            "dtype": self._dtype.name,
            "questions": self._questions,
            "tokens": self._end,
            "longest_answer": int(rows["answer"].max()),
            "chance": float(np.mean(self._chances)) if guessed else None,
            "digest": hashlib.sha256(ids.tobytes() + rows.tobytes()).hexdigest()[:16],
        }
