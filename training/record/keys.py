"""The names of tags, params and metrics in MLflow that `training` writes and `fitting` reads.

This module imports nothing heavy. Names are built and parsed only here.
"""

import re
from collections.abc import Mapping, Sequence

# tags
STAGE = "stage"
COMPLETE = "complete"
ERROR = "error"
DIVERGED = "diverged"
FINGERPRINT = (
    "fingerprint"  # of all that a run's losses depend on; for an imported run, of its content
)
CHECK = "check"  # "true": the run checks predictions; fits never read it
IMPORTED_FROM = "imported_from"  # source file of an imported run
STUDY = "study"
PLANNED_BY = "planned_by"  # id of a later sweep that reuses this run
PROCESS = "process"  # the process that writes this run: machine, process id, start time
PARENT = "mlflow.parentRunId"
RUN_NAME = "mlflow.runName"
NOTE = "mlflow.note.content"  # a run's description
BUNDLES = "bundles"  # of a sweep: name → domain → proportion, as JSON
HISTORY = "history/"

# stages
MAIN, PREPARE, SWEEP, PROXY = "main", "prepare", "sweep", "proxy"
FIT, OPTIMIZE, VERIFY = "fit", "optimize", "verify"
IMPORT, EXPORT = "import", "export"
DESIGN = "design"
EXPLORE = "explore"
TRIAL = "trial"  # one trial of a search
TARGET = "target"  # a model that tests an answer, or a base model; fits never read it
CRITICAL = "critical"
SCHEDULE = "schedule"
EVALUATE = "evaluate"
REPORT = "report"
STATUS, DELIVER = "status", "deliver"
SCHEDULED = "scheduled"  # a model whose mixture changes during training; fits never read it

# params
MIXTURE = "mixture/"  # proportions over all tokens of a run
PHASE = "phase/"  # <number from 1>/from_tokens and <number>/mixture/<domain> of a schedule
BASE, BASE_DIGEST = "base", "base_digest"  # the model that a run starts from
N_PARAMS = "n_params"  # non-embedding parameters
TOKENS_PER_STEP = "tokens_per_step"
SEED = "seed"
SIZE = "size"
CHANCE = "chance/"  # accuracy of a guess at a task
QUESTIONS = "questions/"  # of a task: how many an evaluation reads
UNIQUE_TOKENS = "unique_tokens/"  # different tokens of a domain that a run may see
UNIT = "unit"  # of the losses of an imported run; default NATS
LOSS_UNIT = "loss_unit"  # of the losses that a sweep, import, fit or search holds
MIXTURE_ID = "mixture_id"  # name of an imported run's mixture in its source
TARGET_N_PARAMS = "target/n_params"
TARGET_TOKENS = "target/tokens"
WEIGHT = "weight/"
DEFAULT_MIXTURE = "default_mixture/"
LOWEST = "lowest/"  # bounds of each domain's proportion
HIGHEST = "highest/"

# names of runs
PROPOSAL = "next-"  # prefix, of runs that `design` proposed

# metrics
VAL_LOSS = "val_loss/"  # nats per token
BEFORE = "before/"  # a domain's loss at the start of a phase, nats per token
VAL_LOSS_SE = "val_loss_se/"  # standard error of val_loss/, nats per token
VAL_LOSS_LOW = "val_loss_low/"  # 90 % interval of a predicted loss
VAL_LOSS_HIGH = "val_loss_high/"
ACCURACY_LOW = "accuracy_low/"  # 90 % interval of a predicted accuracy
ACCURACY_HIGH = "accuracy_high/"
VAL_BPB = "val_bpb/"  # val_loss/ in bits per byte of the text or answers
ACCURACY = "accuracy/"  # of a task: share of questions whose right choice is the likeliest per byte
TOKENS = "tokens"
TRAIN_LOSS = "train_loss"
TOKENS_PER_SECOND = "tokens_per_second"
# MLflow shows metrics in alphabetical order; `volume/` comes after the losses
TRAINED_TOKENS = "volume/trained_tokens/"  # tokens drawn from each domain
PLANNED_TOKENS = "volume/planned_tokens/"  # tokens of each domain by the mixture or schedule
EPOCHS = "volume/epochs/"  # passes over the text that the run may see
BENCHMARK = "benchmark/"  # <task>/<metric>, a model's score
BENCHMARK_DIFFERENCE = "benchmark_difference/"  # of two mixtures' models, best − default
STANDARD_ERROR = "_stderr"  # suffix of a score's standard error

NATS = "nats_per_token"  # the unit of the losses that training writes
BITS = "bits_per_byte"  # that of val_bpb/

MAX_INTEGER = 2**63 - 1  # largest integer that MLflow's stores hold
NAME_LIMIT = 200  # characters of a domain's name; MLflow allows 250 with the longest prefix
TAG_LIMIT = 5000  # characters per tag; MLflow allows 8,000, some stores fewer


def phases(
    schedule: Sequence[tuple[int, Mapping[str, float]]], tokens_per_step: int
) -> dict[str, float]:
    """The phases of a schedule, (first step, mixture) each, as params numbered from 1."""
    params: dict[str, float] = {}
    for i, (step, mixture) in enumerate(schedule, 1):
        params[f"{PHASE}{i}/from_tokens"] = step * tokens_per_step
        params |= with_prefix(f"{PHASE}{i}/{MIXTURE}", mixture)
    return params


def with_prefix(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    """{domain: value} as {prefix + domain: value}."""
    return {prefix + name: value for name, value in values.items()}


def without_prefix(prefix: str, values: Mapping[str, str]) -> dict[str, float]:
    """The entries under a prefix as {domain: number}, in their order."""
    return {
        key.removeprefix(prefix): float(value)
        for key, value in values.items()
        if key.startswith(prefix)
    }


def benchmark(*parts: str) -> str:
    """A benchmark's name, or those of its task and metric, as MLflow can store it."""
    return re.sub(r"[^\w\-. :/]", "_", "/".join(parts))


def name_fault(name: str) -> str | None:
    """What is wrong with the name of a domain, or None; MLflow must be able to store it.

    The same rule applies to studies, imported files and parameters.
    """
    if len(name) > NAME_LIMIT:
        return f"it has {len(name)} characters; a domain's name has at most {NAME_LIMIT}"
    if bad := re.search(r"[^\w\-. :/]", name):
        return (
            f"it contains {bad[0]!r}; a domain's name consists of letters, digits, spaces and "
            "_ - . : /"
        )
    if name != name.strip():
        return "it begins or ends with a space"
    if {"", ".", ".."} & set(name.split("/")):
        return "it, or a part of it between slashes, is empty, '.' or '..'"
    return None


def unit_fault(unit: str) -> str | None:
    """What is wrong with the name of a unit, or None."""
    if re.fullmatch(r"[A-Za-z0-9_-]{1,40}", unit):
        return None
    return (
        f"{unit!r} is not the name of a unit: up to 40 letters, digits, _ and -, such as "
        f"{NATS} or bits_per_byte"
    )


def unit_text(unit: str) -> str:
    """A unit as texts and axes show it: `bits_per_byte` becomes bits/byte."""
    return unit.replace("_per_", "/").replace("_", " ")
