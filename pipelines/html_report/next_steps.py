"""What to do next, from what the runs say, with the commands that do it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fitting.registry import BACKTESTS
from pipelines.command import advice
from pipelines.html_report import measured
from pipelines.html_report.findings import Findings
from pipelines.html_report.numbers import fixed, scientific
from pipelines.html_report.statements import Number, Sentence
from pipelines.proof import verdict
from training.record import keys, layout, words

STUDIES = Path(__file__).parents[1] / "studies"
LARGE_REGRET = 0.1  # share of the predicted gain, from which on more mixtures are advised


@dataclass(frozen=True)
class Step:
    """Something to do, and its commands."""

    why: Sentence
    commands: tuple[str, ...] = ()


def missing(f: Findings, study: str = "") -> Iterator[Step]:
    """The parts of an answer that are not there; `study` is the study file, if it is known."""
    if f.lineage.search is None:
        why = "No search: the best mixture is the law's own, within the bounds of the fit."
        yield Step((why,), (_command(f, "optimize", model=f.lineage.model),))
    if f.proof is None and f.imported:
        why = "No verification: train the target on the best mixture, where the runs were trained."
        yield Step((why,))
    elif f.proof is None:
        why = "No verification: the gain is a prediction until targets are trained on both."
        model = f.lineage.model
        yield Step((why,), (_command(f, "verify", study=_study(f, study), model=model),))
    if not f.against:
        yield Step(("The predictor cannot be loaded any more: its curves are not drawn.",))


def steps(f: Findings, study: str = "") -> Iterator[Step]:
    """What to train next, the most useful first."""
    yield from _seeds(f, study)
    yield from _larger(f)
    if not f.imported:
        yield from _mixtures(f, _study(f, study))


def _seeds(f: Findings, study: str) -> Iterator[Step]:
    if f.proof is None:
        return
    gain, run = f.proof.gain, f.lineage.verify
    again = _command(f, "verify", study=_study(f, study), model=f.lineage.model)
    if not f.proof.repeated:
        why = "Train a second seed: the noise between seeds is unknown. List two in target.seeds."
        yield Step((why,), (again,))
    elif verdict.outcome(gain) == verdict.UNCLEAR and gain.value > 0:
        error, _ = measured.seed_error(f.proof.table)
        needed = measured.seeds_needed(error, gain.value)
        yield Step(
            (
                "Train more seeds: if the gain is as large as measured, about ",
                Number(layout.count(needed, "seed"), run),
                " per mixture would make the interval exclude 0, with an even chance. List them in "
                "target.seeds.",
            ),
            (again,),
        )


def _larger(f: Findings) -> Iterator[Step]:
    """Larger or longer proxies, where the hardest backtest fails."""
    fit, where = f.lineage.fit, "" if f.imported else " (sweep.sizes, training.steps)"
    for test in BACKTESTS if fit else ():
        name = test.removeprefix("backtest_")
        moved = fit.data.metrics.get(f"backtest/{name}/moved") if fit else None
        warned = fit.data.tags.get(f"diagnostic/{test}", "ok") != "ok" if fit else False
        if warned and moved is not None:
            yield Step(
                (
                    f"Train larger or longer proxies{where}: without the largest or last ones the "
                    "predicted loss of the target moves by ",
                    Number(fixed(moved), fit),
                    f" {keys.unit_text(f.unit)}. Differences between mixtures suffer less than "
                    "losses do.",
                )
            )
            return


def _mixtures(f: Findings, study: str) -> Iterator[Step]:
    """More mixtures: what `design`, or else the regret, says of them."""
    unit, searched = keys.unit_text(f.unit), f.lineage.search
    commands = (
        _command(f, "design", study=study, count="4", enqueue="true"),
        _command(f, "sweep", study=study),
        _command(f, "fit", study=study),
    )
    if f.design is not None and "expected_gain" in f.design.data.metrics:
        metrics, run = f.design.data.metrics, f.design
        share = 100 * metrics["flops"] / metrics["sweep_flops"]
        longer = metrics.get("longer_target_gain", 0.0)
        why: Sentence = (
            "Train more mixtures: those that ",
            Number("design", run),
            f" proposed take {share:.2g} % of the sweep's FLOPs and are expected to gain ",
            Number(scientific(metrics["expected_gain"], 2), run),
            f" {unit}.",
        )
        if longer > metrics["expected_gain"]:
            number = Number(scientific(longer, 2), run)
            why = ("Train the target longer, not more mixtures: as many FLOPs gain ", number,
                   f" {unit} there; the mixtures that ", Number("design", run),
                   " proposed are expected to gain ",
                   Number(scientific(metrics["expected_gain"], 2), run), ".")  # fmt: skip
        yield Step(why, () if longer > metrics["expected_gain"] else commands)
    elif searched is not None and f.gain is not None and "regret" in searched.data.metrics:
        regret = searched.data.metrics["regret"]
        if regret <= LARGE_REGRET * max(f.gain.value, 0.0):
            return  # they would change the answer little
        before, after = words.regret(unit)
        yield Step(
            (
                f"Train more mixtures: {before}",
                Number(fixed(regret), searched),
                f"{after}, so they may move the answer. `design` estimates what a batch would "
                "gain.",
            ),
            commands,
        )
    else:
        yield Step(("Train more mixtures, where the predictor is uncertain:",), commands)


def _command(f: Findings, entry: str, **parameters: str) -> str:
    experiment = f.lineage.newest.info.experiment_id
    return advice.command(entry, experiment, **{k: v for k, v in parameters.items() if v})


def _study(f: Findings, study: str) -> str:
    """The study as a command names it; a path that no run recorded is left to the reader."""
    chain = (f.lineage.main, f.lineage.verify, f.lineage.search, f.lineage.fit)
    recorded = (run.data.params.get("study", "") for run in chain if run)
    ready = f.study if (STUDIES / f"{f.study}.yaml").exists() else f"/path/to/{f.study}.yaml"
    return study or next(filter(None, recorded), ready)
