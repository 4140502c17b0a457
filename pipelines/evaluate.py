"""`evaluate`: run benchmarks of EleutherAI's lm-eval on a trained model."""

from dataclasses import dataclass

import mlflow

from pipelines.benchmarks import harness, saved_model, scores
from pipelines.command import advice, table
from training.record import keys, layout, markdown


@dataclass(frozen=True)
class Parameters:
    model: str = table.parameter(
        "A saved model: `runs:/<id>/model`, `models:/<name>/<version>`, a folder or a hub id.",
        default=None,
    )
    benchmarks: list[str] = table.benchmarks(default=None)
    limit: int | None = table.limit()
    few_shot: int | None = table.few_shot()
    batch_size: int = table.batch_size()


def main(parameters: Parameters, active: mlflow.ActiveRun) -> None:
    model = saved_model.find(parameters.model)
    settings = harness.Settings(parameters.limit, parameters.few_shot, parameters.batch_size)
    suite = harness.load(parameters.benchmarks, settings)
    outcomes = []
    with model.files() as source:
        for outcome in suite.outcomes(source, f"model: {model.location!r}"):
            scores.log(active.info.run_id, outcome)
            if model.run_id and not parameters.limit:
                scores.log(model.run_id, outcome)
            outcomes.append(outcome)
    lines = scores.lines(outcomes)
    print("\n".join(lines))
    trained = f"`{model.location}`"
    if model.run_id:
        run = mlflow.get_run(model.run_id)
        trained = markdown.link(str(run.info.run_name), markdown.run_page(run))
        mlflow.log_param("model_run", model.run_id)
        if parameters.limit:
            print("with a limit the scores are not logged to the model's run")
        else:
            print(f"logged to the model's run {run.info.run_name}:  {advice.look_at(run)}")
    mlflow.set_tag(keys.NOTE, f"The model: {trained}\n\n{layout.description(lines)}")
    mlflow.log_text("\n".join(lines), layout.REPORT)
