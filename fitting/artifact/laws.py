"""The laws: what a mixture, a model size and a number of tokens make of each validation loss.

A law is a frozen object with `predict`; nothing here fits, reads or plots. A registered predictor
carries a copy of this file, so it imports numpy and nothing else.

Notation: r mixture (n, M) · L loss (n, V) in nats per token · N non-embedding parameters ·
D tokens · n = N/N0 and d = D/D0, relative to the largest in the data · φ(r) the features of a
mixture. Source of the first two: Ye et al., "Data Mixing Laws", arXiv 2403.16952.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

Array = np.ndarray

BIMIX_EPSILON = 1e-3
FEW_NUMBERS = 2**18  # in an array: laws that have less are asked all at once
TINY = 1e-12
LEAST = 1e-14  # proportion at which a slope that is infinite at 0 is taken
STEP = 1e-5  # of log D, of a central difference
PUBLISHED_WORTH = 15.4  # R of Muennighoff et al., arXiv 2305.16264


def features(mixtures: Array, power: float) -> Array:
    """φ(r) = r^power, (n, M); power 0 is log(r + ε) with ε a quarter of the uniform proportion.

    The paper has power 1; powers below tell small proportions apart.
    """
    return mixtures**power if power > 0 else np.log(mixtures + 0.25 / mixtures.shape[1])


@dataclass(frozen=True)
class LowerBound:
    """constant + Σ_t Σ_j coefficients_tj φ_tj(r_j), which no weighted loss lies below.

    φ_tj(r) = r^powers_tj; a power of 0 is log(r + ε), as in `features`. The bound is exact at the
    mixture that it was made for.
    """

    constant: float
    coefficients: Array  # (T, M)
    powers: Array  # (T, M)


class _AtOneScale:
    """A law at one scale."""

    @staticmethod
    def side_by_side(laws: "Sequence[Any]") -> Any:
        """Laws of one kind as one law of all their losses, (n, B · V)."""
        return side_by_side(laws)


@dataclass(frozen=True)
class MixingLaw(_AtOneScale):
    """What a mixture does at one size and length: L_i(r) = c_i + Σ_k exp(b_ik + t_ik·φ(r)).

    φ is concave and each loss is convex in φ(r), which lets a search prove its optimum.
    """

    power: float
    floor: Array  # c, (V,)
    log_scale: Array  # b, (V, K)
    slope: Array  # t, (V, K, M)

    def predict(self, mixtures: Array) -> Array:
        """Losses, (n, V), of mixtures (n, M)."""
        return self.floor + self._terms(mixtures).sum(axis=2)

    def jacobian(self, mixtures: Array) -> Array:
        """dL_i/dr_j, (n, V, M)."""
        return self.feature_jacobian(mixtures) * self.feature_slopes(mixtures)[:, None]

    def feature_jacobian(self, mixtures: Array) -> Array:
        """dL_i/dφ_j, (n, V, M)."""
        return np.einsum("nvk,vkm->nvm", self._terms(mixtures), self.slope)

    def features(self, mixtures: Array) -> Array:
        """φ(r), (n, M)."""
        return features(mixtures, self.power)

    def feature_slopes(self, mixtures: Array) -> Array:
        """dφ/dr, (n, M); where it is infinite at 0, that at a proportion of 1e-14."""
        if self.power == 0:
            return 1 / (mixtures + 0.25 / mixtures.shape[1])
        return self.power * np.maximum(mixtures, LEAST) ** (self.power - 1)

    def lower_bound(self, mixture: Array, weights: Array) -> LowerBound:
        """Below Σ_i w_i L_i, w ≥ 0 (V,), by its tangent plane in φ at a mixture (M,)."""
        slopes = weights @ self.feature_jacobian(mixture[None])[0]
        value = weights @ self.predict(mixture[None])[0]
        constant = value - slopes @ self.features(mixture[None])[0]
        return LowerBound(float(constant), slopes[None], np.full((1, len(mixture)), self.power))

    def _terms(self, mixtures: Array) -> Array:
        """The exponentials, (n, V, K)."""
        exponents = np.einsum("nm,vkm->nvk", self.features(mixtures), self.slope)
        return np.exp(self.log_scale + exponents)


@dataclass(frozen=True)
class JointLaw:
    """One law for all sizes, lengths and mixtures.

    L_i(N, D, r) = c_i + m_i(r) · n^-h d^-g + A_i n^-α + B_i d^-β
    m_i(r) = f_i + Σ_k exp(b_ik + t_ik·φ(r))      one k: the paper's mixing law

    g = h = 0: the mixture's effect does not shrink with scale. Where it does, m_i has mean 0
    over the fitted mixtures, so that c, A and B hold the mean loss and m what a mixture adds.
    Exponents are one number for all domains or one per domain.
    """

    power: float
    n0: float
    d0: float
    alpha: Array  # (V,)
    beta: Array  # (V,)
    g: Array  # (V,)
    h: Array  # (V,)
    constant: Array  # c, (V,)
    floor: Array  # f, (V,)
    log_scale: Array  # b, (V, K)
    slope: Array  # t, (V, K, M)
    size: Array  # A, (V,)
    step: Array  # B, (V,)

    def predict(self, mixtures: Array, n_params: Array, tokens: Array) -> Array:
        """Losses, (n, V), of mixtures (n, M) at n_params (n,) and tokens (n,)."""
        n = np.asarray(n_params, float)[:, None] / self.n0
        d = np.asarray(tokens, float)[:, None] / self.d0
        mixing = self.floor + np.exp(self._exponents(mixtures)).sum(axis=2)
        shrink = n**-self.h * d**-self.g
        return (
            self.constant + mixing * shrink + self.size * n**-self.alpha + self.step * d**-self.beta
        )

    def mixing(self, n_params: float, tokens: float) -> MixingLaw:
        """The mixing law at one scale."""
        n, d = n_params / self.n0, tokens / self.d0
        shrink = n**-self.h * d**-self.g
        scale = self.size * n**-self.alpha + self.step * d**-self.beta
        return MixingLaw(
            self.power,
            self.constant + self.floor * shrink + scale,
            self.log_scale + np.log(shrink)[:, None],
            self.slope,
        )

    def interactions(self, mixture: Array) -> Array:
        """t, (V, M): with several exponentials their mean at a mixture (M,), weighted by size."""
        weight = np.exp(self._exponents(mixture[None])[0])
        return np.einsum("vk,vkm->vm", weight, self.slope) / weight.sum(axis=1, keepdims=True)

    def _exponents(self, mixtures: Array) -> Array:
        phi = features(mixtures, self.power)
        return self.log_scale + np.einsum("nm,vkm->nvk", phi, self.slope)


@dataclass(frozen=True)
class NestedLaw:
    """The paper's pipeline: a step law per run, a size law per mixture, a mixing law on top.

    1. L(D) = E + B d^-β      per run and domain
    2. L(N) = E + A n^-α      on step 1 at D, per mixture and domain
    3. L_i(r) = c_i + k_i exp(t_i·φ(r))     on step 2 at N

    t and the exponents are those found at the target; at another N or D the linear coefficients
    E, A, c and k are solved again by least squares.
    """

    power: float
    n0: float
    d0: float
    alpha: Array  # (m, V)
    beta: Array  # (R, V)
    slope: Array  # t, (V, M)
    mixtures: Array  # the fitted ones, (m, M)
    mixture_of: Array  # index into mixtures of each fitted run, (R,)
    n_params: Array  # of each fitted run, (R,)
    step_floor: Array  # E of step 1, (R, V)
    step_scale: Array  # B of step 1, (R, V)
    counts: Array  # how often each mixture counts in step 3, (m,): 1, or as a bootstrap drew it

    def predict(self, mixtures: Array, n_params: Array, tokens: Array) -> Array:
        """Losses, (n, V), of mixtures (n, M) at n_params (n,) and tokens (n,)."""
        scales = np.stack([np.asarray(n_params, float), np.asarray(tokens, float)], axis=1)
        losses = np.empty((len(mixtures), len(self.slope)))
        for n, d in np.unique(scales, axis=0):
            rows = (scales[:, 0] == n) & (scales[:, 1] == d)
            losses[rows] = self._predict_at(mixtures[rows], n, d)
        return losses

    def of_fitted_mixtures(self, n_params: float, tokens: float) -> Array:
        """Steps 1 and 2: losses of the fitted mixtures at one scale, (m, V)."""
        at_d = self.step_floor + self.step_scale * (tokens / self.d0) ** -self.beta
        x = (self.n_params / self.n0)[:, None] ** -self.alpha[self.mixture_of]
        floor, scale = lines(x, at_d, self.mixture_of)
        return floor + scale * (n_params / self.n0) ** -self.alpha

    def interactions(self, mixture: Array) -> Array:  # noqa: ARG002 - as in JointLaw
        """t, (V, M)."""
        return self.slope

    def mixing(self, n_params: float, tokens: float) -> MixingLaw:
        """The mixing law at one scale."""
        fitted = self.of_fitted_mixtures(n_params, tokens)
        basis = np.exp(features(self.mixtures, self.power) @ self.slope.T)
        counts = np.broadcast_to(self.counts[:, None], basis.shape)
        c, k = lines(basis, fitted, np.zeros(len(fitted), int), counts)
        with np.errstate(divide="ignore"):  # k = 0 is a constant loss
            return MixingLaw(self.power, c[0], np.log(k[0])[:, None], self.slope[:, None])

    def _predict_at(self, mixtures: Array, n_params: float, tokens: float) -> Array:
        return self.mixing(n_params, tokens).predict(mixtures)


@dataclass(frozen=True)
class AdditiveLaw:
    """L_i = E_i + 1 / Σ_j C_ij r_j^γ_ij + A_i n^-α_i + B_i d^-β_i

    and with A_i = (Σ_j a_ij r_j)^κ_i, B_i = (Σ_j b_ij r_j)^λ_i the joint form of the same source:
    Shukor et al., "Scaling Laws for Optimal Data Mixtures", arXiv 2507.09404. A κ or λ of 1 and
    equal a or b over j is the additive form.
    """

    n0: float
    d0: float
    floor: Array  # E, (V,)
    weight: Array  # C, (V, M)
    power: Array  # γ, (V, M)
    size: Array  # a, (V, M)
    size_power: Array  # κ, (V,)
    alpha: Array  # (V,)
    step: Array  # b, (V, M)
    step_power: Array  # λ, (V,)
    beta: Array  # (V,)

    def predict(self, mixtures: Array, n_params: Array, tokens: Array) -> Array:
        """Losses, (n, V), of mixtures (n, M) at n_params (n,) and tokens (n,)."""
        n = np.asarray(n_params, float)[:, None] / self.n0
        d = np.asarray(tokens, float)[:, None] / self.d0
        grown = np.einsum("vm,nvm->nv", self.weight, mixtures[:, None] ** self.power)
        grown = np.maximum(grown, TINY)
        size = (mixtures @ self.size.T) ** self.size_power
        step = (mixtures @ self.step.T) ** self.step_power
        return self.floor + 1 / grown + size * n**-self.alpha + step * d**-self.beta

    def mixing(self, n_params: float, tokens: float) -> "AdditiveMixing":
        """The law at one scale."""
        return AdditiveMixing(
            self.floor,
            self.weight,
            self.power,
            np.stack([self.size, self.step], axis=1),
            np.stack([self.size_power, self.step_power], axis=1),
            np.stack(
                [(n_params / self.n0) ** -self.alpha, (tokens / self.d0) ** -self.beta], axis=1
            ),
        )


@dataclass(frozen=True)
class AdditiveMixing(_AtOneScale):
    """An additive law at one scale: L_i = E_i + 1 / Σ_j C_ij r_j^γ_ij + Σ_s S_is (a_is·r)^κ_is."""

    floor: Array  # E, (V,)
    weight: Array  # C, (V, M)
    powers: Array  # γ, (V, M)
    inner: Array  # a of the size and of the step term, (V, 2, M)
    outer: Array  # κ, (V, 2)
    scale: Array  # S, (V, 2)
    power = 0.5  # r^power is what a search moves in: slopes are finite there

    def predict(self, mixtures: Array) -> Array:
        """Losses, (n, V), of mixtures (n, M)."""
        inverse, scaled = self._parts(mixtures)
        return self.floor + inverse + scaled.sum(axis=2)

    def jacobian(self, mixtures: Array) -> Array:
        """dL_i/dr_j, (n, V, M)."""
        inverse, scaled = self._parts(mixtures)
        safe = np.maximum(mixtures, LEAST)[:, None]
        growth = self.weight * self.powers * safe ** (self.powers - 1)
        slopes = -(inverse**2)[:, :, None] * growth
        rate = scaled * self.outer / np.maximum(self._inner(mixtures), TINY)
        return slopes + np.einsum("nvs,vsm->nvm", rate, self.inner)

    def lower_bound(self, mixture: Array, weights: Array) -> LowerBound:
        """Below Σ_i w_i L_i, w ≥ 0 (V,), and exact at a mixture (M,).

        1/u lies above its tangent in u = Σ_j C_j r_j^γ_j, and s^κ above its tangent in s = a·r
        where it is convex. Where it is concave, 0 < κ < 1, it lies above that tangent less
        c (s − s*)²; c is that of the least s, as the third derivative is positive. By Cauchy and
        Schwarz, with Σ_j (r_j − r*_j) = 0 and b_j = a_j − median(a),
        (s − s*)² ≤ Σ_j |b_j| · Σ_j |b_j| (r_j − r*_j)².
        """
        one = mixture[None]
        inverse, scaled = (part[0] for part in self._parts(one))
        s = np.maximum(self._inner(one)[0], TINY)
        rate = scaled * self.outer / s
        lines = weights @ np.einsum("vs,vsm->vm", rate, self.inner)
        constant = weights @ (self.floor + 2 * inverse + (scaled - rate * s).sum(axis=1))
        falls = -(weights * inverse**2)[:, None] * self.weight
        curved = weights @ np.einsum("vs,vsm->vm", self._concave(s), self._apart())
        return LowerBound(
            float(constant - curved @ mixture**2),
            np.vstack([falls, lines + 2 * curved * mixture, -curved]),
            np.vstack([self.powers, np.ones(len(mixture)), np.full(len(mixture), 2.0)]),
        )

    def _concave(self, s: Array) -> Array:
        """S c of each size and step term at its s, (V, 2); 0 where it is convex."""
        lowest = np.maximum(self.inner.min(axis=2), TINY)
        gap = s - lowest
        near = gap <= 1e-4 * s  # then the largest slope of the slope, at the least s
        with np.errstate(over="ignore"):
            tangent = s**self.outer - self.outer * s ** (self.outer - 1) * gap
            c = (tangent - lowest**self.outer) / np.where(near, 1.0, gap) ** 2
            limit = self.outer * (1 - self.outer) / 2 * lowest ** (self.outer - 2)
        concave = (self.outer > 0) & (self.outer < 1)
        return np.where(concave, self.scale * np.maximum(0.0, np.where(near, limit, c)), 0.0)

    def _apart(self) -> Array:
        """Σ_j |b_j| · |b_j| of each size and step term, (V, 2, M)."""
        b = np.abs(self.inner - np.median(self.inner, axis=2, keepdims=True))
        return b * b.sum(axis=2, keepdims=True)

    def _inner(self, mixtures: Array) -> Array:
        return np.einsum("nm,vsm->nvs", mixtures, self.inner)

    def _parts(self, mixtures: Array) -> tuple[Array, Array]:
        """1 / Σ_j C_ij r_j^γ_ij, (n, V), and the size and step terms, (n, V, 2)."""
        grown = np.einsum("vm,nvm->nv", self.weight, mixtures[:, None] ** self.powers)
        with np.errstate(divide="ignore", over="ignore"):
            scaled = self.scale * self._inner(mixtures) ** self.outer
        return 1 / np.maximum(grown, TINY), scaled


@dataclass(frozen=True)
class PowerSumLaw:
    """L_i = b_i + Σ_j W_ij r_j^a_i + A_i n^-α_i + B_i d^-β_i

    The sum of powers that an automated search over formulas arrived at (SLDBench, domain-mixture
    task), with scale terms.
    """

    n0: float
    d0: float
    floor: Array  # b, (V,)
    weight: Array  # W, (V, M)
    power: Array  # a, (V,)
    size: Array  # A, (V,)
    alpha: Array  # (V,)
    step: Array  # B, (V,)
    beta: Array  # (V,)

    def predict(self, mixtures: Array, n_params: Array, tokens: Array) -> Array:
        """Losses, (n, V), of mixtures (n, M) at n_params (n,) and tokens (n,)."""
        n = np.asarray(n_params, float)[:, None] / self.n0
        d = np.asarray(tokens, float)[:, None] / self.d0
        powers = mixtures[:, None] ** self.power[:, None]
        mixing = self.floor + np.einsum("vm,nvm->nv", self.weight, powers)
        return mixing + self.size * n**-self.alpha + self.step * d**-self.beta

    def mixing(self, n_params: float, tokens: float) -> "PowerSumMixing":
        """The law at one scale."""
        n, d = n_params / self.n0, tokens / self.d0
        scale = self.size * n**-self.alpha + self.step * d**-self.beta
        return PowerSumMixing(self.floor + scale, self.weight, self.power)


@dataclass(frozen=True)
class PowerSumMixing(_AtOneScale):
    """A sum of powers at one scale: L_i = b_i + Σ_j W_ij r_j^a_i."""

    floor: Array  # b, (V,)
    weight: Array  # W, (V, M)
    powers: Array  # a, (V,)
    power = 0.5  # as of `AdditiveMixing`

    def predict(self, mixtures: Array) -> Array:
        """Losses, (n, V), of mixtures (n, M)."""
        return self.floor + np.einsum("vm,nvm->nv", self.weight, self._powers(mixtures))

    def jacobian(self, mixtures: Array) -> Array:
        """dL_i/dr_j, (n, V, M)."""
        return self.weight * self.powers[:, None] * self._powers(np.maximum(mixtures, LEAST), 1)

    def lower_bound(self, mixture: Array, weights: Array) -> LowerBound:  # noqa: ARG002
        """Σ_i w_i L_i itself, w ≥ 0 (V,)."""
        powers = np.tile(self.powers[:, None], self.weight.shape[1])
        return LowerBound(float(weights @ self.floor), weights[:, None] * self.weight, powers)

    def _powers(self, mixtures: Array, less: int = 0) -> Array:
        return mixtures[:, None] ** (self.powers[:, None] - less)


@dataclass(frozen=True)
class BiMixLaw:
    """L_i = (r_i + ε)^-p_i (C_i + B_i d^-β_i + A_i n^-α_i), r_i the domain's own proportion.

    Ge et al., "BiMix", arXiv 2405.14908; ε (a thousandth) keeps a domain that was left out
    finite, and the size term is added to it here.
    """

    n0: float
    d0: float
    own: Array  # which training domain each validation domain is, (V,)
    power: Array  # p, (V,)
    floor: Array  # C, (V,)
    size: Array  # A, (V,)
    alpha: Array  # (V,)
    step: Array  # B, (V,)
    beta: Array  # (V,)

    def predict(self, mixtures: Array, n_params: Array, tokens: Array) -> Array:
        """Losses, (n, V), of mixtures (n, M) at n_params (n,) and tokens (n,)."""
        n = np.asarray(n_params, float)[:, None] / self.n0
        d = np.asarray(tokens, float)[:, None] / self.d0
        scale = self.floor + self.step * d**-self.beta + self.size * n**-self.alpha
        return (mixtures[:, self.own.astype(int)] + BIMIX_EPSILON) ** -self.power * scale

    def mixing(self, n_params: float, tokens: float) -> "BiMixMixing":
        """The law at one scale."""
        n, d = n_params / self.n0, tokens / self.d0
        scale = self.floor + self.step * d**-self.beta + self.size * n**-self.alpha
        return BiMixMixing(self.own, self.power, scale)


@dataclass(frozen=True)
class BiMixMixing(_AtOneScale):
    """BiMix at one scale: L_i = S_i (r_i + ε)^-p_i, convex in r."""

    own: Array  # (V,)
    powers: Array  # p, (V,)
    scale: Array  # S, (V,)
    power = 0.5  # as of `AdditiveMixing`

    def predict(self, mixtures: Array) -> Array:
        """Losses, (n, V), of mixtures (n, M)."""
        return self.scale * (mixtures[:, self.own.astype(int)] + BIMIX_EPSILON) ** -self.powers

    def jacobian(self, mixtures: Array) -> Array:
        """dL_i/dr_j, (n, V, M)."""
        own = self.own.astype(int)
        slopes = -self.powers * self.predict(mixtures) / (mixtures[:, own] + BIMIX_EPSILON)
        return slopes[:, :, None] * np.eye(mixtures.shape[1])[own]

    def lower_bound(self, mixture: Array, weights: Array) -> LowerBound:
        """Below Σ_i w_i L_i, w ≥ 0 (V,), by its tangent plane at a mixture (M,)."""
        slopes = weights @ self.jacobian(mixture[None])[0]
        constant = weights @ self.predict(mixture[None])[0] - slopes @ mixture
        return LowerBound(float(constant), slopes[None], np.ones((1, len(mixture))))


@dataclass(frozen=True)
class StackedLaw:
    """A weighted sum of laws, L_i = Σ_k w_ki L_ki; Breiman, "Stacked Regressions", 1996."""

    laws: tuple["Law", ...]
    weights: Array  # (K, V), at least 0, each column summing to one; or (K,), the same of all V

    def predict(self, mixtures: Array, n_params: Array, tokens: Array) -> Array:
        """Losses, (n, V), of mixtures (n, M) at n_params (n,) and tokens (n,)."""
        return _weighted(
            self.weights, [law.predict(mixtures, n_params, tokens) for law in self.laws]
        )

    def mixing(self, n_params: float, tokens: float) -> "StackedMixing":
        """The law at one scale."""
        return StackedMixing(tuple(law.mixing(n_params, tokens) for law in self.laws), self.weights)


@dataclass(frozen=True)
class StackedMixing(_AtOneScale):
    """A weighted sum of laws at one scale."""

    laws: tuple["Mixing", ...]
    weights: Array  # as of `StackedLaw`
    power = 0.5  # as of `AdditiveMixing`

    def predict(self, mixtures: Array) -> Array:
        """Losses, (n, V), of mixtures (n, M)."""
        return _weighted(self.weights, [law.predict(mixtures) for law in self.laws])

    def jacobian(self, mixtures: Array) -> Array:
        """dL_i/dr_j, (n, V, M)."""
        turned = [law.jacobian(mixtures).swapaxes(1, 2) for law in self.laws]
        return _weighted(self.weights, turned).swapaxes(1, 2)

    def lower_bound(self, mixture: Array, weights: Array) -> LowerBound:
        """Below Σ_i w_i L_i, w ≥ 0 (V,): the sum of the members' bounds at a mixture (M,)."""
        bounds = [
            law.lower_bound(mixture, share * weights)
            for law, share in zip(self.laws, self.weights, strict=True)
            if np.any(share > 0)
        ]
        return LowerBound(
            sum(bound.constant for bound in bounds),
            np.vstack([bound.coefficients for bound in bounds]),
            np.vstack([bound.powers for bound in bounds]),
        )


