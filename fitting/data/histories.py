"""MLflow → the tidy table: the validation losses of the complete proxy runs of experiments."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from fitting.data import comparable, origin
from training.record import keys
from training.record.errors import InputError
from training.record.history import History, history_from_tags
from training.record.mixtures import checked_mixture
from training.record.mlflow_runs import in_unit, readable, search, threads

RunHistory = tuple[Run, History]

UNPLANNED_HINT = "unplanned=true takes those that keep the rules"
THREADS = 16


@dataclass(frozen=True)
class Histories:
    """The histories of the selected runs, and which runs were left out and why."""

    table: pd.DataFrame
    """Tidy: run, n_params, tokens, step, mixture/<domain>…, val_loss/<domain>…, accuracy/<task>…,
    and unique_tokens/<domain>… if a run repeats a domain."""
    left_out: dict[str, str]  # run name → reason
    parents: tuple[str, ...]
    """Ids of the runs that hold the target and the weights: the study's newest sweep, or else all
    sweep and import runs above the runs that are not reused."""
    names: dict[str, str]  # run id → name; runs that share a name have their ids appended
    reused: frozenset[str]  # ids of the runs that `reuse` selected
    domains: tuple[str, ...]  # training domains of the runs that are not reused
    unit: str  # of the losses
    origins: dict[str, str]  # run id → origin (`fitting.data.origin`)
    guesses: dict[str, "Guess"]  # by task with choices


@dataclass(frozen=True)
class Guess:
    """What a guess at a task with choices is right at."""

    chance: float  # its expected accuracy
    questions: int  # how many an evaluation reads

    @property
    def deviation(self) -> float:
        """Standard deviation of its accuracy."""
        return math.sqrt(self.chance * (1 - self.chance) / self.questions)


def pull(
    experiment_ids: Sequence[str],
    runs: str = "",
    reuse: str = "",
    *,
    unplanned: bool = True,
    unit: str = "",
) -> Histories:
    """The histories of the complete proxy runs that the MLflow filter string `runs` selects, and
    of those, from any study, that the filter string `reuse` selects.

    With `unplanned` false, runs that `train` added to a study are left out. The losses are in this
    unit, or in that of the sweep above the runs, or else in the runs' own. Reads the compact copy
    in a run's tags, or else its metric histories. A domain that a run does not have has proportion
    0 and loss NaN in its rows. Raises InputError if a filter selects no usable run, and for runs
    whose losses are not comparable.
    """
    to_reuse = search(experiment_ids, _proxies(reuse)) if reuse else []
    reused = frozenset(run.info.run_id for run in to_reuse)
    selected = search(experiment_ids, _proxies(runs))
    proxies = [*[run for run in selected if run.info.run_id not in reused], *to_reuse]
    names = _names(proxies)
    origins = origin.origins(proxies)
    excluded = {i for i, o in origins.items() if o == origin.UNPLANNED and i not in reused}
    excluded = set() if unplanned else excluded
    usable, faults = _usable([run for run in proxies if run.info.run_id not in excluded])
    reasons = {**dict.fromkeys(excluded, origin.UNPLANNED), **faults}
    left_out = {names[run_id]: reason for run_id, reason in reasons.items()}
    new = [run for run, _ in usable if run.info.run_id not in reused]
    old = [run for run, _ in usable if run.info.run_id in reused]
    _refuse_empty(new, experiment_ids, runs, left_out)
    if reuse:
        _refuse_empty(old, experiment_ids, reuse, left_out)
    comparable.refuse_several_studies(new, experiment_ids)
    parents = _parents(new, experiment_ids)
    unit = unit or purpose(parents).unit
    if unit != keys.BITS:
        own = comparable.one_unit([*new, *old])
        unit = unit or own
    comparable.refuse_different_training(new, old)
    return Histories(
        table=_table([(run, in_unit(run, history, unit)) for run, history in usable]),
        left_out=left_out,
        parents=parents,
        names=names,
        reused=reused,
        domains=tuple(_union(_mixture(run) for run in new)),
        unit=unit,
        origins=origins,
        guesses=_guesses([*new, *old]),
    )


def _guesses(runs: Sequence[Run]) -> dict[str, Guess]:
    """The guess at each task; raises InputError where two runs were asked other questions."""
    found: dict[str, tuple[Guess, Run]] = {}
    for run in runs:
        questions = keys.without_prefix(keys.QUESTIONS, run.data.params)
        for task, chance in keys.without_prefix(keys.CHANCE, run.data.params).items():
            guess = Guess(chance, int(questions.get(task, 1)))
            known, first = found.setdefault(task, (guess, run))
            if known != guess:
                raise InputError(
                    f"the accuracies of {task!r} are not comparable: run {run.info.run_name!r} has "
                    f"{guess.questions:,} questions and chance {guess.chance:.4g}, "
                    f"{first.info.run_name!r} {known.questions:,} and {known.chance:.4g}; choose "
                    "with runs=…"
                )
    return {task: guess for task, (guess, _) in found.items()}


def _parents(runs: Sequence[Run], experiment_ids: Sequence[str]) -> tuple[str, ...]:
    study = runs[0].data.tags.get(keys.STUDY)
    if study is not None:
        sweeps = mlflow.MlflowClient().search_runs(
            list(experiment_ids),
            f"tags.{keys.STAGE} = '{keys.SWEEP}' and tags.{keys.STUDY} = '{study}'",
            order_by=["attributes.start_time DESC"],
        )
        with_target = (run.info.run_id for run in sweeps if keys.TARGET_TOKENS in run.data.params)
        if newest := next(with_target, None):
            return (newest,)
    return tuple(sorted({run.data.tags.get(keys.PARENT, "") for run in runs} - {""}))


def checks(experiment_ids: Sequence[str], runs: str = "", unit: str = keys.NATS) -> pd.DataFrame:
    """The tidy table of the complete check runs, which no fit reads, with their names as `run`;
    empty if no check run has losses that can be read in this unit."""
    check_runs = search(experiment_ids, f"{_proxies(runs)} and tags.{keys.CHECK} = 'true'")
    complete = [
        run
        for run in check_runs
        if run.info.status == "FINISHED"
        and run.data.tags.get(keys.COMPLETE) == "true"
        and readable(run, unit)
    ]
    if not complete:
        return pd.DataFrame()
    pairs = zip(complete, _histories(complete), strict=True)
    table = _table([(run, in_unit(run, history, unit)) for run, history in pairs])
    return table.assign(run=table["run"].map(_names(complete)))


def _proxies(query: str) -> str:
    return f"tags.{keys.STAGE} = '{keys.PROXY}'" + (f" and {query}" if query else "")


def _usable(proxies: Sequence[Run]) -> tuple[list[RunHistory], dict[str, str]]:
    """The complete runs with their histories; and run id → why a run cannot be used.

    A failed attempt at a run that has since been completed is in neither.
    """
    faults = {run.info.run_id: _fault(run) for run in proxies}
    complete = [run for run in proxies if not faults[run.info.run_id]]
    read = list(zip(complete, _histories(complete), strict=True))
    empty = [run.info.run_id for run, history in read if not history.steps]
    faults |= dict.fromkeys(empty, "no validation losses")
    usable = [(run, history) for run, history in read if history.steps]
    usable, duplicates = _without_duplicates(usable)
    trained = {run.data.tags.get(keys.FINGERPRINT) for run, _ in usable} - {None}
    reasons = {
        run.info.run_id: fault
        for run in proxies
        if (fault := faults[run.info.run_id]) and run.data.tags.get(keys.FINGERPRINT) not in trained
    }
    return usable, {**reasons, **duplicates}


def _without_duplicates(usable: Sequence[RunHistory]) -> tuple[list[RunHistory], dict[str, str]]:
    """One run for each fingerprint, preferably one with a parent run; and, by the ids of the other
    runs, why they are left out."""
    chosen: dict[str, str] = {}  # fingerprint, or else run id → run id
    for run, _ in sorted(usable, key=lambda read: keys.PARENT not in read[0].data.tags):
        run_id = run.info.run_id
        chosen.setdefault(run.data.tags.get(keys.FINGERPRINT, run_id), run_id)
    ids = set(chosen.values())
    duplicates = {
        run.info.run_id: "another run with the same fingerprint is taken"
        for run, _ in usable
        if run.info.run_id not in ids
    }
    return [read for read in usable if read[0].info.run_id in ids], duplicates


def _mixture(run: Run) -> dict[str, float]:
    return keys.without_prefix(keys.MIXTURE, run.data.params)


@dataclass(frozen=True)
class Purpose:
    """What a model is fitted for; None or empty where the sweeps do not say or disagree."""

    n_params: float | None
    tokens: float | None
    weights: dict[str, float]
    default_mixture: dict[str, float]
    lowest: dict[str, float]
    highest: dict[str, float]
    bundles: dict[str, dict[str, float]]
    unit: str = ""  # of the losses

    def params(self) -> dict[str, Any]:
        """What a sweep logs of it, beside the tag of its bundles; `purpose` reads it."""
        return {
            keys.TARGET_N_PARAMS: self.n_params,
            keys.TARGET_TOKENS: self.tokens,
            keys.LOSS_UNIT: self.unit,
            **keys.with_prefix(keys.WEIGHT, self.weights),
            **keys.with_prefix(keys.DEFAULT_MIXTURE, self.default_mixture),
            **keys.with_prefix(keys.LOWEST, self.lowest),
            **keys.with_prefix(keys.HIGHEST, self.highest),
        }


def purpose(parents: Sequence[str]) -> Purpose:
    """Target, weights, default mixture, bounds and unit from the params of the sweep runs; nothing
    from those that were permanently deleted."""
    sweeps = []
    for run_id in parents:
        with suppress(MlflowException):
            sweeps.append(mlflow.get_run(run_id).data)
    params = [data.params for data in sweeps]
    bundles = {data.tags.get(keys.BUNDLES, "{}") for data in sweeps}
    agreed = {
        key: value
        for key, value in (params[0] if params else {}).items()
        if all(p.get(key) == value for p in params)
    }
    n_params, tokens = agreed.get(keys.TARGET_N_PARAMS), agreed.get(keys.TARGET_TOKENS)
    return Purpose(
        n_params=float(n_params) if n_params else None,
        tokens=float(tokens) if tokens else None,
        weights=keys.without_prefix(keys.WEIGHT, agreed),
        default_mixture=keys.without_prefix(keys.DEFAULT_MIXTURE, agreed),
        lowest=keys.without_prefix(keys.LOWEST, agreed),
        highest=keys.without_prefix(keys.HIGHEST, agreed),
        bundles=json.loads(bundles.pop()) if len(bundles) == 1 else {},
        unit=agreed.get(keys.LOSS_UNIT, ""),
    )


def _fault(run: Run) -> str:
    """Why a run cannot be used; empty when it can."""
    tags = run.data.tags
    if tags.get(keys.CHECK) == "true":
        return "check run"
    if keys.DIVERGED in tags:
        return tags.get(keys.ERROR, "diverged")
    if run.info.status != "FINISHED":
        return f"status {run.info.status}"
    if tags.get(keys.COMPLETE) != "true":
        return "not marked complete"
    if keys.N_PARAMS not in run.data.params:
        return f"no param {keys.N_PARAMS}"
    try:
        mixture = _mixture(run)
        checked_mixture(mixture, list(mixture))
    except InputError as error:
        return str(error)
    except ValueError as error:
        return f"mixture: {error}"
    return ""


def _refuse_empty(
    runs: Sequence[Run], experiment_ids: Sequence[str], query: str, left_out: dict[str, str]
) -> None:
    if not runs:
        raise InputError(
            f"no complete proxy run in experiment {', '.join(experiment_ids)}"
            + (f" matches {query!r}" if query else "")
            + (f" (left out: {counted(left_out)})" if left_out else "")
            + (f"; {UNPLANNED_HINT}" if origin.UNPLANNED in left_out.values() else "")
        )


def _names(runs: Sequence[Run]) -> dict[str, str]:
    """Run id → name; where several runs share a name, with the first characters of the id."""
    names = {run.info.run_id: run.info.run_name or run.info.run_id for run in runs}
    shared = Counter(names.values())
    return {
        run_id: name if shared[name] == 1 else f"{name}-{run_id[:8]}"
        for run_id, name in names.items()
    }


def counted(left_out: dict[str, str]) -> str:
    """The reasons, and how many runs each of them excluded."""
    return ", ".join(f"{n} × {reason}" for reason, n in Counter(left_out.values()).most_common())


def _histories(runs: Sequence[Run]) -> list[History]:
    """The history of each run: the compact copy if it has one, else its metrics."""
    compact = [history_from_tags(run.data.tags) for run in runs]
    without_copy = [run for run, history in zip(runs, compact, strict=True) if history is None]
    with ThreadPoolExecutor(threads(THREADS)) as pool:
        read = pool.map(_from_metrics, without_copy)
        return [history or next(read) for history in compact]


def _from_metrics(run: Run) -> History:
    """A history from the metrics themselves, with one request for each domain."""
    client = mlflow.MlflowClient()
    names = sorted(key for key in run.data.metrics if key.startswith(keys.VAL_LOSS))
    of_tasks = sorted(key for key in run.data.metrics if key.startswith(keys.ACCURACY))
    series = {
        key: {m.step: m.value for m in client.get_metric_history(run.info.run_id, key)}
        for key in [*names, *of_tasks, keys.TOKENS]
    }
    tokens = series.pop(keys.TOKENS)
    steps = sorted(set().union(*series.values()) & set(tokens))
    return History(
        tuple(key.removeprefix(keys.VAL_LOSS) for key in names),
        tuple(steps),
        tuple(int(tokens[step]) for step in steps),
        tuple(tuple(series[key].get(step, math.nan) for key in names) for step in steps),
        {
            key.removeprefix(keys.ACCURACY): tuple(
                series[key].get(step, math.nan) for step in steps
            )
            for key in of_tasks
        },
    )


def _table(runs: Sequence[RunHistory]) -> pd.DataFrame:
    """The tidy table, a row for each evaluation, filled by blocks of columns."""
    lengths = [len(history.steps) for _, history in runs]
    mixtures = [_mixture(run) for run, _ in runs]
    domains = _union(mixtures)
    shares = np.array([[mixture.get(d, 0.0) for d in domains] for mixture in mixtures])
    val_domains = _union(history.domains for _, history in runs)
    column = {name: i for i, name in enumerate(val_domains)}
    losses = np.full((sum(lengths), len(val_domains)), np.nan)
    for end, (_, history) in zip(np.cumsum(lengths), runs, strict=True):
        rows = slice(end - len(history.steps), end)
        losses[rows, [column[name] for name in history.domains]] = history.losses
    scale = {
        "run": np.repeat([run.info.run_id for run, _ in runs], lengths),
        keys.N_PARAMS: np.repeat(
            [float(run.data.params[keys.N_PARAMS]) for run, _ in runs], lengths
        ),
        keys.TOKENS: np.concatenate([history.tokens for _, history in runs]),
        "step": np.concatenate([history.steps for _, history in runs]),
    }
    blocks = (
        pd.DataFrame(scale),
        pd.DataFrame(
            np.repeat(shares, lengths, axis=0), columns=[keys.MIXTURE + d for d in domains]
        ),
        pd.DataFrame(losses, columns=[keys.VAL_LOSS + d for d in val_domains]),
        _accuracies([history for _, history in runs]),
    )
    table = pd.concat(blocks, axis=1)
    unique = [keys.without_prefix(keys.UNIQUE_TOKENS, run.data.params) for run, _ in runs]
    return _with_unique(table, domains, unique, lengths)


def _with_unique(
    table: pd.DataFrame,
    domains: Sequence[str],
    unique: Sequence[Mapping[str, float]],
    lengths: Sequence[int],
) -> pd.DataFrame:
    """The table with unique_tokens/<domain>… of its runs, if one of them repeats a domain; NaN
    where a run does not say."""
    each = np.array([[of_run.get(d, math.nan) for d in domains] for of_run in unique])
    rows = np.repeat(each, lengths, axis=0)
    seen = table[[keys.MIXTURE + d for d in domains]].to_numpy() * table[[keys.TOKENS]].to_numpy()
    if not (seen > rows).any():
        return table
    columns = pd.DataFrame(rows, columns=[keys.UNIQUE_TOKENS + d for d in domains])
    return pd.concat([table, columns], axis=1)


def _accuracies(read: Sequence[History]) -> pd.DataFrame:
    """accuracy/<task>…, a row for each evaluation; NaN where a run has none."""
    tasks = _union(history.accuracies for history in read)
    rows = [
        [history.accuracies.get(task, (math.nan,) * len(history.steps))[i] for task in tasks]
        for history in read
        for i in range(len(history.steps))
    ]
    return pd.DataFrame(rows, columns=[keys.ACCURACY + task for task in tasks])


def _union(groups: Iterable[Iterable[str]]) -> list[str]:
    """The distinct names of all groups, in the order of their first appearance."""
    return list(dict.fromkeys(name for group in groups for name in group))
