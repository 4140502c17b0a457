"""What the runs of an answer hold, gathered for the report."""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import mlflow
import pandas as pd
from mlflow.entities import Run

from fitting import registry
from fitting.registry import Standing
from optimization.domain import predictor as predictors
from optimization.domain.predictor import Predictor
from optimization.mixture.solve import BEST, DEFAULT
from pipelines.html_report import cost, lineage, measured, predicted
from pipelines.html_report.cost import Trained
from pipelines.html_report.lineage import Lineage
from pipelines.html_report.measured import Curve
from pipelines.proof.verdict import Gain, Proof
from training.record import keys
from training.record.errors import InputError
from training.record.mixtures import mixture_key
from training.record.mlflow_runs import search

Mixture = dict[str, float]  # domain → proportion
OBJECTIVE = "objective"  # all that an implicit fit predicts
SAME_WEIGHT = 1e-6  # difference of weights that are the same
NEAR_OPTIMAL = "near_optimal.json"
SEARCHED = "best of the search"  # where another mixture was verified


@dataclass(frozen=True)
class Findings:
    """All that the report shows; a part that is not there is empty or None."""

    lineage: Lineage
    study: str  # its name, or that of the experiment of imported runs
    unit: str
    n_params: float  # of the target
    tokens: float
    weights: dict[str, float]  # of the losses, by the search if there is one; they sum to one
    fit_weights: dict[str, float]  # by which targets are verified and held-out errors are taken
    mixtures: dict[str, Mixture]  # the best first
    compared: pd.DataFrame  # a row a mixture: predicted losses, and differences from the best
    compared_with: str  # the mixture over which the gain is
    gain: Gain | None  # predicted
    proof: Proof | None
    standing: Standing
    ranges: pd.DataFrame  # domain, lowest, highest: the near-optimal set
    spanned: float  # part of the trained proportions over which these range
    held_out: pd.DataFrame  # run, n_params, observed, predicted: weighted losses
    laws: pd.DataFrame
    measured: tuple[Curve, ...]  # of targets, over tokens
    predicted: tuple[Curve, ...]  # by the law, of the target
    proxies: tuple[Curve, ...]
    against: dict[str, pd.DataFrame]  # domain → the loss against its proportion
    uncertainty: dict[str, float]  # loss → half the interval of its predicted change
    fitted: tuple[Run, ...]
    targets: dict[str, Run]  # by id
    trained: tuple[Trained, ...]  # what was trained, and what it cost
    design: Run | None  # the newest that this predictor chose
    newer: Run | None  # a newer search, which is not verified

    @property
    def best(self) -> Mixture:
        return self.mixtures[BEST]

    @property
    def base(self) -> str:
        """The mixture from which the differences of `compared` are."""
        return SEARCHED if SEARCHED in self.mixtures else BEST

    @property
    def reweighed(self) -> bool:
        """Whether the search weighed the losses otherwise than the fit did."""
        names = {*self.weights, *self.fit_weights}
        apart = (self.weights.get(n, 0.0) - self.fit_weights.get(n, 0.0) for n in names)
        return any(abs(difference) > SAME_WEIGHT for difference in apart)

    @property
    def as_fitted(self) -> str:
        """What the caption of something adds that is weighed as the fit did."""
        return " The losses are weighed as the fit did." if self.reweighed else ""

    @property
    def targets_weighed(self) -> pd.DataFrame:
        """The targets, measured by the weights of the search; empty without a proof."""
        table = self.proof.table if self.proof else pd.DataFrame()
        return measured.weighed(table, self.weights) if self.reweighed and len(table) else table

    @property
    def imported(self) -> bool:
        """Whether the fitted runs were trained elsewhere."""
        return any(keys.IMPORTED_FROM in run.data.tags for run in self.fitted)


