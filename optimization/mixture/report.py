"""The text report of an answer."""

from collections.abc import Iterator, Mapping

import numpy as np
from mlflow.entities import Run

from optimization.domain.objective import WORST
from optimization.domain.predictor import Prediction
from optimization.mixture.sensitivity import Sensitivity, Steps
from optimization.mixture.solve import BEST, Answer
from optimization.search.search import Front, SearchResult
from training.record import keys, layout, markdown, words

SAME_WEIGHT = 1e-9
WORDS = 8  # domains of a mixture that a sentence names


def report(answer: Answer) -> list[str]:
    """The compared mixtures as a table, and what is known about the best one."""
    unit = keys.unit_text(answer.predictor.unit)
    lines = [*_table(answer), "", *_weights(answer), *_gain(answer, unit), *_known(answer)]
    if answer.sensitivity is not None:
        lines += _near_optimal(answer.sensitivity)
    return lines


def _known(answer: Answer) -> Iterator[str]:
    """What is known about the best mixture, a line each."""
    unit = keys.unit_text(answer.predictor.unit)
    yield from _accuracies(answer)
    yield from certainty(answer)
    if answer.pull:
        yield (
            f"pulled to the {answer.compared} mixture: a nat of divergence must gain "
            f"{answer.pull:.3g} {unit}"
        )
    if answer.sensitivity is not None:
        regrets = answer.sensitivity.regrets
        before, after = words.regret(unit)
        yield (
            f"{before}{regrets.mean():.4f}{after}, and by {np.quantile(regrets, 0.9):.4f} in one "
            "case in ten"
        )


def description(answer: Answer, predictor_link: str, run: Run) -> str:
    """The description of the run of a search, in Markdown."""
    unit, predictor = keys.unit_text(answer.predictor.unit), answer.predictor
    low, high = answer.gain - answer.gain_half_width, answer.gain + answer.gain_half_width
    size, tokens = map(layout.short_count, (predictor.n_params, predictor.tokens))
    return markdown.description(
        [
            f"The best mixture is predicted to lower the loss by **{answer.gain:.4f}** "
            f"[{low:.4f}, {high:.4f}] {unit} from that of the {answer.compared} mixture, at {size} "
            f"parameters and {tokens} tokens. Predictor: {predictor_link}.",
            markdown.mixtures(answer.mixtures, losses(answer)),
            markdown.figure(run, "near_optimal", f"Best mixture: {_words(answer.best)}")
            if answer.sensitivity
            else "",
            *map(markdown.escaped, _known(answer)),
        ],
        run,
    )


def losses(answer: Answer) -> dict[str, dict[str, str]]:
    """Rows below a table of mixtures: the predicted losses, and what lies above the best's."""
    return {
        "predicted loss": {name: f"{answer.loss(name):.4f}" for name in answer.mixtures},
        "above the best": {
            name: f"{above:+.4f} ± {half:.4f}"
            for name in answer.mixtures
            for above, half in [answer.above_best(name)]
            if half
        },
    }


def _words(mixture: Mapping[str, float]) -> str:
    largest = sorted(mixture.items(), key=lambda item: -item[1])[:WORDS]
    return ", ".join(f"{name} {share:.2f}" for name, share in largest)


def certainty(answer: Answer) -> list[str]:
    """How much better another mixture could be, as far as the search knows."""
    result = answer.search
    if isinstance(result, SearchResult):
        return [*_proof(answer, result, keys.unit_text(answer.predictor.unit))]
    return [*_front(result)]


def _table(answer: Answer) -> list[str]:
    beside = {}
    for name in answer.mixtures:
        low, high = answer.interval(name)
        broken = answer.broken_rule(name)
        above, half = answer.above_best(name)
        beside[name] = (
            f"{answer.loss(name):.4f} [{low:.4f}, {high:.4f}]"
            + (f"  {above:+.4f} [{above - half:+.4f}, {above + half:+.4f}]" if half else "")
            + (f"   breaks {broken}" if broken else "")
        )
    return layout.mixtures(
        answer.mixtures,
        beside,
        heads=("mixture", f"{'predicted loss':<26}above the best"),
        exact="exact proportions: compared.json of the optimize run",
    )


