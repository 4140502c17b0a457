"""What a proxy run holds in MLflow: the names that `training` writes and `fitting` reads.

Nothing heavy is imported here, and no name is built or parsed anywhere else.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from training.record.errors import InputError

# tags
STAGE = "stage"
COMPLETE = "complete"
ERROR = "error"
DIVERGED = "diverged"
FINGERPRINT = "fingerprint"  # of what a run's losses depend on; of an imported run, its content
CHECK = "check"  # "true": a run that checks predictions; fits never read it
IMPORTED_FROM = "imported_from"  # the file that an imported run came from
STUDY = "study"
PLANNED = "planned_by"  # id of the sweep that found this run trained already
PROCESS = "process"  # which process writes this run: machine, number and when it began
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
TRIAL = "trial"  # of a search
TARGET = "target"  # a model that proves an answer, or a base; fits never read it
CRITICAL = "critical"
SCHEDULE = "schedule"
SCHEDULED = "scheduled"  # a model whose mixture changes while it trains; nor this

# params
MIXTURE = "mixture/"  # of all tokens of a run
PROPOSAL = "next-"  # how the names of runs begin that `design` proposed
PHASE = "phase/"  # <number from 1>/from_tokens and <number>/mixture/<domain> of a schedule
BASE, BASE_DIGEST = "base", "base_digest"  # the model that a run continues
N_PARAMS = "n_params"  # non-embedding parameters
TOKENS_PER_STEP = "tokens_per_step"
SEED = "seed"
SIZE = "size"
UNIT = "unit"  # of the losses of an imported run, a fit and a predictor; else NATS
MIXTURE_ID = "mixture_id"  # what the source of an imported run calls its mixture
TARGET_N_PARAMS = "target/n_params"
TARGET_TOKENS = "target/tokens"
WEIGHT = "weight/"
DEFAULT_MIXTURE = "default_mixture/"
LOWEST = "lowest/"  # bounds of each domain's proportion
HIGHEST = "highest/"

# metrics
VAL_LOSS = "val_loss/"  # nats per token
BEFORE = "before/"  # val_loss/ at the start of a phase
VAL_LOSS_SE = "val_loss_se/"  # standard error of val_loss/, nats per token
VAL_LOSS_LOW = "val_loss_low/"  # 90 % interval of a predicted loss
VAL_LOSS_HIGH = "val_loss_high/"
VAL_BPB = "val_bpb/"  # bits per byte
TOKENS = "tokens"
TRAIN_LOSS = "train_loss"
TOKENS_PER_SECOND = "tokens_per_second"
TRAINED_TOKENS = "trained_tokens/"  # drawn from each domain
PLANNED_TOKENS = "planned_tokens/"  # what the mixture or schedule has of it by then
EPOCHS = "epochs/"  # how often they went through the text that the run may see

NATS = "nats_per_token"  # the unit of the losses that training writes

MIXTURE_TOLERANCE = 1e-3
LARGEST = 2**63 - 1  # integer that MLflow's stores hold
NAME_LIMIT = 200  # characters of a domain's name; MLflow allows 250 with the longest prefix
TAG_LIMIT = 5000  # characters a tag; MLflow allows 8,000, some stores fewer


@dataclass(frozen=True)
class Evaluation:
    """Validation losses of every domain at one step, nats per token, and their standard errors."""

    losses: dict[str, float]
    standard_errors: dict[str, float]


@dataclass(frozen=True)
class History:
    """The validation losses of one run.

    `losses` is (evaluations, domains) in nats per token, NaN where there is none; `steps` and
    `tokens` are (evaluations,).
    """

    domains: tuple[str, ...]
    steps: tuple[int, ...]
    tokens: tuple[int, ...]
    losses: tuple[tuple[float, ...], ...]


def history_tags(history: History) -> dict[str, str]:
    """The compact copy of a history, cut into tags `history/0`, `history/1`, …"""
    text = json.dumps(
        {
            "domains": history.domains,
            "steps": history.steps,
            "tokens": history.tokens,
            "losses": [
                [None if math.isnan(x) else float(f"{x:.9g}") for x in row]
                for row in history.losses
            ],
        },
        separators=(",", ":"),
    )
    parts = [text[i : i + TAG_LIMIT] for i in range(0, len(text), TAG_LIMIT)]
    return {f"{HISTORY}{i}": part for i, part in enumerate(parts)}


def history_from_tags(tags: Mapping[str, str]) -> History | None:
    """The history in a run's tags; None where there is none or it is not whole."""
    parts: list[str] = []
    while (key := f"{HISTORY}{len(parts)}") in tags:
        parts.append(tags[key])
    try:
        raw = json.loads("".join(parts))
    except json.JSONDecodeError:
        return None
    found = History(
        domains=tuple(raw["domains"]),
        steps=tuple(raw["steps"]),
        tokens=tuple(raw["tokens"]),
        losses=tuple(tuple(math.nan if x is None else x for x in row) for row in raw["losses"]),
    )
    lengths = {len(found.steps), len(found.tokens), len(found.losses)}
    whole = len(lengths) == 1 and {len(row) for row in found.losses} <= {len(found.domains)}
    return found if whole else None


