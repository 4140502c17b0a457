"""The search problem, read from a study and from parameters; a parameter overrides the study."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from optimization.domain.predictor import Predictor
from optimization.mixture.solve import Problem
from pipelines.command import table, texts
from pipelines.study.prepared import Prepared
from pipelines.study.study import Study
from training.record.errors import InputError

SAME_WEIGHT = 1e-6  # difference of weights that are the same
EPOCHS = 4.0  # over the tokens of `available`, when `epochs` is not given
AUTO = "auto"


def _pull(name: str, text: str) -> float | str:
    return AUTO if text == AUTO else texts.number(name, text)


@dataclass(frozen=True)
class Overrides:
    """The parameters that change the search of a study or a predictor."""

    trials: int | None = table.parameter("Trials of Optuna.", table.at_least(1))
    objective: list[str] | None = table.parameter(
        "`loss`; `worst`, the worst domain's excess over the reference; or several of `loss`, "
        "`deviation` and domains, separated by commas, for a Pareto front.",
        texts.names,
    )
    weights: dict[str, float] | None = table.parameter(
        "Weights of the validation domains: `web=2,code=1`, a JSON object or file.", texts.numbers
    )
    bounds: dict[str, tuple[float, float]] | None = table.parameter(
        "Lowest and highest proportions: `web=0.1:0.5,python+cpp=:0.3,tables=0.1`.", texts.limits
    )
    bundles: dict[str, dict[str, float]] | None = table.parameter(
        "Domains that keep their proportions relative to each other: `base=web:0.6+docs:0.4`.",
        texts.shares,
    )
    available: dict[str, float] | None = table.parameter(
        "Tokens that a domain has, for all or some domains: `web=1e12,code=2e11`.", texts.numbers
    )
    epochs: float | None = table.parameter(
        "How often the target may see the available tokens.", texts.number
    )
    reference: str = table.parameter(
        "The mixture that the best one is compared with, written as `mixture` of `train`."
    )
    pull: float | str | None = table.parameter(
        "What a nat of divergence from the reference must gain, in the unit of the losses; "
        "`auto`: the strongest pull that keeps nine tenths of the gain.",
        _pull,
    )
    trust_region: float | None = table.parameter(
        "Largest distance from the nearest fitted mixture, as a share of tokens.", texts.number
    )
    pessimistic: bool | None = table.parameter(
        "`true`: minimise the upper end of the interval.", texts.boolean
    )
    seed: int | None = table.parameter("Seed of the search.", table.at_least(0))


def of_predictor(predictor: Predictor) -> Problem:
    """The search within the rules of the predictor's own sweep."""
    return Problem(constraints=predictor.explored())


def refuse_other_domains(study: Study, predictor: Predictor) -> None:
    """Raise InputError for a predictor whose domains are not the study's."""
    if set(study.domains) != set(predictor.domains):
        raise InputError(
            f"study {study.name!r} has the domains {', '.join(study.domains)}; the predictor "
            f"{predictor.uri} has {', '.join(predictor.domains)}"
        )


def of_study(study: Study, predictor: Predictor) -> Problem:
    """The search that a study defines; its prepared text gives the available tokens.

    A domain whose proportion never varied in the predictor's runs keeps it. Raises InputError for
    a predictor with other domains, and for a limit on the epochs of text that is not prepared.
    """
    refuse_other_domains(study, predictor)
    if study.validation.unit:
        predictor.refuse_other_unit(study.validation.unit)
    search, swept = study.search, predictor.explored().bounds
    own = {d: limits for d, limits in study.bounds.items() if swept[d][0] < swept[d][1]}
    rules = study.constraints().within({**swept, **own}).within(search.bounds)
    constraints = replace(rules, trust=search.trust_region)
    if search.epochs is not None:
        constraints = replace(constraints, available=_available(study), epochs=search.epochs)
    return Problem(
        objectives=tuple(texts.names("objective", search.objective)),
        weights=_weights(study, predictor),
        constraints=constraints,
        reference=search.reference,
        pull=search.pull if isinstance(search.pull, float) else None,
        pessimistic=search.pessimistic,
        trials=search.trials,
        seed=search.seed,
    )


def _weights(study: Study, predictor: Predictor) -> dict[str, float] | None:
    """The weights that the study states; None where they are the predictor's, or where it has its
    own kind: of a single overall loss, or of the two sides of continued training.

    Raises InputError for a weight on what the predictor does not predict.
    """
    weights, predicted = study.weights(), predictor.val_domains
    if study.validation.weights is None or not set(weights) & set(predicted):
        return None
    if predictor.spec.continual is not None:
        return None
    if unknown := [name for name, w in weights.items() if w and name not in predicted]:
        raise InputError(
            f"study {study.name!r} weighs {unknown[0]!r}, which the predictor {predictor.uri} does "
            "not predict; fit again, with runs that measure it"
        )
    own = {name: weights.get(name, 0.0) for name in predicted}
    same = np.allclose([*own.values()], predictor.weights, rtol=0, atol=SAME_WEIGHT)
    return None if same else own


def changed(
    problem: Problem, predictor: Predictor, study: Study | None, overrides: Overrides
) -> Problem:
    """The problem with the given parameters in place of its own values."""
    rules = problem.constraints
    if overrides.bounds:
        rules = rules.within(overrides.bounds)
    if overrides.bundles:
        rules = replace(rules, bundles=overrides.bundles)
    if overrides.available:
        epochs = rules.epochs if rules.available else EPOCHS
        rules = replace(rules, available=overrides.available, epochs=epochs)
    if overrides.epochs is not None:
        available = rules.available or (_available(study) if study else {})
        if not available:
            raise InputError(
                "epochs: the number of available tokens is unknown; give available=web=1e12,… or "
                "a study whose text is prepared"
            )
        rules = replace(rules, available=available, epochs=overrides.epochs)
    if overrides.trust_region is not None:
        rules = replace(rules, trust=overrides.trust_region)
    options: dict[str, Any] = {
        "trials": overrides.trials,
        "seed": overrides.seed,
        "objectives": tuple(overrides.objective or ()) or None,
        "weights": overrides.weights,
        "pessimistic": overrides.pessimistic,
    }
    problem = replace(
        problem, constraints=rules, **{k: v for k, v in options.items() if v is not None}
    )
    if overrides.reference:
        reference = texts.mixture(overrides.reference, predictor.domains, "reference")
        if study is not None:
            study.refuse_forbidden({"reference": reference})
        problem = replace(problem, reference=reference)
    if overrides.pull is not None:
        problem = replace(
            problem, pull=overrides.pull if isinstance(overrides.pull, float) else None
        )
    return problem


def _available(study: Study) -> dict[str, float]:
    """Training tokens of each domain of a study's corpus."""
    prepared = Prepared.find(study)
    if prepared is None:
        raise InputError(
            f"epochs: the text of study {study.name!r} is not prepared, so the number of its "
            "tokens is unknown; run `prepare`, or give available=…"
        )
    return {name: float(files.train_tokens) for name, files in prepared.corpus.domains.items()}
