"""An estimate of what training takes: tokens, FLOPs, hours, repetition and disk."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.study import repetition
from pipelines.study.prepared import Prepared
from pipelines.study.repetition import Repeated
from pipelines.study.study import Study
from training.config import Domain, Tokenizer
from training.data import sources
from training.data.corpus import Corpus, TokenFiles
from training.record import attempts, keys
from training.record.mlflow_runs import search
from training.run import Run, fingerprint

CHECKPOINT_BYTES = 16  # per parameter: fp32 weights, two moments of AdamW, and overhead
MODEL_BYTES = {"fp32": 4, "bf16": 2}  # per parameter
BYTES_PER_TOKEN = 4.0  # of text, when the vocabulary size is unknown
NETWORK_SECONDS = 3


@dataclass(frozen=True)
class Basis:
    """What is known about the text before it is prepared."""

    prepared: Prepared
    """If not `exact`, its corpus is an estimate without files; vocab_size 0: unknown."""
    exact: bool  # the text is tokenised already
    unknown: tuple[str, ...] = ()  # domains whose amount of text is unknown
    notes: tuple[str, ...] = ()  # what a first look at the sources could not settle


@dataclass(frozen=True)
class Speed:
    """How fast one worker computes."""

    flops_per_second: float
    source: str


@dataclass(frozen=True)
class PlannedRuns:
    """The runs of one size and length."""

    size: str
    n_params: int  # non-embedding
    runs: int
    steps: int
    run_tokens: int
    run_flops: int
    speed: Speed | None

    @property
    def tokens(self) -> int:
        return self.runs * self.run_tokens

    @property
    def flops(self) -> int:
        return self.runs * self.run_flops

    @property
    def hours(self) -> float | None:
        """Hours of one worker; None: unknown."""
        return self.flops / self.speed.flops_per_second / 3600 if self.speed else None


@dataclass(frozen=True)
class Budget:
    """What runs would take."""

    rows: tuple[PlannedRuns, ...]
    targets: PlannedRuns | None  # that `verify` would train, at most
    left: tuple[PlannedRuns, ...] | None  # not in MLflow yet; None: unknown
    repeated: Repeated | None
    token_bytes: int | None
    checkpoint_bytes: int
    model_bytes: int
    workers: int
    evaluation: float  # share of the computation that evaluations take

    def every_row(self) -> list[PlannedRuns]:
        """The rows, and that of the targets."""
        return [*self.rows, *([self.targets] if self.targets else [])]


def basis(study: Study) -> Basis:
    """The prepared corpus, or an estimate of it from `max_mb`.

    Raises InputError if a first look at local sources finds what `prepare` would refuse.
    """
    prepared = Prepared.find(study)
    if prepared:
        return Basis(prepared, exact=True)
    validation = study.validation
    notes = (
        *sources.check(study.domains),
        *sources.check(validation.sets, sources.SET),
        *sources.check(validation.tasks, sources.TASK),
    )
    vocab_size = _vocabulary(study.tokenizer) or 0
    domains = {
        name: _estimate(domain, vocab_size, validation.fraction)
        for name, domain in study.domains.items()
    }
    sets = {name: _estimate(domain, vocab_size, 1.0) for name, domain in validation.sets.items()}
    described = {**study.domains, **validation.sets}
    unknown = tuple(name for name, domain in described.items() if not domain.max_mb)
    estimate = Corpus(Path(), "", vocab_size, domains, sets)
    return Basis(Prepared(study, estimate), exact=False, unknown=unknown, notes=notes)


def _estimate(domain: Domain, vocab_size: int, held_out: float) -> TokenFiles:
    """Token counts from `max_mb`; a trained BPE has about 2 bytes per token at 1,024 entries, 4
    at 50,000."""
    size = 2 + 0.36 * (math.log2(vocab_size) - 10) if vocab_size else BYTES_PER_TOKEN
    tokens = (domain.max_mb or 1.0) * 1e6 / size
    return TokenFiles(
        folder="",
        dtype="uint16" if vocab_size <= 2**16 else "uint32",
        train_tokens=round(tokens * (1 - held_out)),
        validation_tokens=round(tokens * held_out),
        bytes_per_token=size,
        documents=0,
        digest="",
    )


def _vocabulary(tokenizer: Tokenizer) -> int | None:
    """Entries of the study's tokenizer; None where it cannot be read or fetched in seconds."""
    if tokenizer.vocab_size:
        return tokenizer.vocab_size
    import huggingface_hub
    import tokenizers

    assert tokenizer.name is not None
    file = Path(tokenizer.name, "tokenizer.json")
    try:
        if not file.exists():
            cached = huggingface_hub.try_to_load_from_cache(tokenizer.name, file.name)
            file = Path(cached) if isinstance(cached, str) else file
        if file.exists():
            text = file.read_text()
        else:  # one attempt: the hub's own client retries for most of a minute
            url = huggingface_hub.hf_hub_url(tokenizer.name, file.name)
            session = huggingface_hub.get_session()
            answer = session.get(url, timeout=NETWORK_SECONDS, follow_redirects=True)
            text = answer.raise_for_status().text
        return int(tokenizers.Tokenizer.from_str(text).get_vocab_size())
    except Exception:  # whatever fails, the dry run says what it leaves out
        return None


