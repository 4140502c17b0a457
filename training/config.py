"""Frozen sections of the study file that configure data preparation and training."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from training.record import keys
from training.record.errors import InputError


class Section(BaseModel):
    """A part of the study file: immutable; unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def _checked_short_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,60}", name):
        raise ValueError("it must have 1 to 60 of the characters a-z A-Z 0-9 _ . -")
    return name


Name = Annotated[str, AfterValidator(_checked_short_name)]
"""The name of a study or a size."""


def _checked_name(name: str) -> str:
    if fault := keys.name_fault(name):
        raise ValueError(fault)
    return name


def _distinct(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("a seed is given twice; give each once")
    return seeds


Seed = Annotated[int, Field(ge=0, le=keys.MAX_INTEGER)]
Seeds = Annotated[list[Seed], AfterValidator(_distinct)]
DomainName = Annotated[str, AfterValidator(_checked_name)]


class Source(Section):
    """Where the rows of a domain, a validation set or a task come from: exactly one of `embedded`,
    `files` and `dataset`."""

    embedded: Literal["python", "cpp", "docs", "web", "tables", "stubs"] | None = None
    """Text in the project's installed dependencies; needs no download."""
    files: str | list[str] | None = None
    """Globs of JSONL, Parquet or text files (also .gz, .zst), relative to the study file."""
    dataset: str | None = None
    """A Hugging Face `datasets` path, with `config`, `split` and `revision`."""
    config: str | None = None
    """The dataset's configuration."""
    split: str = "train"
    """The dataset's split."""
    revision: str | None = None
    """A commit, tag or branch of the dataset."""
    domain_column: str | None = None
    """With `domain_value`: use only rows with this value in the column; `meta.set` is a nested
    key."""
    domain_value: str | list[str] | None = None
    """The value, or list of values, that `domain_column` must hold."""
    on_error: Literal["refuse", "skip"] = "refuse"
    """For a line that is not JSON or a row without text: end the preparation, or count and skip
    the row."""
    max_mb: float | None = Field(default=None, gt=0)
    """Stop after this much text, in 10^6 bytes."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        sources = [key for key in ("embedded", "files", "dataset") if getattr(self, key)]
        if len(sources) != 1:
            names = " and ".join(sources) if sources else "none of them"
            raise ValueError(f"give exactly one of embedded, files, dataset; found {names}")
        if (self.domain_column is None) != (self.domain_value is None):
            raise ValueError("domain_column and domain_value go together")
        if self.embedded and self.max_mb is None:
            raise ValueError("an embedded source needs max_mb")
        return self

    @property
    def columns(self) -> list[str]:
        """The columns that are read besides `domain_column`."""
        raise NotImplementedError


class Domain(Source):
    """The documents of a domain or a validation set."""

    text_column: str = "text"
    """The column that holds a document's text."""
    sample_by: Literal["document", "paragraph", "line"] = "document"
    """The unit of a text file that forms one document."""

    @property
    def columns(self) -> list[str]:
        return [self.text_column]


class Task(Source):
    """Questions, each with its answer or with choices. Only the answer's tokens count.

    `embedded` makes questions of four choices from a kind of text: which words go on.
    """

    prompt_column: str = "prompt"
    """The column that holds what stands before the answer."""
    answer_column: str | None = None
    """The column that holds the answer."""
    choices_column: str | None = None
    """Instead of `answer_column`: the column that holds a list of possible answers."""
    label_column: str | None = None
    """With `choices_column`: the column that holds the right one's number from 0, its letter from
    A, or its text."""
    delimiter: str = " "
    """What stands between prompt and answer where neither has white space there; it belongs to the
    answer."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        columns = (self.answer_column, self.choices_column, self.label_column)
        given = [column is not None for column in columns]
        if self.embedded and any(given):
            raise ValueError("an embedded task has its own columns; leave out the others")
        if not self.embedded and given not in ([True, False, False], [False, True, True]):
            raise ValueError("give either answer_column, or choices_column and label_column")
        if len(set(self.columns)) < len(self.columns):
            raise ValueError("two of its columns are the same; each needs its own")
        return self

    @property
    def columns(self) -> list[str]:
        names = (self.prompt_column, self.answer_column, self.choices_column, self.label_column)
        return [name for name in names if name is not None]


class Tokenizer(Section):
    """Either a byte-level BPE trained on the study's own text, or an existing tokenizer."""

    vocab_size: int | None = Field(default=None, ge=300, le=1_000_000)
    """Vocabulary size of the BPE, trained on an equal amount of training text from each domain."""
    name: str | None = None
    """A hub id or folder for `AutoTokenizer.from_pretrained`."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.vocab_size is None) == (self.name is None):
            raise ValueError("give exactly one of vocab_size and name")
        return self


class Validation(Section):
    """What losses are measured on, and their weights in the objective."""

    fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of documents held out, chosen by a hash of their text."""
    tokens: int = Field(default=20_480, gt=0)
    """Tokens per domain, set or task and evaluation, spread evenly over the held-out text or the
    questions; a task may have fewer."""
    sets: dict[DomainName, Domain] = Field(default={})
    """Name → text that nothing trains on, with the keys of a domain; all of it is held out."""
    tasks: dict[DomainName, Task] = Field(default={})
    """Name → questions and answers; the loss of a task is that of its answers."""
    decontaminate: Literal["drop", "warn", "refuse"] = "drop"
    """For training documents that hold text of a set or task (13 consecutive words): leave them
    out, keep them, or end the preparation. They are counted and named in any case."""
    weights: dict[DomainName, Annotated[float, Field(ge=0)]] | None = None
    """Domain, set or task → weight, divided by their sum; equal when absent. With `sets` or
    `tasks`, what is not named weighs 0; without, every domain needs a weight."""
    unit: Literal["nats_per_token", "bits_per_byte"] | None = None
    """The unit of the losses that are weighted, fitted and predicted; nats per token when absent,
    or that of imported runs."""

    @property
    def beside(self) -> dict[str, Source]:
        """What is measured besides the domains: the sets, then the tasks."""
        return {**self.sets, **self.tasks}


class Size(Section):
    """One model: the shape of a GPT-NeoX, or any causal language model in Transformers."""

    hidden_size: int | None = Field(default=None, gt=0)
    """Width of the model."""
    layers: int | None = Field(default=None, gt=0)
    """Transformer blocks."""
    heads: int | None = Field(default=None, gt=0)
    """Attention heads; they must divide the hidden size."""
    config: str | None = None
    """Instead of a shape: the path or hub id of a Transformers config. Its vocabulary is replaced
    by that of the study's tokenizer; all else is used unchanged, including the scale of the initial
    weights."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate; by default `training.rate_times_width` / hidden size."""
    _counts: tuple[int, int] | None = PrivateAttr(default=None)
    """Width and parameters of a Transformers config; part of neither study nor fingerprint."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        shape = [self.hidden_size, self.layers, self.heads]
        if (None in shape) if self.config is None else any(shape):
            raise ValueError("give either hidden_size, layers and heads, or config")
        if self.hidden_size and self.heads and self.hidden_size % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide hidden_size ({self.hidden_size})")
        return self

    @property
    def width(self) -> int:
        """The hidden size."""
        return self.hidden_size or self._of_config()[0]

    @property
    def n_params(self) -> int:
        """Non-embedding parameters, known before the model is built."""
        if self.hidden_size is None or self.layers is None:
            return self._of_config()[1]
        width = self.hidden_size
        return self.layers * (12 * width**2 + 13 * width) + 2 * width

    def resolved(self, width: int, n_params: int) -> Self:
        """The size with its config's counts (see `training.engine.model.resolve`)."""
        size = self.model_copy()
        size._counts = width, n_params
        return size

    def _of_config(self) -> tuple[int, int]:
        if self._counts is None:
            raise RuntimeError(f"the size of config {self.config!r} was never resolved")
        return self._counts


LADDER = {
    "0.1M": Size(hidden_size=64, layers=2, heads=4),
    "0.2M": Size(hidden_size=80, layers=3, heads=5),
    "0.4M": Size(hidden_size=96, layers=4, heads=6),
    "0.8M": Size(hidden_size=128, layers=4, heads=8),
    "14M": Size(hidden_size=128, layers=6, heads=4),
    "31M": Size(hidden_size=256, layers=6, heads=8),
    "70M": Size(hidden_size=512, layers=6, heads=8),
    "160M": Size(hidden_size=768, layers=12, heads=12),
    "305M": Size(hidden_size=1024, layers=16, heads=16),
    "410M": Size(hidden_size=1024, layers=24, heads=16),
    "1B": Size(hidden_size=2048, layers=16, heads=8),
}
"""Sizes available in every study. From 14M up they are Pythia's (arXiv 2304.01373), named as there
after all parameters with its large vocabulary, and the 305M of arXiv 2403.16952. Smaller ones are
named after their non-embedding parameters."""


class Training(Section):
    """How every model of a study is trained: the same for all, so that losses are comparable."""

    sequence_length: int = Field(default=128, gt=1)
    """Tokens per sequence."""
    batch_size: int = Field(default=16, gt=0)
    """Sequences per optimizer step, over all processes."""
    steps: int = Field(gt=0)
    """Optimizer steps of a proxy run."""
    warmup_steps: int = Field(default=40, ge=0)
    """Steps of linear warm-up. The rate is constant afterwards, so checkpoints are comparable."""
    decay_steps: int = Field(default=0, ge=0)
    """Last steps, over which the rate falls linearly to zero (WSD, arXiv 2404.06395). Losses during
    the decay do not follow the step law of earlier losses: for proxies, use 0 or evaluate once."""
    rate_times_width: float = Field(default=0.25, gt=0)
    """Peak learning rate × hidden size (see `training.engine.model.learning_rate`)."""
    first_evaluation: int = Field(gt=0)
    """First evaluated step; the others are log-spaced up to the last step."""
    evaluations: int = Field(default=6, gt=0)
    """Number of evaluations of a run on the held-out text."""
    weight_decay: float = Field(default=0.1, ge=0)
    """AdamW's weight decay."""
    gradient_clipping: float = Field(default=1.0, gt=0)
    """Maximum gradient norm."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the forward and backward pass."""

    @model_validator(mode="after")
    def _steps_fit(self) -> Self:
        if self.first_evaluation > self.steps:
            raise ValueError(
                f"first_evaluation ({self.first_evaluation}) lies after the last step, {self.steps}"
            )
        if self.decay_steps >= self.steps:
            raise ValueError(
                f"decay_steps ({self.decay_steps}) must be fewer than steps ({self.steps})"
            )
        return self

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.sequence_length


class Engine(Section):
    """How DeepSpeed runs a model. Losses do not depend on it beyond rounding."""

    zero_stage: Literal[0, 1, 2, 3] = 0
    """What is sharded over the processes: 1 optimizer state, 2 also gradients, 3 also weights."""
    micro_batch_size: int | None = Field(default=None, gt=0)
    """Sequences that a process computes at once; gradients are accumulated over the rest. Its whole
    share of the batch when absent."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them."""
    compile: bool = False
    """`torch.compile` the model."""
    start_minutes: float = Field(default=10, gt=0)
    """Time limit for a worker to be ready to train."""
    checkpoint_minutes: float = Field(default=5, ge=0)
    """Time between two checkpoints, from which a killed run resumes. Slow checkpoints are written
    less often."""
    patience_minutes: float = Field(default=60, gt=0)
    """How long workers wait for a tracking server, a ledger or disk space that is away. What they
    trained waits on disk meanwhile, and stays there when the command ends."""
    stall_minutes: float = Field(default=30, gt=0)
    """Time without progress after which a worker that trains is stopped and started again."""
    save_models: bool = False
    """Log every trained model as the artifact `model` of its run, a Transformers checkpoint."""

    def micro_batch(self, training: Training, ranks: int) -> int:
        """Sequences that each of `ranks` processes computes at once.

        Raises InputError for a batch that cannot be split evenly.
        """
        share, rest = divmod(training.batch_size, ranks)
        if rest:
            raise InputError(
                f"training.batch_size: {training.batch_size} sequences cannot be shared evenly by "
                f"{ranks} processes; change it or ranks"
            )
        micro = self.micro_batch_size or share
        if share % micro:
            raise InputError(
                f"engine.micro_batch_size: {micro} does not divide the {share} sequences a process "
                f"has of a batch ({training.batch_size} over {ranks} processes)"
            )
        return micro


class Repetition(Section):
    """How many times a run may see the same text."""

    limit: float = Field(default=4, gt=0)
    """Maximum epochs of a domain. Up to about 4, repeated text is worth almost as much as new text
    (arXiv 2305.16264)."""
    on_excess: Literal["warn", "refuse"] = "warn"
    """For a run beyond the limit: print a warning, or end the command before training."""
    match_target: bool = False
    """Restrict a run of D tokens to the part D / D* of every domain's text, for a target of D*
    tokens, so that it repeats text as often as the target would (arXiv 2606.07597)."""
