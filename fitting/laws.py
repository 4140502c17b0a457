"""The laws: what a mixture, a model size and a number of tokens make of each validation loss.

A law is a frozen object with `predict`; nothing here fits, reads or plots. A registered predictor
carries a copy of this file, so it imports numpy and nothing else.

Notation: r mixture (n, M) · L loss (n, V) in nats per token · N non-embedding parameters ·
D tokens · φ(r) = r^power. Source: Ye et al., "Data Mixing Laws", arXiv 2403.16952.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray


def features(mixtures: Array, power: float) -> Array:
    """φ(r) = r^power; the paper has power 1, the square root tells small proportions apart."""
    return mixtures**power


@dataclass(frozen=True)
class JointLaw:
    """One law for all sizes, lengths and mixtures; exponents shared by all domains.

    L_i(N, D, r) = c_i + m_i(r) · s(N, D) + A_i (N/N0)^-α + B_i (D/D0)^-β
    m_i(r) = f_i + exp(b_i + t_i·φ(r))          (paper, eq. 1 with φ = r)
    s(N, D) = (N/N0)^-h (D/D0)^-g               g = h = 0: the mixture's effect does not shrink
    """

    power: float
    n0: float
    d0: float
    alpha: float
    beta: float
    g: float
    h: float
    constant: Array  # c, (V,)
    floor: Array  # f, (V,)
    log_scale: Array  # b, (V,)
    slope: Array  # t, (V, M)
    size: Array  # A, (V,)
    step: Array  # B, (V,)

    def predict(self, mixtures: Array, n_params: Array, tokens: Array) -> Array:
        """Losses, (n, V), of mixtures (n, M) at n_params (n,) and tokens (n,)."""
        n = np.asarray(n_params, float)[:, None] / self.n0
        d = np.asarray(tokens, float)[:, None] / self.d0
        exponent = self.log_scale + features(mixtures, self.power) @ self.slope.T
        mixing = self.floor + np.exp(exponent)
        shrink = n**-self.h * d**-self.g
        return (
            self.constant + mixing * shrink + self.size * n**-self.alpha + self.step * d**-self.beta
        )


@dataclass(frozen=True)
class NestedLaw:
    """The paper's pipeline: a step law a run, a size law a mixture, a mixing law on top.

    1. L(D) = E + B (D/D0)^-β      per run and domain, β tied over a domain's runs
    2. L(N) = E + A (N/N0)^-α      on step 1 at D, per mixture and domain, α tied over mixtures
    3. L_i(r) = c_i + k_i exp(t_i·φ(r))     on step 2 at N

    t and the exponents are those found at the target; at another N or D the linear coefficients
    E, A, c and k are solved again by least squares.
    """

    power: float
    n0: float
    d0: float
    alpha: Array  # (V,)
    beta: Array  # (V,)
    slope: Array  # t, (V, M)
    mixtures: Array  # the fitted ones, (m, M)
    mixture_of: Array  # index into mixtures of each fitted run, (R,)
    n_params: Array  # of each fitted run, (R,)
    step_floor: Array  # E of step 1, (R, V)
    step_scale: Array  # B of step 1, (R, V)

    def predict(self, mixtures: Array, n_params: Array, tokens: Array) -> Array:
        """Losses, (n, V), of mixtures (n, M) at n_params (n,) and tokens (n,)."""
        scales = np.stack([np.asarray(n_params, float), np.asarray(tokens, float)], axis=1)
        losses = np.empty((len(mixtures), len(self.beta)))
        for n, d in np.unique(scales, axis=0):
            rows = (scales[:, 0] == n) & (scales[:, 1] == d)
            losses[rows] = self._predict_at(mixtures[rows], n, d)
        return losses

    def of_fitted_mixtures(self, n_params: float, tokens: float) -> Array:
        """Steps 1 and 2: losses of the fitted mixtures at one scale, (m, V)."""
        at_d = self.step_floor + self.step_scale * (tokens / self.d0) ** -self.beta
        n = self.n_params / self.n0
        losses = np.empty((len(self.mixtures), len(self.beta)))
        for v, alpha in enumerate(self.alpha):
            floor, scale = lines(n**-alpha, at_d[:, v], self.mixture_of)
            losses[:, v] = floor + scale * (n_params / self.n0) ** -alpha
        return losses

    def _predict_at(self, mixtures: Array, n_params: float, tokens: float) -> Array:
        fitted = self.of_fitted_mixtures(n_params, tokens)
        all_in_one = np.zeros(len(fitted), int)
        losses = np.empty((len(mixtures), len(self.beta)))
        for v, slope in enumerate(self.slope):
            basis = np.exp(features(self.mixtures, self.power) @ slope)
            c, k = lines(basis, fitted[:, v], all_in_one)
            losses[:, v] = c + k * np.exp(features(mixtures, self.power) @ slope)
        return losses


def lines(x: Array, y: Array, group: Array) -> tuple[Array, Array]:
    """Least-squares intercept and slope of each group, the slopes at least 0; all (n,) → (groups,).

    A group whose x are all equal has no slope of its own: it takes the mean of the others'.
    """
    counts = np.bincount(group)
    x_mean, y_mean = np.bincount(group, x) / counts, np.bincount(group, y) / counts
    centred = x - x_mean[group]
    spread = np.bincount(group, centred**2)
    own = spread > 1e-12 * np.abs(x).max() ** 2
    slope = np.bincount(group, centred * (y - y_mean[group])) / np.where(own, spread, 1.0)
    slope = np.maximum(0.0, slope)
    slope[~own] = slope[own].mean() if own.any() else 0.0
    return y_mean - slope * x_mean, slope


LAWS = {"joint": JointLaw, "nested": NestedLaw}
Law = JointLaw | NestedLaw


def to_json(law: Law) -> dict[str, Any]:
    """A law as JSON values, its kind under `law`."""
    kind = next(name for name, cls in LAWS.items() if isinstance(law, cls))
    values = {field.name: _plain(getattr(law, field.name)) for field in dataclasses.fields(law)}
    return {"law": kind, **values}


def from_json(raw: dict[str, Any]) -> Law:
    """The inverse of `to_json`."""
    values = {
        key: np.asarray(value) if isinstance(value, list) else value
        for key, value in raw.items()
        if key != "law"
    }
    return LAWS[raw["law"]](**values)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else float(value)
