"""Stress the mixing law: mixtures of every two of the five embedded domains, trained and refitted.

    python -m tests.benchmarks.stress_laws [folder] [steps]

Trains one tiny model on five mixtures of each of the ten pairs, on each domain alone, and on the
even mixtures again with another seed, which tells the noise: 65 runs. A run that the folder's
MLflow store holds is not trained again; without a folder everything is thrown away. Then, for each
pair and φ, the exponential law with the usual ridge predicts mixtures that it was not fitted to,
against predicting the mean of those that it was.
"""

import itertools
import sys
import tempfile
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd

from fitting.artifact.spec import Target
from fitting.data import histories
from fitting.data.observations import Observations
from fitting.estimators import candidates
from fitting.estimators.candidates import Candidate
from fitting.selection import forms
from pipelines import entry
from pipelines.prepare import prepare
from pipelines.runs.proxy_runs import proxy_runs, train_missing
from pipelines.study.study import Study
from training.record import keys
from training.record.mixtures import MIXTURE_TOLERANCE, checked_mixture

DOMAINS = {"python": 3, "docs": 3, "cpp": 3, "web": 1.5, "tables": 1}  # and their max_mb
PAIRS = tuple(itertools.combinations(DOMAINS, 2))
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of a pair's first domain
STEPS = 300
USUAL, AGAIN = 0, 1  # seeds
MEAN = "mean"
SPLITS: dict[
    str, list[tuple[float, ...]]
] = {  # what is held out at a time; all other shares but 0 and 1 are fitted
    "left out": [(share,) for share in SHARES],
    "inner": [(share,) for share in SHARES[1:-1]],
    "ends": [(SHARES[0], SHARES[-1])],
    "alone": [(0.0, 1.0)],
}


