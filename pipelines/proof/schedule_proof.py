"""The proof of a schedule: train it and the best constant mixture with the same seeds."""

from dataclasses import dataclass

import mlflow
import numpy as np
import pandas as pd

from optimization.schedule.plan import CONSTANT, JOINT, ScheduleAnswer
from pipelines.proof import plots
from pipelines.runs.phase_runs import PhaseProxies
from pipelines.runs.proxy_runs import train_missing
from training.engine.devices import Machines
from training.record import keys
from training.record.intervals import t_quantile
from training.record.mixtures import checked_mixture
from training.record.mlflow_runs import last_losses


@dataclass(frozen=True)
class ScheduleProof:
    """The schedule and the best constant mixture, trained with the same seeds."""

    table: pd.DataFrame  # way, seed, run_id, objective, val_loss/<domain>…; in the seeds' order
    gain: float  # of the schedule, mean over the seeds
    half_width: float  # of its 90 % interval, from the seeds' differences
    unit: str

    def measured(self) -> dict[str, list[float]]:
        """Objectives of each way, in the seeds' order."""
        return {str(way): rows["objective"].tolist() for way, rows in self.table.groupby("way")}

    @property
    def verdict(self) -> str:
        """Whether the schedule beat the constant mixture."""
        gain = (
            f"{self.gain:+.4f} ± {self.half_width:.4f} {keys.unit_text(self.unit)} over "
            f"{len(self.table) // 2} seeds"
        )
        if self.gain - self.half_width > 0:
            return f"trained, the schedule is better than the best constant mixture: {gain}"
        if self.gain + self.half_width < 0:
            return f"trained, the schedule is worse than the best constant mixture: {gain}"
        return f"trained, the schedule does not beat the best constant mixture: {gain}"


def prove(
    proxies: PhaseProxies, answer: ScheduleAnswer, machines: Machines, active: mlflow.ActiveRun
) -> ScheduleProof:
    """Train the schedule and the best constant mixture with every seed."""
    domains, prepared = answer.predictor.domains, proxies.prepared
    planned = {
        (name, seed): proxies.run(
            f"{name}-seed{seed}",
            [
                checked_mixture(dict(zip(domains, map(float, mixture), strict=True)), domains)
                for mixture in answer.strategies[name].schedule
            ],
            seed,
        )
        for seed in proxies.section.seeds
        for name in (JOINT, CONSTANT)
    }
    run_ids = train_missing(prepared, list(planned.values()), machines, keys.SCHEDULE, active)
    unit = prepared.study.unit
    rows = []
    for (name, seed), run in planned.items():
        losses = last_losses(run_ids[run.name], unit)
        objective = sum(w * losses[d] for d, w in prepared.study.weights().items())
        rows.append(
            {
                "way": name,
                "seed": seed,
                "run_id": run_ids[run.name],
                "objective": objective,
                **keys.with_prefix(keys.VAL_LOSS, losses),
            }
        )
    table = pd.DataFrame(rows)
    by_way = {name: group["objective"].to_numpy() for name, group in table.groupby("way")}
    gains = by_way[CONSTANT] - by_way[JOINT]
    error = gains.std(ddof=1) / np.sqrt(len(gains))
    width = t_quantile(len(gains) - 1) * error
    return ScheduleProof(table, float(gains.mean()), float(width), unit)


def log(answer: ScheduleAnswer, proof: ScheduleProof) -> None:
    """Log measured beside predicted to the active run."""
    mlflow.log_metrics(
        {
            "measured_gain": proof.gain,
            "measured_gain_low": proof.gain - proof.half_width,
            "measured_gain_high": proof.gain + proof.half_width,
        }
    )
    mlflow.log_table(proof.table, "measured.json")
    predicted = {}
    for name in (CONSTANT, JOINT):
        prediction = answer.predictor.predict_one(answer.strategies[name].schedule)
        ends = (prediction["objective"], prediction["objective_low"], prediction["objective_high"])
        predicted[name] = ends
    figure = plots.schedule_proof(proof.measured(), predicted, proof.unit)
    mlflow.log_figure(figure, "figures/measured_beside_predicted.png")


def report(answer: ScheduleAnswer, proof: ScheduleProof) -> list[str]:
    """Measured beside predicted, and the verdict."""
    lines = [f"{'trained on':<22}{'predicted':>10}{'measured':>10}   seeds"]
    for name, losses in proof.measured().items():
        seeds = ", ".join(f"{loss:.4f}" for loss in losses)
        predicted = answer.strategies[name].objectives[-1]
        lines.append(f"{name:<22}{predicted:>10.4f}{np.mean(losses):>10.4f}   {seeds}")
    return [*lines, proof.verdict]
