"""The text report of a schedule search."""

import numpy as np

from optimization.schedule.plan import CONSTANT, ENDS, ScheduleAnswer
from training.record import keys, layout


def report(answer: ScheduleAnswer) -> list[str]:
    """The best schedule, all strategies side by side, and whether the schedule wins."""
    predictor, best = answer.predictor, answer.best
    starts = [f"{int(tokens):,}" for tokens in (0, *predictor.tokens[:-1])]
    rows = [*zip(starts, best.schedule, strict=True)]
    rows.append(("best constant", answer.strategies[CONSTANT].schedule[0]))
    lines = layout.mixtures(
        {
            name: dict(zip(predictor.domains, mixture.tolist(), strict=True))
            for name, mixture in rows
        },
        heads=("phase from tokens", ""),
        exact="phases by the token that they begin with; exact proportions: params of this run",
    )
    lines += ["", f"{'predicted at the end':<22}{'loss':>8}   gain over the best constant mixture"]
    for name, strategy in answer.strategies.items():
        low, high = answer.range(name)
        gain = "" if name == CONSTANT else f"   {answer.gain(name):+.4f} [{low:+.4f}, {high:+.4f}]"
        lines.append(f"{name:<22}{strategy.objectives[-1]:>8.4f}{gain}")
    gains = answer.resampled_gains
    low, high = np.quantile(gains, ENDS)
    doubt = "the schedule cannot be told from the best constant mixture: "
    lines.append(
        ("" if answer.distinguishable else doubt)
        + f"chosen on other draws of the mixtures, schedules gain {gains.mean():+.4f} "
        f"[{low:+.4f}, {high:+.4f}] over constant mixtures that are chosen in the same way"
    )
    if best.bound is not None:
        gap = max(0.0, best.objectives[-1] - best.bound)
        lines.append(
            f"no allowed schedule of these phases is better by more than {gap:.1e} "
            f"{keys.unit_text(answer.predictor.unit)}, "
            "certified phase by phase"
        )
    return lines