def make(
    basis: Basis,
    runs: Sequence[Run],
    workers: int,
    throughput: float | None,
    experiment: str,
    *,
    targets: bool,
) -> Budget:
    """What training `runs` takes, with or without the targets of `verify`.

    The runs that are already trained, and their speed, are looked up in the experiment with this
    id.
    """
    study, corpus = basis.prepared.study, basis.prepared.corpus
    vocab_size = corpus.vocab_size
    planned = _targets(basis.prepared) if targets else []
    all_runs = [*runs, *planned]
    sizes = {run.size.n_params: run for run in all_runs}
    speeds = _speeds(list(sizes.values()), vocab_size, experiment, throughput)
    epochs = [repetition.most_repeated(run, corpus) for run in all_runs]
    largest = max(_parameters(run, vocab_size) for run in all_runs)
    saved = sum(_parameters(run, vocab_size) for run in runs if run.engine.save_models)
    return Budget(
        rows=_rows(runs, vocab_size, speeds),
        targets=_row(planned, vocab_size, speeds) if planned else None,
        left=_rows(_missing(runs, experiment), vocab_size, speeds) if basis.exact else None,
        repeated=None if basis.unknown else max(epochs, key=lambda repeated: repeated.epochs),
        token_bytes=None if basis.unknown else _token_bytes(corpus),
        checkpoint_bytes=CHECKPOINT_BYTES * largest * min(workers, len(runs)),
        model_bytes=MODEL_BYTES[study.training.precision] * saved,
        workers=workers,
        evaluation=_evaluation(all_runs, len(study.evaluated), vocab_size),
    )


def _evaluation(runs: Sequence[Run], texts: int, vocab_size: int) -> float:
    """Share of the FLOPs that evaluations of so many texts take: a third of a training token's each
    token."""
    trained = sum(run.flops(vocab_size) for run in runs)
    evaluated = sum(
        run.flops(vocab_size)
        / 3
        * run.training.evaluations
        * texts
        * run.validation_tokens
        / (run.training.steps * run.training.tokens_per_step)
        for run in runs
    )
    return evaluated / (trained + evaluated)


def _targets(prepared: Prepared) -> list[Run]:
    """As many targets as `verify` may train: best and default with every seed, uniform and best
    observed with one. Only the default mixture is known, so all have it."""
    seeds = prepared.study.target.seeds
    run = prepared.target("target-default", prepared.default, seeds[0])
    return [run] * (2 * len(seeds) + 2)


def _parameters(run: Run, vocab_size: int) -> int:
    """All parameters, including two embeddings."""
    return run.size.n_params + 2 * vocab_size * run.size.width


def _token_bytes(corpus: Corpus) -> int:
    width = {"uint16": 2, "uint32": 4}
    return sum(
        width[files.dtype] * (files.train_tokens + files.validation_tokens)
        for files in corpus.texts.values()
    )


def _missing(runs: Sequence[Run], experiment: str) -> list[Run]:
    done = attempts.finished_ids(experiment, keys.PROXY)
    return [run for run in runs if fingerprint(run) not in done]


def _rows(
    runs: Sequence[Run], vocab_size: int, speeds: dict[int, Speed]
) -> tuple[PlannedRuns, ...]:
    """One row for each size and length, in the order of the runs."""
    groups: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.size_name, run.training.steps), []).append(run)
    return tuple(_row(group, vocab_size, speeds) for group in groups.values())


def _row(runs: Sequence[Run], vocab_size: int, speeds: dict[int, Speed]) -> PlannedRuns:
    """The row of runs of one size and length."""
    run = runs[0]
    return PlannedRuns(
        size=run.size_name,
        n_params=run.size.n_params,
        runs=len(runs),
        steps=run.training.steps,
        run_tokens=run.training.steps * run.training.tokens_per_step,
        run_flops=run.flops(vocab_size),
        speed=speeds.get(run.size.n_params),
    )


def _speeds(
    runs: Sequence[Run], vocab_size: int, experiment: str, throughput: float | None
) -> dict[int, Speed]:
    """Non-embedding parameters → speed: `throughput`, or else the median of the experiment's
    finished runs of that size, or else the speed of the nearest size."""
    if throughput:
        return {run.size.n_params: Speed(throughput, "given") for run in runs}
    tokens_per_second: dict[int, list[float]] = {}
    query = f"tags.{keys.COMPLETE} = 'true' and metrics.{keys.TOKENS_PER_SECOND} > 0"
    for finished in search([experiment], query):
        n_params = int(float(finished.data.params.get(keys.N_PARAMS, 0)))
        speed = finished.data.metrics[keys.TOKENS_PER_SECOND]
        tokens_per_second.setdefault(n_params, []).append(speed)
    speeds = {}
    for run in runs:
        n_params = run.size.n_params
        if n_params in tokens_per_second:
            measurements = tokens_per_second[n_params]
            flops_per_token = run.flops(vocab_size) / (
                run.training.steps * run.training.tokens_per_step
            )
            source = f"measured on {len(measurements)} runs"
            speeds[n_params] = Speed(statistics.median(measurements) * flops_per_token, source)
    measured = {run.size.n_params: run.size_name for run in runs if run.size.n_params in speeds}
    for run in runs if measured else ():
        n_params = run.size.n_params
        nearest = min(measured, key=lambda size: abs(math.log(size / n_params)))
        if nearest != n_params:
            speeds[n_params] = Speed(
                speeds[nearest].flops_per_second, f"as measured on {measured[nearest]}"
            )
    return speeds


def all_hours(rows: Sequence[PlannedRuns]) -> float | None:
    """Worker-hours of all rows; None if those of one are unknown."""
    hours = [row.hours for row in rows]
    return math.fsum(h for h in hours if h is not None) if None not in hours else None