@dataclass(frozen=True)
class RepetitionLaw:
    """A law of new text, asked for what repeated text is worth.

    A domain of U_j unique tokens that is seen e_j = r_j D / U_j times counts as
    E_j = U_j (1 + R_j (1 − exp(−(e_j − 1) / R_j))) tokens where e_j > 1, and as r_j D below:
    Muennighoff et al., arXiv 2305.16264. The law is asked at D̃ = Σ_j E_j tokens of the mixture
    E_j / D̃. R_j = R_j0 n^-ρ: a larger model wears text out sooner (ρ = 0 in the source).
    """

    law: "Law"
    n0: float
    worth: Array  # R_j0, repetitions after which another adds 1/e as much as new text, (M,)
    wear: float  # ρ
    scarcity: Array  # 1 / U_j, (M,); 0 for a domain that does not run out

    def predict(self, mixtures: Array, n_params: Array, tokens: Array) -> Array:
        """Losses, (n, V), of mixtures (n, M) at n_params (n,) and tokens (n,)."""
        n_params = np.asarray(n_params, float)
        mixtures, tokens = self.effective(mixtures, n_params, np.asarray(tokens, float))
        return self.law.predict(mixtures, n_params, tokens)

    def effective(self, mixtures: Array, n_params: Array, tokens: Array) -> tuple[Array, Array]:
        """The mixtures, (n, M), and tokens, (n,), of new text that are worth as much."""
        worth = self.worth * (n_params[:, None] / self.n0) ** -self.wear
        return effective(mixtures, tokens, self.scarcity, worth)

    def mixing(self, n_params: float, tokens: float) -> "RepetitionMixing":
        """The law at one scale."""
        worth = self.worth * (n_params / self.n0) ** -self.wear
        return RepetitionMixing(self.law, n_params, tokens, worth, self.scarcity)


