"""An answer in a few lines."""

from collections.abc import Iterator

import numpy as np

from optimization.answer import BEST, Answer
from optimization.decision import Freedom, Steps
from optimization.objective import WORST
from optimization.search import Found, Front
from training import record

NAMED = 6  # domains that a line names


def report(answer: Answer) -> list[str]:
    """The compared mixtures as a table, and what is known of the best one."""
    unit = record.unit_text(answer.predictor.unit)
    lines = [*_table(answer), "", *_gain(answer, unit)]
    found = answer.search
    lines += _proof(answer, found, unit) if isinstance(found, Found) else _front(found)
    if answer.pull:
        lines.append(
            f"pulled to the {answer.compared} mixture: a nat of divergence must gain "
            f"{answer.pull:.3g} {unit}"
        )
    if answer.freedom is not None:
        lines += _freedom(answer.freedom, unit)
    return lines


def _table(answer: Answer) -> Iterator[str]:
    domains = answer.predictor.domains
    width = max(8, *(len(d) + 2 for d in domains))
    yield f"{'mixture':<14}" + "".join(f"{d:>{width}}" for d in domains) + "   predicted loss"
    for name, mixture in answer.mixtures.items():
        p = answer.predictions[name]
        allowed = answer.allowed.inside(np.array([list(mixture.values())]))[0]
        yield (
            f"{name:<14}"
            + "".join(f"{mixture[d]:>{width}.3f}" for d in domains)
            + f"   {p.objective:.4f} [{p.low:.4f}, {p.high:.4f}]"
            + ("" if allowed else "   breaks a constraint")
        )


def _gain(answer: Answer, unit: str) -> Iterator[str]:
    low, high = np.quantile(answer.gains, [0.05, 0.95])
    yield (
        f"predicted gain over the {answer.compared} mixture: {answer.gain:.4f} {unit}, "
        f"{low:.4f} to {high:.4f} by the bootstrap of the law"
    )
    if answer.steps is not None:
        yield from _steps(answer.steps, answer.compared)
    distance = answer.predictions[BEST].distance
    yield f"distance of the best mixture from the nearest that was trained: {distance:.3f}"


def _steps(steps: Steps, compared: str) -> Iterator[str]:
    if steps.fewer is not None and steps.fewer < 1:
        yield (
            f"it has the {compared} mixture's final loss after {100 * steps.fewer:.0f} % of the "
            f"steps: {100 * (1 - steps.fewer):.0f} % fewer"
        )
    if steps.more is None:
        yield f"the {compared} mixture never has its final loss, by the step law"
    elif steps.more > 1:
        yield f"the {compared} mixture needs {100 * (steps.more - 1):.0f} % more steps for its loss"


def _proof(answer: Answer, found: Found, unit: str) -> Iterator[str]:
    kind = "excess of the worst domain" if WORST in answer.problem.objectives else "loss"
    tried = (
        f"{found.agreeing} of {found.starts} polished starts of {len(found.trials)} trials end "
        "there"
    )
    if found.bound is None:
        yield f"the least {kind} that was found ({tried}); nothing proves that there is no less"
    else:
        yield (
            f"no allowed mixture is better by more than {max(0.0, found.value - found.bound):.1e} "
            f"{unit}, certified by the law's convexity in φ(r); {tried}"
        )


def _front(found: Front) -> Iterator[str]:
    front = found.trials[found.trials["on_front"]]
    yield (
        f"{len(front)} of {len(found.trials)} trials are on the Pareto front of "
        f"{', '.join(found.objectives)}; best is that nearest to the least of each"
    )
    for name in found.objectives:
        yield f"  {name}: {front[name].min():.4f} to {front[name].max():.4f} on the front"


def _freedom(freedom: Freedom, unit: str) -> Iterator[str]:
    yield (
        f"mixtures within {freedom.tolerance:.4f} {unit} cannot be told from it; among them, "
        "proportions range over"
    )
    ranges = freedom.ranges.sort_values("highest", ascending=False)
    parts = [f"{d} {low:.3f}–{high:.3f}" for d, low, high in ranges.itertuples(index=False)]
    for i in range(0, len(parts), NAMED):
        yield "  " + ", ".join(parts[i : i + NAMED])
    yield (
        f"by another draw of the fitted mixtures another one would be better by "
        f"{freedom.regrets.mean():.4f} on average, {np.quantile(freedom.regrets, 0.9):.4f} in one "
        "of ten"
    )
