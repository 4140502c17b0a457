"""What the page holds, and what each thing that a user does changes of it.

The browser keeps the state and sends it with every event, so that the server holds nothing of a
page and several can be open.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import numpy as np

from fitting.artifact.spec import Target
from optimization.domain.feasible import feasible
from optimization.mixture.solve import OBSERVED, Mixture
from pipelines.command import texts
from pipelines.explorer import moves
from pipelines.explorer.explorer import Ends, Explorer
from pipelines.explorer.moves import Rules
from training.record import keys
from training.record.errors import InputError

Array = np.ndarray
Json = dict[str, Any]

SHOWN = 12  # sliders where there are more than FEW variables
FEW = 16
TOPS = (0.05, 0.1, 0.2, 0.5, 1.0)  # ends of the sliders' common scale
HEADROOM = 1.5  # from the largest compared proportion to the end of the scale
HERE = "here"  # of the key of a search that the user starts
LISTS = ("proportions", "before", "shown", "locked", "known")
FORMATS = ("JSON", "YAML", "Python", "train")


@dataclass(frozen=True)
class State:
    """A page."""

    proportions: tuple[float, ...]  # of the variables, (M',)
    n_params: float
    tokens: float
    shown: tuple[str, ...] = ()  # variables with a slider
    top: float = 1.0  # end of the sliders' scale
    locked: tuple[str, ...] = ()
    bounds: dict[str, Ends] = field(default_factory=dict)  # set on the page
    filter: str = ""
    radius: str = ""  # of the trust region of a search from here, as typed
    searched: bool = False
    format: str = FORMATS[0]
    message: str = ""
    moving: str = ""  # variable of the moves that came last
    before: tuple[float, ...] = ()  # proportions before these moves
    turn: int = 0  # counts the events
    known: tuple[str, ...] = ()  # names of the mixtures to start from
    page: str = ""  # tells open pages apart

    @property
    def target(self) -> Target:
        return Target(self.n_params, self.tokens)

    @property
    def here(self) -> tuple[str, str]:
        """Key of the search that the user starts on this page."""
        return HERE, self.page

    def rules(self, explorer: Explorer) -> Rules:
        """The rules of the page, without its locks."""
        return explorer.rules(self.target, self.bounds)

    def values(self) -> Array:
        return np.array(self.proportions)

    def mixture(self, explorer: Explorer) -> Mixture:
        """The current mixture by domain."""
        mixture = self.rules(explorer).mixture(self.values())
        return dict(zip(explorer.domains, mixture.tolist(), strict=True))

    def to_json(self) -> Json:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        known = {name: raw[name] for name in cls.__dataclass_fields__}
        lists = {name: tuple(known[name]) for name in LISTS}
        bounds = {name: (low, high) for name, (low, high) in raw["bounds"].items()}
        return cls(**known | lists | {"bounds": bounds})


def first(explorer: Explorer) -> State:
    """The page as it opens: the default mixture at the predictor's target."""
    target = explorer.target
    rules = explorer.rules(target, {})
    _, default = explorer.default
    placed = _placed(explorer, rules, default)
    state = State(placed, target.n_params, target.tokens, page=secrets.token_hex(8))
    return replace(_arranged(explorer, state), known=_known(explorer, state))


def _arranged(explorer: Explorer, state: State) -> State:
    """The page with the sliders and the scale that suit its mixture."""
    compared = [rank for name, rank in _by_name(explorer, state).items() if name != OBSERVED]
    most = max(max(state.proportions), *(HEADROOM * x.max() for x in compared))
    top = next((top for top in TOPS if top >= most), TOPS[-1])
    return replace(state, shown=largest(explorer, state), top=top)


def _by_name(explorer: Explorer, state: State) -> dict[str, Array]:
    """The proportions of the variables in the known mixtures, (M',) by name."""
    variables = state.rules(explorer).spread > 0
    return {
        name: np.array([mixture[d] for d in explorer.domains]) @ variables
        for name, mixture in explorer.mixtures(state.target).items()
    }


