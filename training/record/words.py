"""How a fact is worded wherever it is told: on a terminal, in a description, in the report.

Where a page writes the number in its own way, the words are what stands before and after it.
"""

from collections.abc import Mapping

from training.record import layout

Around = tuple[str, str]  # before and after the number
TERMS = 8  # of a weighted loss, at most, that are named


def certificate(unit: str) -> Around:
    """How far an answer can be from the law's optimum."""
    return "by the law no allowed mixture is better by more than ", f" {unit}"


def regret(unit: str) -> Around:
    """What another sample of the fitted mixtures would change."""
    before = "with another sample of the fitted mixtures, another mixture would be better by "
    return before, f" {unit} on average"


def beside_mean(error: str) -> str:
    """What an error on held-out mixtures is compared with: that of predicting their mean."""
    return f"predicting the mean: {error}"


def weighted(weights: Mapping[str, float], most: int = TERMS) -> str:
    """What a loss adds up, the heaviest first: `0.7 web + 0.3 code`."""
    names = sorted((n for n, w in weights.items() if w), key=lambda n: -weights[n])
    cut, more = layout.short(names), len(names) - most
    parts = [f"{weights[name]:.3g} {cut[name]}" for name in names[:most]]
    return " + ".join([*parts, *([f"{more} more"] if more > 0 else [])])