def _weights(answer: Answer) -> Iterator[str]:
    """What the loss adds up, where the weights are not equal."""
    names = answer.predictor.val_domains
    if answer.weights.all() and np.ptp(answer.weights) < SAME_WEIGHT:
        return
    shares = dict(zip(names, answer.weights.tolist(), strict=True))
    yield from layout.wrapped(words.weighted(shares, layout.ROWS), "loss = ")


def _gain(answer: Answer, unit: str) -> Iterator[str]:
    low, high = answer.gain - answer.gain_half_width, answer.gain + answer.gain_half_width
    yield (
        f"predicted gain over the {answer.compared} mixture: {answer.gain:.4f} {unit} "
        f"[{low:.4f}, {high:.4f}]"
    )
    if answer.steps is not None:
        yield from _steps(answer.steps, answer.compared)
    distance = answer.predictions[BEST].distance
    yield f"distance of the best mixture from the nearest that was trained: {distance:.3f}"


def _accuracies(answer: Answer) -> Iterator[str]:
    """The predicted accuracy of each task, best and compared mixture side by side."""
    best = answer.predictions[BEST]
    for task in best.accuracies:
        other = answer.predictions[answer.compared]
        yield (
            f"predicted accuracy of {task}: {_accuracy(best, task)}; of the {answer.compared} "
            f"mixture {_accuracy(other, task)}"
        )


def _accuracy(prediction: Prediction, task: str) -> str:
    low, high = prediction.accuracies_low[task], prediction.accuracies_high[task]
    return f"{prediction.accuracies[task]:.3f} [{low:.3f}, {high:.3f}]"


def _steps(steps: Steps, compared: str) -> Iterator[str]:
    if steps.fewer is not None and steps.fewer < 1:
        yield (
            f"by the law it has the {compared} mixture's final loss after "
            f"{100 * steps.fewer:.0f} % of the steps: {100 * (1 - steps.fewer):.0f} % fewer"
        )
    if steps.more is None:
        yield f"by the law the {compared} mixture never reaches its final loss"
    elif steps.more > 1:
        more = 100 * (steps.more - 1)
        yield f"by the law the {compared} mixture needs {more:.0f} % more steps for its loss"


def _proof(answer: Answer, result: SearchResult, unit: str) -> Iterator[str]:
    kind = "excess of the worst domain" if WORST in answer.problem.objectives else "loss"
    tried = (
        f"{result.agreeing} of {result.starts} polished starts of {len(result.trials)} trials end "
        "there"
    )
    if result.bound is None:
        yield f"the lowest {kind} found ({tried}), not certified"
    else:
        before, after = words.certificate(unit)
        gap = max(0.0, result.value - result.bound)
        yield f"{before}{gap:.1e}{after}, certified by a bound of the law; {tried}"


def _front(front: Front) -> Iterator[str]:
    on_front = front.trials[front.trials["on_front"]]
    yield (
        f"{len(on_front)} of {len(front.trials)} trials are on the Pareto front of "
        f"{', '.join(front.objectives)}; the best is the one nearest to the minimum of each"
    )
    for name in front.objectives:
        yield f"  {name}: {on_front[name].min():.4f} to {on_front[name].max():.4f} on the front"


def _near_optimal(sensitivity: Sensitivity) -> Iterator[str]:
    yield (
        "near-optimal set (mixtures that the law cannot tell from the best one): proportions range "
        "over"
    )
    ranges = sensitivity.ranges.sort_values("highest", ascending=False)
    small = (ranges["highest"] < layout.SMALL) | (np.arange(len(ranges)) >= layout.ROWS)
    listed, tail = (ranges, ranges[:0]) if small.sum() < 2 else (ranges[~small], ranges[small])
    names = layout.short(list(ranges["domain"]))
    yield from layout.grid(
        {names[d]: f"{low:.3f}–{high:.3f}" for d, low, high in listed.itertuples(index=False)}
    )
    if len(tail):
        yield (
            f"  and {len(tail)} further domains, each at most {tail['highest'].max():.3f} there "
            "(near_optimal.json)"
        )
