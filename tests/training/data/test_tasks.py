"""Tasks: what counts as prompt and answer, and what a bad question is told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from tokenizers import Tokenizer as Bpe
from tokenizers import decoders, models, pre_tokenizers

from tests.support.tiny_runs import planned
from training.config import Domain, Task, Tokenizer, Training, Validation
from training.data import corpus as corpora
from training.data import embedded, tasks
from training.data import tokenizer as tokenizers
from training.data.corpus import Corpus
from training.data.question import Question
from training.engine.evaluation import accuracy, answer_loss
from training.engine.trainer import Trainer
from training.record.errors import InputError

LENGTH = 60
NEXT = Task(embedded="cpp", max_mb=0.02)
QUESTIONS = [
    {"question": f"Is {a} or {b} more?", "choices": [f"{a}", f"{b}", "both"], "label": int(b > a)}
    for a in range(3, 18)
    for b in (2, 25)
]


@pytest.fixture(scope="module")
def quiz(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Two domains and two tasks, one of them without choices, from a JSONL and a Parquet file."""
    folder = tmp_path_factory.mktemp("quiz")
    (folder / "quiz.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    sums = pd.DataFrame({"prompt": [f"{n} and {n} is " for n in range(40)], "answer": "two of it"})
    sums.to_parquet(folder / "sums.parquet")
    validation = Validation(
        fraction=0.2,
        tokens=400,
        tasks={
            "quiz": Task(
                files=str(folder / "quiz.jsonl"),
                prompt_column="question",
                choices_column="choices",
                label_column="label",
            ),
            "sums": Task(files=str(folder / "sums.parquet"), answer_column="answer"),
            "next": NEXT,
        },
    )
    domains = {name: Domain(embedded=name, max_mb=0.3) for name in ("tables", "cpp")}
    return corpora.prepare(domains, Tokenizer(vocab_size=320), validation, LENGTH, folder / "w")


@pytest.fixture(scope="module")
def bpe() -> Any:
    """A byte-level BPE that merges " 4" and "bc"."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<end>", *alphabet, "Ġ4", "bc"]
    model = models.BPE({t: i for i, t in enumerate(tokens)}, [("Ġ", "4"), ("b", "c")])
    bpe = Bpe(model)
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>")


@pytest.mark.parametrize(
    ("prompt", "answer", "tokens", "of_prompt"),
    [
        ("a:", " 4", ["a", ":", "Ġ4"], 2),
        ("a: ", "4", ["a", ":", "Ġ4"], 2),  # the space is the answer's
        ("a\n\n", "b", ["a", "Ċ", "Ċ", "b"], 1),
        ("ab", "c", ["a", "bc"], 1),  # the answer has a token, also where it merges
        ("", "bc", ["<end>", "bc"], 1),
        ("  ", "b", ["<end>", "Ġ", "Ġ", "b"], 1),
    ],
)
def test_a_prompt_ends_where_the_harness_ends_it(
    bpe: Any, prompt: str, answer: str, tokens: list[str], of_prompt: int
) -> None:
    question = Question(prompt, (answer, answer), 0)
    encode = tokenizers.encoder(bpe)
    ((first, second),) = tasks.split([question], encode, bpe.eos_token_id)
    assert first == second
    assert (bpe.convert_ids_to_tokens(first[0]), first[1]) == (tokens, of_prompt)


def test_losses_and_accuracy_are_those_of_transformers(quiz: Corpus) -> None:
    training = Training(sequence_length=LENGTH, batch_size=4, steps=30, first_evaluation=30)
    run = planned(
        quiz, mixture={"tables": 0.5, "cpp": 0.5}, training=training, validation_tokens=400
    )
    trainer = Trainer(run, quiz)
    *_, last = (report.evaluation for report in trainer.reports())
    assert last is not None
    model = trainer.engine.module.eval()
    tokenizer = tokenizers.load(quiz.tokenizer)
    shares, lengths, hits = [], [], []
    chosen = tasks.evaluated(quiz.tasks["quiz"], 400, LENGTH)
    numbers = sorted(set(chosen.question))
    assert 2 < len(numbers) < len(QUESTIONS)
    for asked in (QUESTIONS[i] for i in numbers):
        nats = []
        for choice in asked["choices"]:
            prompt = tokenizer(asked["question"]).input_ids
            whole = tokenizer(f"{asked['question']} {choice}").input_ids
            ids = torch.tensor([whole[-LENGTH - 1 :]])
            answer = len(whole) - len(prompt)
            with torch.no_grad():
                logits = model(ids[:, :-1]).logits.log_softmax(-1)[0]
            likelihoods = logits.gather(1, ids[0, 1:, None])[-answer:, 0]
            nats.append((-float(likelihoods.sum()), answer, len(choice) + 1))
        loss, count, _ = nats[asked["label"]]
        shares.append(loss)
        lengths.append(count)
        hits.append(np.argmin([n / size for n, _, size in nats]) == asked["label"])
    trainer.close()
    assert last.losses["quiz"] == pytest.approx(sum(shares) / sum(lengths), rel=1e-5)
    assert last.accuracies["quiz"] == pytest.approx(np.mean(hits))
    assert set(last.accuracies) == {"quiz", "next"}
    residuals = np.array(shares) - last.losses["quiz"] * np.array(lengths)
    n = len(shares)
    error = np.sqrt(n / (n - 1) * (residuals**2).sum()) / sum(lengths)
    assert last.standard_errors["quiz"] == pytest.approx(error, rel=1e-4)


def test_long_prompts_are_cut_on_the_left_and_counted(quiz: Corpus) -> None:
    files = quiz.tasks["sums"]
    whole = tasks.evaluated(files, 10**6, 1000)
    assert (files.questions, files.chance, files.cut(1000)) == (40, None, 0)
    short = files.longest_answer + 2
    cut = tasks.evaluated(files, 10**6, short)
    assert files.cut(short) == 40
    for long, part in zip(whole.tokens, cut.tokens, strict=True):
        assert long[-short - 1 :].tolist() == part.tolist()
    assert cut.bytes_per_token == whole.bytes_per_token
    assert cut.bytes.tolist() == [len(" two of it")] * 40  # with the prompt's last space


def test_a_guess_by_likelihood_per_byte() -> None:
    rows = [np.arange(3)] * 5
    answers = tasks.Answers(
        rows,
        np.array([1, 2, 1, 1, 2]),
        np.array([2, 8, 1, 1, 4]),
        np.array([0, 0, 1, 1, 1]),
        np.array([False, True, True, False, False]),
    )
    nats = np.array([3.0, 6.0, 2.0, 1.0, 8.0])  # per byte 1.5, .75; 2, 1, 2
    assert accuracy(answers, nats) == 0.5
    assert answer_loss(answers, nats)[0] == pytest.approx((6 + 2) / (2 + 1))
    assert answers.bytes_per_token == pytest.approx(9 / 3)


def test_embedded_questions_have_four_choices_and_are_not_trained_on(quiz: Corpus) -> None:
    asked = [question for _, question in tasks.questions({"next": NEXT})]
    assert quiz.tasks["next"].questions == len(asked) > 20
    assert quiz.tasks["next"].chance == 1 / embedded.CHOICES
    assert {question.right for question in asked} == {0, 1, 2, 3}
    tokenizer = tokenizers.load(quiz.tokenizer)
    trained = " ".join(tokenizer.decode(quiz.domains["cpp"].train()).split())
    for question in asked:
        assert len(set(question.answers)) == embedded.CHOICES
        assert " ".join(question.text.split()) not in trained


@pytest.mark.parametrize(
    ("columns", "row", "message"),
    [
        ({"answer_column": "a"}, {"prompt": "p"}, "no column 'a'; there are 'prompt'"),
        ({"answer_column": "a"}, {"prompt": "p", "a": 4}, "column 'a' holds int, not text"),
        ({"answer_column": "a"}, {"prompt": None, "a": "x"}, "column 'prompt' holds null"),
        ({"answer_column": "a"}, {"prompt": "p", "a": " "}, "column 'a' holds an empty answer"),
        ({}, {"prompt": "p", "c": "yes", "l": 0}, "column 'c' holds str; it must hold a list"),
        ({}, {"prompt": "p", "c": ["yes"], "l": 0}, "column 'c' holds ['yes']; it must"),
        (
            {},
            {"prompt": "p", "c": ["a", "b"], "l": 2},
            "column 'l' holds 2, which is none of the 2",
        ),
        ({}, {"prompt": "p", "c": ["a", "b"], "l": "C"}, "column 'l' holds 'C', which is none"),
        ({}, {"prompt": "p", "c": ["a", "a", "b"], "l": 1}, "column 'c' holds the right choice"),
        ({}, {"prompt": "p", "c": ["a", "b"], "l": "z" * 10**5}, "column 'l' holds 'zzz"),
        ({}, {"prompt": "p", "c": ["B", "A"], "l": "A"}, "column 'l' holds 'A', which may be one"),
        ({}, {"prompt": "p", "c": ["a", "b"], "l": True}, "column 'l' holds True, which is none"),
    ],
)
def test_a_bad_question_is_one_clear_error(
    columns: dict[str, Any], row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(row))
    described = columns or {"choices_column": "c", "label_column": "l"}
    with pytest.raises(InputError) as raised:
        list(tasks.questions({"quiz": Task(files=str(path), **described)}))
    assert f"task 'quiz': {path}:1: {message}" in str(raised.value)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize(("label", "right"), [(1, 1), ("B", 1), ("deux", 1), ("A", 0), ("1", 1)])
def test_a_label_is_a_number_a_letter_or_a_text(
    label: int | str, right: int, tmp_path: Path
) -> None:
    path = tmp_path / "quiz.jsonl"
    path.write_text(json.dumps({"q": {"text": "two"}, "c": ["un", "deux"], "l": label}))
    task = Task(
        files=str(path),
        prompt_column="q.text",
        choices_column="c",
        label_column="l",
        delimiter=": ",
    )
    ((_, question),) = tasks.questions({"quiz": task})
    assert question == Question("two", (": un", ": deux"), right)
