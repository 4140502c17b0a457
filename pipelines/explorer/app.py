"""The Dash app: one callback on the server, and what passes between it and the browser.

Dash is what needs least here: six small packages beside what the project has, of which the report
needs plotly too (Panel 11, Streamlit 10, Gradio 17, marimo 12, NiceGUI 20). It answers through
Flask, which MLflow brings, and serves all of its files itself.
"""

from typing import Any

import dash
from dash import ALL, ClientsideFunction, Input, Output, State

from pipelines.explorer import layout, prediction, state
from pipelines.explorer.copies import Origin, copied
from pipelines.explorer.explorer import Explorer

Json = dict[str, Any]

FIELDS = ("slider", "number", "low", "high", "filter", "n_params", "tokens", "radius", "format")
BUTTONS = ("lock", "start", "search", "take")
FILLED = (
    "scale",
    "starts",
    "rest",
    "message",
    "summary",
    "warnings",
    "losses",
    "found",
    "copy-text",
)

ROWS_OF = ("shown", "top", "locked", "bounds", "n_params", "tokens", "filter", "known")


def app(explorer: Explorer, origin: Origin, title: str) -> dash.Dash:
    """The page of an explorer as a Flask application (`.server`)."""
    made = dash.Dash(
        __name__,
        title=title,
        update_title="",
        serve_locally=True,
        suppress_callback_exceptions=True,  # rows come and go
        enable_mcp=False,
        add_log_handler=False,
        meta_tags=[{"name": "color-scheme", "content": "light dark"}],
    )
    made.layout = lambda: layout.page(explorer, state.first(explorer), title)

    def act(event: Json | None, raw: Json) -> tuple[Any, ...]:
        before = state.State.from_json(raw)
        after = state.updated(explorer, before, event) if event else before
        return (
            layout.with_controls(explorer, after),
            layout.rows(explorer, after) if _other_rows(before, after) else dash.no_update,
            not _waits(explorer, after),
            *filled(explorer, origin, after),
        )

    made.callback(
        Output("state", "data"),
        Output("rows", "children"),
        Output("poll", "disabled"),
        *(Output(name, "children") for name in FILLED),
        Input("event", "data"),
        State("state", "data"),
    )(act)
    _browser_side(made)
    return made


def filled(explorer: Explorer, origin: Origin, now: state.State) -> list[Any]:
    """The parts of the page that depend on the mixture, in the order of `FILLED`."""
    mixture = now.mixture(explorer)
    comparison = explorer.read(mixture, now.target)
    _, default = explorer.default
    only = explorer.predictor.spec.only
    scale = {k: v for k, v in vars(now.target).items() if getattr(only, k) is None}
    broken = now.rules(explorer).broken(now.values())
    faults = [f"Outside the rules of the search: {broken}."] if broken else []
    error = explorer.search_at(now.target).error
    faults += [f"The best mixture is not known: {error}"] if error else []
    return [
        prediction.scale(explorer, now),
        layout.starts(explorer, now),
        layout.rest(explorer, now),
        now.message,
        prediction.summary(comparison),
        prediction.warnings([*faults, *comparison.warnings]),
        prediction.losses(explorer, comparison),
        layout.found(explorer, now, explorer.searches.get(now.here)),
        copied(now.format, mixture, origin, scale, default),
    ]


def _other_rows(before: state.State, after: state.State) -> bool:
    """Whether other sliders, bounds, locks or marks are shown."""
    return any(getattr(before, name) != getattr(after, name) for name in ROWS_OF)


def _waits(explorer: Explorer, now: state.State) -> bool:
    """Whether the page waits for a search."""
    here = explorer.searches.get(now.here)
    return explorer.search_at(now.target).running or bool(
        now.searched and here is not None and here.running
    )


def _browser_side(made: dash.Dash) -> None:
    """`assets/page.js`: what the user does becomes an event; what the state says is shown."""
    inputs = [Input(layout.control(kind, ALL), "value") for kind in FIELDS]
    inputs += [Input(layout.control(kind, ALL), "n_clicks") for kind in BUTTONS]
    made.clientside_callback(
        ClientsideFunction("page", "act"), *inputs, Input("poll", "n_intervals"),
        State("state", "data"),
    )  # fmt: skip
    made.clientside_callback(
        ClientsideFunction("page", "show"),
        Input("state", "data"),
        *(State(layout.control(kind, ALL), "id") for kind in FIELDS),
        prevent_initial_call=True,
    )
    made.clientside_callback(
        ClientsideFunction("page", "copy"),
        Output("copied", "children"), Input("copy-button", "n_clicks"),
        prevent_initial_call=True,
    )  # fmt: skip
