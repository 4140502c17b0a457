"""What a training stage needs to know, as the study file states it: one frozen section a stage."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A part of the study file: immutable, and a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,60}$")]


class Domain(Section):
    """Where a domain's documents come from: exactly one of `embedded`, `files` and `dataset`."""

    embedded: Literal["python", "cpp", "docs", "web", "tables"] | None = None
    """Text that the project's own dependencies ship; needs no download."""
    files: str | list[str] | None = None
    """Globs of JSONL, Parquet or text files (.gz, .zst too); relative to the study file."""
    dataset: str | None = None
    """A Hugging Face `datasets` path, with `config`, `split` and `revision`."""
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    text_column: str = "text"
    domain_column: str | None = None
    """With `domain_value`: take only the rows whose column holds this value."""
    domain_value: str | None = None
    sample_by: Literal["document", "paragraph", "line"] = "document"
    """What one document is in a text file."""
    max_mb: float | None = Field(default=None, gt=0)
    """Stop after this much text, in 10^6 bytes."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [key for key in ("embedded", "files", "dataset") if getattr(self, key)]
        if len(given) != 1:
            found = " and ".join(given) if given else "none of them"
            raise ValueError(f"give exactly one of embedded, files, dataset; found {found}")
        if (self.domain_column is None) != (self.domain_value is None):
            raise ValueError("domain_column and domain_value go together")
        if self.embedded and self.max_mb is None:
            raise ValueError("an embedded source needs max_mb")
        return self


class Tokenizer(Section):
    """Either a byte-level BPE trained on the study's own text, or an existing tokenizer."""

    vocab_size: int | None = Field(default=None, ge=300, le=1_000_000)
    """Entries of the BPE to train, on an equal amount of training text from each domain."""
    name: str | None = None
    """A hub id or folder that `AutoTokenizer.from_pretrained` knows."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.vocab_size is None) == (self.name is None):
            raise ValueError("give exactly one of vocab_size and name")
        return self


class Validation(Section):
    """The held-out part of each domain, and what each domain's loss weighs in the objective."""

    fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of documents held out, chosen by a hash of their text."""
    tokens: int = Field(default=20_480, gt=0)
    """Tokens a domain that one evaluation reads, spread evenly over the held-out part."""
    weights: dict[Name, Annotated[float, Field(ge=0)]] | None = None
    """Every domain → weight, divided by their sum; equal when absent."""


class Size(Section):
    """The shape of one model (GPT-NeoX)."""

    hidden_size: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak rate; by default 0.25 / hidden_size."""

    @property
    def n_params(self) -> int:
        """Non-embedding parameters of this GPT-NeoX shape, known before it is built."""
        width = self.hidden_size
        return self.layers * (12 * width**2 + 13 * width) + 2 * width

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide hidden_size ({self.hidden_size})")
        return self


class Training(Section):
    """How every model of a study is trained; equal for all, so that losses are comparable."""

    sequence_length: int = Field(default=128, gt=1)
    batch_size: int = Field(default=16, gt=0)
    """Sequences an optimizer step."""
    steps: int = Field(gt=0)
    """Optimizer steps of a proxy run."""
    warmup_steps: int = Field(default=40, ge=0)
    """Linear warm-up; the rate is constant afterwards, so that checkpoints are comparable."""
    first_evaluation: int = Field(gt=0)
    """The first evaluated step; the others are log-spaced up to the last step."""
    evaluations: int = Field(default=6, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    gradient_clipping: float = Field(default=1.0, gt=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    zero_stage: Literal[0, 1, 2, 3] = 0

    @model_validator(mode="after")
    def _evaluations_fit(self) -> Self:
        if self.first_evaluation > self.steps:
            raise ValueError(
                f"first_evaluation ({self.first_evaluation}) lies after the last step, {self.steps}"
            )
        return self

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.sequence_length


class Run(Section):
    """One model to train: all that its losses depend on, and where it belongs."""

    name: str
    stage: str
    study: str
    """Fingerprint of the study's training part; fits select by it."""
    corpus: Path
    """The manifest that `prepare` wrote."""
    corpus_digest: str
    mixture: dict[str, float]
    size_name: str
    size: Size
    training: Training
    validation_tokens: int
    seed: int

    def flops(self, vocab_size: int) -> int:
        """Training compute, 6 FLOPs a parameter and token; the input embedding computes none."""
        parameters = self.size.n_params + vocab_size * self.size.hidden_size
        return 6 * parameters * self.training.tokens_per_step * self.training.steps
