"""The rows of any source, and access to their columns."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from training.config import Domain, Source, Task
from training.data import embedded, formats
from training.data.formats import Row
from training.data.question import Question
from training.record.errors import InputError, first_line

SHOWN = 60  # characters of a value in an error


def read(source: Path | None, domain: Source, after: int) -> Iterator[Row]:
    """The rows of one file, or of a domain without files, in order, after number `after`.

    Raises InputError, without the domain's name, for a source that cannot be read.
    """
    if source is not None:
        return formats.read(source, domain, after)
    if domain.embedded:
        return _embedded(domain, after)
    return _hub(domain, after)


def lookup(columns: Mapping[str, Any], name: str) -> Any:
    """A column, or a nested key such as `meta.set`; LookupError says what is missing."""
    if name in columns:
        return columns[name]
    value: Any = columns
    keys = name.split(".")
    for depth, key in enumerate(keys):
        inside = isinstance(value, Mapping)
        if inside and key in value:
            value = value[key]
        elif depth:
            holds = ", ".join(map(repr, value)) if inside else formats.type_name(value)
            raise LookupError(f"no {key!r} in column {'.'.join(keys[:depth])!r}; it holds {holds}")
        else:
            raise LookupError(formats.no_column(name, columns))
    return value


def content(columns: Mapping[str, Any], source: Source) -> tuple[str | Question, int]:
    """A row's document or question and its size in UTF-8 bytes; LookupError says why there is
    none."""
    if isinstance(source, Domain):
        text = _text(lookup(columns, source.text_column), source.text_column)
        return text, len(text.encode())
    assert isinstance(source, Task)
    question = _question(columns, source)
    return question, sum(len(text.encode()) for text in (question.prompt, *question.answers))


def _question(columns: Mapping[str, Any], task: Task) -> Question:
    if task.embedded:
        return Question(columns["prompt"], columns["choices"], columns["label"])
    prompt = _text(lookup(columns, task.prompt_column), task.prompt_column)
    if task.answer_column is not None:
        choices, label = [lookup(columns, task.answer_column)], 0
        place = task.answer_column
    else:
        assert task.choices_column is not None
        assert task.label_column is not None
        place = task.choices_column
        choices = lookup(columns, place)
        if not isinstance(choices, list) or len(choices) < 2:
            held = _shown(choices) if isinstance(choices, list) else formats.type_name(choices)
            raise LookupError(
                f"column {place!r} holds {held}; it must hold a list of two or more choices"
            )
        label = _label(lookup(columns, task.label_column), choices, task.label_column)
    answers = tuple(_text(choice, place) for choice in choices)
    for answer in answers:
        if not answer.strip():
            raise LookupError(f"column {place!r} holds an empty answer")
    if answers.count(answers[label]) > 1:
        raise LookupError(f"column {place!r} holds the right choice {_shown(answers[label])} twice")
    return Question(prompt, tuple(_delimited(prompt, a, task.delimiter) for a in answers), label)


def _shown(value: Any) -> str:
    """A value as an error shows it, truncated if it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _label(value: Any, choices: list[Any], name: str) -> int:
    """The number of the right choice: as given, or of the choice with this text or letter."""
    readings = set()
    if isinstance(value, float) and value.is_integer():  # a column with missing labels
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        readings = {value}
    elif isinstance(value, str):
        readings = {i for i, choice in enumerate(choices) if choice == value}
        if re.fullmatch("[A-Z]", value):
            readings.add(ord(value) - ord("A"))
        elif not readings and re.fullmatch("[0-9]{1,3}", value):
            readings = {int(value)}
    possible = [i for i in readings if 0 <= i < len(choices)]
    if len(possible) == 1:
        return possible[0]
    fault = "may be one of several" if possible else "is none"
    raise LookupError(
        f"column {name!r} holds {_shown(value)}, which {fault} of the {len(choices)} choices (a "
        "number from 0, a letter from A, or a choice's text)"
    )


def _delimited(prompt: str, answer: str, delimiter: str) -> str:
    apart = not prompt or prompt[-1].isspace() or answer[0].isspace()
    return answer if apart else delimiter + answer


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise LookupError(f"column {name!r} holds {formats.type_name(value)}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = value[error.start].encode("ascii", "backslashreplace").decode()
        raise LookupError(f"column {name!r} holds {half}, half of a surrogate pair") from error
    return value


def _embedded(domain: Source, after: int) -> Iterator[Row]:
    assert domain.embedded is not None
    rows: Iterator[Mapping[str, Any]]
    if isinstance(domain, Domain):
        rows = ({domain.text_column: text} for text in embedded.documents(domain.embedded))
    else:
        rows = embedded.questions(domain.embedded)
    for number, columns in enumerate(rows, 1):
        if number > after:
            yield Row(number, f"embedded {domain.embedded}, row {number}", columns)


def _hub(domain: Source, after: int) -> Iterator[Row]:
    import datasets  # slow to import, and not needed for files

    datasets.disable_progress_bars()
    number = after
    try:
        rows = datasets.load_dataset(
            domain.dataset,
            domain.config,
            split=domain.split,
            revision=domain.revision,
            streaming=True,
        )
        for number, columns in enumerate(rows.skip(after) if after else rows, after + 1):
            yield Row(number, f"{domain.dataset}, row {number - 1}", columns)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        how_far = f" after row {number - 1}" if number else ""
        raise InputError(f"{domain.dataset}{how_far}: {first_line(error)}") from error