def study(folder: Path, steps: int) -> Study:
    """Every mixture of the stress test as one study."""
    alone = [{name: 1.0} for name in DOMAINS]
    pairs = [{a: share, b: 1 - share} for a, b in PAIRS for share in SHARES]
    return Study.model_validate(
        {
            "name": "stress",
            "domains": {n: {"embedded": n, "max_mb": size} for n, size in DOMAINS.items()},
            "tokenizer": {"vocab_size": 1024},
            "validation": {"fraction": 0.15, "tokens": 16_384},
            "sizes": {"57k": {"hidden_size": 48, "layers": 2, "heads": 3}},
            "training": {
                "sequence_length": 64,
                "batch_size": 16,
                "steps": steps,
                "warmup_steps": min(40, steps // 4),
                "first_evaluation": steps,
                "evaluations": 1,
            },
            "sweep": {"mixtures": [*alone, *pairs], "sizes": ["57k"], "seed": USUAL},
            "target": {"size": "57k", "steps": steps},
            "workspace": folder / "workspace",
        }
    )


def train(folder: Path, steps: int) -> pd.DataFrame:
    """The tidy table of every run, trained unless the folder's store holds it, and its seed."""
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    if mlflow.get_experiment_by_name("stress") is None:
        mlflow.create_experiment("stress", artifact_location=(folder / "artifacts").as_uri())
    experiment = mlflow.set_experiment("stress").experiment_id
    plan = study(folder, steps)
    prepared = prepare(plan)
    even = [{a: 0.5, b: 0.5} for a, b in PAIRS]
    again = [
        prepared.run(
            f"again-{'-'.join(mixture)}",
            checked_mixture(mixture, list(plan.domains)),
            size="57k",
            seed=AGAIN,
        )
        for mixture in even
    ]
    with entry.stage(keys.SWEEP) as active:
        runs = [*proxy_runs(prepared), *again]
        train_missing(prepared, runs, entry.machines(), keys.SWEEP, active)
    comparable = f"tags.{keys.STUDY} = '{prepared.tag}' and params.max_steps = '{steps}'"
    tables = []
    for seed in (USUAL, AGAIN):
        pulled = histories.pull([experiment], f"{comparable} and params.{keys.SEED} = '{seed}'")
        tables.append(pulled.table.assign(seed=seed))
    return pd.concat(tables, ignore_index=True)


def of_pair(table: pd.DataFrame, pair: tuple[str, str]) -> pd.DataFrame:
    """The rows with no other domain, without the columns of those."""
    both = table[[keys.MIXTURE + name for name in pair]].sum(axis=1)
    others = [keys.MIXTURE + name for name in DOMAINS if name not in pair]
    return table[both > 1 - MIXTURE_TOLERANCE].drop(columns=others)


def held_out_errors(table: pd.DataFrame, pair: tuple[str, str]) -> list[dict[str, object]]:
    """A row for each split, law and validation domain: rms error, nats per token."""
    o = Observations.from_tidy(of_pair(table, pair))
    shares = o.proportions()[:, o.domains.index(pair[0])].round(6)
    target = Target(o.n_params[0], o.tokens[0])
    found: list[dict[str, object]] = []
    for split, held_out in SPLITS.items():
        errors: dict[str, list[np.ndarray]] = {}
        for left_out in held_out:
            test = np.isin(shares, left_out)
            fitted = o.rows(~test & np.isin(shares, SHARES))
            asked = o.rows(test)
            errors.setdefault(MEAN, []).append(fitted.losses.mean(axis=0) - asked.losses)
            for power in forms.POWERS:
                candidate = Candidate("joint", power=power, ridge=forms.USUAL_RIDGE)
                law = candidates.fit(fitted, candidate, target)
                predicted = law.predict(asked.proportions(), asked.n_params, asked.tokens)
                errors.setdefault(phi(power), []).append(predicted - asked.losses)
        for law_name, parts in errors.items():
            rms = np.sqrt((np.concatenate(parts) ** 2).mean(axis=0))
            found += [
                {
                    "pair": " + ".join(pair),
                    "split": split,
                    "law": law_name,
                    "validated on": "the pair" if name in pair else "others",
                    "square": error**2,
                }
                for name, error in zip(o.val_domains, rms, strict=True)
            ]
    return found


def phi(power: float) -> str:
    return {1.0: "r", 0.5: "√r", 0.0: "log(r+ε)"}.get(power, f"r^{power:g}")


def noise(table: pd.DataFrame) -> float:
    """Standard deviation of a loss over seeds, from the mixtures that were trained twice."""
    mixture = [column for column in table if column.startswith(keys.MIXTURE)]
    losses = [column for column in table if column.startswith(keys.VAL_LOSS)]
    rounded = [table[column].round(6) for column in mixture]
    twice = table.groupby(rounded)[losses].agg(["var", "count"]).stack(level=0, future_stack=True)
    return float(np.sqrt(twice.loc[twice["count"] > 1, "var"].mean()))


def rms(errors: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Rms error of each law over all else than `by`, and what those of φ = r and √r are of the
    mean's."""
    laws = [MEAN, *map(phi, forms.POWERS)]
    table = np.sqrt(errors.groupby([*by, "law"], sort=False)["square"].mean()).unstack()[laws]
    return table.assign(**{f"{law}/mean": table[law] / table[MEAN] for law in ("r", "√r")})


def report(table: pd.DataFrame) -> None:
    usual = table[table["seed"] == USUAL].drop(columns="seed")
    errors = pd.DataFrame([row for pair in PAIRS for row in held_out_errors(usual, pair)])
    of_pairs = errors[(errors["split"] == "left out") & (errors["validated on"] == "the pair")]
    by_pair = rms(of_pairs, ["pair"])
    floor = noise(table.drop(columns="seed"))
    print("\nrms error on each held-out mixture, both domains of the pair, nats per token")
    print(by_pair.round(4).to_string())
    print("\nthe same over all pairs; inner: 0.3 to 0.7 left out, ends: 0.1 and 0.9 left out at")
    print("once, alone: each domain alone, predicted from its mixtures")
    print(rms(errors, ["validated on", "split"]).round(4).to_string())
    ratio = by_pair["√r/mean"]
    best = by_pair[[phi(power) for power in forms.POWERS]].idxmin(axis=1).value_counts()
    print(
        f"\n√r is off by {ratio.median():.0%} of the mean's error on the median pair, by "
        f"{ratio.max():.0%} on the worst ({ratio.idxmax()}); two seeds differ with a standard "
        f"deviation of {floor:.4f}; best φ: "
        + ", ".join(f"{law} on {count}" for law, count in best.items())
    )


def main() -> None:
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else STEPS
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else scratch).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        report(train(folder, steps))


if __name__ == "__main__":
    main()