@dataclass(frozen=True)
class RepetitionMixing(_AtOneScale):
    """A law of repeated text at one scale."""

    law: "Law"
    n_params: float
    tokens: float
    worth: Array  # R_j, (M,)
    scarcity: Array  # 1 / U_j, (M,)
    power = 0.5  # as of `AdditiveMixing`

    def predict(self, mixtures: Array) -> Array:
        """Losses, (n, V), of mixtures (n, M)."""
        tokens = np.full(len(mixtures), self.tokens)
        place = effective(mixtures, tokens, self.scarcity, self.worth)
        return self.law.predict(place[0], np.full(len(mixtures), self.n_params), place[1])

    def jacobian(self, mixtures: Array) -> Array:
        """dL_i/dr_j, (n, V, M)."""
        return np.array([self._jacobian(mixture) for mixture in mixtures])

    def _jacobian(self, mixture: Array) -> Array:
        """dL_i/dr_j, (V, M): E_j moves the effective mixture and the effective tokens."""
        place, tokens = effective(mixture[None], np.array([self.tokens]), self.scarcity, self.worth)
        slopes = self.law.mixing(self.n_params, float(tokens[0])).jacobian(place)[0]
        around = tokens * np.exp([-STEP, STEP])
        n_params = np.full(2, self.n_params)
        fewer, more = self.law.predict(np.repeat(place, 2, axis=0), n_params, around)
        longer = (more - fewer) / (2 * STEP)  # dL_i / d log D̃
        moved = slopes - slopes @ place[0, :, None] + longer[:, None]
        gain = marginal(mixture * self.tokens * self.scarcity, self.worth)  # dE_j / d(r_j D)
        return moved * gain * self.tokens / tokens


