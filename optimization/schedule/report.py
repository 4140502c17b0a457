"""What is printed of a planned schedule, and of the models that were trained on it."""

import numpy as np

from optimization.schedule.plan import CONSTANT, ENDS, Plan
from training.record import layout


def report(found: Plan) -> list[str]:
    """The ways beside each other, and whether the schedule wins."""
    predictor, best = found.predictor, found.best
    starts = [f"{int(tokens):,}" for tokens in (0, *predictor.tokens[:-1])]
    rows = [*zip(starts, best.schedule, strict=True)]
    rows.append(("best constant", found.ways[CONSTANT].schedule[0]))
    lines = layout.mixtures(
        {
            name: dict(zip(predictor.domains, mixture.tolist(), strict=True))
            for name, mixture in rows
        },
        heads=("phase from tokens", ""),
        exact="phases by the token that they begin with; exact proportions: params of this run",
    )
    lines += ["", f"{'predicted at the end':<22}{'loss':>8}   gain over the best constant mixture"]
    for name, way in found.ways.items():
        low, high = found.range(name)
        gain = "" if name == CONSTANT else f"   {found.gain(name):+.4f} [{low:+.4f}, {high:+.4f}]"
        lines.append(f"{name:<22}{way.objectives[-1]:>8.4f}{gain}")
    low, high = np.quantile(found.chosen, ENDS)
    lines.append(
        ("" if found.told_apart else "the schedule cannot be told from the best constant mixture: ")
        + f"chosen on other draws of the mixtures, schedules gain {found.chosen.mean():+.4f} "
        f"[{low:+.4f}, {high:+.4f}] over constant mixtures that are chosen in the same way"
    )
    if best.bound is not None:
        gap = max(0.0, best.objectives[-1] - best.bound)
        lines.append(
            f"no allowed schedule of these phases is better by more than {gap:.1e} nats/token, "
            "certified phase by phase"
        )
    return lines
