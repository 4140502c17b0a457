"""Earlier sweeps of the same study: a study grows by runs that are comparable with theirs."""

from collections.abc import Iterator, Mapping
from typing import Any

import mlflow
from mlflow.entities import Run

from optimization.design.space_filling import HALVED, SPREAD
from pipelines.study.prepared import TAG_DIGITS, Prepared
from pipelines.study.study import Study
from training.record import keys, layout
from training.record.errors import InputError
from training.record.mlflow_runs import search

FREE = {  # keys below these sections that may change from one sweep to the next
    "training": {"steps", "first_evaluation", "evaluations"},
    "validation": {"weights", "unit"},
}
SECTIONS = ("domains", "tokenizer", "validation", "training")
MISSING = "absent"
DESIGN = "design.json"  # an artifact of a sweep


def refuse_incomparable(study: Study, prepared: Prepared | None, experiment_id: str) -> None:
    """Raise InputError if the experiment holds runs of a study of this name with other losses.

    A fit of the study would leave them out, and a user would believe that the study had grown.
    Before its text is prepared, only what the study file says is compared.
    """
    earlier = _earlier(study, prepared.tag if prepared else "", experiment_id)
    if earlier is None:
        return
    differences = list(_differences(_logged(earlier, "study.json"), study))
    if prepared is None and not differences:
        return
    what = layout.some(differences) if differences else "the text of its domains"
    raise InputError(
        f"name: study {study.name!r} has runs in this experiment whose losses cannot be "
        f"compared with those that it would train now, because this has changed: {what}; undo "
        "that to go on with them, or start a study of its own: another name, or another experiment "
        "(--experiment-name)"
    )


def _earlier(study: Study, tag: str, experiment_id: str) -> Run | None:
    """The newest sweep of a study of this name that trained runs under another tag."""
    name = study.name
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


def design(prepared: Prepared, experiment_id: str) -> dict[str, dict[str, float]]:
    """Label → mixture of the largest earlier design of this study, which a larger one keeps; empty
    if there is none.

    The designs that draw one mixture after another keep the first ones by themselves. A study whose
    default mixture, rules or way of designing have changed is designed anew.
    """
    study = prepared.study
    if study.listed_mixtures() or study.sweep.design not in (SPREAD, HALVED):
        return {}
    largest: dict[str, dict[str, float]] = {}
    query = f"tags.{keys.STAGE} = '{keys.SWEEP}' and tags.{keys.STUDY} = '{prepared.tag}'"
    for sweep in search([experiment_id], query):
        logged = _logged(sweep, DESIGN)
        named = logged.get("mixtures", {})
        if logged.get("settings") == settings(prepared) and len(named) > len(largest):
            largest = named
    broken = any(study.broken_rule(mixture) for mixture in largest.values())
    return {} if broken else largest


def settings(prepared: Prepared) -> dict[str, object]:
    """What a design depends on beside the number of mixtures and the rules."""
    sweep = prepared.study.sweep
    return {"design": sweep.design, "seed": sweep.seed, "default": prepared.default}


def log_design(prepared: Prepared, mixtures: Mapping[str, Mapping[str, float]]) -> None:
    """Log a sweep's mixtures to the active run, for `design` of a later one."""
    mlflow.log_dict({"settings": settings(prepared), "mixtures": dict(mixtures)}, DESIGN)


def _logged(sweep: Run, name: str) -> dict[str, Any]:
    """A JSON artifact of a sweep; empty if it has none of this name."""
    run_id = sweep.info.run_id
    if name not in {file.path for file in mlflow.MlflowClient().list_artifacts(run_id)}:
        return {}
    value: dict[str, Any] = mlflow.artifacts.load_dict(f"runs:/{run_id}/{name}")
    return value


def _differences(before: Mapping[str, Any], study: Study) -> Iterator[str]:
    """`key: old → new` of the keys on which losses depend."""
    now = study.model_dump(mode="json")
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