def effective(mixtures: Array, tokens: Array, scarcity: Array, worth: Array) -> tuple[Array, Array]:
    """The mixtures, (n, M), and tokens, (n,), of new text that mixtures (n, M) at tokens (n,) are
    worth; scarcity and worth, as of `RepetitionLaw`, are (M,) or (n, M).

    A row in which nothing is repeated comes back as it is.
    """
    seen = mixtures * tokens[:, None]
    more = np.maximum(seen * scarcity - 1, 0.0)  # passes after the first
    repeated = more > 0
    supply = seen / (1 + more)  # U_j where it is seen more than once
    worn = supply * (1 - worth * np.expm1(-more / np.maximum(worth, TINY)))
    total = np.where(repeated, worn, seen)
    sums = total.sum(axis=1)
    changed = repeated.any(axis=1)
    shares = total / np.where(changed, sums, 1.0)[:, None]
    return np.where(changed[:, None], shares, mixtures), np.where(changed, sums, tokens)


def marginal(epochs: Array, worth: Array) -> Array:
    """What one more token of a domain is worth of a new one, after so many passes over it."""
    return np.where(epochs > 1, np.exp(-np.maximum(epochs - 1, 0) / np.maximum(worth, TINY)), 1.0)


def side_by_side(laws: Sequence[Any]) -> Any:
    """Several laws of one kind as one law of all their losses, (n, B · V); nested laws cannot be
    combined.

    They have their numbers in common, such as a power of φ; what they differ in are arrays.
    """
    first = laws[0]
    values: dict[str, Any] = {
        name: np.concatenate([getattr(law, name) for law in laws])
        for name, value in vars(first).items()
        if isinstance(value, Array)
    }
    if isinstance(first, StackedLaw | StackedMixing):
        members = zip(*(law.laws for law in laws), strict=True)
        shared = first.weights.ndim == 1  # of all losses
        weights = np.concatenate([law.weights for law in laws], axis=-1)
        values = {
            "laws": tuple(map(side_by_side, members)),
            "weights": first.weights if shared else weights,
        }
    return replace(first, **values)