def largest(explorer: Explorer, state: State) -> tuple[str, ...]:
    """The variables with a slider: all if they are few; else the largest in the current or a
    compared mixture, those that are locked, and those that the search box names."""
    rules = state.rules(explorer)
    if len(rules.names) <= FEW:
        return rules.names
    others = [v for name, v in _by_name(explorer, state).items() if name != OBSERVED]
    size = np.max([state.values(), *others], axis=0)
    ranked = [rules.names[i] for i in np.argsort(-size, kind="stable")]
    words = state.filter.casefold().split()
    matching = [name for name in ranked if all(word in name.casefold() for word in words)]
    chosen = [*(matching[:SHOWN] if words else ranked[:SHOWN]), *state.locked]
    return tuple(dict.fromkeys(chosen))


def updated(explorer: Explorer, state: State, event: Mapping[str, Any]) -> State:
    """The page after an event: its kind, and where it has them the name of what it is about and
    the value. A mistake changes nothing but the message, and what is no change leaves it."""
    after = _changed(explorer, state, event) if event["kind"] in _CHANGES else state
    explorer.searches.want(after.page, after.target, *([after.here] if after.searched else []))
    return replace(after, turn=state.turn + 1, known=_known(explorer, after))


def _known(explorer: Explorer, state: State) -> tuple[str, ...]:
    return tuple(explorer.mixtures(state.target))


def _changed(explorer: Explorer, state: State, event: Mapping[str, Any]) -> State:
    state, change = replace(state, message=""), _CHANGES[event["kind"]]
    try:
        after = change(explorer, state, event)
    except InputError as error:
        return replace(state, message=str(error))
    moved_on = change not in (_move, _text, _filter, _search)
    return replace(after, moving="", before=()) if moved_on else after


def _move(explorer: Explorer, state: State, event: Mapping[str, Any]) -> State:
    """A slider, or the number beside it, has a value: the other sliders give way.

    They are nearest to where they were when this one began to move: a slider that is moved back
    moves them back.
    """
    name = event["name"]
    value = texts.number(name, event["value"])
    rules, index = state.rules(explorer), _index(explorer, state, name)
    others = [other for other in state.locked if other != name]
    held = rules.fixed(state.values(), others)
    before = state.before if state.moving == name else state.proportions
    after = moves.moved(held, np.array(before), index, value)
    message = ""
    if abs(after[index] - value) > 10.0**-rules.decimals:
        low, high = moves.reach(held, index)
        message = f"{name} can lie from {low:.4g} to {high:.4g}, by the bounds and the locks."
    shown = state.shown if name in state.shown else (*state.shown, name)
    state = replace(state, moving=name, before=before, message=message, shown=shown)
    top = next(top for top in TOPS if top >= min(1, max(state.top, after.max())))
    return replace(state, proportions=tuple(after.tolist()), top=top)


def _lock(explorer: Explorer, state: State, event: Mapping[str, Any]) -> State:
    """A variable keeps its proportion, or no longer."""
    name = event["name"]
    _index(explorer, state, name)
    others = tuple(other for other in state.locked if other != name)
    return replace(state, locked=others if name in state.locked else (*others, name))


def _bound(explorer: Explorer, state: State, event: Mapping[str, Any]) -> State:
    """A bound has a value; an empty one is the problem's again. The mixture moves inside."""
    kind, name, text = event["kind"], event["name"], str(event["value"] or "").strip()
    value = texts.number(f"bounds: {name}", text) if text else None
    rules, index = state.rules(explorer), _index(explorer, state, name)
    low, high = state.bounds.get(name, (None, None))
    ends = (value, high) if kind == "low" else (low, value)
    bounds = {**state.bounds, name: ends}
    if ends == (None, None):
        del bounds[name]
    after = replace(state, bounds=bounds)
    changed = after.rules(explorer)
    held = changed.fixed(state.values(), state.locked)
    try:
        inside = moves.nearest(held, state.values())
    except InputError:  # named if the bounds are to blame
        feasible(explorer.constraints(bounds), explorer.domains, state.tokens)
        raise
    if not changed.broken(state.values()):
        inside = state.values()
    own = changed.lower[index] if kind == "low" else changed.upper[index]
    tighter = value is not None and abs(own - value) > 10.0**-rules.decimals
    message = f"{name}: another rule of the search keeps this bound at {own:.4g}."
    return replace(after, proportions=tuple(inside.tolist()), message=message if tighter else "")


