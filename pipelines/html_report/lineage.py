"""Which runs belong together: the verified targets, the search, the fit and the runs it fitted."""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import mlflow
import pandas as pd
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from fitting.model_names import version_of
from training.record import keys
from training.record.mlflow_runs import search

NEWEST = 50  # runs of a stage, of other experiments, that are looked at


@dataclass(frozen=True)
class Lineage:
    """The runs of one answer; None for a part that is not there."""

    main: Run | None
    verify: Run | None
    search: Run | None  # of `optimize`
    fit: Run | None
    model: str  # `models:/name/version` of the predictor; empty if the registry has none

    @property
    def newest(self) -> Run:
        """The run that ends the chain."""
        return next(run for run in (self.main, self.verify, self.search, self.fit) if run)


def newest(experiment_ids: Sequence[str], accepts: Callable[[Run], bool]) -> Lineage | None:
    """The newest answer of the experiments: a verified one, else a searched one, else a fit.

    An answer belongs to an experiment if its own runs lie there or the runs that it fitted do.
    `accepts` says of a fitted run whether it belongs to the study; of the runs of a fit, one is
    asked. None if there is no answer.
    """
    for stage in (keys.VERIFY, keys.OPTIMIZE, keys.FIT):
        for run in _finished(experiment_ids, stage):
            lineage = of(run)
            fitted = _first_fitted(lineage.fit)
            there = {run.info.experiment_id, fitted.info.experiment_id if fitted else ""}
            if there & set(experiment_ids) and (accepts(fitted) if fitted else accepts(run)):
                return lineage
    return None


def of(run: Run) -> Lineage:
    """The answer that a run of `main`, `verify`, `optimize` or `fit` belongs to."""
    stage = run.data.tags.get(keys.STAGE)
    parent = _run(run.data.tags.get(keys.PARENT, ""))
    if stage != keys.MAIN and parent and parent.data.tags.get(keys.STAGE) == keys.MAIN:
        return of(parent)
    parts = {stage: run} if stage == keys.FIT else {**_children(run), stage: run}
    searched = parts.get(keys.OPTIMIZE)
    fit = parts.get(keys.FIT)
    uri = searched.data.params.get("model_uri", "") if searched else ""
    version = version_of(uri or (fit.data.tags.get("model_uri", "") if fit else ""))
    if version:
        fit = _run(version.run_id) or fit
    return Lineage(
        main=parts.get(keys.MAIN),
        verify=parts.get(keys.VERIFY),
        search=searched,
        fit=fit,
        model=f"models:/{version.name}/{version.version}" if version else "",
    )


def fitted_runs(fit: Run) -> list[Run]:
    """The runs that a fit took, as far as they still exist; none for a fit that did not list
    them."""
    ids = _fitted_ids(fit)
    found: dict[str, Run] = {}
    while missing := [run_id for run_id in ids if run_id not in found]:
        first = _run(missing[0])
        if first is None:
            ids = [run_id for run_id in ids if run_id != missing[0]]
            continue
        query = f"tags.{keys.STAGE} = '{first.data.tags.get(keys.STAGE)}'"
        runs = search([first.info.experiment_id], query)
        found |= {r.info.run_id: r for r in [first, *runs] if r.info.run_id in missing}
    return [found[run_id] for run_id in ids]


def table(run: Run | None, name: str) -> pd.DataFrame:
    """A table that a run logged; empty if it has none of this name."""
    if run is None:
        return pd.DataFrame()
    with suppress(MlflowException, OSError):
        raw = mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/{name}")
        return pd.DataFrame(raw["data"], columns=raw["columns"])
    return pd.DataFrame()


def evaluations(fit: Run | None) -> pd.DataFrame:
    """The tidy table that a fit pulled, `run` being the runs' ids; without rows if it is gone."""
    with suppress(MlflowException, OSError):
        if fit is not None:
            text = mlflow.artifacts.load_text(f"runs:/{fit.info.run_id}/runs.csv")
            return pd.read_csv(io.StringIO(text))
    return pd.DataFrame({"run": []})


def _finished(experiment_ids: Sequence[str], stage: str) -> Iterator[Run]:
    """The finished runs of a stage, the newest first: all of these experiments, and the newest of
    the others, which may have fitted runs of these."""
    client = mlflow.MlflowClient()
    query = f"attributes.status = 'FINISHED' and tags.{keys.STAGE} = '{stage}'"
    order = ["attributes.start_time DESC"]
    own = search(experiment_ids, query)
    others = [e.experiment_id for e in client.search_experiments()]
    others = [e for e in others if e not in experiment_ids]
    elsewhere: Iterable[Run] = ()
    if others:
        elsewhere = client.search_runs(others, query, max_results=NEWEST, order_by=order)
    yield from sorted([*own, *elsewhere], key=lambda run: -run.info.start_time)


def _children(run: Run) -> dict[str | None, Run]:
    """The newest finished child of each stage."""
    query = (
        f"attributes.status = 'FINISHED' and tags.{keys.PARENT} = '{run.info.run_id}' and "
        f"tags.{keys.STAGE} != '{keys.PROXY}'"
    )
    runs = sorted(search([run.info.experiment_id], query), key=lambda r: r.info.start_time)
    return {child.data.tags.get(keys.STAGE): child for child in runs}


def _first_fitted(fit: Run | None) -> Run | None:
    return next(filter(None, map(_run, _fitted_ids(fit))), None) if fit else None


def _fitted_ids(fit: Run) -> list[str]:
    taken = table(fit, "runs_taken.json")
    if "id" in taken:
        return list(taken["id"][taken["id"] != ""])
    return list(evaluations(fit)["run"].unique())  # an older fit recorded no ids there


def _run(run_id: str) -> Run | None:
    """A run by its id; None if it was deleted for good."""
    with suppress(MlflowException):
        return mlflow.get_run(run_id) if run_id else None
    return None
