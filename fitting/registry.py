"""Log a fit as a registered model version, and decide which version is the champion."""

import hashlib
import importlib.metadata
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Object, Property

from fitting import columns
from fitting.artifact import input_checks, laws, predictor, schedule_predictor
from fitting.artifact import spec as specs
from fitting.artifact.laws import AccuracyCurve
from fitting.artifact.spec import Continual, Explored, ScheduleSpec, SizeLaw, Spec
from fitting.diagnostics import identifiability
from fitting.diagnostics.diagnostics import MISFIT
from fitting.fit import Fit
from fitting.model_names import CHAMPION, version_of
from training.record import keys, markdown
from training.record import version as project_version

CHALLENGER = "challenger"
INPUTS, OPTIONAL = "input_columns", "optional_input_columns"  # metadata of a logged model
CV_ERROR, FITTED_FOR = "cv_error", "fitted_for"  # tags of a model version; a metric of its model
WHY_NOT_CHAMPION = "why_not_champion"  # tag of a fit's run
NOT_IDENTIFIED = "not_identified"  # another: what its runs cannot identify
DIAGNOSTIC = "diagnostic/"  # prefix of tags of a fit's run: `ok`, or a warning
OLD_DIAGNOSTIC = "sign/"  # their prefix before version 0.2
BACKTESTS = ("backtest_size_and_steps", "backtest_steps", "backtest_size")  # hardest first
MAX_VERSIONS = 200  # of the newest, which are searched
CODE = {"laws": laws.__file__, "rows": input_checks.__file__, "spec": specs.__file__}
DIGITS = 6  # of the error that a version's tag shows, and by which versions are compared
CARD = keys.TAG_LIMIT - 600  # characters of a version's description, beside the answers it lists
MODEL = (
    "Predicts the validation losses of a language model from the mixture of its training data. "
    "Each fit registers a version, whose page says what it was fitted to and how far to trust it. "
    "`champion` is the version with the least cross-validated error for its target, domains, "
    "weights and unit."
)


About = Callable[[str], Sequence[str]]  # the URI of a new version → parts of its description


def no_parts(_: str) -> Sequence[str]:
    """No description but that of the columns."""
    return ()


@dataclass(frozen=True)
class Registered:
    """A new version of the predictor, and its alias."""

    name: str
    version: str
    alias: str
    reason: str  # why it is not the champion; empty if it is

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"


@dataclass(frozen=True)
class Standing:
    """How far a version can be trusted: its place in the registry and its fit's warnings."""

    name: str
    version: str
    champion: str  # the champion's version; empty if there is none
    reason: str  # why this version is not the champion
    misfit: str  # warning that the law does not describe its runs; empty if it does
    warnings: tuple[str, ...]  # all others; of the backtests only the hardest
    unidentified: str  # the warning among them that names what the runs cannot identify; or empty
    fitted: bool  # whether the run of its fit, which holds the warnings, could be read


def standing(uri: str) -> Standing:
    """The standing of `models:/name/version` or `models:/name@alias`; empty for other models."""
    client, version = mlflow.MlflowClient(), version_of(uri)
    if version is None:
        return Standing("", "", "", "", "", (), "", False)
    tags: dict[str, str] = {}
    champion = ""
    with suppress(MlflowException):
        tags = client.get_run(version.run_id).data.tags
    with suppress(MlflowException):
        champion = str(client.get_model_version_by_alias(version.name, CHAMPION).version)
    failed = {
        key.removeprefix(prefix): text
        for prefix in (OLD_DIAGNOSTIC, DIAGNOSTIC)
        for key, text in tags.items()
        if key.startswith(prefix) and text != "ok"
    }
    misfit = failed.pop(MISFIT, "")
    backtests = [failed.pop(name) for name in BACKTESTS if name in failed]
    reason = tags.get(WHY_NOT_CHAMPION, f"champion is version {champion}")
    number = str(version.version)
    missing = tags.get(NOT_IDENTIFIED, "")
    unidentified = f"the runs do not identify all of the law: {missing}" if missing else ""
    warnings = (*failed.values(), *backtests[:1], *filter(None, [unidentified]))
    return Standing(
        version.name, number, champion, reason, misfit, warnings, unidentified, bool(tags)
    )


