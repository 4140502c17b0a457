"""Critical proportions of pairs of embedded domains: predicted, and measured by training.

    python -m tests.benchmarks.critical_pairs [folder]

For each pair a tiny base is trained on the original domain and continued on six mixtures with the
new one, to which the law is fitted as `critical` does. The same base is then continued on nine
other mixtures with two other seeds; where the mean of these losses crosses the base's lies the
measured critical proportion. A run that the folder's MLflow store holds is not trained again;
without a folder everything is thrown away.
"""

import sys
import tempfile
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd

from optimization.continual.solve import ForgettingCurve
from pipelines import critical, entry
from pipelines.prepare import prepare
from pipelines.runs import continual_runs
from pipelines.runs.continual_law import Question
from pipelines.runs.proxy_runs import train_missing
from pipelines.study.study import Study
from training.record import keys
from training.record.mlflow_runs import last_losses

DOMAINS = {"python": 3, "docs": 3, "cpp": 3, "web": 1.5, "tables": 1}  # and their max_mb
PAIRS = (
    ("python", "docs"),
    ("docs", "cpp"),
    ("cpp", "web"),
    ("web", "tables"),
    ("tables", "python"),
)
FITTED = (0.05, 0.15, 0.3, 0.5, 0.7, 0.95)  # shares of the original
MEASURED = (0.1, 0.2, 0.25, 0.35, 0.4, 0.45, 0.6, 0.8, 0.9)
SEEDS = (1, 2)


def study(folder: Path, original: str, new: str) -> Study:
    return Study.model_validate(
        {
            "name": f"{original}-{new}",
            "domains": {n: {"embedded": n, "max_mb": size} for n, size in DOMAINS.items()},
            "tokenizer": {"vocab_size": 1024},
            "validation": {"fraction": 0.15, "tokens": 16_384},
            "sizes": {"57k": {"hidden_size": 48, "layers": 2, "heads": 3}},
            "training": {
                "sequence_length": 64,
                "batch_size": 16,
                "steps": 600,
                "warmup_steps": 60,
                "first_evaluation": 600,
                "evaluations": 1,
            },
            "sweep": {"mixtures": 3, "sizes": ["57k"]},
            "target": {"size": "57k", "steps": 600},
            "critical": {
                "size": "57k",
                "original": {original: 1},
                "new": {new: 1},
                "steps": 300,
                "shares": list(FITTED),
                "decay": 0.3,
                "seeds": [],
            },
            "workspace": folder / "workspace",
        }
    )


def measure(study: Study, active: mlflow.ActiveRun) -> pd.DataFrame:
    """A row a run that is not fitted: share, seed, original and new loss at the end."""
    section = study.critical
    assert section is not None
    prepared, machines = prepare(study), entry.machines()
    continuation = continual_runs.of_base(prepared, section, machines, active)
    planned = {
        (share, seed): continuation.run(
            f"measured-{share:g}-seed{seed}",
            continual_runs.blend(study, section, share), seed, keys.TARGET,
        )
        for share in MEASURED
        for seed in SEEDS
    }  # fmt: skip
    ids = train_missing(prepared, list(planned.values()), machines, keys.CRITICAL, active)
    sides = {"original": next(iter(section.original)), "new": next(iter(section.new))}
    rows = []
    for (share, seed), run in planned.items():
        losses = last_losses(ids[run.name])
        rows.append({"share": share, "seed": seed} | {s: losses[d] for s, d in sides.items()})
    return pd.DataFrame(rows)


def crossing(shares: np.ndarray, losses: np.ndarray, level: float) -> float:
    """The least share at which the line through the losses comes down to the level; NaN: none."""
    below = np.flatnonzero(losses <= level)
    if not len(below) or below[0] == 0:
        return np.nan
    ends = slice(below[0] - 1, below[0] + 1)
    return float(np.interp(-level, -losses[ends], shares[ends]))


def compared(found: ForgettingCurve, measured: pd.DataFrame) -> dict[str, object]:
    """Predicted beside measured of one pair."""
    before, answer = found.before[0], found.answers[0]
    by_seed = [
        crossing(rows["share"].to_numpy(), rows["original"].to_numpy(), before)
        for _, rows in measured.groupby("seed")
    ]
    means = measured.groupby("share")[["original", "new"]].mean()
    at = crossing(means.index.to_numpy(), means["original"].to_numpy(), before)
    predicted = []
    for share in means.index:
        line = found.line(2)  # least and most original data
        ends = line @ found.is_original
        step = (share - ends[0]) / (ends[1] - ends[0])
        original, new = found.losses((1 - step) * line[0] + step * line[1])
        predicted.append((original[0], new[0]))
    errors = np.array(predicted) - means.to_numpy()
    low, high = answer.share_low, answer.share_high
    return {
        "base": before,
        "predicted": answer.share,
        "low": low,
        "high": high,
        "measured": at,
        "seeds": ", ".join(f"{x:.3f}" for x in by_seed),
        "forgotten at 0.1, measured": means["original"].iloc[0] - before,
        "predicted ": predicted[0][0] - before,
        "rms original": float(np.sqrt((errors[:, 0] ** 2).mean())),
        "rms new": float(np.sqrt((errors[:, 1] ** 2).mean())),
        "new there": answer.new and answer.new[0],
        "new there, measured": float(np.interp(answer.share or np.nan, means.index, means["new"])),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else scratch).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        if mlflow.get_experiment_by_name("pairs") is None:
            mlflow.create_experiment("pairs", artifact_location=(folder / "artifacts").as_uri())
        mlflow.set_experiment("pairs")
        rows = {}
        for original, new in PAIRS:
            plan = study(folder, original, new)
            assert plan.critical is not None
            question = Question([original], [], {}, None, [0.0], f"{original}-{new}")
            with entry.stage(keys.CRITICAL) as active:
                answer = critical.of_study(plan, plan.critical, question, entry.machines(), active)
                rows[f"{original} → {new}"] = compared(answer.forgetting, measure(plan, active))
        table = pd.DataFrame(rows).map(lambda x: f"{x:.4f}" if isinstance(x, float) else x)
        print(table.to_string())


if __name__ == "__main__":
    main()
