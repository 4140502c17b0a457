"""What the trained targets prove, in words: whether the best mixture is better, and whether to
believe it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pandas as pd
from mlflow.entities import Run

from fitting.registry import Standing
from optimization.domain.objective import LOSS
from optimization.mixture.solve import BEST, DEFAULT
from training.record import keys, layout, markdown

Lines = list[str]
GOALS, NAME = 12, 24  # rows of the table of what is weighed; width of a name
BETTER, WORSE, UNCLEAR = "BETTER", "WORSE", "NO CLEAR DIFFERENCE"
DOUBTED = "NOT TO BE BELIEVED"
EARLIER = "earlier_target"  # tag of a verify run: id of a run that measured lower before
CLEAR = "No warnings: the law fits, the backtests hold, and no other mixture measured better."


@dataclass(frozen=True)
class Gain:
    """A difference of objectives in the unit of the losses, with its 90 % interval."""

    value: float
    half_width: float

    def __str__(self) -> str:
        low, high = self.value - self.half_width, self.value + self.half_width
        return f"{self.value:.4f} [{low:.4f}, {high:.4f}]"


@dataclass(frozen=True)
class Earlier:
    """A target of the study that an earlier command trained, as long as the current ones."""

    run_name: str
    run_id: str
    objective: float  # mean over its seeds


@dataclass(frozen=True)
class Proof:
    """What the trained targets say of the prediction."""

    table: pd.DataFrame  # a row a target: mixture, seed, measured and predicted objective
    gain: Gain  # of best over default, measured
    predicted: Gain
    seed_spread: float  # largest difference between two seeds of one mixture
    earlier: Earlier | None  # measured before, and better than best now
    steps: int
    steps_to_default: float | None  # of best, until it stays below the default's final loss
    searched_for: str  # objective of the study's search
    error: float  # largest |predicted − measured| / measured over the mixtures
    unit: str = keys.NATS  # of the losses
    weights: Mapping[str, float] = field(default_factory=dict)  # of what is measured

    @property
    def repeated(self) -> bool:
        """Whether a mixture was trained with two seeds, which measure the noise."""
        return bool((self.table.groupby("mixture")["seed"].count() > 1).any())

    @property
    def agrees(self) -> bool:
        """Whether the two gains are within the uncertainty of their difference."""
        half_width = math.hypot(self.gain.half_width, self.predicted.half_width)
        return abs(self.gain.value - self.predicted.value) <= half_width


def headline(proof: Proof, standing: Standing) -> str:
    """The verdict in a word or two."""
    return DOUBTED if standing.misfit else outcome(proof.gain)


def verdict(proof: Proof, standing: Standing) -> Lines:
    """Whether the best mixture is better than the default one, whether to believe it, and why not;
    wrapped to the width of a report."""
    measured = _measured(proof)
    reasons = [line for doubt in doubts(proof, standing) for line in layout.wrapped(doubt, "- ")]
    if standing.misfit:
        first = f"{DOUBTED}: {standing.misfit}."
        more = ["Further reasons for caution:", *reasons] if reasons else []
        return [*layout.wrapped(first), *layout.wrapped(f"For what it is worth, {measured}"), *more]
    word = outcome(proof.gain)
    clear = [CLEAR] if word == BETTER else []
    more = ["Reasons for caution:", *reasons] if reasons else clear
    return [*layout.wrapped(f"{word}: {measured}"), *more]


def metrics(proof: Proof) -> dict[str, float]:
    """The measured and the predicted gain with their 90 % intervals, in the unit of the losses."""
    values = {}
    for name, gain in (("gain", proof.gain), ("predicted_gain", proof.predicted)):
        values[name] = gain.value
        values[f"{name}_low"] = gain.value - gain.half_width
        values[f"{name}_high"] = gain.value + gain.half_width
    return values


def report(proof: Proof, standing: Standing) -> Lines:
    """The verdict, measured beside predicted, and what it means in steps."""
    return [*verdict(proof, standing), "", *table(proof)]


def description(proof: Proof, standing: Standing, predictor_link: str, run: Run) -> str:
    """The description of the run of a proof, in Markdown."""
    return markdown.description(
        [
            *summary(proof, standing),
            _targets(proof),
            markdown.figure(run, "measured_beside_predicted", f"Measured gain {proof.gain}"),
            f"Predictor: {predictor_link}.",
        ],
        run,
    )


def summary(proof: Proof, standing: Standing) -> Lines:
    """The verdict and the reasons for caution, in Markdown."""
    first, more = _measured(proof), ""
    if standing.misfit:
        first, more = f"{standing.misfit}.", f"For what it is worth, {first}"
    return [
        f"**{headline(proof, standing)}**: {markdown.escaped(first)}",
        markdown.escaped(more),
        markdown.cautions([*doubts(proof, standing)]),
    ]


def _targets(proof: Proof) -> str:
    """A table of the mixtures' predicted and measured losses, with links to the seeds' runs."""
    rows = []
    for name, targets in proof.table.groupby("mixture", sort=False):
        seeds = ", ".join(
            markdown.run_link(run_id, f"{measured:.4f}")
            for run_id, measured in zip(targets["run_id"], targets["measured"], strict=True)
        )
        values = (targets["predicted"].iloc[0], targets["measured"].mean())
        rows.append([markdown.escaped(str(name)), *(f"{x:.4f}" for x in values), seeds])
    return markdown.table(["target on", "predicted", "measured", "seeds"], rows)


def outcome(gain: Gain) -> str:
    """What a gain says, in a word or two."""
    if gain.value > gain.half_width:
        return BETTER
    return WORSE if gain.value < -gain.half_width else UNCLEAR


def _measured(proof: Proof) -> str:
    seeds = int((proof.table["mixture"] == BEST).sum())
    how = {
        BETTER: "the best mixture has a lower loss than the default mixture",
        WORSE: "the best mixture has a higher loss than the default mixture",
        UNCLEAR: "the measurements cannot separate the best mixture from the default mixture",
    }[outcome(proof.gain)]
    return (
        f"{how}. Measured gain: {proof.gain} {keys.unit_text(proof.unit)} (90 % interval), with "
        f"{seeds} seed{'s' * (seeds > 1)} each; predicted: {proof.predicted}."
    )


def doubts(proof: Proof, standing: Standing) -> Iterator[str]:
    """Reasons to doubt the answer, the most important for the decision first."""
    if proof.searched_for != LOSS:
        yield (
            f"the search was for the objective {proof.searched_for!r}; what is compared here is "
            "the weighted loss alone"
        )
    for name in proof.table["mixture"].unique():
        lead = _lead(proof, name)
        if name not in (BEST, DEFAULT) and lead > 0 and not _same(proof, name):
            tied = lead <= proof.seed_spread
            yield f"{name} measured {lead:.4f} lower than best" + (
                ", which is within the spread between seeds" if tied else ""
            )
    if proof.earlier is not None:
        earlier = proof.earlier
        yield (
            f"a target that was trained before measured lower, {earlier.objective:.4f}: "
            f"{earlier.run_name}, run {earlier.run_id}"
        )
    if outcome(proof.gain) == BETTER and outcome(proof.predicted) != BETTER:
        yield "the law alone cannot tell best from default: its interval of the gain includes 0"
    if not proof.agrees:
        yield (
            "the measured gain lies outside what was predicted: do not trust the size of predicted "
            "differences"
        )
    if standing.champion and standing.champion != standing.version:
        yield (
            f"the predictor is version {standing.version} of {standing.name!r}, which is not the "
            f"champion: {standing.reason}"
        )
    if not standing.fitted:
        yield "the run of the predictor's fit is gone: nothing is known of how well its law fits"
    yield from standing.warnings
    if not proof.repeated:
        yield (
            "every mixture was trained with one seed, so the noise was not measured; list several "
            "in target.seeds"
        )


def _same(proof: Proof, name: str) -> str:
    """Which of default and best shares its runs with this mixture; empty if neither does."""
    runs = {key: set(rows["run_id"]) for key, rows in proof.table.groupby("mixture")}
    same = (key for key in (DEFAULT, BEST) if key != name and runs[key] & runs[name])
    return next(same, "")


def _lead(proof: Proof, name: str) -> float:
    """By how much a mixture measured lower than best, over the seeds that both have."""
    by_seed = proof.table.pivot_table("measured", "seed", "mixture")
    return float((by_seed[BEST] - by_seed[name]).mean())


def _goals(proof: Proof) -> Lines:
    """What is weighed, heaviest first, one line each: predicted and measured losses of best and
    default, means over seeds."""
    weighed = sorted(
        (name for name, w in proof.weights.items() if w), key=lambda n: -proof.weights[n]
    )
    if len(weighed) < 2:
        return []
    means = proof.table.drop(columns="run_id").groupby("mixture", sort=False).mean()
    names = layout.short(weighed[:GOALS], NAME)
    width = max(14, *(layout.cells(name) + 1 for name in names.values()))
    sides = [(kind, mixture) for mixture in (BEST, DEFAULT) for kind in ("predicted", "measured")]
    lines = [
        f"{'':<{width}}{'':>8}{BEST:>21}{DEFAULT:>22}",
        f"{'loss of':<{width}}{'weight':>8}" + "".join(f"{kind:>11}" for kind, _ in sides),
    ]
    for name in weighed[:GOALS]:
        values = [means.loc[mixture].get(f"{kind}/{name}", math.nan) for kind, mixture in sides]
        worse = "   best is worse" if values[1] > values[3] else ""
        lines.append(
            f"{layout.padded(names[name], width)}{proof.weights[name]:>8.3f}"
            + "".join(f"{value:>11.4f}" for value in values)
            + worse
        )
    rest = len(weighed) - GOALS
    return [
        "",
        *lines,
        *([f"and {rest} more: measured_beside_predicted.json"] if rest > 0 else []),
        "",
    ]


def _accuracies(proof: Proof) -> Lines:
    """The measured accuracy of each task with choices, mean over seeds, beside the predicted."""
    means = proof.table.drop(columns="run_id").groupby("mixture", sort=False).mean()
    lines = []
    for column in (c for c in means if c.startswith("measured_accuracy/")):
        task = column.partition("/")[2]
        predicted = means.get(f"predicted_accuracy/{task}")
        each = ", ".join(
            f"{name} {value:.3f}"
            + ("" if predicted is None else f" (predicted {predicted[name]:.3f})")
            for name, value in means[column].items()
        )
        lines.append(f"accuracy of {task}: {each}")
    return lines


def table(proof: Proof) -> Lines:
    """Measured beside predicted, and what it means in steps."""
    width = max(14, *(layout.cells(name) + 1 for name in proof.table["mixture"]))
    lines = [f"{'target on':<{width}}{'predicted':>11}{'measured':>10}   seeds"]
    for name, rows in proof.table.groupby("mixture", sort=False):
        seeds, mean = ", ".join(f"{x:.4f}" for x in rows["measured"]), rows["measured"].mean()
        note = ""
        if same := _same(proof, name):
            note = f"   (the same mixture as {same})"
        elif name != BEST and proof.repeated and abs(_lead(proof, name)) <= proof.seed_spread:
            note = "   (within the spread between seeds)"
        lines.append(
            f"{name:<{width}}{rows['predicted'].iloc[0]:>11.4f}{mean:>10.4f}   {seeds}{note}"
        )
    spread = f" (two seeds differ by up to {proof.seed_spread:.4f})" if proof.repeated else ""
    lines.append(
        f"measured gain over the default: {proof.gain} {keys.unit_text(proof.unit)}{spread}; "
        f"predictions within {100 * proof.error:.1f} % of measured"
    )
    lines += [*_goals(proof), *_accuracies(proof)]
    if proof.steps_to_default is None:
        if proof.gain.value > 0:
            lines.append("the best mixture did not reach the default's final loss to stay")
    else:
        saved = 100 * (1 - proof.steps_to_default / proof.steps)
        lines.append(
            f"the best mixture reaches the default's final loss after "
            f"{proof.steps_to_default:.0f} of {proof.steps} steps: {saved:.0f} % saved"
        )
    return lines
