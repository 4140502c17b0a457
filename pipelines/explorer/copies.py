"""The current mixture as text to copy."""

import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

import mlflow
import yaml

from fitting.artifact.spec import Target
from pipelines.command import advice, texts
from training.record import keys, secrets
from training.record.layout import short_count

WIDTH = 100
LABELS = {"n_params": "parameters", "tokens": "tokens"}


@dataclass(frozen=True)
class Origin:
    """Where the page's predictor and study come from."""

    model: str  # URI of the version
    experiment_id: str
    study: str = ""
    size: str = ""  # of the study's target
    steps: str = ""
    target: Target | None = None  # the study's


def copied(form: str, mixture: Mapping[str, float], origin: Origin, scale: Mapping[str, float],
           reference: Mapping[str, float]) -> str:  # fmt: skip
    """The mixture as the JSON that a parameter `mixture` reads, as YAML for a study file, as a call
    of the predictor in Python, or as the command that trains on it."""
    if form == "JSON":
        return json.dumps(mixture, indent=1)
    if form == "YAML":
        whole, entry = _flow({"default_mixture": dict(mixture)}), _flow([dict(mixture)])
        return f"{whole}\n# or one of sweep.mixtures:\n" + textwrap.indent(entry, "#  ")
    if form == "Python":
        return _python(mixture, origin, scale, reference)
    given = {"study": origin.study or "STUDY", "size": origin.size or "SIZE"}
    given |= {"steps": origin.steps} if origin.steps else {}
    command = advice.command(
        "train", origin.experiment_id, **given, mixture=texts.as_parameter(mixture)
    )
    return _other_scale(origin.target, scale) + command


def _other_scale(target: Target | None, scale: Mapping[str, float]) -> str:
    """A comment line if the study's target has another scale than the page."""
    if target is None or scale.items() <= vars(target).items():
        return ""
    texts = [
        " and ".join(f"{short_count(values[name])} {LABELS[name]}" for name in scale)
        for values in (vars(target), scale)
    ]
    return f"# trains the study's target, of {texts[0]}; the page is at {texts[1]}\n"


def _flow(value: object) -> str:
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=WIDTH)
    return text.rstrip()


def _python(mixture: Mapping[str, float], origin: Origin, scale: Mapping[str, float],
            reference: Mapping[str, float]) -> str:  # fmt: skip
    uri = mlflow.get_tracking_uri()
    row = {**keys.with_prefix(keys.MIXTURE, mixture), **scale}
    store = [f"mlflow.set_tracking_uri({uri!r})"] if secrets.masked(uri) == uri else []
    return "\n".join(
        [
            "import mlflow, pandas as pd",
            *store,
            f"model = mlflow.pyfunc.load_model({origin.model!r})",
            f"row = {json.dumps(row, indent=1)}",
            f"default = {json.dumps(reference, indent=1)}",
            'params = {"domain_intervals": True, "reference": default}',
            "print(model.predict(pd.DataFrame([row]), params=params).T)",
        ]
    )