def gather(found: Lineage) -> Findings:
    """Read what the runs of an answer hold.

    Raises InputError if neither a search nor a predictor that can be loaded is left.
    """
    fit, searched = found.fit, found.search
    params = _params(found)
    unit = params.get(keys.LOSS_UNIT) or keys.NATS
    n_params, tokens = (float(params[k]) for k in (keys.TARGET_N_PARAMS, keys.TARGET_TOKENS))
    weights = _normalised(keys.without_prefix(keys.WEIGHT, params))
    own = _normalised(keys.without_prefix(keys.WEIGHT, fit.data.params)) if fit else weights
    weights = own if set(weights) == {OBJECTIVE} else weights
    predictor = _predictor(found.model, n_params, tokens)
    losses = lineage.table(found.verify, "measured_beside_predicted.json")
    targets = measured.runs_of(losses)
    compared = lineage.table(searched, "compared.json")
    if compared.empty and predictor is not None and fit is not None:
        compared = predicted.compared(predictor, _optimum(fit))
    if compared.empty:
        raise InputError(
            f"report: the predictor {found.model or 'of this fit'} cannot be loaded any more, and "
            "no search of it was logged; fit again"
        )
    compared, mixtures = _verified(compared, losses, targets)
    ranges = pd.DataFrame() if SEARCHED in mixtures else lineage.table(searched, NEAR_OPTIMAL)
    others = [DEFAULT, params.get("compared_with", DEFAULT), *mixtures]
    known = [name for name in others if name in mixtures and name != BEST]
    if not known:
        raise InputError("report: the best mixture was compared with no other; optimize again")
    compared_with = params.get("compared_with", "")
    compared_with = compared_with if compared_with in known else known[0]
    fitted = tuple(lineage.fitted_runs(fit)) if fit else ()
    evaluations = lineage.evaluations(fit)
    proof = measured.proof(found, losses, targets, own, unit)
    return Findings(
        lineage=found,
        study=_study(fitted, found),
        unit=unit,
        n_params=n_params,
        tokens=tokens,
        weights=weights,
        fit_weights=own,
        mixtures=mixtures,
        compared=compared,
        compared_with=compared_with,
        gain=_gain(compared, compared_with),
        proof=proof,
        standing=registry.standing(found.model),
        ranges=ranges,
        spanned=predicted.spanned(predictor, ranges),
        held_out=measured.held_out(lineage.table(fit, "held_out_predictions.json"), own),
        laws=lineage.table(fit, "laws.json"),
        measured=measured.of_targets(losses, targets, weights, unit),
        predicted=predicted.over_tokens(predictor, mixtures, weights, evaluations),
        proxies=measured.of_proxies(evaluations, weights, fitted),
        against=predicted.against_proportions(predictor, mixtures[BEST], weights),
        uncertainty=predicted.uncertainty(
            predictor, mixtures[BEST], mixtures.get(DEFAULT if proof else compared_with)
        ),
        fitted=fitted,
        targets=targets,
        trained=cost.of(fitted, list(targets.values())),
        design=_design(found),
        newer=_newer(found),
    )


def _params(found: Lineage) -> dict[str, str]:
    """The parameters of the search, or else of the fit."""
    run = found.search or found.fit
    if run is None:
        raise InputError("report: the runs of the search and of the fit are gone; fit again")
    for key in (keys.TARGET_N_PARAMS, keys.TARGET_TOKENS):
        if key not in run.data.params:
            raise InputError(
                f"report: run {run.info.run_name!r} ({run.info.run_id}) of an older version "
                f"recorded no {key}; {'optimize' if found.search else 'fit'} again"
            )
    return dict(run.data.params)


def _normalised(weights: Mapping[str, float]) -> dict[str, float]:
    total = math.fsum(weights.values())
    return {name: weight / total for name, weight in weights.items()} if total else dict(weights)


def _predictor(uri: str, n_params: float, tokens: float) -> Predictor | None:
    """The registered predictor at the target; None if it cannot be loaded any more."""
    with suppress(InputError):
        return predictors.load(uri, n_params, tokens) if uri else None
    return None


