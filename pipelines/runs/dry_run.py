"""`plan=true`: a dry run, which says what a sweep or a run would take and trains nothing."""

from collections.abc import Sequence

import mlflow
import pandas as pd

from pipelines.runs import budget as budgets
from pipelines.runs.budget import Basis, Budget, PlannedRuns, all_hours
from training.record import keys, layout
from training.record.errors import InputError
from training.run import Run

STAGE = "plan"
WORKER = "a worker is one GPU (with ranks=N, N of them), or one core where there is none"
MUCH_EVALUATION = 0.2  # share of the computation
DRY_RUN_TAG = "planned_only"  # tag of a run that trained nothing


def requested(plan: bool, throughput: float | None) -> bool:
    """Whether the parameters ask for a dry run; InputError for a throughput without one."""
    if throughput and not plan:
        raise InputError("throughput: only plan=true uses it; add it, or leave throughput out")
    return plan


def _report(basis: Basis, budget: Budget, loop: Sequence[str]) -> list[str]:
    """The dry run in words and a table; `loop` describes the stages of `main`, if it runs them."""
    lines = [
        f"plan of study {basis.prepared.study.name!r}; nothing is trained",
        f"{'size':<9}{'parameters':>15}{'runs':>6}{'steps':>9}{'tokens/run':>14}{'tokens':>9}"
        f"{'FLOPs':>10}{'worker-hours':>14}",
        *(_line(row) for row in budget.rows),
        _total(budget.rows),
    ]
    if budget.targets:
        lines.append(_line(budget.targets) + "   the targets of verify, at most")
    if loop and budget.targets:
        lines.append(_total(budget.every_row(), "with the targets"))
    return [*lines, "", *loop, *_notes(basis, budget, bool(loop))]


def _line(row: PlannedRuns) -> str:
    return (
        f"{row.size:<9}{row.n_params:>15,}{row.runs:>6}{row.steps:>9,}{layout.short_count(row.run_tokens):>14}"
        f"{layout.short_count(row.tokens):>9}{row.flops:>10.2e}{_hours(row.hours):>14}"
    )


def _total(rows: Sequence[PlannedRuns], name: str = "total") -> str:
    return (
        f"{name:<24}{sum(row.runs for row in rows):>6}{'':>23}"
        f"{layout.short_count(sum(row.tokens for row in rows)):>9}"
        f"{sum(row.flops for row in rows):>10.2e}"
        f"{_hours(all_hours(rows)):>14}"
    )


def _notes(basis: Basis, budget: Budget, whole: bool) -> list[str]:
    study, lines = basis.prepared.study, [*basis.notes]
    if not basis.prepared.corpus.vocab_size:
        lines.append(
            f"vocabulary: unknown ({study.tokenizer.name} cannot be fetched now): FLOPs and disk "
            "leave out the embeddings"
        )
    if budget.left is None:
        lines.append("already trained: not known before the corpus is prepared")
    else:
        left, hours = sum(row.runs for row in budget.left), all_hours(budget.left)
        done = sum(row.runs for row in budget.rows) - left
        rest = f", {_hours(hours)} worker-hours" if hours is not None else ""
        aside = "; targets are not counted here" if whole else ""
        lines.append(f"already trained: {layout.count(done, 'run')}; {left} are left{rest}{aside}")
    how = "" if basis.exact else " (estimated from max_mb)"
    if budget.repeated is None or budget.token_bytes is None:
        why = f"unknown before preparing: {layout.some(basis.unknown)} have no max_mb"
        lines.append(f"repetition: {why}")
        tokens = why
    else:
        most = budget.repeated
        lines.append(
            f"repetition: at most {most.epochs:.2f} epochs, of {most.domain} in {most.run}{how}; "
            f"repetition.limit is {study.repetition.limit:g}"
        )
        tokens = _bytes(budget.token_bytes) + how
    read = layout.short_count(len(study.evaluated) * study.validation.tokens)
    share = (
        f"evaluations: {budget.evaluation:.0%} of the computation, "
        f"{study.training.evaluations} per run of {read} tokens each"
    )
    if budget.evaluation > MUCH_EVALUATION:
        share += "; lower validation.tokens or training.evaluations to train more in the time"
    lines.append(share)
    models = f"; models {_bytes(budget.model_bytes)}" if budget.model_bytes else ""
    lines.append(
        f"disk: token files {tokens}; checkpoints {_bytes(budget.checkpoint_bytes)}, of "
        f"{budget.workers} workers at once{models}"
    )
    return [*lines, *_speed_notes(budget, whole)]