def _start(explorer: Explorer, state: State, event: Mapping[str, Any]) -> State:
    """The page has one of the known mixtures."""
    mixture = explorer.mixtures(state.target).get(event["name"])
    if mixture is None:
        raise InputError(f"the mixture {event['name']!r} is not known yet")
    return _at(explorer, state, mixture)


def _take(explorer: Explorer, state: State, _event: Mapping[str, Any]) -> State:
    """The page has the mixture that the search from here found."""
    search = explorer.searches.get(state.here)
    if search is None or search.best is None:
        raise InputError("there is no answer to take; search first")
    message = "The page has the mixture that the search found."
    return replace(_at(explorer, state, search.best), searched=False, message=message)


def _at(explorer: Explorer, state: State, mixture: Mixture) -> State:
    placed = _placed(explorer, state.rules(explorer), mixture)
    return _arranged(explorer, replace(state, proportions=placed))


def _filter(explorer: Explorer, state: State, event: Mapping[str, Any]) -> State:
    state = replace(state, filter=str(event["value"] or ""))
    return replace(state, shown=largest(explorer, state))


def _scale(explorer: Explorer, state: State, event: Mapping[str, Any]) -> State:
    """The target has another size or other tokens."""
    kind = event["kind"]
    text = str(event["value"] or "")
    value = float(texts.integer(kind, text, least=1))
    if value > keys.MAX_INTEGER:  # which the float has rounded up
        raise InputError(f"{kind}: {text!r} is not less than {keys.MAX_INTEGER:.2g}")
    change: dict[str, Any] = {kind: value}
    after = replace(state, searched=False, **change)
    after.rules(explorer)
    return after


def _search(explorer: Explorer, state: State, _event: Mapping[str, Any]) -> State:
    """A search starts, within the bounds and locks of the page and near its mixture."""
    rules = state.rules(explorer)
    locks = {
        name: (value, value)
        for name, value in zip(rules.names, state.proportions, strict=True)
        if name in state.locked
    }
    problem = replace(explorer.problem, constraints=explorer.constraints({**state.bounds, **locks}))
    if state.radius.strip():
        radius = texts.number("how far from here", state.radius)
        constraints = replace(problem.constraints, trust=radius)
        problem = replace(problem, constraints=constraints, centre=state.mixture(explorer))
    explorer.searches.start(state.here, explorer.at(state.target), problem)
    return replace(state, searched=True)


def _text(_explorer: Explorer, state: State, event: Mapping[str, Any]) -> State:
    change: dict[str, Any] = {event["kind"]: str(event["value"] or "")}
    return replace(state, **change)


_CHANGES: dict[str, Callable[[Explorer, State, Mapping[str, Any]], State]] = {
    "slider": _move, "number": _move, "lock": _lock, "low": _bound, "high": _bound,
    "start": _start, "take": _take, "filter": _filter, "n_params": _scale, "tokens": _scale,
    "search": _search, "radius": _text, "format": _text,
}  # fmt: skip


def _index(explorer: Explorer, state: State, name: str) -> int:
    names: Sequence[str] = state.rules(explorer).names
    if name not in names:
        raise InputError(f"{name!r} is not a domain of this predictor")
    return names.index(name)


def _placed(explorer: Explorer, rules: Rules, mixture: Mixture) -> tuple[float, ...]:
    return tuple(rules.placed(np.array([mixture[d] for d in explorer.domains])).tolist())


def controls(explorer: Explorer, state: State) -> dict[str, dict[str, str]]:
    """What each control of the page shows: kind → name → text."""
    rules = state.rules(explorer)
    at = {name: i for i, name in enumerate(rules.names)}
    rows = [(name, at[name]) for name in state.shown]
    shares = {name: f"{state.proportions[i]:.{rules.decimals}f}" for name, i in rows}
    return {
        "slider": shares,
        "number": shares,
        "low": {name: bound_text(rules.lower[i]) for name, i in rows},
        "high": {name: bound_text(rules.upper[i]) for name, i in rows},
        "filter": {"": state.filter},
        "radius": {"": state.radius},
        "format": {"": state.format},
        "n_params": {"": f"{state.n_params:.0f}"},
        "tokens": {"": f"{state.tokens:.0f}"},
    }


def bound_text(value: float) -> str:
    """A bound as its field shows it."""
    return f"{value + 0.0:.5g}"  # without the sign of a zero
