"""Saved views of a study's proxies, which MLflow offers on the page of an experiment."""

import base64
import hashlib
import json
import zlib
from collections.abc import Sequence
from urllib.parse import urlencode

import mlflow

from training.record import keys, markdown

TAG = "mlflow.sharedViewState."  # prefix of the tags that hold MLflow's saved views
CHARTS, TABLE = "CHART", "TABLE"  # how MLflow shows runs
MOST = 20  # mixtures and losses each, of the columns of a table


def links(experiment_id: str, study: str) -> str:
    """Links to the view of the proxies with this tag `study`, as charts and as a table."""
    return ", ".join(
        markdown.link(text, _page(experiment_id, study, how))
        for text, how in (("loss curves", CHARTS), ("mixtures and losses", TABLE))
    )


def save(
    experiment_id: str, name: str, study: str, domains: Sequence[str], evaluated: Sequence[str]
) -> None:
    """Save a view: a table of mixtures and last losses, and charts with the losses over tokens
    first. `study` is the tag of the runs; it is empty for imported runs."""
    for most in range(MOST, -1, -1):  # fewer columns where names are long
        text = _view(name, study, domains[:most], evaluated[:most])
        if len(text) <= keys.TAG_LIMIT:
            mlflow.MlflowClient().set_experiment_tag(experiment_id, TAG + _key(study), text)
            return


def _view(name: str, study: str, domains: Sequence[str], evaluated: Sequence[str]) -> str:
    """A view as MLflow keeps it."""
    query = f"tags.{keys.STAGE} = '{keys.PROXY}'"
    first = keys.VAL_LOSS.rstrip("/")
    section = {"uuid": first, "name": first, "display": True, "isReordered": True}
    state = {
        "searchFilter": f"{query} and tags.{keys.STUDY} = '{study}'" if study else query,
        "orderByKey": _column("params", keys.N_PARAMS),  # by time, MLflow shows parents alone
        "orderByAsc": False,
        "selectedColumns": [
            *(_column("params", key) for key in (keys.N_PARAMS, keys.SEED)),
            *(_column("params", keys.MIXTURE + domain) for domain in domains),
            *(_column("metrics", keys.VAL_LOSS + domain) for domain in evaluated),
        ],
        "runsHiddenMode": "FIRST_20_RUNS",
        "isAccordionReordered": True,
        "compareRunCharts": [],
        "compareRunSections": [section],
        "globalLineChartConfig": {
            "xAxisKey": "metric",
            "lineSmoothness": 0,
            "selectedXAxisMetricKey": keys.TOKENS,
        },
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    view = {"name": f"Proxies of {name}", "createdAt": 0, "state": f"deflate;{packed}"}
    return json.dumps(view)


def _page(experiment_id: str, study: str, how: str) -> str:
    options = urlencode({"compareRunsMode": how, "viewStateShareKey": _key(study)})
    return f"#/experiments/{experiment_id}/runs?{options}&{markdown.MODE}"


def _key(study: str) -> str:
    return f"proxies-{hashlib.sha256(study.encode()).hexdigest()[:8]}"


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"
