"""How the laws compare, as tables."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from fitting.selection import backtest, boosting
from fitting.selection.backtest import Extrapolation
from fitting.selection.cross_validation import HeldOut, Scores
from fitting.selection.forms import FormSearch
from fitting.selection.parts import Parts, Stacked


def laws(
    parts: Parts,
    stacked: Stacked,
    scores: Scores,
    tested: Extrapolation,
    boosted: tuple[Scores, Extrapolation, float] | None,
) -> pd.DataFrame:
    """Law, its weight in the prediction, expected error at the target, errors on held-out mixtures
    and of extrapolation (fitted without the largest size and the last checkpoints, as far as there
    are others; the objective's unless named otherwise), seconds, note.

    scores and tested are those of the sum; boosted those of boosted trees, and their seconds.
    """
    search, members, stack = parts.search, stacked.members, stacked.stack
    shares: dict[str, float] = defaultdict(float)
    for member, weight in zip(members, stack.shares, strict=True):
        shares[member.candidate.method] += weight
    rows: list[dict[str, Any]] = []
    if len(members) > 1:
        expected = search.error(scores, tested)[0]
        errors = {**_errors(scores, tested), "expected_error": expected, "weight": 1.0}
        rows.append({"law": "stack", "chosen": True, **errors, "form": str(stack)})
    for method, seconds in search.seconds.items():
        of_law, beyond = parts.errors(method)
        rows.append(
            {
                "law": method,
                "chosen": len(members) == 1 and shares[method] > 0,
                "weight": shares[method],
                **_errors(of_law, beyond),
                "expected_error": search.error(of_law, beyond)[0],
                "seconds": seconds,
                "form": parts.form(method),
            }
        )
    if boosted:
        errors = {**_errors(*boosted[:2]), "held_out_domain_mae": np.nan}
        rows.append({"law": "boosting", **errors, "seconds": boosted[2], "form": boosting.FORM})
    rows.extend({"law": method, "note": why} for method, why in search.refused.items())
    table = pd.DataFrame(rows)
    return table.assign(chosen=table["chosen"].eq(True))


def candidates(search: FormSearch, members: Sequence[HeldOut]) -> pd.DataFrame:
    """One row per candidate; the best of each form has an expected error and backtests."""
    finalists = search.finalists.values()
    expected = {held.candidate: search.expected_error(held)[0] for held in finalists}
    rows = []
    for held in search.tried:
        misses = search.misses.get(held.candidate, [])
        tested = backtest.extrapolation(misses, search.weights)
        rows.append(
            {
                **vars(held.candidate),
                "chosen": any(held is member for member in members),
                "expected_error": expected.get(held.candidate, np.nan),
                **vars(held.scores),
                **tested.columns(),
            }
        )
    table = pd.DataFrame(rows)
    return table.sort_values(["chosen", "expected_error"], ascending=[False, True])


def _errors(scores: Scores, tested: Extrapolation) -> dict[str, float]:
    furthest = tested.backtests[-1] if tested.backtests else None
    return {
        "held_out_mae": scores.objective_mae,
        "held_out_rmse": scores.objective_rmse,
        "held_out_domain_mae": scores.domain_mae,
        "spearman": scores.spearman,
        "extrapolation_rmse": furthest.rmse if furthest else np.nan,
        "extrapolation_bias": furthest.bias if furthest else np.nan,
    }
