"""Earlier sweeps of the same study: a study grows by runs that are comparable with theirs."""

from collections.abc import Iterator, Mapping
from typing import Any

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from pipelines.study.prepared import TAG_DIGITS, Prepared
from training.record import keys, layout
from training.record.errors import InputError
from training.record.mlflow_runs import search

FREE = {  # keys below these sections that may change from one sweep to the next
    "training": {"steps", "first_evaluation", "evaluations"},
    "validation": {"weights", "unit"},
}
SECTIONS = ("domains", "tokenizer", "validation", "training")
MISSING = "absent"


def refuse_incomparable(prepared: Prepared, experiment_id: str) -> None:
    """Raise InputError if the experiment holds runs of a study of this name with other losses.

    A fit of the study would leave them out, and a user would believe that the study had grown.
    """
    earlier = _earlier(prepared, experiment_id)
    if earlier is None:
        return
    differences = list(_differences(_study_of(earlier), prepared))
    what = layout.some(differences) if differences else "the text of its domains"
    raise InputError(
        f"name: study {prepared.study.name!r} has runs in this experiment whose losses cannot be "
        f"compared with those that it would train now, because this has changed: {what}; undo "
        "that to go on with them, or start a study of its own: another name, or another experiment "
        "(--experiment-name)"
    )


def _earlier(prepared: Prepared, experiment_id: str) -> Run | None:
    """The newest sweep of a study of this name that trained runs under another tag."""
    name, tag = prepared.study.name, prepared.tag
    trained = {
        run.data.tags.get(keys.STUDY, "")
        for run in search([experiment_id], f"tags.{keys.STAGE} = '{keys.PROXY}'")
        if run.data.tags.get(keys.COMPLETE) == "true"
    }
    others = {other for other in trained - {tag} if other[: -TAG_DIGITS - 1] == name}
    for sweep in search([experiment_id], f"tags.{keys.STAGE} = '{keys.SWEEP}'"):
        if others and sweep.data.tags.get(keys.STUDY) in others:
            return sweep
    return None


def _study_of(sweep: Run) -> dict[str, Any]:
    """The study that a sweep logged; empty if it cannot be read any more."""
    try:
        study: dict[str, Any] = mlflow.artifacts.load_dict(f"{sweep.info.artifact_uri}/study.json")
    except (MlflowException, OSError):
        return {}
    return study


def _differences(before: Mapping[str, Any], prepared: Prepared) -> Iterator[str]:
    """`key: old → new` of the keys on which losses depend."""
    now = prepared.study.model_dump(mode="json")
    for section in SECTIONS if before else ():
        old, new = _flat(before.get(section, {}), section), _flat(now[section], section)
        for key in dict.fromkeys((*old, *new)):
            free = key.split(".", 2)[1] in FREE.get(section, set())
            if not free and old.get(key, MISSING) != new.get(key, MISSING):
                yield f"{key}: {old.get(key, MISSING)} → {new.get(key, MISSING)}"
    for section, key in (("repetition", "match_target"), ("target", "steps")) if before else ():
        old, new = before.get(section, {}).get(key), now[section][key]
        if old != new and (section == "repetition" or now["repetition"]["match_target"]):
            yield f"{section}.{key}: {old} → {new}"


def _flat(value: Any, path: str) -> dict[str, Any]:
    """The leaves of nested mappings, by their path."""
    if not isinstance(value, Mapping):
        return {path: value}
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{path}.{key}").items()}
