"""What changed in a fit since the previous registered version with the same purpose."""

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
MIN_CHANGE = 0.005  # share of tokens; a domain that changed by less is not named


@dataclass(frozen=True)
class EarlierVersion:
    """An earlier version of the predictor, as its fit's run recorded it."""

    version: str
    runs: frozenset[str]  # ids
    law: dict[str, str]  # params `law/…`
    error: float  # cross-validated, of the objective
    best: dict[str, float]  # the best mixture by its law


def read_version(version: str, run_id: str) -> EarlierVersion | None:
    """What the run that registered a version recorded; None if the run or a record is missing."""
    client = mlflow.MlflowClient()
    try:
        run = client.get_run(run_id)
        table = _table(run_id, OPTIMA)
        return EarlierVersion(
            version=version,
            runs=_fitted_runs(run_id),
            law={k: v for k, v in run.data.params.items() if k.startswith("law/")},
            error=run.data.metrics["cv/objective_mae"],
            best=keys.without_prefix(keys.MIXTURE, dict(table.iloc[-1])),
        )
    except Exception:  # from any kind of store; a fit then reports no changes
        return None


def summary(old: EarlierVersion, fit: Fit, pulled: Histories, law: dict[str, Any]) -> str:
    """What changed since an earlier version, in one line: runs, law, error, best mixture."""
    runs = frozenset(fit.observations.runs)
    parts = []
    for word, ids in (("more", runs - old.runs), ("fewer", old.runs - runs)):
        if ids:
            names = sorted(pulled.names.get(run, run[:8]) for run in ids)
            parts.append(f"{len(ids)} {word} run{'s' * (len(ids) > 1)} ({layout.some(names)})")
    changed = [
        f"{key.removeprefix('law/')} {value} (was {old.law.get(key, 'none')})"
        for key, value in law.items()
        if old.law.get(key) != str(value)
    ]
    if changed:
        parts.append("law: " + ", ".join(changed))
    if not parts:
        return f"since version {old.version}: nothing changed, neither the runs nor the law"
    error = fit.choice.scores.objective_mae
    parts.append(f"error on held-out mixtures {error:.4f} (was {old.error:.4f})")
    parts.append(
        _best_moved(old.best, dict(zip(fit.observations.domains, fit.best.mixture, strict=True)))
    )
    same = "" if runs != old.runs else "the same runs; "
    return f"since version {old.version}: {same}{'; '.join(parts)}"


def _fitted_runs(run_id: str) -> frozenset[str]:
    """The ids of the runs whose evaluations were fitted."""
    taken = _table(run_id, TAKEN)
    if "id" in taken:
        return frozenset(taken.loc[taken["id"] != "", "id"])
    pulled = mlflow.artifacts.load_text(_uri(run_id, RUNS))  # an older fit recorded no ids
    return frozenset(pd.read_csv(io.StringIO(pulled))["run"])


def _table(run_id: str, path: str) -> pd.DataFrame:
    raw = mlflow.artifacts.load_dict(_uri(run_id, path))
    return pd.DataFrame(raw["data"], columns=raw["columns"])


def _best_moved(old: dict[str, float], new: dict[str, float]) -> str:
    domains = [*new, *(d for d in old if d not in new)]
    change = {d: new.get(d, 0.0) - old.get(d, 0.0) for d in domains}
    zero = np.zeros(len(change))
    distance = float(optimum.apart(np.array([*change.values()]), zero))
    large = [d for d in change if abs(change[d]) >= MIN_CHANGE]
    large = sorted(large, key=lambda d: -abs(change[d]))
    listed = f" ({layout.some([f'{d} {change[d]:+.3f}' for d in large])})" if large else ""
    return f"the best mixture moved by {100 * distance:.1f} % of the tokens{listed}"


def _uri(run_id: str, path: str) -> str:
    return f"runs:/{run_id}/{path}"