def _speed_notes(budget: Budget, whole: bool) -> list[str]:
    hours = all_hours(budget.every_row() if whole else budget.rows)
    if hours is None:
        return [
            "hours: unknown; give throughput=… (FLOP/s of a worker), or train one proxy first",
            WORKER,
        ]
    sizes: dict[str, dict[str, None]] = {}  # by speed, in words
    for row in budget.every_row():
        if row.speed:
            speed = f"{row.speed.flops_per_second:.2e} {row.speed.source}"
            sizes.setdefault(speed, {})[row.size] = None
    return [
        "FLOP/s of a worker: "
        + "; ".join(f"{speed} ({', '.join(names)})" for speed, names in sizes.items()),
        f"{WORKER}; with {budget.workers} workers about {_hours(hours / budget.workers)} hours for "
        + ("all, targets included" if whole else "the proxies"),
    ]


def _bytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _hours(hours: float | None) -> str:
    return "unknown" if hours is None else f"{hours:,.0f}" if hours >= 100 else f"{hours:.2g}"


def _log(budget: Budget, lines: Sequence[str], active: mlflow.ActiveRun) -> None:
    """Write the dry run to the active run; its name and a tag say that it trained nothing."""
    mlflow.set_tag(keys.RUN_NAME, f"plan of {active.info.run_name}")
    rows = budget.every_row()
    numbers: dict[str, float | None] = {
        "runs": sum(row.runs for row in budget.rows),
        "runs_left": None if budget.left is None else sum(row.runs for row in budget.left),
        "tokens": sum(row.tokens for row in budget.rows),
        "flops": sum(row.flops for row in budget.rows),
        "target_flops": budget.targets.flops if budget.targets else None,
        "worker_hours": all_hours(budget.rows),
        "epochs": budget.repeated.epochs if budget.repeated else None,
        "token_bytes": budget.token_bytes,
        "checkpoint_bytes": budget.checkpoint_bytes,
        "model_bytes": budget.model_bytes,
        "evaluation_share": budget.evaluation,
    }
    mlflow.set_tag(DRY_RUN_TAG, "true")
    mlflow.log_metrics({f"planned/{k}": float(v) for k, v in numbers.items() if v is not None})
    table = pd.DataFrame(
        {
            "of": ["target" if row is budget.targets else "proxy" for row in rows],
            "size": [row.size for row in rows],
            keys.N_PARAMS: [row.n_params for row in rows],
            "runs": [row.runs for row in rows],
            "steps": [row.steps for row in rows],
            "tokens_a_run": [row.run_tokens for row in rows],
            "flops_a_run": [float(row.run_flops) for row in rows],
            "worker_hours": [row.hours for row in rows],
        }
    )
    mlflow.log_table(table, "plan.json")
    mlflow.log_text("\n".join(lines), "plan.txt")


def loop(basis: Basis, runs: Sequence[Run]) -> list[str]:
    """What each stage of `main` would do."""
    study, text = basis.prepared.study, "the text is tokenised already"
    if not basis.exact:
        validation = study.validation
        counts = {
            "domain": len(study.domains),
            "set": len(validation.sets),
            "task": len(validation.tasks),
        }
        texts = [layout.count(count, name) for name, count in counts.items() if count]
        text = f"tokenises {' and '.join(texts)} (their first rows were checked)"
    return [
        f"prepare   {text}",
        f"sweep     trains {len(runs)} proxies, as above",
        f"fit       fits the law and registers it as {study.model!r}; trains nothing",
        f"optimize  searches with {study.search.trials} trials; trains nothing",
        "verify    trains the targets above, each on its mixture",
        "",
    ]


def show(
    basis: Basis,
    runs: Sequence[Run],
    workers: int,
    throughput: float | None,
    active: mlflow.ActiveRun,
    *,
    targets: bool,
    stages: Sequence[str] = (),
) -> Budget:
    """Print and log what these runs would take, with or without the targets of `verify`; `stages`
    describes what else would be done."""
    experiment = active.info.experiment_id
    budget = budgets.make(basis, runs, workers, throughput, experiment, targets=targets)
    lines = _report(basis, budget, stages)
    print("\n".join(lines))
    _log(budget, lines, active)
    return budget