def spec_of(
    fit: Fit,
    unit: str,
    *,
    explored: Explored,
    val_weights: dict[str, float],
    default_mixture: dict[str, float],
    continual: Continual | None = None,
    curves: Mapping[str, AccuracyCurve] | None = None,
) -> Spec:
    """The spec that the artifact of a fit's predictor holds."""
    o = fit.observations
    return Spec(
        domains=tuple(o.domains),
        val_domains=tuple(o.val_domains),
        target=fit.target,
        unit=unit,
        weights=tuple(fit.weights.tolist()),
        law=laws.to_json(fit.law),
        interval=laws.to_json(fit.interval),
        scales=tuple(SizeLaw(at.n_params, at.tokens, laws.to_json(at.law)) for at in fit.by_size),
        only=specs.Only(**identifiability.only_scale(o)),
        mixtures=tuple(map(tuple, o.mixtures.tolist())),
        explored=explored,
        val_weights=val_weights,
        default_mixture=default_mixture,
        best_observed=fit.best_observed(),
        continual=continual,
        noise=() if fit.noise is None else tuple(np.diag(fit.noise.covariance).tolist()),
        accuracies={task: laws.to_json(curve) for task, curve in (curves or {}).items()},
        repetition=_repetition(fit),
    )


def _repetition(fit: Fit) -> specs.Repetition | None:
    if (found := fit.repetition) is None:
        return None
    return specs.Repetition(
        n0=found.n0,
        worth=tuple(found.worth.tolist()),
        wear=found.wear,
        drawn=tuple(map(tuple, found.drawn.tolist())),
        seen=tuple(found.seen.tolist()),
    )


def _proportions(domains: Sequence[str]) -> Object:
    """MLflow's type of a dictionary domain → proportion."""
    return Object([Property(domain, DataType.double, required=False) for domain in domains])


def register(name: str, spec: Spec, cv_error: float, about: About = no_parts) -> Registered:
    """Log the predictor in the active run as the next version of `name` and set its alias.

    `about` gives the parts of the version's description in Markdown.
    """
    outputs = [
        *(keys.VAL_LOSS + domain for domain in spec.val_domains),
        *("objective", "objective_low", "objective_high", "distance"),
        *(
            prefix + task
            for task in spec.accuracies
            for prefix in (keys.ACCURACY, keys.ACCURACY_LOW, keys.ACCURACY_HIGH)
        ),
    ]
    signature = ModelSignature(
        outputs=Schema([ColSpec("double", column) for column in outputs]),
        params=ParamSchema(
            [
                ParamSpec("domain_intervals", "boolean", default=False),
                ParamSpec("reference", _proportions(spec.domains), default={}),
            ]
        ),
    )
    raw = spec.to_json()
    shown = {key: raw[key] for key in ("domains", "val_domains", "target", "unit")}
    return _register(
        name,
        predictor.__file__,
        spec,
        {
            **shown,
            **raw["explored"],
            "weights": spec.val_weights,
            "default_mixture": spec.default_mixture,
            "best_observed": spec.best_observed,
            INPUTS: [keys.MIXTURE + domain for domain in spec.domains],
            OPTIONAL: [keys.N_PARAMS, keys.TOKENS],
        },
        signature,
        purpose_of(spec),
        cv_error,
        about,
    )


def purpose_of(spec: Spec) -> list[Any]:
    """What a predictor was fitted for; only versions with the same purpose are comparable."""
    purpose = [asdict(spec.target), spec.domains, spec.val_domains, spec.weights]
    purpose += ["new text"] if spec.repetition else []
    return _with_unit(purpose, spec.unit)


def _with_unit(purpose: list[Any], unit: str) -> list[Any]:
    return purpose if unit == keys.NATS else [*purpose, unit]


def newest(name: str, purpose: list[Any]) -> ModelVersion | None:
    """The newest version of a predictor with this purpose."""
    client = mlflow.MlflowClient()
    quote = '"' if "'" in name else "'"
    query = f"name = {quote}{name}{quote}"
    try:
        versions = client.search_model_versions(query, max_results=MAX_VERSIONS)
    except MlflowException:
        return None
    same = [v for v in versions if v.tags.get(FITTED_FOR) == _digest(purpose)]
    return max(same, key=lambda v: int(v.version), default=None)


def _digest(purpose: list[Any]) -> str:
    return hashlib.sha256(json.dumps(purpose).encode()).hexdigest()[:16]