def _is_alone(law: Any) -> bool:
    alone = isinstance(law, NestedLaw | RepetitionLaw)
    return alone or any(map(_is_alone, getattr(law, "laws", ())))


def _weighted(weights: Array, values: Sequence[Array]) -> Array:
    """Σ_k w_ki values_k…i of each of V columns, the last axis."""
    shares = weights.reshape(len(weights), -1)
    return np.sum([share * value for share, value in zip(shares, values, strict=True)], axis=0)


Mixing = MixingLaw | AdditiveMixing | PowerSumMixing | BiMixMixing | StackedMixing


@dataclass(frozen=True)
class ScheduleLaw:
    """What the mixtures of a schedule's phases make of the losses.

    L_i at the end of phase k = ρ_ki · L_i at its start + m_ki(r_k)
    m_ki(r) = f_ki + exp(b_ki + t_ki·φ(r))

    so that the loss changes by m_ki(r) − (1 − ρ_ki) L_i. ρ is how much of a phase's start is still
    there at its end; the first phase begins with fresh weights, ρ = 0.
    """

    power: float
    tokens: Array  # at the end of each phase, (K,)
    kept: Array  # ρ, (K, V)
    floor: Array  # f, (K, V)
    log_scale: Array  # b, (K, V, 1)
    slope: Array  # t, (K, V, 1, M)

    def predict(self, schedules: Array) -> Array:
        """Losses at the end of each phase, (n, K, V), of schedules (n, K, M)."""
        losses = np.zeros((len(schedules), *self.floor.shape))
        before = losses[:, 0]
        for k in range(len(self.tokens)):
            losses[:, k] = before = self.kept[k] * before + self.phase(k).predict(schedules[:, k])
        return losses

    def phase(self, k: int) -> MixingLaw:
        """m of one phase, from 0."""
        return MixingLaw(self.power, self.floor[k], self.log_scale[k], self.slope[k])


