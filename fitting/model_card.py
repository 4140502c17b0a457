"""The descriptions of a registered predictor and of the run of its fit, in Markdown."""

from mlflow.entities import Run

from fitting.artifact.spec import Spec
from fitting.data.histories import Histories
from fitting.fit import Fit
from fitting.registry import Registered
from training.record import keys, layout, markdown


def version(fit: Fit, spec: Spec, pulled: Histories, run: Run, uri: str) -> list[str]:
    """The parts of the description of the model version at `uri`; `run` is that of the fit."""
    return [
        f"Predicts the losses of a model of **{_size(spec.target.n_params)} parameters** after "
        f"**{_size(spec.target.tokens)} tokens** of a mixture of "
        f"{layout.count(len(spec.domains), 'domain')}, in {keys.unit_text(spec.unit)}. "
        f"Fitted by {markdown.link(str(run.info.run_name), markdown.run_page(run))}.",
        markdown.cautions([one.warning for one in fit.diagnostics if one.warning]),
        markdown.facts(_facts(fit, spec.unit, pulled)),
        _limits(spec),
        _example(spec, uri),
    ]


def of_fit(fit: Fit, registered: Registered, pulled: Histories, run: Run) -> str:
    """The description of the run of a fit."""
    scores, unit = fit.choice.scores, keys.unit_text(pulled.unit)
    standing = registered.alias + (f": {registered.reason}" if registered.reason else "")
    return markdown.description(
        [
            f"Losses of mixtures that were left out are predicted within "
            f"**{scores.objective_mae:.4f} {unit}** (predicting the mean: "
            f"{scores.mean_prediction_mae:.4f}). Registered as "
            f"{markdown.version_link(registered.name, registered.version)}, its "
            f"{markdown.escaped(standing)}.",
            markdown.cautions([one.warning for one in fit.diagnostics if one.warning]),
            markdown.facts(
                {
                    **_facts(fit, pulled.unit, pulled),
                    "Planned by": ", ".join(map(markdown.run_link, pulled.parents)) or "no sweep",
                }
            ),
            markdown.figure(run, "laws", "Errors of the laws on held-out mixtures"),
        ],
        run,
    )


def _facts(fit: Fit, unit: str, pulled: Histories) -> dict[str, str]:
    o, scores = fit.observations, fit.choice.scores
    weighed = [(w, d) for w, d in zip(fit.weights, o.val_domains, strict=True) if w]
    weights = ", ".join(
        f"{d} {w:.2g}" for w, d in sorted(weighed, reverse=True)[: layout.ROWS // 2]
    )
    inside, half_width = fit.coverage(), fit.half_width(fit.target)
    sizes = sorted(set(o.n_params.tolist()))
    return {
        "Runs": f"{len(o.runs)} of {layout.count(len(o.mixtures), 'mixture')}; "
        f"{', '.join(map(_size, sizes[:6]))} parameters, up to {_size(o.tokens.max())} tokens; "
        f"{len(pulled.left_out)} left out",
        "Law": markdown.escaped(str(fit.choice.stack)),
        "Error on held-out mixtures": f"{scores.objective_mae:.4f} {keys.unit_text(unit)} "
        f"(mean: {scores.mean_prediction_mae:.4f}), R² {scores.r2:.3f}, ρ {scores.spearman:.3f}",
        "90 % interval": f"±{half_width:.4f} at the target on average; inside the data it holds "
        f"{inside:.0%} of {layout.count(len(fit.choice.held_out.losses), 'held-out run')}",
        "Weights": markdown.escaped(weights),
        "Target": f"{_size(fit.target.n_params)} parameters, {_size(fit.target.tokens)} tokens",
    }


def _limits(spec: Spec) -> str:
    """Where the predictor knows nothing."""
    scales = [
        f"only {name} = {value:,.0f}"
        for name, value in (("n_params", spec.only.n_params), ("tokens", spec.only.tokens))
        if value is not None
    ]
    ranges = ", ".join(
        f"{markdown.escaped(d)} {spec.explored.lowest[d]:.2g}–{spec.explored.highest[d]:.2g}"
        for d in spec.domains[: layout.ROWS // 2]
    )
    more = len(spec.domains) - layout.ROWS // 2
    return (
        f"**Limits.** Explored proportions: {ranges}{f' and {more} more domains' * (more > 0)}. "
        "The column `distance` says how far a mixture lies from the nearest that was trained."
        + (f" It predicts {' and '.join(scales)}." if scales else "")
    )


def _example(spec: Spec, uri: str) -> str:
    shares = ", ".join(
        f'"{keys.MIXTURE}{d}": {1 / len(spec.domains):.4g}' for d in spec.domains[:4]
    )
    more = ", …" if len(spec.domains) > 4 else ""
    return (
        "**Ask it**\n\n```python\nimport mlflow, pandas as pd\n"
        f'model = mlflow.pyfunc.load_model("{uri}")\n'
        f"model.predict(pd.DataFrame([{{{shares}{more}}}]))\n```"
    )


def _size(number: float) -> str:
    return layout.short_count(number)
