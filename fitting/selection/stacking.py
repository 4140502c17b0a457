"""The weights of several laws in one prediction, by what each predicts of mixtures it has not seen.

Stacking: L. Breiman, "Stacked Regressions", Machine Learning 24, 1996. The weights are at least 0
and sum to one. They minimise the squared errors of the weighted predictions, and are drawn to equal
weights the more, the fewer mixtures there are to tell the laws apart. Each validation domain has
its own, drawn to those of all domains.
"""

import itertools

import numpy as np

Array = np.ndarray

EQUAL = 2.0  # mixtures' worth of evidence, a law, for equal weights
LEAST = 0.01  # a smaller weight is none, and a law of a smaller mean weight need not be fitted …
MUCH = 0.5  # … where no domain loses more weight than that
SHARED = 6.0  # the same for a domain to have the weights that all share
SMALLEST = 1e-18  # of the largest squared error, that another counts as at least


def weights(errors: Array, mixture_of: Array) -> Array:
    """Weights, (K, V), of laws with these errors on held-out mixtures.

    errors (K, rows, V): predicted − observed, each column in its own unit and weight; mixture_of
    (rows,). First weights that all columns share, drawn to equal ones; then those of each column by
    its own errors, drawn to the shared ones.
    """
    laws, _, columns = errors.shape
    evidence = len(np.unique(mixture_of)) / laws
    grams = np.einsum("knv,lnv->vkl", errors, errors)
    shared = _least(grams.sum(axis=0)[None], np.full(laws, 1 / laws), EQUAL / evidence)[0]
    if columns == 1:
        return shared[:, None]
    own = _least(grams, shared, SHARED / evidence).T
    kept = (own.mean(axis=1) >= LEAST)[:, None] * own
    rest = kept.sum(axis=0)
    if (rest < MUCH).any():  # a domain rests on laws that the others hardly use
        return own
    return np.asarray(kept / rest)


def _least(grams: Array, prior: Array, pull: float) -> Array:
    """Weights, (P, K), of the least squared error of the weighted errors, drawn to a prior (K,).

    With G (P, K, K) the sums of products of the laws' errors and e the harmonic mean of their
    squares: min wᵀ G w + e · pull · |w − prior|². So laws that are about as good share the weight,
    and one that is far better than the others has it. Exact: of the least-squares weights on every
    choice of laws, the best that are proportions.
    """
    laws = len(prior)
    squares = np.diagonal(grams, axis1=1, axis2=2)
    inverse = 1 / np.maximum(squares, SMALLEST * squares.max(axis=1, keepdims=True) + 1e-300)
    pulled = grams * inverse.mean(axis=1)[:, None, None] + pull * np.eye(laws)
    best = np.zeros((len(grams), laws))
    least = np.full(len(grams), np.inf)
    for chosen in itertools.product((False, True), repeat=laws):
        some = np.flatnonzero(chosen)
        if not len(some):
            continue
        system = np.ones((len(grams), len(some) + 1, len(some) + 1))
        system[:, :-1, :-1] = pulled[:, some[:, None], some]
        system[:, -1, -1] = 0
        right = np.append(pull * prior[some], 1.0)[:, None]
        weights = np.zeros_like(best)
        weights[:, some] = np.linalg.solve(system, right)[:, :-1, 0]
        cost = np.einsum("pk,pkl,pl->p", weights, pulled, weights) - 2 * pull * weights @ prior
        better = (weights >= 0).all(axis=1) & (cost < least)
        best[better], least[better] = weights[better], cost[better]
    best[best < LEAST] = 0.0
    return best / best.sum(axis=1, keepdims=True)