@dataclass(frozen=True)
class AccuracyCurve:
    """The accuracy of a task as its loss L falls, from a guess to a ceiling:

        accuracy = chance + (ceiling − chance) / (1 + exp((L − middle) / width))

    Sources: Gadre et al., arXiv 2403.08540; Magnusson et al., "DataDecide", arXiv 2504.11393.
    """

    chance: float
    curve: Array  # ceiling, middle, log of the width, (3,)
    bootstrap: Array  # the same, fitted to draws of runs, (B, 3)
    residual: float  # variance of one evaluation around the curve
    quantile: float  # half width of a 90 % interval, in standard deviations

    def named(self) -> dict[str, float]:
        """The parameters of the curve, and the standard deviation around it."""
        ceiling, middle, log_width = self.curve.tolist()
        width, deviation = float(np.exp(log_width)), float(np.sqrt(self.residual))
        return {"ceiling": ceiling, "middle": middle, "width": width, "deviation": deviation}

    def predict(self, losses: Array) -> Array:
        """Accuracies, (n,), at losses (n,)."""
        return np.asarray(accuracies(self.curve, self.chance, losses))

    def ends(self, losses: Array, deviations: Array) -> tuple[Array, Array]:
        """The ends of the 90 % interval, (n,) each, given the losses' standard deviations, (n,).

        At each end, half width² = (what the curve moves over the interval of the loss)² +
        quantile² · (variance over the bootstrap + residual).
        """
        middle, wide = self.predict(losses), self.quantile * deviations
        drawn = np.array([accuracies(curve, self.chance, losses) for curve in self.bootstrap])
        own = self.quantile**2 * (drawn.var(axis=0) + self.residual)
        low = middle - np.hypot(self.predict(losses + wide) - middle, np.sqrt(own))
        high = middle + np.hypot(self.predict(losses - wide) - middle, np.sqrt(own))
        return np.maximum(low, 0), np.minimum(high, 1)


