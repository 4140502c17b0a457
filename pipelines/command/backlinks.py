"""Links back: from a sweep to the fits of its runs, from a predictor to its answers."""

from collections.abc import Callable, Sequence
from contextlib import suppress

import mlflow
from mlflow.entities import LoggedModelInput
from mlflow.exceptions import MlflowException

from fitting.model_names import version_of
from optimization.domain.predictor import Predictor
from training.record import keys, markdown

FITS, ANSWERS = "Fits of these runs", "Answers of this version"
TRIES = 3  # where another process writes the same description


def predictor_link(predictor: Predictor) -> str:
    """Links to a predictor's version and to its fit, in Markdown."""
    version, name = version_of(predictor.uri), markdown.escaped(predictor.uri)
    if version is not None:
        name = markdown.version_link(version.name, str(version.version))
    return f"{name}, {markdown.run_link(predictor.loaded.metadata.run_id, 'its fit')}"


def link_fit(parents: Sequence[str], fit_id: str) -> None:
    """Link the sweeps and imports above the fitted runs to the run of the fit."""
    client = mlflow.MlflowClient()
    for run_id in parents:

        def read(run_id: str = run_id) -> str:
            return client.get_run(run_id).data.tags.get(keys.NOTE, "")

        def write(text: str, run_id: str = run_id) -> None:
            client.set_tag(run_id, keys.NOTE, text)

        _add(read, write, FITS, markdown.run_link(fit_id))


def link_answer(predictor: Predictor, run_id: str, answer: str) -> None:
    """Link a run and the predictor that it asked, in both directions; `answer` in a few words."""
    client, version = mlflow.MlflowClient(), version_of(predictor.uri)
    if model_id := predictor.loaded.metadata.model_id:
        with suppress(MlflowException):
            client.log_inputs(run_id, models=[LoggedModelInput(model_id)])
    if version is None:
        return
    place = version.name, version.version

    def read() -> str:
        return client.get_model_version(*place).description or ""

    def write(text: str) -> None:
        client.update_model_version(*place, text)

    _add(read, write, ANSWERS, f"{markdown.run_link(run_id)}: {markdown.escaped(answer)}")


def _add(read: Callable[[], str], write: Callable[[str], None], heading: str, line: str) -> None:
    """Add a line below a heading of a description. What is found stands without it: a run that was
    deleted, or a registry that may only be read, is left as it is."""
    with suppress(MlflowException):
        for _ in range(TRIES):
            text = read()
            if line in text:
                return
            write(markdown.with_line(text, heading, line))