def phases(
    schedule: Sequence[tuple[int, Mapping[str, float]]], tokens_per_step: int
) -> dict[str, float]:
    """The phases of a schedule (steps done when it begins, mixture) as params, from 1."""
    found: dict[str, float] = {}
    for i, (step, mixture) in enumerate(schedule, 1):
        found[f"{PHASE}{i}/from_tokens"] = step * tokens_per_step
        found |= with_prefix(f"{PHASE}{i}/{MIXTURE}", mixture)
    return found


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


def checked_mixture(
    mixture: Mapping[str, float], domains: Sequence[str], where: str = "mixture"
) -> dict[str, float]:
    """Proportions of every domain in `domains` order, summing to exactly one.

    A domain that is left out has proportion 0. A sum within 1e-3 of one is rounding and is
    divided out. Raises InputError for an unknown domain, a negative or non-finite proportion,
    or a sum further from one.
    """
    refuse_unknown(mixture, domains, where)
    for name, value in mixture.items():
        if not math.isfinite(value) or value < 0:
            raise InputError(f"{where}: proportion of {name!r} is {value}; it must be >= 0")
    total = math.fsum(mixture.values())
    if abs(total - 1) > MIXTURE_TOLERANCE:
        raise InputError(
            f"{where}: the proportions sum to {total:.6g}; they must sum to 1 "
            f"(within {MIXTURE_TOLERANCE:g})"
        )
    return {name: mixture.get(name, 0.0) / total for name in domains}


def checked_weights(weights: Mapping[str, float], domains: Sequence[str]) -> list[float]:
    """Weights of every validation domain in `domains` order, divided by their sum.

    Raises InputError for an unknown domain, one without a weight, a weight that is negative or no
    number, and weights that are all 0.
    """
    refuse_unknown(weights, domains, "weights")
    missing = [name for name in domains if name not in weights]
    if missing:
        raise InputError(f"weights: no weight for {', '.join(missing)}; give 0 to ignore a domain")
    raw = [weights[name] for name in domains]
    if not all(math.isfinite(w) and w >= 0 for w in raw) or not sum(raw):
        raise InputError("weights: they must be >= 0 and not all 0")
    return [w / math.fsum(raw) for w in raw]


def name_fault(name: str) -> str | None:
    """What is wrong with the name of a domain, or None: it must be what MLflow can hold.

    The same rule holds in studies, imported files and parameters.
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
    """A unit as texts and axes have it: `bits_per_byte` is bits/byte."""
    return unit.replace("_per_", "/").replace("_", " ")


def refuse_unknown(names: Iterable[str], known: Sequence[str], where: str) -> None:
    """Raise InputError for the first name that is not a known domain."""
    for name in names:
        if name not in known:
            raise InputError(f"{where}: unknown domain {name!r}; known: {', '.join(known)}")
