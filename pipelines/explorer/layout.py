"""What the page looks like: Dash components of a state and a comparison."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from dash import dcc, html

from optimization.domain.predictor import Prediction
from optimization.mixture.report import certainty
from optimization.mixture.solve import BEST, OBSERVED
from pipelines.page.explorer import Comparison, Explorer
from pipelines.page.searches import RunningSearch
from pipelines.page.state import FEW, FORMATS, State, controls
from training.record import keys
from training.record.layout import short, short_count

Array = np.ndarray
Parts = list[Any]  # components and texts

LOSSES = 14  # rows of losses, those that differ most
STEPS = 1000  # of a slider
SAME = 5e-4  # of a loss: what rounding the proportions may change


def control(kind: str, name: str = "") -> dict[str, str]:
    """The id of a control."""
    return {"kind": kind, "name": name}


def dom_id(kind: str, name: str = "") -> str:
    """The same as Dash writes it into the page."""
    return '{"kind":"%s","name":"%s"}' % (kind, name)  # noqa: UP031 - braces are meant


def page(explorer: Explorer, state: State, title: str) -> html.Div:
    """The whole page; callbacks fill what depends on the mixture."""
    return html.Div(
        [
            dcc.Store(id="state", data=with_controls(explorer, state)),
            dcc.Store(id="event"),
            dcc.Interval(id="poll", interval=400, disabled=True),
            html.Header([html.H1(title), html.Div(_targets(explorer, state), className="targets")]),
            html.Main(
                [
                    html.Section(
                        [
                            html.H2("Mixture"),
                            html.Div(id="starts", className="bar"),
                            *_filter(state),
                            html.Div(rows(explorer, state), id="rows"),
                            html.Div(id="rest"),
                            html.Div(id="message", role="status", **{"aria-live": "polite"}),
                        ],
                        id="mixture",
                    ),
                    html.Section(
                        [
                            html.H2(id="scale"),
                            html.Div(id="summary"),
                            html.Div(id="warnings", role="status"),
                            html.Div(id="losses"),
                        ],
                        id="prediction",
                    ),
                    html.Section(_search_form(state), id="search"),
                    html.Section(_copy_form(state), id="copy"),
                ]
            ),
        ],
        id="page",
    )


def with_controls(explorer: Explorer, state: State) -> dict[str, Any]:
    """The state as the browser keeps it, with what its controls show."""
    return {**state.to_json(), "controls": controls(explorer, state)}


def _targets(explorer: Explorer, state: State) -> Parts:
    only, shown = explorer.predictor.spec.only, controls(explorer, state)
    parts: Parts = []
    for kind, label in (("n_params", "parameters"), ("tokens", "tokens")):
        if (value := getattr(only, kind)) is not None:
            if value > 1:  # 1 stands for a scale that is not known
                why = "every fitted run had this; no other is predicted"
                parts.append(html.Span(f"{label} {short_count(value)}", title=why))
            continue
        field = _input(kind, "", shown[kind][""], inputMode="numeric")
        parts.append(html.Label([f"target {label} ", field], htmlFor=dom_id(kind)))
    return parts


def _filter(state: State) -> Parts:
    count = len(state.proportions)
    if count <= FEW:
        return []
    field = dcc.Input(
        id=control("filter"), type="search", value="", debounce=0.2,
        placeholder=f"search {count} domains",
    )  # fmt: skip
    label = html.Label("Search domains", htmlFor=dom_id("filter"), className="hidden")
    return [html.Div([label, field], className="filter")]


def rows(explorer: Explorer, state: State) -> Parts:
    """A row for each variable with a slider."""
    rules, shown = state.rules(explorer), controls(explorer, state)
    names = short(list(state.shown))
    top = state.top
    places = {
        name: np.array([mixture[d] for d in explorer.domains]) @ (rules.spread > 0)
        for name, mixture in explorer.mixtures(state.target).items()
        if name != OBSERVED
    }
    head = [
        html.Span(text) for text in ("", f"0 to {top:g}", "proportion", "lowest", "highest", "lock")
    ]
    parts: Parts = [html.Div(head, className="row head", **{"aria-hidden": "true"})]
    for name in state.shown:
        i, locked = rules.names.index(name), name in state.locked
        marks = {"--low": rules.lower[i], "--high": rules.upper[i]}
        marks |= {f"--{css_class(other)}-at": v[i] for other, v in places.items()}
        bundle = explorer.problem.constraints.bundles.get(name)
        members = " + ".join(f"{share:g} {d}" for d, share in bundle.items()) if bundle else name
        ids = {kind: dom_id(kind, name) for kind in ("slider", "number", "low", "high")}
        parts.append(
            html.Div(
                [
                    html.Label(names[name], htmlFor=ids["slider"], title=members),
                    html.Div(
                        [
                            *(html.I(className=css_class(other)) for other in places),
                            dcc.Input(
                                id=control("slider", name), type="range", min=0, max=top,
                                step=top / STEPS, value=shown["slider"][name], disabled=locked,
                            ),
                        ],
                        className="track",
                    ),
                    *_labelled(f"proportion of {name}", "number", name, shown, disabled=locked),
                    *_labelled(f"lowest proportion of {name}", "low", name, shown),
                    *_labelled(f"highest proportion of {name}", "high", name, shown),
                    html.Button(
                        "locked" if locked else "lock", id=control("lock", name), n_clicks=0,
                        **{"aria-pressed": str(locked).lower(), "aria-label": f"lock {name}"},
                    ),
                ],
                className="row locked" if locked else "row",
                style={key: f"{min(1, value / top):.4f}" for key, value in marks.items()},
            )
        )  # fmt: skip
    return parts


def _labelled(
    label: str, kind: str, name: str, shown: Mapping[str, Mapping[str, str]], **options: Any
) -> Parts:
    """A text field for a number, and its label for screen readers, as one cell."""
    field = _input(kind, name, shown[kind][name], inputMode="decimal", **options)
    hidden = html.Label(label, htmlFor=dom_id(kind, name), className="hidden")
    return [html.Div([hidden, field], className=kind)]


def _input(kind: str, name: str, value: str, **options: Any) -> dcc.Input:
    return dcc.Input(id=control(kind, name), type="text", value=value, debounce=True, **options)


def starts(explorer: Explorer, state: State) -> Parts:
    """Buttons for the known mixtures."""
    known = explorer.mixtures(state.target)
    parts: Parts = [html.Span("start from")]
    parts += [
        html.Button(name, id=control("start", name), n_clicks=0, className=css_class(name))
        for name in known
    ]
    return [*parts, html.Span("searching the best mixture …")] if BEST not in known else parts


def css_class(name: str) -> str:
    """The colour of a compared mixture."""
    return {"current": "current", BEST: "best", OBSERVED: "observed"}.get(name, "default")


def rest(explorer: Explorer, state: State) -> Parts:
    """What the variables without a slider add up to, and the sum of all."""
    rules = state.rules(explorer)
    hidden = [
        v for n, v in zip(rules.names, state.proportions, strict=True) if n not in state.shown
    ]
    places = rules.decimals
    parts: Parts = []
    if hidden:
        noun = "domain" if len(hidden) == 1 else "domains"
        text = f"and {len(hidden)} further {noun}"
        parts = [html.Span(text), html.Span(f"{sum(hidden):.{places}f}", id="further")]
    return [*parts, html.Span("sum"), html.Span(f"{sum(state.proportions):.{places}f}", id="sum")]


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


def _search_form(state: State) -> Parts:
    return [
        html.H2("Search from here"),
        html.P("The best mixture within the bounds of the page, with locked domains as they are."),
        html.Div(
            [
                html.Label(
                    ["at most ", _input("radius", "", state.radius, inputMode="decimal",
                                        placeholder="any"), " of the tokens away"],
                    htmlFor=dom_id("radius"),
                ),
                html.Button("Search", id=control("search"), n_clicks=0),
            ],
            className="bar",
        ),
        html.Div(id="found", role="status"),
    ]  # fmt: skip


def found(explorer: Explorer, state: State, search: RunningSearch | None) -> Parts:
    """What the search from here says."""
    if search is None or not state.searched:
        return []
    if search.error is not None:
        return [html.P(str(search.error), className="warning")]
    if search.answer is None:
        return [html.P("searching …", className="busy")]
    answer = search.answer
    mixture, loss = answer.best, explorer.predict(answer.best, state.target)
    now = explorer.predict(state.mixture(explorer), state.target)
    top = sorted(mixture, key=lambda domain: -mixture[domain])[:SHOWN_BEST]
    listed = ", ".join(f"{domain} {mixture[domain]:.4f}" for domain in top)
    more = f", and {len(mixture) - len(top)} more" if len(mixture) > len(top) else ""
    return [
        html.P(
            f"{loss.objective:.4f} [{loss.low:.4f}, {loss.high:.4f}], "
            f"{signed(loss.objective - now.objective)} from the current: {listed}{more}."
        ),
        *(html.P(line[0].upper() + line[1:] + ".") for line in certainty(answer)),
        html.Button("Take it", id=control("take"), n_clicks=0),
    ]


SHOWN_BEST = 8  # domains of the answer


def _copy_form(state: State) -> Parts:
    labels = {"JSON": "JSON", "YAML": "study YAML", "Python": "Python", "train": "train command"}
    return [
        html.H2("Copy the mixture"),
        html.Div(
            [
                dcc.RadioItems(
                    id=control("format"), value=state.format, inline=True,
                    options=[{"label": labels[form], "value": form} for form in FORMATS],
                ),
                html.Button("Copy", id="copy-button", n_clicks=0),
                html.Span(id="copied", role="status"),
            ],
            className="bar",
        ),
        html.Pre(id="copy-text", tabIndex="0"),
    ]  # fmt: skip


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