def accuracies(curve: Array, chance: float, losses: Array) -> Array:
    """The formula of `AccuracyCurve`, for one curve (3,) and losses (n,)."""
    ceiling, middle, log_width = curve
    exponent = np.clip((losses - middle) * np.exp(-log_width), -500, 500)
    return np.asarray(chance + (ceiling - chance) / (1 + np.exp(exponent)))


@dataclass(frozen=True)
class Interval:
    """How far a weighted sum of the losses Σ w_i L_i may be off, at 90 %.

    variance = spread of the bootstrap's laws + wᵀ(residual + extrapolation · distance²)w, where
    distance is log(N/N0) + log(D/D0) as far as they lie beyond the data.
    """

    bootstrap: tuple["Law", ...]  # fitted to mixtures drawn with replacement
    residual: Array  # covariance of the errors inside the data that the bootstrap does not show
    extrapolation: Array  # second moments (V, V) of the errors a unit of log distance beyond them
    varying: Array  # the part of these in which mixtures differ
    quantile: float  # of the error, in standard deviations
    n0: float
    d0: float

    def half_width(self, weights: Array, mixtures: Array, n_params: Array, tokens: Array) -> Array:
        """Half the width of the interval for each row, (n,), in nats per token.

        Weights are (V,), or (V, k) for k sums: the result is then (n, k).
        """
        spread = np.var(self._drawn(weights, mixtures, n_params, tokens), axis=0)
        beyond = self.distance(n_params, tokens).reshape(-1, *[1] * (spread.ndim - 1))
        return self.quantile * np.sqrt(spread + self.common(weights, beyond))

    def common(self, weights: Array, distance: Array | float) -> Array:
        """The variance that all mixtures at a distance beyond the data share."""
        residual = np.maximum(0.0, _quadratic(self.residual, weights))
        return residual + _quadratic(self.extrapolation, weights) * distance**2

    def own(self, weights: Array, distance: Array | float) -> Array:
        """The variance of one mixture's error that others at a distance do not share, beside the
        spread of the bootstrap's laws; weights are (V,) or (V, k)."""
        residual = np.maximum(0.0, _quadratic(self.residual, weights))
        return residual + _quadratic(self.varying, weights) * distance**2

    def of_difference(
        self,
        law: "Law",
        weights: Array,
        mixtures: Array,
        reference: Array,
        n_params: Array,
        tokens: Array,
        reach: float,
    ) -> tuple[Array, Array]:
        """Σ w_i L_i by a law less that of a reference mixture (M,) at the same scale, for each row,
        (n,), and half the width of its interval, (n,).

        Errors that mixtures share cancel: variance = mean square of what the laws of the bootstrap
        add + 2 · own · (1 − exp(−h² / reach²)), h² = Σ_j (√r_j − √reference_j)².
        """
        scales, at = np.unique([n_params, tokens], axis=1, return_inverse=True)
        beside = np.tile(reference, (scales.shape[1], 1))

        def difference(objective: Callable[[Array, Array, Array], Array]) -> Array:
            here, there = objective(mixtures, n_params, tokens), objective(beside, *scales)
            return np.asarray(here - there[..., at.reshape(-1)])

        value = difference(lambda *place: law.predict(*place) @ weights)
        added = difference(partial(self._drawn, weights)) - value
        apart = ((np.sqrt(mixtures) - np.sqrt(reference)) ** 2).sum(axis=1)
        own = 2 * self.own(weights, self.distance(n_params, tokens))
        variance = (added**2).mean(axis=0) + own * -np.expm1(-apart / reach**2)
        return value, self.quantile * np.sqrt(variance)

    def _drawn(self, weights: Array, mixtures: Array, n_params: Array, tokens: Array) -> Array:
        """Σ w_i L_i by each law of the bootstrap, (B, n), or (B, n, k) for weights (V, k)."""
        place = mixtures, n_params, tokens
        count = len(self.bootstrap)
        if _is_alone(self.bootstrap[0]) or mixtures.size * count * len(weights) > FEW_NUMBERS:
            return np.array([law.predict(*place) @ weights for law in self.bootstrap])
        losses = self._together.predict(*place).reshape(len(mixtures), count, -1)
        return np.asarray(losses.swapaxes(0, 1) @ weights)

    @cached_property
    def _together(self) -> "Law":
        """The laws of the bootstrap as one: for a few rows it is up to twenty times as fast."""
        return side_by_side(self.bootstrap)

    def distance(self, n_params: Array, tokens: Array) -> Array:
        """How far a scale lies beyond the data, in units of log."""
        beyond = np.maximum(0, np.log(n_params / self.n0))
        return np.asarray(beyond + np.maximum(0, np.log(tokens / self.d0)))


