"""The summary of a fit, in a few lines."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from fitting.data.histories import Histories
from fitting.fit import Fit
from fitting.registry import Registered
from training.record import keys, layout


def report(
    found: Fit, registered: Registered, pulled: Histories, notes: Sequence[str]
) -> list[str]:
    """What a fit found, what makes it doubtful first; notes tell what was left out."""
    unit, runs = pulled.unit, found.observations.runs
    counts = Counter("reused" if r in pulled.reused else pulled.origins[r] for r in runs)
    taken = ", ".join(f"{n} {where}" for where, n in counts.most_common())
    notes = [*found.unidentified, *filter(None, [found.transient]), *notes]
    return [
        f"fit: {layout.count(len(runs), 'run')} ({taken}); {found.choice.stack}; losses in "
        f"{keys.unit_text(unit)}",
        *(f"  WARNING: {one.warning}" for one in found.diagnostics if one.warning),
        *(f"  note: {note}" for note in notes),
        f"  target: {found.target.n_params:,.0f} parameters, {found.target.tokens:,.0f} tokens; "
        f"90 % interval ±{found.half_width(found.target):.3f} on average over the fitted mixtures",
        *(f"  {one.line}" for one in found.diagnostics),
        *_other_laws(found),
        f"  registered {registered.uri} as {registered.alias}"
        + (f": {registered.reason}" if registered.reason else ""),
    ]


def _other_laws(found: Fit) -> list[str]:
    """How the other laws did, where they were tried."""
    table = found.choice.laws.dropna(subset="held_out_rmse").sort_values("held_out_rmse")
    if len(table) == 1:
        return []
    errors = ", ".join(
        f"{law} {held_out:.4f}" + ("" if np.isnan(beyond) else f" / {beyond:.4f}")
        for law, held_out, beyond in zip(
            table["law"], table["held_out_rmse"], table["extrapolation_rmse"], strict=True
        )
    )
    expected = ", ".join(
        f"{law} {error:.4f}"
        for law, error in table[["law", "expected_error"]]
        .dropna()
        .sort_values("expected_error")
        .itertuples(index=False)
    )
    return [
        f"  laws, rms error on held-out mixtures / of extrapolation: {errors}",
        f"  expected error at the target: {expected}",
    ]