def _optimum(fit: Run) -> Mixture:
    """The best mixture of the target by the law, which a fit finds by itself."""
    table = lineage.table(fit, "optimum_by_size.json")
    if table.empty:
        raise InputError(
            f"report: the fit {fit.info.run_name!r} ({fit.info.run_id}) recorded no best mixture; "
            "fit again, or search one with optimize"
        )
    row = {str(key): value for key, value in table.iloc[-1].items()}
    return keys.without_prefix(keys.MIXTURE, row)


def _verified(
    compared: pd.DataFrame, losses: pd.DataFrame, targets: Mapping[str, Run]
) -> tuple[pd.DataFrame, dict[str, Mixture]]:
    """The compared mixtures; the best is the one that was trained, if it is another one."""
    mixtures = {
        str(row["mixture"]): keys.without_prefix(keys.MIXTURE, row)
        for row in compared.to_dict("records")
    }
    if BEST not in mixtures:
        raise InputError("report: the search recorded no best mixture; optimize again")
    domains = list(mixtures[BEST])
    for run_id in losses.loc[losses["mixture"] == BEST, "run_id"] if len(losses) else ():
        if run_id not in targets:
            continue
        shares = keys.without_prefix(keys.MIXTURE, targets[run_id].data.params)
        trained = {domain: shares.get(domain, 0.0) for domain in domains}
        if mixture_key(trained, domains) != mixture_key(mixtures[BEST], domains):
            compared = compared.replace({"mixture": {BEST: SEARCHED}})
            searched = mixtures.pop(BEST)
            return compared, {BEST: trained, **mixtures, SEARCHED: searched}
    return compared, mixtures


def _study(fitted: tuple[Run, ...], found: Lineage) -> str:
    """The study's name, or else that of the experiment of the fitted runs."""
    for run in fitted:
        if tag := run.data.tags.get(keys.STUDY):
            return str(tag).rpartition("-")[0]
    run = next(iter(fitted), found.newest)
    return str(mlflow.get_experiment(run.info.experiment_id).name)


def _gain(compared: pd.DataFrame, compared_with: str) -> Gain | None:
    """The predicted gain of the best mixture over another one."""
    rows = compared[compared["mixture"] == compared_with]
    if "difference" not in rows or rows.empty or BEST not in set(compared["mixture"]):
        return None
    row = rows.iloc[0]
    return Gain(float(row["difference"]), float(row["difference_high"] - row["difference"]))


def _design(found: Lineage) -> Run | None:
    """The newest `design` whose predictor is the answer's."""
    runs = _later(found, keys.DESIGN, found.fit)
    name = found.model.rpartition("/")[0]
    return next((run for run in runs if _of_model(run, name)), None)


def _newer(found: Lineage) -> Run | None:
    """A search with the same model's name that ended after the verified one began."""
    if found.verify is None:
        return None
    name = found.model.rpartition("/")[0]
    for run in _later(found, keys.OPTIMIZE, found.verify):
        if _of_model(run, name) and run.info.run_id != _id(found.search):
            return run
    return None


def _of_model(run: Run, name: str) -> bool:
    """Whether a run used a version or an alias of `models:/name`."""
    uri = run.data.params.get("model_uri", "")
    return bool(name) and uri.startswith((f"{name}/", f"{name}@"))


def _later(found: Lineage, stage: str, than: Run | None) -> list[Run]:
    """The finished runs of a stage that began after another run ended, the newest first."""
    if than is None:
        return []
    query = f"attributes.status = 'FINISHED' and tags.{keys.STAGE} = '{stage}'"
    runs = search([found.newest.info.experiment_id], query)
    later = (r for r in runs if r.info.start_time >= (than.info.end_time or math.inf))
    return sorted(later, key=lambda run: -run.info.start_time)


def _id(run: Run | None) -> str:
    return run.info.run_id if run else ""
