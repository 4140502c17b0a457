"""The sentences of the report: a number in them knows the run that holds it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mlflow.entities import Run

from fitting.diagnostics.diagnostics import MISFIT
from fitting.registry import BACKTESTS, DIAGNOSTIC, OLD_DIAGNOSTIC
from optimization.domain.objective import LOSS
from optimization.mixture.solve import BEST, DEFAULT
from pipelines.command import texts
from pipelines.html_report.charts import the
from pipelines.html_report.cost import PROXIES, TARGETS
from pipelines.html_report.findings import SAME_WEIGHT, SEARCHED, Findings
from pipelines.html_report.numbers import fixed, joined, scientific
from pipelines.proof import verdict
from pipelines.proof.verdict import BETTER, DOUBTED, UNCLEAR, WORSE, Gain
from training.record import keys, layout, words

NOT_SEARCHED, PREDICTED = "NOT SEARCHED", "PREDICTED"
NAMED = 8  # domains, at most, that the question names
WIDE = 0.8  # part of the trained proportions: near-optimal ones over more say little


@dataclass(frozen=True)
class Number:
    """A text and the run that holds it."""

    text: str
    run: Run | None


Sentence = tuple[str | Number, ...]


@dataclass(frozen=True)
class Verdict:
    """The answer in a word or two, and in a sentence."""

    word: str
    sentence: Sentence


@dataclass(frozen=True)
class Fact:
    """A number of the answer, and how it is known."""

    name: str
    value: Number
    unit: str
    note: str


def question(f: Findings) -> str:
    """What was asked."""
    names = list(f.best)
    domains = joined(names) if len(names) <= NAMED else f"{len(names)} domains"
    return (
        f"Which mixture of {domains} gives a model of "
        f"{layout.short_count(f.n_params)} parameters the lowest loss after "
        f"{layout.short_count(f.tokens)} tokens?"
    )


def method(f: Findings) -> Sentence:
    """Which loss is meant, and by which runs the question was answered."""
    first = f"The loss is {_loss(f.weights)}, in {keys.unit_text(f.unit)}."
    if f.reweighed:
        first += (
            " So the search weighs it; the verdict of trained targets, their own figure and table, "
            f"and held-out errors are of {_loss(f.fit_weights)}, as the fit weighs it."
        )
    if not f.fitted:
        return (first,)
    noun = "imported run" if f.imported else "proxy run"
    runs: Sentence = (Number(layout.count(len(f.fitted), noun), f.lineage.fit),)
    if f.lineage.fit and (mixtures := f.lineage.fit.data.metrics.get("mixtures")):
        runs += (f" on {layout.count(round(mixtures), 'mixture')}",)
    if f.targets:
        trained = Number(layout.count(len(f.targets), "trained target"), f.lineage.verify)
        runs += (" and checked by ", trained)
    return (f"{first} The question is answered with ", *runs, ".")


def _loss(weights: Mapping[str, float]) -> str:
    """Which loss weights mean."""
    names = sorted((n for n, w in weights.items() if w), key=lambda n: -weights[n])
    if len(names) < 2:
        return f"the validation loss of {joined(names)}"
    if weights[names[0]] - weights[names[-1]] < SAME_WEIGHT:
        return f"the mean validation loss of {joined(names)}"
    return words.weighted(weights)


def answer(f: Findings) -> Verdict:
    """The verdict in one line, with its number."""
    unit = keys.unit_text(f.unit)
    if f.proof is not None:
        gain, run = f.proof.gain, f.lineage.verify
        seeds = int((f.proof.table["mixture"] == BEST).sum())
        how = {
            BETTER: "Trained on the best mixture, the target's loss is lower than on the default "
            "one. Measured gain: ",
            WORSE: "Trained on the best mixture, the target's loss is higher than on the default "
            "one. Measured gain: ",
            UNCLEAR: "The measurements cannot separate the best mixture from the default one. "
            "Measured gain: ",
        }[verdict.outcome(gain)]
        end = f" {unit} (90 % interval), with {layout.count(seeds, 'seed')} each."
        return _verdict(f, verdict.outcome(gain), (how, Number(_ends(gain), run), end))
    word = PREDICTED if f.lineage.search else NOT_SEARCHED
    if f.gain is None:
        return _verdict(f, word, ("A best mixture is predicted; no target was trained on it.",))
    other = the(f.compared_with)
    how = {
        BETTER: f"By the law, the best mixture's loss is lower than that of {other}.",
        WORSE: f"By the law, the best mixture's loss is higher than that of {other}.",
        UNCLEAR: f"The law cannot tell the best mixture from {other}.",
    }[verdict.outcome(f.gain)]
    number = Number(_ends(f.gain), f.lineage.search or f.lineage.fit)
    end = f" {unit} (90 % interval). No target was trained on it."
    if f.standing.unidentified:
        end += " The runs do not identify all of the law that predicts it."
    return _verdict(f, word, (f"{how} Predicted gain: ", number, end))


def _verdict(f: Findings, word: str, sentence: Sentence) -> Verdict:
    """The verdict; a law that does not describe its runs comes before what was found with it."""
    if not f.standing.misfit:
        return Verdict(word, sentence)
    first, *rest = sentence
    start = f"{first[:1].lower()}{first[1:]}" if isinstance(first, str) else first
    why: Sentence = (_sentence(f.standing.misfit), *_source(f.lineage.fit))
    return Verdict(f"{DOUBTED}:", (*why, ". For what it is worth, ", start, *rest))


def cautions(f: Findings) -> list[Sentence]:
    """Reasons for caution but a misfit, which the verdict names; the most important first."""
    fit, verify, standing = f.lineage.fit, f.lineage.verify, f.standing
    minimised = f.lineage.search.data.params.get("minimised", LOSS) if f.lineage.search else LOSS
    found: list[tuple[str, Run | None]] = []
    if f.proof is not None:
        of_fit = set(standing.warnings)
        doubts = verdict.doubts(f.proof, standing)
        found += [(doubt, fit if doubt in of_fit else verify) for doubt in doubts]
    else:
        if minimised != LOSS:
            text = (
                f"the search was for {minimised}; what is compared here is the weighted loss alone"
            )
            found.append((text, f.lineage.search))
        if not standing.fitted:
            found.append(("nothing is known of how well the law fits: its fit is gone", None))
        found += [(warning, fit) for warning in standing.warnings]
        if standing.champion and standing.champion != standing.version:
            text = f"the predictor is version {standing.version}, which is not the champion: "
            found.append((text + standing.reason, fit))
    if f.spanned > WIDE:
        text = (
            f"near-optimal proportions range over {100 * min(1, f.spanned):.0f} % of what was "
            "trained: the runs hardly say which mixture is best"
        )
        found.append((text, f.lineage.search))
    if SEARCHED in f.mixtures:
        text = f"the verified mixture is not that of the search, which is named {SEARCHED!r} here"
        found.append((text, f.lineage.search))
    if f.newer is not None:
        found.append(("a newer search with this predictor's name is not verified", f.newer))
    return [(_sentence(text), *_source(run)) for text, run in found]


def clear(f: Findings) -> str:
    """What was tested, where no reason for caution was found."""
    tags = f.lineage.fit.data.tags if f.lineage.fit else {}
    tested = {key.removeprefix(prefix) for prefix in (DIAGNOSTIC, OLD_DIAGNOSTIC) for key in tags
              if key.startswith(prefix)}  # fmt: skip
    others = set(f.mixtures) - {BEST, DEFAULT}
    compared = f.proof is not None and others & set(f.proof.table["mixture"])
    parts = [
        "the law fits its runs" if MISFIT in tested else "",
        "the backtests hold" if tested & set(BACKTESTS) else "the runs allowed no backtest",
        "no other trained mixture measured better" if compared else "",
    ]
    return _sentence("; ".join(filter(None, parts))) + "."


def facts(f: Findings) -> Iterator[Fact]:
    """The numbers of the answer, the most important first."""
    unit = keys.unit_text(f.unit)
    searched, fit, verify = f.lineage.search, f.lineage.fit, f.lineage.verify
    if f.proof is not None:
        yield _gain("Measured gain", f.proof.gain, verify, unit)
    predicted = f.proof.predicted if f.proof else f.gain
    if predicted is not None:
        yield _gain("Predicted gain", predicted, verify if f.proof else searched or fit, unit)
    yield from _steps(f)
    metrics = fit.data.metrics if fit else {}
    if {"cv/objective_mae", "cv/mean_prediction_mae"} <= set(metrics):
        yield Fact(
            "Held-out error",
            Number(fixed(metrics["cv/objective_mae"]), fit),
            unit,
            words.beside_mean(fixed(metrics["cv/mean_prediction_mae"])),
        )


def _gain(name: str, gain: Gain, run: Run | None, unit: str) -> Fact:
    low, high = gain.value - gain.half_width, gain.value + gain.half_width
    note = f"90 % interval {fixed(low)} to {fixed(high)}"
    return Fact(name, Number(fixed(gain.value), run), unit, note)


def _steps(f: Findings) -> Iterator[Fact]:
    proof, searched = f.proof, f.lineage.search
    of_search = SEARCHED not in f.mixtures and not (proof and f.reweighed)
    fewer = searched.data.metrics.get("steps_fewer") if searched and of_search else None
    by_law = None if fewer is None or fewer >= 1 else f"{100 * (1 - fewer):.0f} %"
    if proof is not None and proof.steps_to_default is not None and proof.steps:
        saved = 100 * (1 - proof.steps_to_default / proof.steps)
        note = f"default's final loss at step {proof.steps_to_default:.0f} of {proof.steps}"
        note += f"; {by_law} by the law" if by_law else ""
        yield Fact("Steps saved", Number(f"{saved:.0f} %", f.lineage.verify), "", note)
    elif by_law:
        note = f"by the law, to the final loss of {the(f.compared_with)}"
        yield Fact("Steps saved", Number(by_law, searched), "", note)


def near_optimal(f: Findings) -> Sentence:
    """How well the data determine the best mixture."""
    searched = f.lineage.search
    if searched is None or "regret" not in searched.data.metrics or SEARCHED in f.mixtures:
        return ()
    regret, share = searched.data.metrics["regret"], ""
    if f.gain is not None and f.gain.value > 0:
        share = f", {100 * regret / f.gain.value:.2g} % of the predicted gain"
    before, after = words.regret(keys.unit_text(f.unit))
    return (
        _sentence(before),
        Number(fixed(regret), searched),
        f"{after}{share}. The ranges are in the first figure and its table.",
    )


def certificate(f: Findings) -> Sentence:
    """How far the answer can be from the law's optimum."""
    searched = f.lineage.search
    if searched is None or SEARCHED in f.mixtures:
        return ()
    if "gap" not in searched.data.metrics:
        return ("The search is not certified.",)
    gap = Number(scientific(max(0.0, searched.data.metrics["gap"]), 2), searched)
    before, after = words.certificate(keys.unit_text(f.unit))
    return (f"The search is certified: {before}", gap, f"{after}.")


