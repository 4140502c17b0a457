"""`export`: the complete proxy runs of experiments → a tidy table, CSV or Parquet."""

from dataclasses import dataclass
from pathlib import Path

import mlflow

from fitting.data import histories
from pipelines import entry
from pipelines.command import table
from pipelines.command.output import writing
from pipelines.runs import preflight
from training.record import keys
from training.record.errors import InputError

FORMATS = (".csv", ".parquet")


@dataclass(frozen=True)
class Parameters:
    experiment: str = table.experiment()
    runs: str = table.runs()
    output: str = table.parameter("The file to write, CSV or Parquet.", default="runs.csv")


def export(experiment_ids: list[str], runs: str, output: str) -> None:
    """Write the table that a fit of these runs would read; its column `run` has the runs' names."""
    path = Path(output).absolute()
    if path.suffix not in FORMATS:
        raise InputError(f"output: {output!r} must end in {' or '.join(FORMATS)}")
    preflight.output(path)
    pulled = histories.pull(experiment_ids, runs)
    table = pulled.table.assign(run=pulled.table["run"].map(pulled.names))
    table[keys.N_PARAMS] = table[keys.N_PARAMS].astype(int)
    for task, guess in pulled.guesses.items():
        table[keys.CHANCE + task], table[keys.QUESTIONS + task] = guess.chance, guess.questions
    if pulled.unit != keys.NATS:
        table.insert(1, keys.UNIT, pulled.unit)
    write = table.to_csv if path.suffix == ".csv" else table.to_parquet
    with writing(path):
        write(path, index=False)
    count = table["run"].nunique()
    mlflow.log_metrics({"runs_exported": count, "runs_left_out": len(pulled.left_out)})
    print(f"export: {count} runs, {len(table):,} evaluations → {path}")
    if pulled.left_out:
        print(f"  left out: {histories.counted(pulled.left_out)}")


def main(parameters: Parameters, active: mlflow.ActiveRun) -> None:
    experiments = entry.experiment_ids(parameters.experiment, active)
    export(experiments, parameters.runs, parameters.output)
