"""Which runs and evaluations are fitted, and the rules that a search of the fit keeps."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from fitting.data import histories, origin
from fitting.data.histories import Histories, Purpose
from fitting.data.observations import Observations
from fitting.diagnostics import identifiability
from optimization.domain.constraints import Constraints
from optimization.domain.feasible import Feasible, feasible
from pipelines.study.prepared import Prepared
from pipelines.study.study import Study
from training.record import keys, layout
from training.record.errors import InputError
from training.record.mixtures import MIXTURE_TOLERANCE

NAMED = 5  # reasons for leaving runs out that the summary names


@dataclass(frozen=True)
class Checkpoints:
    """Which evaluations of the runs are fitted."""

    min_step: int | None = None  # None: the start-up transient is recognised
    max_step: int | None = None


def usable(table: pd.DataFrame, checkpoints: Checkpoints) -> tuple[pd.DataFrame, list[str]]:
    """The evaluations within the steps that have every loss, and notes on those left out."""
    counts: dict[str, int] = {}  # by note
    before = table[keys.TOKENS] == 0
    if before.any():
        note = f"{before.sum()} evaluations before training left out: no law describes them"
        counts[note] = before.sum()
        table = table[~before]
    low, high = checkpoints.min_step, checkpoints.max_step
    inside = (table["step"] >= (low or 0)) & (table["step"] <= (high or np.inf))
    if not inside.all():
        note = f"{(~inside).sum()} evaluations outside steps {low or 0} to {high} left out"
        counts[note] = (~inside).sum()
    table = table[inside]
    gaps = table.filter(like=keys.VAL_LOSS).isna()
    if gaps.any(axis=None):
        named = layout.some([c.removeprefix(keys.VAL_LOSS) for c in gaps if gaps[c].any()])
        missing = gaps.any(axis=1)
        counts[f"{missing.sum()} evaluations left out: they have no loss of {named}"] = (
            missing.sum()
        )
        table = table[~missing]
    notes = sorted(counts, key=lambda note: -counts[note])
    if table.empty:
        raise InputError("; ".join(notes) + ": none is left to fit")
    return table.reset_index(drop=True), notes


def of_known_domains(pulled: Histories, purpose: Purpose) -> Histories:
    """The histories without runs that saw a domain which the study lacks; reused runs stay."""
    first = pulled.table.drop_duplicates("run").set_index("run")
    reasons: dict[str, str] = {}
    for name in pulled.domains if purpose.lowest else ():
        if name not in purpose.lowest:
            saw = first.index[first[keys.MIXTURE + name] > 0].difference(pulled.reused)
            reasons |= dict.fromkeys(saw, f"trained on {name!r}, which the study lacks")
    return _without(pulled, reasons)


def _without(pulled: Histories, reasons: dict[str, str]) -> Histories:
    """The histories without the runs of these ids, id → reason."""
    if not reasons:
        return pulled
    table = pulled.table[~pulled.table["run"].isin(reasons)].reset_index(drop=True)
    if table.empty:
        raise InputError(f"every run is left out: {next(iter(reasons.values()))}")
    mixtures = [column for column in table if column.startswith(keys.MIXTURE)]
    gone = [column for column in mixtures if not table[column].any() and pulled.table[column].any()]
    table = table.drop(columns=gone)
    domains = tuple(d for d in pulled.domains if keys.MIXTURE + d in table)
    named = {pulled.names[run]: reason for run, reason in reasons.items()}
    return replace(pulled, table=table, domains=domains, left_out={**pulled.left_out, **named})


def purpose_of(study: Study, prepared: Prepared | None) -> Purpose:
    """What a study's runs are fitted for; without a default mixture if that is not known yet."""
    lower, upper = study.limits()
    default = prepared.default if prepared else study.explicit_default()
    return Purpose(
        n_params=study.size(study.target.size).n_params,
        tokens=study.target_tokens(),
        weights=study.weights(),
        default_mixture=default or {},
        lowest=dict(zip(study.domains, lower, strict=True)),
        highest=dict(zip(study.domains, upper, strict=True)),
        bundles=study.bundles,
        unit=study.validation.unit or "",
    )


def rules_of(pulled: Histories, purpose: Purpose) -> Constraints:
    """The purpose's rules for the domains of the runs."""
    bounds = {
        d: (purpose.lowest.get(d, 0.0), purpose.highest.get(d, 1.0))
        for d in pulled.domains
        if d in purpose.lowest
    }
    return Constraints(bounds=bounds, bundles=purpose.bundles)


def within_rules(pulled: Histories, allowed: Feasible) -> Histories:
    """The histories without runs whose mixtures break a rule; reused runs stay."""
    first = pulled.table.drop_duplicates("run")
    first = first[~first["run"].isin(pulled.reused)]
    columns = [keys.MIXTURE + d for d in allowed.domains]
    mixtures = first.reindex(columns=columns, fill_value=0.0).to_numpy(float)
    broken = {
        run: rule
        for run, mixture in zip(first["run"], mixtures, strict=True)
        if (rule := allowed.broken_rule(mixture, MIXTURE_TOLERANCE))
    }
    return _without(pulled, {run: f"breaks the rule '{rule}'" for run, rule in broken.items()})


def explored(o: Observations, rules: Constraints) -> Constraints:
    """The rules that a search keeps: bounds for every domain, and the bundles that all fitted
    mixtures keep. A domain that never varied is bound to its one proportion: the law knows no
    other."""
    constant = {
        d: float(o.mixtures[0, o.domains.index(d)]) for d in identifiability.constant_domains(o)
    }
    bounds = {
        d: (constant[d], constant[d]) if d in constant else rules.bounds.get(d, (0.0, 1.0))
        for d in o.domains
    }
    bundles = {}
    for name, shares in rules.bundles.items():
        if set(shares) <= set(o.domains):
            bundle = feasible(Constraints(bundles={name: shares}), o.domains, 1.0)
            if bundle.inside(o.mixtures, MIXTURE_TOLERANCE).all():
                bundles[name] = shares
    return Constraints(bounds=bounds, bundles=bundles)


def left_out(pulled: Histories) -> list[str]:
    """One line on the runs that were left out and why; empty if there are none."""
    if not pulled.left_out:
        return []
    by_reason: dict[str, list[str]] = {}
    for name, why in pulled.left_out.items():
        by_reason.setdefault(why, []).append(name)
    reasons = sorted(by_reason, key=lambda why: -len(by_reason[why]))
    named = "; ".join(f"{why}: {layout.some(by_reason[why])}" for why in reasons[:NAMED])
    more = " …" if len(reasons) > NAMED else ""
    ask = f"; {histories.UNPLANNED_HINT}" if origin.UNPLANNED in by_reason else ""
    return [f"{layout.count(len(pulled.left_out), 'run')} left out ({named}{more}){ask}"]
