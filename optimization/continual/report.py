"""The text report of critical proportions."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from optimization.continual.solve import ForgettingCurve
from training.record import keys, layout

Array = np.ndarray

FITTED, CHECK = "fitted", "check"
AT_END = 1e-4  # distance from an end of the trained range that counts as at the end
NAME = 23  # columns of a check run's name
ROOM = 1e-6  # nats per token; a loss closer to its level counts as at the level


@dataclass(frozen=True)
class CriticalAnswer:
    """The critical proportions, the fitted runs, and the runs that check the prediction."""

    forgetting: ForgettingCurve
    measured: pd.DataFrame
    """A row for each run: run, kind (fitted, check), share, and the losses original, new,
    predicted_original and predicted_new in the predictor's unit."""

    @property
    def checks(self) -> pd.DataFrame:
        return self.measured[self.measured["kind"] == CHECK]


def report(answer: CriticalAnswer) -> list[str]:
    """The critical proportions, and the check runs beside their predictions."""
    lines = _answers(answer.forgetting)
    if not len(answer.checks):
        return lines
    names = layout.short(list(answer.checks["run"].unique()), NAME)
    lines.append(
        f"{'check run':<{NAME + 1}}{'share':>8}{'original':>10}{'predicted':>11}{'new':>9}"
        f"{'predicted':>11}"
    )
    for row in answer.checks.to_dict("records"):
        lines.append(
            layout.padded(names[row["run"]], NAME + 1)
            + f"{row['share']:>8.4f}{row['original']:>10.4f}"
            f"{row['predicted_original']:>11.4f}{row['new']:>9.4f}{row['predicted_new']:>11.4f}"
        )
    return lines


def _answers(forgetting: ForgettingCurve) -> list[str]:
    """The critical proportions, with notes on their reliability."""
    low, high = forgetting.trained
    unit = keys.unit_text(forgetting.predictor.unit)
    lines = [
        f"the base: loss on the original data {forgetting.before[0]:.4f}, on the new data "
        f"{forgetting.before[1]:.4f} {unit}",
        f"{'allowed loss':<14}{'original share':>15}{'90 %':>18}{'original loss':>15}"
        f"{'new loss':>10}",
    ]
    for answer in forgetting.answers:
        allowed = f"+{answer.tolerance:g}"
        if answer.share is None or answer.original is None or answer.new is None:
            lines.append(f"{allowed:<14}{'none is enough':>15}")
            continue
        edge = "≤" if (answer.share_low or 0.0) <= low + AT_END else ""
        ends = f"[{edge}{_end(answer.share_low)}, {_end(answer.share_high)}]"
        lines.append(
            f"{allowed:<14}{answer.share:>15.4f}{ends:>18}{answer.original[0]:>15.4f}"
            f"{answer.new[0]:>10.4f}"
        )
    first = forgetting.answers[0]
    least = float(forgetting.curve["original"].min()) - forgetting.before[0]
    if first.share is None:
        lines.append(
            f"no mixture with {low:g} to {high:g} of original data, as trained, keeps the loss on "
            f"it: at best it rises by {least:.4f} {unit}"
        )
    elif first.share <= low + AT_END:
        lines.append(
            f"the loss on the original data is kept down to the least proportion that was trained, "
            f"{low:g}: the critical one lies below; train less to find it"
        )
    details = []
    for answer in forgetting.answers:
        if answer.original is None or answer.share is None:
            continue
        room = forgetting.before[0] + answer.tolerance - answer.original[0]
        if room > ROOM and answer.share > low + AT_END:
            details.append(
                f"at +{answer.tolerance:g}: less original data would be enough, but the loss on "
                "the new data is least here"
            )
        if answer.share_high is None:
            lines.append(
                f"at +{answer.tolerance:g}: by the upper end of the interval not even the most "
                f"original data that was trained ({high:g}) is enough"
            )
    return [*lines, *details, *_mixtures(forgetting)]


def _mixtures(forgetting: ForgettingCurve) -> list[str]:
    """The mixture of each answer, if the share alone does not determine it."""
    answers = {
        f"+{answer.tolerance:g}": named(forgetting, answer.mixture)
        for answer in forgetting.answers
        if answer.mixture is not None
    }
    if forgetting.one_dimensional or not answers:
        return []
    return layout.mixtures(
        answers,
        heads=("allowed loss", ""),
        exact="mixtures by the allowed loss; exact proportions: critical.json of this run",
    )


def named(forgetting: ForgettingCurve, mixture: Array) -> dict[str, float]:
    """A mixture's proportions by domain."""
    return dict(zip(forgetting.predictor.domains, mixture.tolist(), strict=True))


def _end(share: float | None) -> str:
    return "–" if share is None else f"{share:.3f}"
