"""What a fit changed against the version that was registered before it for the same purpose."""

import io
from dataclasses import dataclass
from typing import Any

import mlflow
import numpy as np
import pandas as pd

from fitting.data.histories import Histories
from fitting.diagnostics import optimum
from fitting.fit import Fit
from training.record import keys, layout

RUNS, TAKEN, OPTIMA = "runs.csv", "runs_taken.json", "optimum_by_size.json"
MOVED = 0.005  # share of tokens below which a domain's change is not named


@dataclass(frozen=True)
class Before:
    """An earlier version of the predictor, as its fit's run holds it."""

    version: str
    runs: frozenset[str]  # ids
    law: dict[str, str]  # params `law/…`
    error: float  # cross-validated, of the objective
    best: dict[str, float]  # the mixture that its law calls best


def before(version: str, run_id: str) -> Before | None:
    """What the run that registered a version holds; None where it is gone or lacks it."""
    client = mlflow.MlflowClient()
    try:
        run = client.get_run(run_id)
        table = _table(run_id, OPTIMA)
        return Before(
            version=version,
            runs=_taken(run_id),
            law={k: v for k, v in run.data.params.items() if k.startswith("law/")},
            error=run.data.metrics["cv/objective_mae"],
            best=keys.without_prefix(keys.MIXTURE, dict(table.iloc[-1])),
        )
    except Exception:  # of whatever store holds it; without it a fit tells no changes
        return None


def told(old: Before, found: Fit, pulled: Histories, law: dict[str, Any]) -> str:
    """What changed since, in one line: runs, law, error, best mixture."""
    now = frozenset(found.observations.runs)
    parts = []
    for sign, ids in (("more", now - old.runs), ("fewer", old.runs - now)):
        if ids:
            names = sorted(pulled.names.get(run, run[:8]) for run in ids)
            parts.append(f"{len(ids)} {sign} run{'s' * (len(ids) > 1)} ({layout.some(names)})")
    changed = [
        f"{key.removeprefix('law/')} {value} (was {old.law.get(key, 'none')})"
        for key, value in law.items()
        if old.law.get(key) != str(value)
    ]
    if changed:
        parts.append("law: " + ", ".join(changed))
    if not parts:
        return f"since version {old.version}: nothing changed, neither the runs nor the law"
    error = found.choice.scores.objective_mae
    parts.append(f"error on held-out mixtures {error:.4f} (was {old.error:.4f})")
    parts.append(
        _moved(old.best, dict(zip(found.observations.domains, found.best.mixture, strict=True)))
    )
    same = "" if now != old.runs else "the same runs; "
    return f"since version {old.version}: {same}{'; '.join(parts)}"


def _taken(run_id: str) -> frozenset[str]:
    """The ids of the runs whose evaluations were fitted."""
    taken = _table(run_id, TAKEN)
    if "id" in taken:
        return frozenset(taken.loc[taken["id"] != "", "id"])
    pulled = mlflow.artifacts.load_text(_uri(run_id, RUNS))  # of a fit that did not tell
    return frozenset(pd.read_csv(io.StringIO(pulled))["run"])


def _table(run_id: str, path: str) -> pd.DataFrame:
    held = mlflow.artifacts.load_dict(_uri(run_id, path))
    return pd.DataFrame(held["data"], columns=held["columns"])


def _moved(old: dict[str, float], new: dict[str, float]) -> str:
    domains = [*new, *(d for d in old if d not in new)]
    change = {d: new.get(d, 0.0) - old.get(d, 0.0) for d in domains}
    zero = np.zeros(len(change))
    moved = float(optimum.apart(np.array([*change.values()]), zero))
    large = sorted((d for d in change if abs(change[d]) >= MOVED), key=lambda d: -abs(change[d]))
    named = f" ({layout.some([f'{d} {change[d]:+.3f}' for d in large])})" if large else ""
    return f"the best mixture moved by {100 * moved:.1f} % of the tokens{named}"


def _uri(run_id: str, path: str) -> str:
    return f"runs:/{run_id}/{path}"
