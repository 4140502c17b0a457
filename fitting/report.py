"""The summary of a fit, in a few lines."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from fitting.data.histories import Histories
from fitting.estimators.accuracy import TaskAccuracy
from fitting.estimators.repetition import LEAST_PASSES
from fitting.fit import Fit
from fitting.registry import Registered
from training.record import keys, layout


def report(
    found: Fit,
    registered: Registered,
    pulled: Histories,
    notes: Sequence[str],
    accuracies: Sequence[TaskAccuracy] = (),
) -> list[str]:
    """What a fit found, what makes it doubtful first; notes tell what was left out."""
    unit, runs = pulled.unit, found.observations.runs
    counts = Counter("reused" if r in pulled.reused else pulled.origins[r] for r in runs)
    taken = ", ".join(f"{n} {where}" for where, n in counts.most_common())
    notes = [*found.unidentified, *filter(None, [found.transient]), *notes]
    return [
        f"fit: {layout.count(len(runs), 'run')} ({taken}); losses in {keys.unit_text(unit)}",
        *layout.wrapped(str(found.choice.stack), "  law: "),
        *(f"  WARNING: {one.warning}" for one in found.diagnostics if one.warning),
        *(f"  note: {note}" for note in notes),
        f"  target: {found.target.n_params:,.0f} parameters, {found.target.tokens:,.0f} tokens; "
        f"90 % interval ±{found.half_width(found.target):.3f} on average over the fitted mixtures",
        *(f"  {one.line}" for one in found.diagnostics),
        *_other_laws(found),
        *_repetition(found),
        *(f"  {_accuracy(found, one)}" for one in accuracies),
        f"  registered {registered.uri} as {registered.alias}"
        + (f": {registered.reason}" if registered.reason else ""),
    ]


def _accuracy(found: Fit, one: TaskAccuracy) -> str:
    """What is known of a task's accuracy at the target, on the best mixture by the law."""
    if one.curve is None:
        return f"accuracy of {one.task}: not predicted: {one.reason}"
    place = found.best.mixture[None], *np.array([[found.target.n_params], [found.target.tokens]])
    i = found.observations.val_domains.index(one.task)
    loss = found.law.predict(*place)[:, i]
    width = found.interval.half_width(np.eye(len(found.weights))[i], *place)
    low, high = one.curve.ends(loss, width / found.interval.quantile)
    return (
        f"accuracy of {one.task}: {one.accuracies.min():.3f} to {one.accuracies.max():.3f} in the "
        f"runs (chance {one.guess.chance:.3f}); at the target, on the best mixture, "
        f"{one.curve.predict(loss)[0]:.3f} (90 %: {low[0]:.3f} to {high[0]:.3f})"
    )


def _repetition(found: Fit) -> list[str]:
    """What repeated text is worth, where the runs tell."""
    if (told := found.repetition) is None:
        return []
    texts = [
        f"{domain} {worth:.3g} [{low:.3g}, {high:.3g}]"
        + (f", up to {seen:.3g} epochs" if seen >= LEAST_PASSES else ", not seen twice")
        for domain, worth, low, high, seen in zip(
            found.observations.domains, *told.at(found.target.n_params), told.seen, strict=True
        )
    ]
    return layout.wrapped(
        "R (after R repetitions a repeated token is worth 1/e of a new one) at the target: "
        + "; ".join(texts)
        + f"; R scales as N^{-told.wear:.2f}",
        "  ",
    )


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
