"""EleutherAI's lm-eval: its tasks, and what a model scores on them.

No other module imports it.
"""

import difflib
import logging
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.benchmarks import scores
from pipelines.benchmarks.scores import Outcome
from training.record.errors import InputError, first_line

YAML = (".yaml", ".yml")
CUT = "Combined length of context"  # begins a warning of the harness, one a question
ROUTINE = re.compile(  # warnings that do not help users
    r"\[Task: .*\] metric .* is defined, but |`pretrained` model kwarg is not of type"
    r"|Passed an already-initialized model|Overwriting default num_fewshot"
)


@dataclass(frozen=True)
class Settings:
    """How the questions are asked."""

    limit: int | None  # questions of each task; all when None
    few_shot: int | None  # examples in the prompt; as the task says when None
    batch_size: int


@dataclass(frozen=True)
class Benchmark:
    """A task, a group or a tag of the harness, loaded with its questions."""

    name: str
    tasks: list[Any]  # the harness' tasks and groups at its top
    leaves: frozenset[str]  # the names of all its tasks


@dataclass(frozen=True)
class Suite:
    """The benchmarks that a command asks for."""

    benchmarks: tuple[Benchmark, ...]
    settings: Settings
    manager: Any  # lm-eval's

    def outcomes(self, source: str, what: str) -> Iterator[Outcome]:
        """What the model at a folder or hub id scores, benchmark after benchmark.

        `what` names the model in errors. Raises InputError for a model that cannot be loaded, and
        for a task that cannot be asked.
        """
        import lm_eval

        with _warnings() as warned:
            model = _model(source, what, self.settings.batch_size)
            for benchmark in self.benchmarks:
                try:
                    results = lm_eval.simple_evaluate(
                        model=model,
                        tasks=benchmark.tasks,
                        num_fewshot=self.settings.few_shot,
                        limit=self.settings.limit,
                        batch_size=self.settings.batch_size,
                        task_manager=self.manager,
                    )
                except Exception as error:  # a task's templates and functions raise anything
                    raise InputError(f"benchmarks: {benchmark.name!r}: {_told(error)}") from error
                warned.tell(benchmark.name, model.max_length)
                yield scores.outcome(benchmark.name, results)


def load(names: Sequence[str], settings: Settings) -> Suite:
    """The benchmarks of these names of the harness and YAML files, with their questions.

    Raises InputError for an unknown name, the same task twice, and questions that cannot be read.
    """
    from lm_eval.tasks import TaskManager

    if not names:
        raise InputError("benchmarks: name a task of lm-eval or a YAML file")
    for name in names:
        if name.endswith(YAML) and not _path(name).is_file():
            raise InputError(f"benchmarks: there is no file {name!r}")
    manager = TaskManager(include_defaults=not all(map(_stands_alone, names)))
    known = manager.task_index
    for name in names:
        if not name.endswith(YAML) and name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0)
            raise InputError(
                f"benchmarks: lm-eval has no task {name!r}; the nearest is {near[0]!r}. A task of "
                f"your own is a file that ends in {YAML[0]}"
            )
    with _warnings():
        benchmarks = tuple(_benchmark(manager, name) for name in names)
    seen: dict[str, str] = {}
    for benchmark in benchmarks:
        for leaf in sorted(benchmark.leaves):
            if leaf in seen:
                raise InputError(
                    f"benchmarks: {seen[leaf]!r} and {benchmark.name!r} both hold task {leaf!r}"
                )
            seen[leaf] = benchmark.name
    return Suite(benchmarks, settings, manager)


def _path(name: str) -> Path:
    return Path(name).expanduser().absolute()


def _stands_alone(name: str) -> bool:
    """Whether a benchmark is a file of one task, which needs none of the harness' thousands."""
    if not name.endswith(YAML):
        return False
    return not re.search(rb"^(group|include)\s*:", _path(name).read_bytes(), re.M)


def _benchmark(manager: Any, name: str) -> Benchmark:
    try:
        loaded = manager.load([str(_path(name)) if name.endswith(YAML) else name])
    except ConnectionError as error:
        raise InputError(
            f"benchmarks: the questions of {name!r} come from the Hugging Face hub, which does not "
            f"answer: {first_line(error)}"
        ) from error
    except Exception as error:  # a task's file and its functions raise anything
        raise InputError(f"benchmarks: {name!r} cannot be loaded: {_told(error)}") from error
    groups, tasks = loaded["groups"], loaded["tasks"]
    inner = {child for children in loaded["group_map"].values() for child in children}
    tops = [group for key, group in groups.items() if key not in inner] or [*tasks.values()]
    label = name
    if name.endswith(YAML):
        labels = [key for key in groups if key not in inner] or [*tasks]
        if len(labels) != 1:
            raise InputError(
                f"benchmarks: {name!r} holds {len(labels)} tasks; put them into a group"
            )
        (label,) = labels
    return Benchmark(label, tops, frozenset(tasks))


def _told(error: Exception) -> str:
    """An error of the harness in one line."""
    text = first_line(error)
    if not str(error):  # an assertion, say that an answer is longer than the model's context
        text = str(traceback.extract_tb(error.__traceback__)[-1].line)
    if "out of memory" in text.lower():
        text += "; lower batch_size"
    return f"{type(error).__name__}: {text}"


def _model(source: str, what: str, batch_size: int) -> Any:
    """The harness' model of a checkpoint, on the first GPU if there is one."""
    import torch
    import transformers
    from lm_eval.models.huggingface import HFLM

    from training.engine import model as models

    config = models.load_config(source, what)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{what}: its tokenizer cannot be loaded: {first_line(error)}") from error
    if len(tokenizer) > config.vocab_size:
        raise InputError(
            f"{what} has embeddings of {config.vocab_size:,} tokens, its tokenizer "
            f"{len(tokenizer):,}: they do not belong together"
        )
    model = models.load(source, what, dtype="auto")
    model.config.use_cache = True  # for answers of many tokens
    model.to("cuda:0" if torch.cuda.is_available() else "cpu")
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)


class _Warnings(logging.Handler):
    """Shows each warning of the harness once, and counts the questions that were cut."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.shown: set[str] = set()
        self.cut = 0

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text.startswith(CUT):
            self.cut += 1
        elif text not in self.shown and not ROUTINE.match(text):
            self.shown.add(text)
            print(text, file=sys.stderr, flush=True)

    def tell(self, benchmark: str, context: int) -> None:
        """Say how many questions of a benchmark were cut, if any."""
        if self.cut:
            print(
                f"{benchmark}: {self.cut:,} answers were scored with a prompt that is longer than "
                f"the model's context of {context:,} tokens; its beginning was cut off",
                file=sys.stderr,
            )
        self.cut = 0


@contextmanager
def _warnings() -> Iterator[_Warnings]:
    """The harness' warnings, as this class shows them; the hub's retries are not shown."""
    handler, logger = _Warnings(), logging.getLogger("lm_eval")
    hub = logging.getLogger("huggingface_hub")
    before, level = logger.propagate, hub.level
    logger.addHandler(handler)
    logger.propagate = False
    hub.setLevel(logging.ERROR)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
        hub.setLevel(level)
