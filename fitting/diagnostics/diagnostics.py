"""Diagnostics of a fit: how far it can be trusted, each with its figure and its warning."""

from dataclasses import dataclass

import numpy as np

from fitting.data.observations import Noise, Observations
from fitting.diagnostics import optimum
from fitting.diagnostics.optimum import Optimum
from fitting.selection.backtest import Backtest, Extrapolation
from fitting.selection.cross_validation import Scores

Array = np.ndarray

MISFIT = "mixing_error_against_mean"  # that the law does not describe the runs
POOR_FIT = 0.5  # error between held-out mixtures over that of predicting the mean


@dataclass(frozen=True)
class Diagnostic:
    """A metric of the fit run, a line of its summary, and a tag when it warns."""

    name: str
    value: float
    line: str
    warning: str = ""


def law_fits(scores: Scores) -> Diagnostic:
    """Whether differences between held-out mixtures are predicted better than by their mean.

    An error that all mixtures of a scale share does not count: it is the backtests' matter.
    """
    relative = scores.mixing_rmse / max(scores.mean_prediction_rmse, 1e-300)
    poor = relative > POOR_FIT
    return Diagnostic(
        MISFIT,
        relative,
        f"held-out mixtures: mean |error| of the objective {scores.objective_mae:.4f}, predicting "
        f"the mean {scores.mean_prediction_mae:.4f}, spread {scores.objective_spread:.4f}; "
        f"between mixtures of one scale {relative:.2f} of the mean's; Spearman "
        f"{scores.spearman:.2f}, R² {scores.r2:.2f}",
        "the law does not describe these runs: it predicts held-out mixtures little better than "
        f"their mean does (mean |error| {scores.objective_mae:.4f}, predicting the mean "
        f"{scores.mean_prediction_mae:.4f}); train more mixtures before you trust one found with it"
        if poor
        else "",
    )


def noise_floor(noise: Noise, scores: Scores, weights: Array) -> Diagnostic:
    """The noise between seeds, and whether the errors on held-out mixtures are larger.

    A mean square of n independent errors has the relative standard error √(2/n).
    """
    deviation = float(np.sqrt(weights @ noise.covariance @ weights))
    at_floor = scores.mixing_rmse**2 <= deviation**2 * (1 + np.sqrt(2 / noise.freedom))
    return Diagnostic(
        "noise_between_seeds",
        deviation,
        f"noise: runs that differ by their seed alone have objectives with a standard deviation of "
        f"{deviation:.4f} ({noise.freedom} degrees of freedom); the law's error between left-out "
        f"mixtures is {scores.mixing_rmse:.4f}"
        + (", no more than that: more mixtures cannot lower it, seeds can" if at_floor else ""),
    )


def extrapolates(tested: Extrapolation, half_width: float) -> list[Diagnostic]:
    """Whether backtests end within the interval; half_width is that inside the data."""
    return [
        Diagnostic(
            f"backtest_{test.label}",
            test.bias,
            f"backtest without the {_left_out(test)}: error of the objective at their end "
            f"{test.bias:+.4f}, rms {test.rmse:.4f}; the prediction at the target moves by "
            f"{test.moved:.4f}",
            _broken(test) if abs(test.bias) > half_width else "",
        )
        for test in tested.backtests
    ]


def _left_out(test: Backtest) -> str:
    parts = []
    if test.n_params_factor > 1:
        parts.append(f"largest size ({test.n_params_factor:.2g}× the parameters)")
    if test.tokens_factor > 1:
        parts.append(f"last checkpoints ({test.tokens_factor:.2g}× the tokens)")
    return " and the ".join(parts)


def _broken(test: Backtest) -> str:
    text = f"predicted without the {_left_out(test)}, losses are "
    if test.bias > 0:
        text += "too high: they fell faster than the law, "
        return text + (
            "which may be too high beyond the data; if the learning rate decays within the fitted "
            "steps, a law fitted to that decay is too low beyond it"
            if test.tokens_factor > 1
            else "which may be too high beyond the data"
        )
    return text + "too low: the gains tail off, and the target's loss may be higher than predicted"


def optimum_is_near(best: Optimum, observations: Observations) -> Diagnostic:
    """How far the target's best mixture lies from every fitted one."""
    distance = float(optimum.apart(best.mixture, observations.mixtures).min())
    spacing = optimum.spacing(observations.mixtures)
    return Diagnostic(
        "optimum_distance",
        distance,
        f"the law's best mixture lies {distance:.2f} from the nearest fitted one (0: sampled, 1: "
        f"nothing in common; fitted mixtures lie up to {spacing:.2f} apart)",
        f"the law's best mixture is {distance:.2f} away from every fitted one, further than they "
        f"lie apart ({spacing:.2f}); bound the proportions to the sampled range, or train "
        "mixtures near it"
        if distance > spacing
        else "",
    )


def optimum_stays(best: Optimum, sizes: list[Optimum], observations: Observations) -> Diagnostic:
    """How far the best mixture moves from the smallest of several sizes, fitted alone, to the
    target."""
    moves = float(optimum.apart(best.mixture, sizes[0].mixture))
    spacing = optimum.spacing(observations.mixtures)
    return Diagnostic(
        "optimum_moves",
        moves,
        f"the best mixture by the smallest size alone lies {moves:.2f} from the target's",
        f"the best mixture moves by {moves:.2f} from the smallest size to the target, further "
        f"than fitted mixtures lie apart ({spacing:.2f}): see optimum_by_size, and prefer larger "
        "proxies"
        if moves > spacing
        else "",
    )
