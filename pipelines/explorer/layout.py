"""What the page looks like: Dash components of a state, but for the prediction."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from dash import dcc, html

from optimization.mixture.report import certainty
from optimization.mixture.solve import BEST, OBSERVED
from pipelines.explorer.explorer import Explorer
from pipelines.explorer.prediction import css_class, signed
from pipelines.explorer.searches import RunningSearch
from pipelines.explorer.state import FEW, FORMATS, State, controls
from training.record.layout import short, short_count

Array = np.ndarray
Parts = list[Any]  # components and texts

STEPS = 1000  # of a slider
SHOWN_BEST = 8  # domains of the answer of a search


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