def reach(mixtures: Array) -> float:
    """The median distance h between a fitted mixture, (m, M), and its nearest neighbour, over which
    errors become independent: see `Interval.of_difference`."""
    roots = np.sqrt(mixtures)
    apart = np.sqrt(((roots[:, None] - roots[None]) ** 2).sum(axis=2))
    np.fill_diagonal(apart, np.inf)
    return float(np.median(apart.min(axis=1)))


def _quadratic(matrix: Array, weights: Array) -> Array:
    """wᵀAw of each column of weights, (V,) or (V, k)."""
    return np.asarray((weights * (matrix @ weights)).sum(axis=0))


def lines(x: Array, y: Array, group: Array, weights: Array | None = None) -> tuple[Array, Array]:
    """Least-squares intercept and slope of each group, the slopes at least 0.

    x, y and weights are (n, …), group is (n,); both results are (groups, …). A group whose x are
    all equal has no slope of its own: it takes the mean of the others'.
    """
    w = np.ones_like(x) if weights is None else weights
    total = np.maximum(_sums(w, group), 1e-300)
    x_mean, y_mean = _sums(w * x, group) / total, _sums(w * y, group) / total
    centred = x - x_mean[group]
    spread = _sums(w * centred**2, group)
    own = spread > 1e-12 * total * np.abs(x).max(axis=0) ** 2
    slope = _sums(w * centred * (y - y_mean[group]), group) / np.where(own, spread, 1.0)
    slope = np.where(own, np.maximum(0.0, slope), 0.0)
    others = slope.sum(axis=0) / np.maximum(own.sum(axis=0), 1)
    slope = np.where(own, slope, others)
    return y_mean - slope * x_mean, slope


def _sums(values: Array, group: Array) -> Array:
    """Sums over the rows of each group, (groups, …)."""
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(group.max() + 1))
    return np.add.reduceat(values[order], starts, axis=0)


LAWS = {
    "joint": JointLaw,
    "nested": NestedLaw,
    "additive": AdditiveLaw,
    "power_sum": PowerSumLaw,
    "bimix": BiMixLaw,
    "stack": StackedLaw,
    "schedule": ScheduleLaw,
    "accuracy": AccuracyCurve,
}
Law = JointLaw | NestedLaw | AdditiveLaw | PowerSumLaw | BiMixLaw | StackedLaw


def to_json(law: Law | ScheduleLaw | AccuracyCurve | Interval) -> dict[str, Any]:
    """A law, or an interval with its laws, as JSON values, its kind under `law`."""
    names = {cls: name for name, cls in LAWS.items()}
    values = {field.name: _plain(getattr(law, field.name)) for field in dataclasses.fields(law)}
    return {"law": names.get(type(law), "interval"), **values}


def from_json(raw: dict[str, Any]) -> Any:
    """The inverse of `to_json`."""
    values = {key: _rich(value) for key, value in raw.items() if key != "law"}
    return LAWS.get(raw["law"], Interval)(**values)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return {"laws": [to_json(law) for law in value]}
    return value.tolist() if isinstance(value, np.ndarray) else float(value)


def _rich(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple(from_json(law) for law in value["laws"])
    return np.asarray(value) if isinstance(value, list) else value
