"""What is wanted of a mixture, read from a study and from parameters; a parameter comes first."""

from dataclasses import replace
from typing import Any

from optimization.domain.constraints import Constraints
from optimization.domain.predictor import Predictor
from optimization.mixture.solve import Problem
from pipelines.command import parameters
from pipelines.study.study import Study
from training.data import corpus as corpora
from training.data.corpus import Corpus
from training.record.errors import InputError

EPOCHS = 4.0  # of tokens that are given as available, when nothing is said of epochs
AUTO = "auto"


def of_predictor(predictor: Predictor) -> Problem:
    """The search within the rules of the predictor's own sweep."""
    lowest, highest = predictor.metadata["lowest"], predictor.metadata["highest"]
    bounds = {d: (lowest[d], highest[d]) for d in predictor.domains}
    bundles = predictor.metadata.get("bundles", {})
    return Problem(constraints=Constraints(bounds=bounds, bundles=bundles))


def refuse_other_domains(plan: Study, predictor: Predictor) -> None:
    """Raise InputError for a predictor of other domains than the study's."""
    if set(plan.domains) != set(predictor.domains):
        raise InputError(
            f"study {plan.name!r} has the domains {', '.join(plan.domains)}; the predictor "
            f"{predictor.uri} has {', '.join(predictor.domains)}"
        )


def of_study(plan: Study, predictor: Predictor, corpus: Corpus | None = None) -> Problem:
    """The search that a study asks for; tokens that are available by its corpus, prepared or found.

    A domain whose proportion never varied in the predictor's runs keeps it. Raises InputError for
    a predictor of other domains, and for epochs of text that is not prepared.
    """
    refuse_other_domains(plan, predictor)
    asked, swept = plan.search, of_predictor(predictor).constraints.bounds
    own = {d: limits for d, limits in plan.bounds.items() if swept[d][0] < swept[d][1]}
    rules = plan.constraints().within({**swept, **own}).within(asked.bounds)
    constraints = replace(rules, trust=asked.trust_region)
    if asked.epochs is not None:
        constraints = replace(constraints, available=_prepared(plan, corpus), epochs=asked.epochs)
    return Problem(
        objectives=_names(asked.objective),
        constraints=constraints,
        reference=asked.reference,
        pull=asked.pull if isinstance(asked.pull, float) else None,
        pessimistic=asked.pessimistic,
        trials=asked.trials,
        seed=asked.seed,
    )


def with_parameters(
    problem: Problem,
    predictor: Predictor,
    plan: Study | None,
    *,
    trials: str = "",
    seed: str = "",
    objective: str = "",
    weights: str = "",
    bounds: str = "",
    bundles: str = "",
    available: str = "",
    epochs: str = "",
    reference: str = "",
    pull: str = "",
    trust_region: str = "",
    pessimistic: str = "",
) -> Problem:
    """The problem with every parameter that is given in the place of what it had."""
    rules = problem.constraints
    if bounds:
        rules = rules.within(parameters.limits("bounds", bounds))
    if bundles:
        rules = replace(rules, bundles=parameters.shares("bundles", bundles))
    if available:
        given = parameters.numbers("available", available)
        rules = replace(rules, available=given, epochs=rules.epochs if rules.available else EPOCHS)
    if epochs:
        there = rules.available or (_prepared(plan, None) if plan else {})
        if not there:
            raise InputError(
                "epochs: nothing tells how many tokens there are; give available=web=1e12,… or "
                "the study whose text is prepared"
            )
        rules = replace(rules, available=there, epochs=parameters.number("epochs", epochs))
    if trust_region:
        rules = replace(rules, trust=parameters.number("trust_region", trust_region))
    changes: dict[str, Any] = {"constraints": rules}
    if trials:
        changes["trials"] = parameters.integer("trials", trials, least=1)
    if seed:
        changes["seed"] = parameters.integer("seed", seed)
    if objective:
        changes["objectives"] = _names(objective)
    if weights:
        changes["weights"] = parameters.numbers("weights", weights)
    if reference:
        changes["reference"] = parameters.mixture(reference, predictor.domains, "reference")
        if plan is not None:
            plan.refuse_forbidden({"reference": changes["reference"]})
    if pull:
        changes["pull"] = None if pull == AUTO else parameters.number("pull", pull)
    if pessimistic:
        changes["pessimistic"] = parameters.boolean("pessimistic", pessimistic)
    return replace(problem, **changes)


def _names(objective: str) -> tuple[str, ...]:
    return tuple(parameters.names("objective", objective))


def _prepared(plan: Study, corpus: Corpus | None) -> dict[str, float]:
    """Training tokens of each domain of a study's corpus."""
    found = corpus or corpora.find(plan.domains, plan.tokenizer, plan.validation, plan.workspace)
    if found is None:
        raise InputError(
            f"epochs: the text of study {plan.name!r} is not prepared, so that nobody knows how "
            "many tokens there are; run `prepare`, or give available=…"
        )
    return {name: float(files.train_tokens) for name, files in found.domains.items()}
