"""Log critical proportions to their MLflow run."""

import mlflow
import pandas as pd

from optimization.continual import plots
from optimization.continual.report import CriticalAnswer, named, report
from training.record import keys, layout


def log(answer: CriticalAnswer) -> None:
    """Log an answer to the active run."""
    forgetting = answer.forgetting
    metrics = {"base/original": forgetting.before[0], "base/new": forgetting.before[1]}
    rows = []
    for critical in forgetting.answers:
        values = {
            "share": critical.share,
            "share_low": critical.share_low,
            "share_high": critical.share_high,
            "original_loss": critical.original and critical.original[0],
            "new_loss": critical.new and critical.new[0],
            "bound": critical.bound,
        }
        shares = {} if critical.mixture is None else named(forgetting, critical.mixture)
        rows.append(
            {"tolerance": critical.tolerance, **values, **keys.with_prefix(keys.MIXTURE, shares)}
        )
        prefix = f"tolerance_{critical.tolerance:g}" if critical.tolerance else "critical"
        metrics |= {f"{prefix}/{name}": x for name, x in values.items() if x is not None}
    mixture = forgetting.answers[0].mixture
    if mixture is not None:
        mlflow.log_params(keys.with_prefix(keys.MIXTURE, named(forgetting, mixture)))
    if len(answer.checks):
        metrics |= {
            f"measured/{side}": float(answer.checks[side].mean()) for side in ("original", "new")
        }
    mlflow.log_metrics(metrics)
    tables = {
        "critical": pd.DataFrame(rows),
        "forgetting": forgetting.curve,
        "runs": answer.measured,
    }
    for name, table in tables.items():
        mlflow.log_table(table, f"{name}.json")
    for name, figure in (
        ("critical_proportion", plots.against_share(forgetting, answer.measured)),
        ("learnt_against_forgotten", plots.learnt_against_forgotten(forgetting, answer.measured)),
    ):
        mlflow.log_figure(figure, f"figures/{name}.png")
    lines = report(answer)
    mlflow.set_tag(keys.NOTE, layout.description(lines))
    mlflow.log_text("\n".join(lines), layout.REPORT)
