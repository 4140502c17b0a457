"""How often planned runs see the same text, checked before any of them trains."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import mlflow

from training.config import Repetition
from training.data.corpus import Corpus
from training.record.errors import InputError
from training.run import Run

logger = logging.getLogger("pipelines")

TAG = "repetition"


@dataclass(frozen=True)
class Repeated:
    """A run's most repeated domain."""

    run: str
    domain: str
    epochs: float


def most_repeated(run: Run, corpus: Corpus) -> Repeated:
    """The domain that a run sees most often."""
    drawn = run.training.steps * run.training.tokens_per_step
    epochs = {
        name: drawn * share / (run.data_share * corpus.domains[name].train_tokens)
        for name, share in run.mean_mixture().items()
    }
    domain = max(epochs, key=lambda name: epochs[name])
    return Repeated(run.name, domain, epochs[domain])


def check(rule: Repetition, runs: Sequence[Run], corpus: Corpus) -> None:
    """Warn about runs beyond the limit, on stderr and in a tag of the active run, or refuse them.

    Raises InputError for such runs if `on_excess` is `refuse`, and for a run that may see less
    than one sequence of a domain.
    """
    for run in runs:
        _refuse_too_little(run, corpus)
    over = [r for r in (most_repeated(run, corpus) for run in runs) if r.epochs > rule.limit]
    if not over:
        return
    worst = max(over, key=lambda repeated: repeated.epochs)
    message = (
        f"repetition: run {worst.run} would see domain {worst.domain!r} {worst.epochs:.1f} times; "
        f"{len(over)} of {len(runs)} runs see a domain more than {rule.limit:g} times. Add text, "
        "lower the steps or the domain's highest proportion (bounds), or raise repetition.limit"
    )
    if rule.on_excess == "refuse":
        raise InputError(message)
    logger.warning(f"warning: {message}")
    if mlflow.active_run():
        mlflow.set_tag(TAG, message)


def _refuse_too_little(run: Run, corpus: Corpus) -> None:
    length = run.training.sequence_length
    for name, share in run.mean_mixture().items():
        tokens = int(run.data_share * corpus.domains[name].train_tokens)
        if share and tokens <= length:
            raise InputError(
                f"repetition.match_target: run {run.name} may see {tokens:,} tokens of domain "
                f"{name!r} ({run.data_share:.3g} of its text), less than one sequence ({length}); "
                "add text, or set match_target to false"
            )
