"""The weights of several laws in one prediction, by what each predicts of mixtures it has not seen.

Stacking: L. Breiman, "Stacked Regressions", Machine Learning 24, 1996. The weights are at least 0
and sum to one. They minimise the squared errors of the weighted predictions, and are drawn to equal
weights the more, the fewer mixtures there are to tell the laws apart.
"""

import numpy as np
from scipy.optimize import minimize

Array = np.ndarray

EQUAL = 2.0  # mixtures' worth of evidence, a law, for equal weights


def weights(errors: Array, mixture_of: Array) -> Array:
    """Weights, (K,), of laws with these errors on left-out mixtures.

    errors (K, rows, V): predicted − observed, each column in its own unit and weight; mixture_of
    (rows,). With G the matrix of mean products of the laws' errors, m mixtures and e the harmonic
    mean of the laws' square errors: min wᵀ G w + e · EQUAL · K / m · |w − 1/K|². So laws that are
    about as good share the weight, and one that is far better than the others has it.
    """
    laws = len(errors)
    if laws == 1:
        return np.ones(1)
    flat = errors.reshape(laws, -1)
    gram = flat @ flat.T
    squares = np.maximum(np.diag(gram), 1e-300)
    gram = gram * float(np.mean(1 / squares))
    pull = EQUAL * laws / len(np.unique(mixture_of))
    equal = np.full(laws, 1 / laws)

    def cost(w: Array) -> tuple[float, Array]:
        away = w - equal
        return float(w @ gram @ w + pull * away @ away), 2 * (gram @ w + pull * away)

    solved = minimize(
        cost,
        equal,
        jac=True,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * laws,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-12},
    )
    found = np.clip(solved.x, 0.0, 1.0)
    found[found < 1e-6] = 0.0
    return found / found.sum()