def law(f: Findings) -> Sentence:
    """The form of the chosen law."""
    if "form" not in f.laws or not f.laws["chosen"].astype(bool).any():
        return ()
    form = str(f.laws.loc[f.laws["chosen"].astype(bool), "form"].iloc[0])
    return (Number("The law", f.lineage.fit), f": {form}.")


def as_parameter(f: Findings) -> list[str]:
    """The best mixture as a parameter: its proportions, and a run that holds it if there is one."""
    searched, shares = f.lineage.search, texts.as_parameter(f.best)
    if searched is not None and SEARCHED not in f.mixtures:
        return [shares, f"runs:/{searched.info.run_id}"]
    if f.proof is None:
        return [shares]
    trained = f.proof.table.loc[f.proof.table["mixture"] == BEST, "run_id"]
    return [shares, f"runs:/{trained.iloc[0]}"]


def spent(f: Findings) -> Sentence:
    """What was trained."""
    parts: Sentence = ()
    for kind, one, run in (
        (PROXIES, "proxy run", f.lineage.fit),
        (TARGETS, "target", f.lineage.verify),
    ):
        rows = [row for row in f.trained if row.kind == kind]
        if rows:
            hours = [row.hours for row in rows if row.hours is not None]
            took = f" and {layout.duration(sum(hours))}" if len(hours) == len(rows) else ""
            parts += (
                " and " if parts else "",
                Number(layout.count(sum(row.runs for row in rows), one), run),
                f" took {scientific(sum(row.flops for row in rows))} FLOPs{took}",
            )
    return (*parts, ".") if parts else ("The fit did not record which runs it took.",)


def _ends(gain: Gain) -> str:
    return str(gain).replace("-", "−")


def _source(run: Run | None) -> Sentence:
    return (" (run ", Number(str(run.info.run_name), run), ")") if run else ()


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".")
