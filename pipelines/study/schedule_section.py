"""A schedule: the phases of a run, each a mixture and the number of tokens where it begins."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import mlflow
import pydantic
from mlflow.exceptions import MlflowException

from pipelines.command import texts
from training.record.errors import InputError
from training.record.mixtures import checked_mixture
from training.run import Phase

ARTIFACT = "schedule.json"  # logged by a run that planned a schedule


def checked(
    schedule: Sequence[Phase], domains: Sequence[str], tokens_per_step: int, place: str
) -> list[Phase]:
    """The phases, their mixtures completed to all domains.

    Raises InputError for a first phase that does not begin at 0 tokens, phases out of order, a
    phase that begins within a step, and an invalid mixture.
    """
    for i, phase in enumerate(schedule):
        if phase.from_tokens % tokens_per_step:
            before = phase.from_tokens - phase.from_tokens % tokens_per_step
            raise InputError(
                f"{place}[{i}].from_tokens: {phase.from_tokens:,} tokens are not a multiple of "
                f"the tokens of a step, {tokens_per_step:,}; the nearest are {before:,} and "
                f"{before + tokens_per_step:,}"
            )
    starts = [phase.from_tokens for phase in schedule]
    if starts and starts[0]:
        raise InputError(f"{place}[0].from_tokens: {starts[0]:,}; the first phase begins at 0")
    for i, (previous, start) in enumerate(pairwise(starts), 1):
        if start <= previous:
            raise InputError(
                f"{place}[{i}].from_tokens: {start:,} is not after the phase before, {previous:,}"
            )
    return [
        Phase(
            from_tokens=phase.from_tokens,
            mixture=checked_mixture(phase.mixture, domains, f"{place}[{i}].mixture"),
        )
        for i, phase in enumerate(schedule)
    ]


def refuse_beyond(later: Sequence[Phase], tokens: int) -> None:
    """Raise InputError for a phase that would begin after the run's end."""
    for phase in later:
        if phase.from_tokens >= tokens:
            raise InputError(
                f"schedule: a phase begins at {phase.from_tokens:,} tokens, the run ends at "
                f"{tokens:,}; train longer or shorten the schedule"
            )


def read(text: str, domains: Sequence[str], tokens_per_step: int) -> list[Phase]:
    """A schedule parameter: a JSON list or file, or `runs:/<id>` of a run that planned one."""
    raw = _raw(text)
    if not isinstance(raw, list) or not raw:
        raise InputError(
            f'schedule: {text}: must hold a JSON list of {{"from_tokens": …, "mixture": {{…}}}}'
        )
    try:
        phases = [Phase.model_validate(phase) for phase in raw]
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"schedule: {text}: {where}: {first['msg']}") from error
    return checked(phases, domains, tokens_per_step, "schedule")


def _raw(text: str) -> Any:
    if not text.startswith("runs:/"):
        return texts.json_value("schedule", text)
    try:
        return mlflow.artifacts.load_dict(f"{text.rstrip('/')}/{ARTIFACT}")
    except MlflowException as error:
        raise InputError(f"schedule: {text}: {error.message}") from error
