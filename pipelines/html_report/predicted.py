"""What the registered predictor says, beyond what a search logged."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from optimization.domain.differences import Differences
from optimization.domain.feasible import Feasible, feasible
from optimization.domain.objective import weighted
from optimization.domain.predictor import Predictor
from optimization.mixture.sensitivity import loss_curves
from optimization.mixture.solve import BEST, DEFAULT, OBSERVED
from optimization.search import projection
from pipelines.html_report.measured import Curve
from training.record import keys

Array = np.ndarray
Mixture = Mapping[str, float]
POINTS = 40  # of a curve


def compared(predictor: Predictor, best: Mixture) -> pd.DataFrame:
    """The table of compared mixtures that a search logs, for the law's own best mixture."""
    domains, spec = predictor.domains, predictor.spec
    name, even = projection.uniform(_explored(predictor))
    mixtures = {
        BEST: best,
        DEFAULT: spec.default_mixture,
        name: dict(zip(domains, even.tolist(), strict=True)),
        OBSERVED: spec.best_observed,
    }
    mixtures = {name: mixture for name, mixture in mixtures.items() if mixture}
    array = np.array([[mixture[d] for d in domains] for mixture in mixtures.values()])
    differences = Differences.of(predictor, weighted(predictor, predictor.weights), array[0])
    above, half = differences.mean(array), differences.half_width(array)
    ends = {
        "difference": above,
        "difference_low": above - half,
        "difference_high": above + half,
    }
    shares = pd.DataFrame(array, columns=[keys.MIXTURE + d for d in domains])
    table = pd.concat([shares, predictor.table(array)], axis=1).assign(**ends)
    table.insert(0, "mixture", list(mixtures))
    return table


def over_tokens(
    predictor: Predictor | None,
    mixtures: Mapping[str, Mixture],
    weights: Mapping[str, float],
    evaluations: pd.DataFrame,
) -> tuple[Curve, ...]:
    """The law of the target on the best and the default mixture, from the first tokens that were
    fitted on; none for a law without a step term."""
    if predictor is None or predictor.spec.only.tokens is not None or evaluations.empty:
        return ()
    first = min(float(evaluations[keys.TOKENS].min()), predictor.tokens / 2)
    tokens = np.geomspace(first, predictor.tokens, POINTS)
    w = _weights(predictor, weights)
    curves = []
    for name in (BEST, DEFAULT):
        if name in mixtures:
            row = np.array([[mixtures[name][d] for d in predictor.domains]])
            scales = (predictor.at(predictor.n_params, t) for t in tokens)
            values = [float(scale.surface.predict(row)[0] @ w) for scale in scales]
            curves.append(Curve(name, "", tuple(tokens.tolist()), tuple(values)))
    return tuple(curves)


def uncertainty(
    predictor: Predictor | None, best: Mixture, other: Mixture | None
) -> dict[str, float]:
    """Loss → half the 90 % interval of its predicted difference between two mixtures."""
    if predictor is None or other is None:
        return {}
    rows = np.array([[mixture[d] for d in predictor.domains] for mixture in (best, other)])
    differences = Differences.of(predictor, weighted(predictor, predictor.weights), rows[0])
    half = differences.by_loss(rows[1:])[1][0]
    return dict(zip(predictor.val_domains, half.tolist(), strict=True))


def against_proportions(
    predictor: Predictor | None, best: Mixture, weights: Mapping[str, float]
) -> dict[str, pd.DataFrame]:
    """Domain → what `loss_curves` gives, within the proportions that the runs had: the loss as a
    domain's proportion changes and the others keep their ratios."""
    if predictor is None:
        return {}
    w = _weights(predictor, weights)
    base = np.array([best[d] for d in predictor.domains])
    differences = Differences.of(predictor, weighted(predictor, w), base)
    curves = loss_curves(predictor, w, _explored(predictor), differences)
    most = np.maximum(predictor.fitted.max(axis=0), base)
    within = {
        domain: curves[domain][curves[domain]["proportion"] <= share]
        for domain, share in zip(predictor.domains, most, strict=True)
        if domain in curves
    }
    return {domain: curve for domain, curve in within.items() if len(curve) > 1}


def spanned(predictor: Predictor | None, ranges: pd.DataFrame) -> float:
    """The part of the proportions that were trained over which near-optimal ones range; 0 where
    either is not known."""
    if predictor is None or ranges.empty:
        return 0.0
    ends = ranges.set_index("domain").loc[list(predictor.domains)]
    trained = float(np.ptp(predictor.fitted, axis=0).sum())
    near = float((ends["highest"] - ends["lowest"]).sum())
    return near / trained if trained else 0.0


def _weights(predictor: Predictor, weights: Mapping[str, float]) -> Array:
    """The weights of the predicted losses, (V,); the predictor's own where it predicts none of
    those that are weighed, but their sum."""
    found = np.array([weights.get(d, 0.0) for d in predictor.val_domains])
    return found if found.any() else np.asarray(predictor.weights)


def _explored(predictor: Predictor) -> Feasible:
    return feasible(predictor.explored(), predictor.domains, predictor.tokens, predictor.fitted)
