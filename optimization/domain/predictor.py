"""A registered predictor as the search sees it: only through MLflow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any, Protocol, Self, runtime_checkable

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException

from optimization.domain.constraints import Constraints
from training.record import keys
from training.record.errors import InputError

Array = np.ndarray
STEP = 1e-7  # of the forward differences, for laws without derivatives


class Surface(Protocol):
    """Losses over the simplex at one scale.

    `predict` maps mixtures (n, M) to losses (n, V), `jacobian` to dL_i/dr_j, (n, V, M).
    """

    def predict(self, mixtures: Array) -> Array: ...

    def jacobian(self, mixtures: Array) -> Array: ...


@runtime_checkable
class Convex(Surface, Protocol):
    """Losses that are convex in φ(r), φ a concave function of each proportion.

    `features` is φ(r) and `feature_slopes` dφ/dr, both (n, M); `feature_jacobian` is dL_i/dφ_j,
    (n, V, M); `power` is a if φ(r) = r^a, and 0 for any other φ.
    """

    power: float

    def features(self, mixtures: Array) -> Array: ...

    def feature_slopes(self, mixtures: Array) -> Array: ...

    def feature_jacobian(self, mixtures: Array) -> Array: ...


class LowerBound(Protocol):
    """constant + Σ_t Σ_j coefficients_tj φ_tj(r_j), φ_tj(r) = r^powers_tj; 0: log(r + ε)."""

    constant: float
    coefficients: Array  # (T, M)
    powers: Array  # (T, M)


@runtime_checkable
class Bounded(Surface, Protocol):
    """Losses with a bound from below: no Σ_i w_i L_i, w ≥ 0, lies below it anywhere."""

    def lower_bound(self, mixture: Array, weights: Array) -> LowerBound: ...


@dataclass(frozen=True)
class TangentPlane:
    """The bound of losses that are convex in φ(r), as a version before 0.2 registered them."""

    surface: Convex

    @property
    def power(self) -> float:
        return self.surface.power

    def predict(self, mixtures: Array) -> Array:
        return self.surface.predict(mixtures)

    def jacobian(self, mixtures: Array) -> Array:
        return self.surface.jacobian(mixtures)

    def lower_bound(self, mixture: Array, weights: Array) -> LowerBound:
        one = mixture[None]
        slopes = weights @ self.surface.feature_jacobian(one)[0]
        constant = weights @ self.surface.predict(one)[0] - slopes @ self.surface.features(one)[0]
        powers = np.full((1, len(mixture)), self.surface.power)
        return SimpleNamespace(constant=float(constant), coefficients=slopes[None], powers=powers)

    @classmethod
    def side_by_side(cls, planes: "Sequence[TangentPlane]") -> "TangentPlane":
        """Several as one of all their losses, (n, B · V)."""
        laws: list[Any] = [plane.surface for plane in planes]
        names = ("floor", "log_scale", "slope")
        values = {name: np.concatenate([getattr(law, name) for law in laws]) for name in names}
        return cls(replace(laws[0], **values))


def bounded(surface: Surface) -> Bounded | None:
    """The surface with a bound from below; None if it has none."""
    if isinstance(surface, Bounded):
        return surface
    return TangentPlane(surface) if isinstance(surface, Convex) else None


@dataclass(frozen=True)
class Numeric:
    """A law without derivatives, at one scale."""

    law: Any
    n_params: float
    tokens: float

    def predict(self, mixtures: Array) -> Array:
        ones = np.ones(len(mixtures))
        return np.asarray(self.law.predict(mixtures, self.n_params * ones, self.tokens * ones))

    def jacobian(self, mixtures: Array) -> Array:
        n, domains = mixtures.shape
        moved = (mixtures[:, None] + STEP * np.eye(domains)).reshape(-1, domains)
        change = self.predict(moved).reshape(n, domains, -1) - self.predict(mixtures)[:, None]
        return change.transpose(0, 2, 1) / STEP


@dataclass(frozen=True)
class Prediction:
    """The prediction for one mixture."""

    losses: dict[str, float]
    losses_low: dict[str, float]
    losses_high: dict[str, float]
    objective: float
    low: float
    high: float
    distance: float
    accuracies: dict[str, float]  # of tasks whose accuracy follows their loss
    accuracies_low: dict[str, float]
    accuracies_high: dict[str, float]


class Scale(Protocol):
    """A model size and a number of tokens."""

    n_params: Any
    tokens: Any


class Explored(Protocol):
    """The mixtures that the runs explored."""

    lowest: dict[str, float]
    highest: dict[str, float]
    bundles: dict[str, dict[str, float]]


class Continual(Protocol):
    """What is known of runs that continue a base model, beside their law."""

    base: dict[str, float]
    original: Sequence[str]
    original_weights: dict[str, float]
    new_weights: dict[str, float]


class Spec(Protocol):
    """What was fitted, as the artifact's own code reads it: see `fitting/artifact/spec.py`.

    It is declared again here, because an artifact carries the code of the version that registered
    it.
    """

    domains: Sequence[str]
    val_domains: Sequence[str]
    target: Scale
    unit: str
    weights: Sequence[float]
    only: Scale
    mixtures: Sequence[Sequence[float]]
    explored: Explored
    val_weights: dict[str, float]
    default_mixture: dict[str, float]
    best_observed: dict[str, float]
    continual: Continual | None


@dataclass(frozen=True)
class Predictor:
    """A loaded predictor at one scale."""

    uri: str
    domains: tuple[str, ...]
    val_domains: tuple[str, ...]
    weights: Array  # of the validation domains, (V,)
    n_params: float
    tokens: float
    spec: Spec
    loaded: Any  # mlflow.pyfunc.PyFuncModel
    artifact_model: Any  # the artifact's own MixturePredictor

    @property
    def unit(self) -> str:
        """The unit of the losses."""
        return self.spec.unit

    def refuse_other_unit(self, unit: str) -> None:
        """Raise InputError if the losses are not in this unit."""
        if self.unit != unit:
            raise InputError(
                f"model {self.uri!r} predicts {keys.unit_text(self.unit)}, but the study measures "
                f"{keys.unit_text(unit)} (validation.unit); fit again with the study, and name the "
                "version that this registers with model=models:/<name>/<version>"
            )

    def at(self, n_params: float, tokens: float) -> Self:
        """The same predictor at another scale."""
        return replace(self, n_params=n_params, tokens=tokens)

    def table(self, mixtures: Array) -> pd.DataFrame:
        """The predictions for mixtures (n, M), a row each."""
        rows = pd.DataFrame(mixtures, columns=[keys.MIXTURE + d for d in self.domains])
        rows["n_params"], rows["tokens"] = self.n_params, self.tokens
        return self.loaded.predict(rows, params={"domain_intervals": True})

    def predict_one(self, mixture: Mapping[str, float]) -> Prediction:
        """The prediction for one mixture."""
        row = dict(self.table(np.array([[mixture[d] for d in self.domains]])).iloc[0])
        return Prediction(
            losses=keys.without_prefix(keys.VAL_LOSS, row),
            losses_low=keys.without_prefix(keys.VAL_LOSS_LOW, row),
            losses_high=keys.without_prefix(keys.VAL_LOSS_HIGH, row),
            objective=float(row["objective"]),
            low=float(row["objective_low"]),
            high=float(row["objective_high"]),
            distance=float(row["distance"]),
            accuracies=keys.without_prefix(keys.ACCURACY, row),
            accuracies_low=keys.without_prefix(keys.ACCURACY_LOW, row),
            accuracies_high=keys.without_prefix(keys.ACCURACY_HIGH, row),
        )

    def explored(self) -> Constraints:
        """The constraints that the mixtures of the fitted runs satisfy."""
        lowest, highest = self.spec.explored.lowest, self.spec.explored.highest
        bounds = {d: (lowest[d], highest[d]) for d in self.domains}
        return Constraints(bounds=bounds, bundles=self.spec.explored.bundles)

    @cached_property
    def fitted(self) -> Array:
        """The mixtures that the law was fitted to, (m, M)."""
        return np.array(self.spec.mixtures)

    @cached_property
    def surface(self) -> Surface:
        """The law at this scale."""
        return self.surface_of(self.artifact_model.law)

    @cached_property
    def replicates(self) -> list[Surface]:
        """The laws of the bootstrap over mixtures, at this scale."""
        return [self.surface_of(law) for law in self.artifact_model.interval.bootstrap]

    def half_width(self, weights: Array, mixtures: Array) -> Array:
        """Half the 90 % interval of the weighted loss; weights (V,) → (n,), (V, k) → (n, k)."""
        n_params, tokens = (np.full(len(mixtures), x) for x in (self.n_params, self.tokens))
        return np.asarray(
            self.artifact_model.interval.half_width(weights, mixtures, n_params, tokens)
        )

    def surface_of(self, law: Any) -> Surface:
        """A law of the artifact at this scale."""
        if hasattr(law, "mixing"):
            surface: Surface = law.mixing(self.n_params, self.tokens)
            return bounded(surface) or surface
        return Numeric(law, self.n_params, self.tokens)


def load(
    uri: str, n_params: float | None = None, tokens: float | None = None, unit: str | None = None
) -> Predictor:
    """Load a registered predictor, at the given scale or at its own target.

    Raises InputError if the model is not a mixture predictor, if its losses are not in `unit`
    (None: any), or if it cannot predict at this scale.
    """
    try:
        loaded = mlflow.pyfunc.load_model(uri)
    except MlflowException as error:
        raise InputError(f"model {uri!r} cannot be loaded: {error.message}") from error
    metadata = loaded.metadata.metadata or {}
    if "target" not in metadata:
        raise InputError(f"model {uri!r} is not a mixture predictor; `fit` registers one")
    artifact_model = loaded.unwrap_python_model()
    if not hasattr(artifact_model, "scales"):
        raise InputError(
            f"model {uri!r} was registered by an earlier `fit`, without what a search needs; "
            "fit again"
        )
    spec: Spec = artifact_model.spec
    if isinstance(artifact_model.spec, dict):
        spec = _of_version_0_1(artifact_model.spec, metadata)
    predictor = Predictor(
        uri,
        tuple(spec.domains),
        tuple(spec.val_domains),
        np.array(spec.weights),
        n_params or spec.target.n_params,
        tokens or spec.target.tokens,
        spec,
        loaded,
        artifact_model,
    )
    if unit is not None:
        predictor.refuse_other_unit(unit)
    try:
        predictor.table(predictor.fitted[:1])
    except MlflowException as error:
        raise InputError(
            f"model {uri!r} has no answer at n_params {predictor.n_params:,.0f} and tokens "
            f"{predictor.tokens:,.0f}: {error.message}"
        ) from error
    return predictor


def _of_version_0_1(raw: dict[str, Any], metadata: Mapping[str, Any]) -> Spec:
    """The spec of a predictor that stores a part in its artifact and the rest in its metadata."""
    lowest, highest, bundles = (metadata.get(k, {}) for k in ("lowest", "highest", "bundles"))
    names = ("base", "original", "original_weights", "new_weights")
    return SimpleNamespace(
        **{k: raw[k] for k in ("domains", "val_domains", "weights", "mixtures")},
        target=SimpleNamespace(**raw["target"]),
        unit=raw.get(keys.UNIT, keys.NATS),
        only=SimpleNamespace(**raw["only"]),
        explored=SimpleNamespace(lowest=lowest, highest=highest, bundles=bundles),
        val_weights=metadata["weights"],
        default_mixture=metadata["default_mixture"],
        best_observed=metadata["best_observed"],
        continual=SimpleNamespace(**{k: metadata[k] for k in names})
        if "base" in metadata
        else None,
    )