def register_schedule(
    name: str, spec: ScheduleSpec, cv_error: float, about: About = no_parts
) -> Registered:
    """Log a schedule predictor in the active run, as `register` does."""
    tokens = spec.law["tokens"]
    phases = range(1, len(tokens) + 1)
    outputs = [
        *(keys.VAL_LOSS + domain for domain in spec.val_domains),
        *("objective", "objective_low", "objective_high"),
        *(f"{keys.PHASE}{k}/objective" for k in phases),
    ]
    return _register(
        name,
        schedule_predictor.__file__,
        spec,
        {
            "n_params": spec.n_params,
            "domains": spec.domains,
            "val_domains": spec.val_domains,
            "unit": spec.unit,
            INPUTS: [f"{keys.PHASE}{k}/{keys.MIXTURE}{d}" for k in phases for d in spec.domains],
        },
        ModelSignature(outputs=Schema([ColSpec("double", column) for column in outputs])),
        _with_unit(
            [spec.n_params, tokens, spec.domains, spec.val_domains, spec.weights], spec.unit
        ),
        cv_error,
        about,
    )


def _register(
    name: str,
    code: str,
    spec: Spec | ScheduleSpec,
    metadata: dict[str, Any],
    signature: ModelSignature,
    purpose: list[Any],
    cv_error: float,
    about: About,
) -> Registered:
    """Log the model, and set its description, tags and alias.

    `metadata` is what users of the model see in MLflow. The signature has no input schema, so that
    MLflow neither drops nor casts columns before the model checks them (see `input_checks.py`);
    the metadata names the input columns instead.
    """
    inputs = metadata[INPUTS]
    example = pd.DataFrame([dict.fromkeys(inputs, 1 / len(spec.domains))])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "predictor.json")
        path.write_text(json.dumps(spec.to_json()))
        artifacts = {"predictor": str(path), **CODE}
        shown = columns.example(spec, artifacts)
        artifacts["openapi"] = columns.write_openapi(Path(folder), spec, shown)
        info = mlflow.pyfunc.log_model(
            name="predictor",
            python_model=code,
            artifacts=artifacts,
            signature=signature,
            input_example=example,
            registered_model_name=name,
            pip_requirements=[
                f"{p}=={importlib.metadata.version(p)}" for p in ("mlflow", "numpy", "pandas")
            ],
            metadata=metadata,
        )
    mlflow.log_metric(CV_ERROR, cv_error, model_id=info.model_id)
    number = str(info.registered_model_version)
    fitted_for = _digest(purpose)
    client = mlflow.MlflowClient()
    _describe(client, name)
    about_columns = columns.description(spec, shown)
    parts = [*about(f"models:/{name}/{number}"), about_columns]
    client.update_model_version(name, number, markdown.fitting_parts(parts, room=CARD))
    for tag, value in (
        (CV_ERROR, f"{cv_error:.{DIGITS}g}"),
        (FITTED_FOR, fitted_for),
        (project_version.TAG, project_version.version()),
    ):
        client.set_model_version_tag(name, number, tag, value)
    reason = _why_not_champion(client, name, fitted_for, cv_error)
    alias = CHALLENGER if reason else CHAMPION
    client.set_registered_model_alias(name, alias, number)
    return Registered(name, number, alias, reason)


def _describe(client: mlflow.MlflowClient, name: str) -> None:
    """Describe the registered model, unless it is described already."""
    if not client.get_registered_model(name).description:
        client.update_registered_model(name, MODEL)


def _why_not_champion(
    client: mlflow.MlflowClient, name: str, fitted_for: str, cv_error: float
) -> str:
    """Why the current champion stays; empty if the new version takes its place."""
    try:
        champion = client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException:
        return ""
    if champion.tags.get(FITTED_FOR) != fitted_for:
        return (
            f"champion is version {champion.version}, fitted for another target, other domains, "
            "other weights or another unit"
        )
    champion_error = float(champion.tags[CV_ERROR])
    if float(f"{cv_error:.{DIGITS}g}") > float(f"{champion_error:.{DIGITS}g}"):
        return (
            f"champion is version {champion.version}, whose cross-validated error "
            f"{champion_error:.{DIGITS}g} is less than {cv_error:.{DIGITS}g}"
        )
    return ""
