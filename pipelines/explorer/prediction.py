"""How the page shows a prediction: the weighted loss, each loss, and what speaks against them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from dash import html

from optimization.domain.predictor import Prediction
from optimization.mixture.solve import BEST, OBSERVED
from pipelines.explorer.explorer import Comparison, Explorer
from pipelines.explorer.state import State
from training.record import keys
from training.record.layout import short, short_count

Array = np.ndarray
Parts = list[Any]  # components and texts

LOSSES = 14  # rows of losses, those that differ most
SAME = 5e-4  # of a loss: what rounding the proportions may change


def scale(explorer: Explorer, state: State) -> str:
    """What is predicted."""
    only, unit = explorer.predictor.spec.only, keys.unit_text(explorer.predictor.unit)
    sizes = [
        f"{short_count(value)} {noun}"
        for value, noun, fixed in (
            (state.n_params, "parameters", only.n_params), (state.tokens, "tokens", only.tokens)
        )
        if fixed is None or fixed > 1
    ]  # fmt: skip
    return f"Predicted loss, {unit}" + (f", with {' and '.join(sizes)}" if sizes else "")


def warnings(lines: Sequence[str]) -> Parts:
    return [html.P(line, className="warning") for line in lines]


def summary(comparison: Comparison) -> Parts:
    """The weighted loss of the current mixture, and its differences from the others."""
    now = comparison.prediction
    head = ("", "loss, 90 % interval", "current − it, 90 % interval", "")
    body = [_summary_row("current", now, None)]
    for name, other in comparison.compared.items():
        body.append(_summary_row(name, other.prediction, comparison.differences[name]))
    parts: Parts = [
        html.Table(
            [html.Thead(html.Tr([html.Th(text) for text in head])), html.Tbody(body)],
            className="numbers",
        )
    ]
    lines = [f"Distance from the nearest fitted mixture: {now.distance:.3f} of the tokens."]
    lines += [
        f"Accuracy of {task}: {value:.3f} [{now.accuracies_low[task]:.3f}, "
        f"{now.accuracies_high[task]:.3f}]; "
        + ", ".join(
            f"{name} {other.prediction.accuracies[task]:.3f}"
            for name, other in comparison.compared.items()
        )
        + "."
        for task, value in now.accuracies.items()
    ]
    return [*parts, *(html.P(line) for line in lines)]


def _summary_row(
    name: str, prediction: Prediction, difference: tuple[float, float] | None
) -> html.Tr:
    colour = css_class(name)
    cells = [
        html.Th(name, className=f"mark {colour}", scope="row"),
        _with_interval(prediction.objective, prediction.low, prediction.high),
    ]
    if difference is not None:
        mean, half = difference
        verdict = judged(mean, half)
        cells.append(_with_interval(mean, mean - half, mean + half, signed))
        cells.append(html.Td(verdict, className=verdict.split()[0]))
    return html.Tr(cells, id=f"row-{colour}")


def _with_interval(
    value: float, low: float, high: float, form: Callable[[float], str] = "{:.4f}".format
) -> html.Td:
    return html.Td([html.Span(form(value)), " ", html.Small(f"[{form(low)}, {form(high)}]")])


def css_class(name: str) -> str:
    """The colour of a compared mixture."""
    return {"current": "current", BEST: "best", OBSERVED: "observed"}.get(name, "default")


def judged(mean: float, half: float) -> str:
    """What an interval of a difference says."""
    if abs(mean) + half < SAME:
        return "the same"
    if mean + half < 0:
        return "better"
    return "worse" if mean - half > 0 else "no clear difference"


def signed(value: float) -> str:
    """A difference with its sign, and no sign of a zero."""
    text = f"{value:+.4f}".replace("-", "−")
    return text[1:] if float(f"{value:.4f}") == 0 else text


def losses(explorer: Explorer, comparison: Comparison) -> Parts:
    """Each validation loss: the differences from the default mixture as marks on a line, with 90 %
    intervals, and the numbers."""
    names, now = explorer.predictor.val_domains, comparison.prediction
    base = next(iter(comparison.compared))
    mean, half = comparison.by_loss[base]
    by_loss = comparison.compared[base].prediction.losses
    best = comparison.compared.get(BEST)
    shift = np.array([best.prediction.losses[n] - by_loss[n] if best else 0.0 for n in names])
    chosen = np.sort(np.argsort(-np.maximum(np.abs(mean), np.abs(shift)), kind="stable")[:LOSSES])
    ends = np.abs([mean - half, mean + half, shift])[:, chosen].max()
    edge = nice(float(ends))
    shown = short([names[i] for i in chosen], 18)
    marks = f"difference from {base}: ± {edge:g}"
    head = ("loss of", "weight", marks, "now ± 90 %", f"− {base}", "− best")
    body = []
    for i in chosen:
        name = names[i]
        to_best = signed(now.losses[name] - best.prediction.losses[name]) if best else ""
        body.append(
            html.Tr(
                [
                    html.Th(shown[name], scope="row", title=name),
                    html.Td(f"{explorer.weights[i]:.3g}"),
                    html.Td(_strip(mean[i], half[i], shift[i] if best else None, edge)),
                    html.Td(
                        [
                            html.Span(f"{now.losses[name]:.4f}"),
                            html.Small(f" ±{now.losses_high[name] - now.losses[name]:.3f}"),
                        ]
                    ),
                    html.Td(signed(mean[i])),
                    html.Td(to_best),
                ]
            )
        )
    table = html.Table(
        [html.Thead(html.Tr([html.Th(text) for text in head])), html.Tbody(body)],
        className="numbers losses",
    )
    more = len(names) - len(chosen)
    legend = [
        html.Span("current, with its 90 % interval", className="mark current"),
        html.Span(base, className="mark default"),
        *([html.Span("best", className="mark best")] if best else []),
        html.Span("left is better"),
    ]
    note = [html.P(f"and {more} further losses, which differ less")] if more else []
    return [html.Div(legend, className="legend"), table, *note]


def _strip(mean: float, half: float, best: float | None, edge: float) -> html.Div:
    """Marks of one loss on a line from −edge to edge: default in the middle."""

    def place(value: float) -> str:
        return f"{50 + 50 * np.clip(value / edge, -1, 1):.2f}%"

    left, right = (50 + 50 * np.clip((mean + side * half) / edge, -1, 1) for side in (-1, 1))
    marks: Parts = [html.I(className="default", style={"left": "50%"})]
    if best is not None:
        marks.append(html.I(className="best", style={"left": place(best)}))
    marks.append(
        html.I(className="span", style={"left": f"{left:.2f}%", "width": f"{right - left:.2f}%"})
    )
    marks.append(html.I(className="current", style={"left": place(mean)}))
    return html.Div(marks, className="strip", **{"aria-hidden": "true"})


def nice(value: float) -> float:
    """The first of 1, 2, 5, 10, … times a power of ten that is no less."""
    power = 10.0 ** np.floor(np.log10(max(value, 1e-4)))
    return float(next(f * power for f in (1, 2, 5, 10) if f * power >= value - 1e-12))
