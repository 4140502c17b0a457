"""Links back: from a sweep to the fits of its runs, from a predictor to the runs that asked it."""

from collections.abc import Sequence
from contextlib import suppress

import mlflow
from mlflow.entities import LoggedModelInput
from mlflow.exceptions import MlflowException

from fitting import registry
from optimization.domain.predictor import Predictor
from training.record import keys, markdown

FITS, ANSWERS = "Fits of these runs", "Answers of this version"


def fitted(parents: Sequence[str], fit_id: str) -> None:
    """Link the sweeps and imports above the fitted runs to the run of the fit."""
    client = mlflow.MlflowClient()
    for run_id in parents:
        with suppress(MlflowException):  # one that was deleted
            note = client.get_run(run_id).data.tags.get(keys.NOTE, "")
            line = markdown.listed(note, FITS, markdown.run_link(fit_id))
            client.set_tag(run_id, keys.NOTE, line)


def link(predictor: Predictor) -> str:
    """Links to a predictor's version and to its fit, in Markdown."""
    version, name = registry.version_of(predictor.uri), markdown.escaped(predictor.uri)
    if version is not None:
        name = markdown.version_link(version.name, str(version.version))
    return f"{name}, {markdown.run_link(predictor.loaded.metadata.run_id, 'its fit')}"


def asked(predictor: Predictor, run_id: str, answer: str) -> None:
    """Link a run and the predictor that it asked, in both directions; `answer` in a few words."""
    client, version = mlflow.MlflowClient(), registry.version_of(predictor.uri)
    if model_id := predictor.loaded.metadata.model_id:
        client.log_inputs(run_id, models=[LoggedModelInput(model_id)])
    if version is not None:
        line = f"{markdown.run_link(run_id)}: {markdown.escaped(answer)}"
        text = markdown.listed(version.description or "", ANSWERS, line)
        client.update_model_version(version.name, version.version, text)
