"""The weights of several laws in one prediction, by what each predicts of mixtures it has not seen.

Stacking: L. Breiman, "Stacked Regressions", Machine Learning 24, 1996. The weights are at least 0
and sum to one. They minimise the squared errors of the weighted predictions, and are drawn to equal
weights the more, the fewer mixtures there are to tell the laws apart. Each validation domain has
its own, drawn to those of all domains.
"""

import numpy as np
from scipy.optimize import minimize

Array = np.ndarray

EQUAL = 2.0  # mixtures' worth of evidence, a law, for equal weights
LEAST = 0.01  # a smaller weight is none, and a law of a smaller mean weight need not be fitted …
MUCH = 0.5  # … where no domain loses more weight than that
SHARED = 6.0  # the same for a domain to have the weights that all share


def weights(errors: Array, mixture_of: Array) -> Array:
    """Weights, (K, V), of laws with these errors on left-out mixtures.

    errors (K, rows, V): predicted − observed, each column in its own unit and weight; mixture_of
    (rows,). First weights that all columns share, drawn to equal ones; then those of each column by
    its own errors, drawn to the shared ones.
    """
    laws, _, columns = errors.shape
    evidence = len(np.unique(mixture_of)) / laws
    shared = _least(errors.reshape(laws, -1), np.full(laws, 1 / laws), EQUAL / evidence)
    if columns == 1:
        return shared[:, None]
    solved = [_least(errors[:, :, v], shared, SHARED / evidence) for v in range(columns)]
    own = np.stack(solved, axis=1)
    kept = (own.mean(axis=1) >= LEAST)[:, None] * own
    rest = kept.sum(axis=0)
    if (rest < MUCH).any():  # a domain rests on laws that the others hardly use
        return own
    return np.asarray(kept / rest)


def _least(errors: Array, prior: Array, pull: float) -> Array:
    """Weights, (K,), of the least squared error of the weighted errors (K, n), drawn to a prior.

    With G the matrix of mean products of the laws' errors and e the harmonic mean of their square
    errors: min wᵀ G w + e · pull · |w − prior|². So laws that are about as good share the weight,
    and one that is far better than the others has it.
    """
    if len(prior) == 1:
        return prior
    gram = errors @ errors.T
    gram = gram * float(np.mean(1 / np.maximum(np.diag(gram), 1e-300)))

    def cost(w: Array) -> tuple[float, Array]:
        away = w - prior
        return float(w @ gram @ w + pull * away @ away), 2 * (gram @ w + pull * away)

    solved = minimize(
        cost,
        prior,
        jac=True,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * len(prior),
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-12},
    )
    found = np.clip(solved.x, 0.0, 1.0)
    found[found < LEAST] = 0.0
    return found / found.sum()
