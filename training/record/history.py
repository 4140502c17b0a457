"""A compact copy of a run's validation losses, stored in its tags."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from training.record import keys


@dataclass(frozen=True)
class Evaluation:
    """Validation losses of every domain, set and task at one step, nats per token, and their
    standard errors."""

    losses: dict[str, float]
    standard_errors: dict[str, float]
    accuracies: dict[str, float] = field(default_factory=dict)
    """Of the tasks with choices."""


@dataclass(frozen=True)
class History:
    """The validation losses of one run.

    `losses` is (evaluations, domains) in nats per token, NaN where missing; `steps` and
    `tokens` are (evaluations,).
    """

    domains: tuple[str, ...]
    steps: tuple[int, ...]
    tokens: tuple[int, ...]
    losses: tuple[tuple[float, ...], ...]
    accuracies: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Task with choices → its accuracy at each evaluation."""


def history_tags(history: History) -> dict[str, str]:
    """A compact copy of a history, split into tags `history/0`, `history/1`, …"""
    text = json.dumps(
        {
            "domains": history.domains,
            "steps": history.steps,
            "tokens": history.tokens,
            "losses": [_plain(row) for row in history.losses],
            **(
                {"accuracies": {t: _plain(values) for t, values in history.accuracies.items()}}
                if history.accuracies
                else {}
            ),
        },
        separators=(",", ":"),
    )
    parts = [text[i : i + keys.TAG_LIMIT] for i in range(0, len(text), keys.TAG_LIMIT)]
    return {f"{keys.HISTORY}{i}": part for i, part in enumerate(parts)}


def history_from_tags(tags: Mapping[str, str]) -> History | None:
    """The history in a run's tags; None if it is missing or incomplete."""
    parts: list[str] = []
    while (key := f"{keys.HISTORY}{len(parts)}") in tags:
        parts.append(tags[key])
    try:
        raw = json.loads("".join(parts))
    except json.JSONDecodeError:
        return None
    history = History(
        domains=tuple(raw["domains"]),
        steps=tuple(raw["steps"]),
        tokens=tuple(raw["tokens"]),
        losses=tuple(map(_rich, raw["losses"])),
        accuracies={task: _rich(values) for task, values in raw.get("accuracies", {}).items()},
    )
    lengths = {len(history.steps), len(history.tokens), len(history.losses)}
    complete = len(lengths) == 1 and {len(row) for row in history.losses} <= {len(history.domains)}
    return history if complete else None


def _plain(values: Sequence[float]) -> list[float | None]:
    """The values to nine digits; None where one is missing."""
    return [None if math.isnan(x) else float(f"{x:.9g}") for x in values]


def _rich(values: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(math.nan if x is None else x for x in values)
