"""What the models took to train."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mlflow.entities import Run

from training.record import keys

MILLISECONDS = 3.6e6  # per hour
PROXIES, TARGETS = "proxies", "targets"


@dataclass(frozen=True)
class Trained:
    """The models of one kind and size."""

    kind: str
    size: str
    n_params: float  # non-embedding
    runs: int
    tokens: float  # of all together
    flops: float
    hours: float | None  # of all together, each from its start to its end; None: trained elsewhere


def of(fitted: Sequence[Run], targets: Sequence[Run]) -> tuple[Trained, ...]:
    """A row for each kind and size, the smallest size first."""
    rows = []
    for kind, runs in ((PROXIES, fitted), (TARGETS, targets)):
        groups: dict[float, list[Run]] = {}
        for run in runs:
            groups.setdefault(float(run.data.params.get(keys.N_PARAMS, "nan")), []).append(run)
        rows += [_row(kind, n, groups[n]) for n in sorted(groups)]
    return tuple(rows)


def flops(run: Run) -> float:
    """6 FLOPs per token and parameter, without the input embedding; where the embeddings are not
    known, without both."""
    params = run.data.params
    output = float(params.get("n_embedding_params", 0)) / 2
    n_params = float(params.get(keys.N_PARAMS, "nan"))
    return 6 * (n_params + output) * run.data.metrics.get(keys.TOKENS, math.nan)


def hours(run: Run) -> float | None:
    """From the run's start to its end; None for a run that was trained elsewhere."""
    if keys.IMPORTED_FROM in run.data.tags or not run.info.end_time:
        return None
    return float(run.info.end_time - run.info.start_time) / MILLISECONDS


def _row(kind: str, n_params: float, runs: Sequence[Run]) -> Trained:
    each = [hours(run) for run in runs]
    known = [h for h in each if h is not None]
    return Trained(
        kind=kind,
        size=runs[0].data.params.get(keys.SIZE, ""),
        n_params=n_params,
        runs=len(runs),
        tokens=math.fsum(run.data.metrics.get(keys.TOKENS, math.nan) for run in runs),
        flops=math.fsum(map(flops, runs)),
        hours=math.fsum(known) if len(known) == len(each) else None,
    )
