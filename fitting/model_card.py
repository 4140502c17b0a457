"""The descriptions of a registered predictor and of the run of its fit, in Markdown."""

import json

import numpy as np
from mlflow.entities import Run

from fitting.artifact.spec import Spec
from fitting.data.histories import Histories
from fitting.fit import Fit
from fitting.registry import Registered
from training.record import keys, layout, markdown, words


def version(fit: Fit, spec: Spec, pulled: Histories, run: Run, uri: str) -> list[str]:
    """The parts of the description of the model version at `uri`; `run` is that of the fit."""
    return [
        f"Predicts the losses of a model of **{_size(spec.target.n_params)} parameters** after "
        f"**{_size(spec.target.tokens)} tokens** of a mixture of "
        f"{layout.count(len(spec.domains), 'domain')}, in {keys.unit_text(spec.unit)}. "
        f"Fitted by {markdown.link(str(run.info.run_name), markdown.run_page(run))}.",
        markdown.cautions(_warnings(fit)),
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
            f"**{scores.objective_mae:.4f} {unit}** "
            f"({words.beside_mean(f'{scores.mean_prediction_mae:.4f}')}). Registered as "
            f"{markdown.version_link(registered.name, registered.version)}, its "
            f"{markdown.escaped(standing)}.",
            markdown.cautions(_warnings(fit)),
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


def _warnings(fit: Fit) -> list[str]:
    """What makes a fit doubtful, and what its runs cannot tell."""
    return [*(one.warning for one in fit.diagnostics if one.warning), *fit.unidentified]


def _facts(fit: Fit, unit: str, pulled: Histories) -> dict[str, str]:
    o, scores = fit.observations, fit.choice.scores
    weights = dict(zip(o.val_domains, fit.weights.tolist(), strict=True))
    inside, half_width = fit.coverage(), fit.half_width(fit.target)
    sizes = sorted(set(o.n_params.tolist()))
    return {
        "Runs": f"{len(o.runs)} on {layout.count(len(o.mixtures), 'mixture')}; "
        f"{', '.join(map(_size, sizes[:6]))} parameters, up to {_size(o.tokens.max())} tokens; "
        f"{len(pulled.left_out)} left out",
        "Law": markdown.escaped(str(fit.choice.stack)),
        "Error on held-out mixtures": f"{scores.objective_mae:.4f} {keys.unit_text(unit)} "
        f"({words.beside_mean(f'{scores.mean_prediction_mae:.4f}')}), R² {scores.r2:.3f}, "
        f"ρ {scores.spearman:.3f}",
        "90 % interval": f"±{half_width:.4f} at the target on average; inside the data it covers "
        f"{100 * inside:.0f} % of {layout.count(len(fit.choice.held_out.losses), 'held-out run')}",
        "Weights": markdown.escaped(words.weighted(weights, layout.ROWS // 2)),
        "Target": f"{_size(fit.target.n_params)} parameters, {_size(fit.target.tokens)} tokens",
    }


def _limits(spec: Spec) -> str:
    """Where the predictor knows nothing."""
    scales = [
        f"only {name} = {value:,.0f}"
        for name, value in (("n_params", spec.only.n_params), ("tokens", spec.only.tokens))
        if value is not None
    ]
    fitted = np.array(spec.mixtures)
    ends = zip(spec.domains, fitted.min(axis=0), fitted.max(axis=0), strict=True)
    ranges = ", ".join(
        f"{markdown.escaped(d)} {low:.2g}–{high:.2g}"
        for d, low, high in list(ends)[: layout.ROWS // 2]
    )
    more = len(spec.domains) - layout.ROWS // 2
    return (
        f"**Limits.** Proportions in the fitted runs: {ranges}"
        + (f" and {more} more domains" if more > 0 else "")
        + ". "
        "The column `distance` says how far a mixture lies from the nearest mixture that was "
        "trained." + (f" It predicts {' and '.join(scales)}." if scales else "")
    )


def _example(spec: Spec, uri: str) -> str:
    """Python that asks the predictor about the uniform mixture."""
    return (
        "**Ask it**\n\n```python\nimport mlflow, pandas as pd\n"
        f"domains = {json.dumps(spec.domains, ensure_ascii=False)}\n"
        f'row = {{f"{keys.MIXTURE}{{domain}}": 1 / len(domains) for domain in domains}}\n'
        f'mlflow.pyfunc.load_model("{uri}").predict(pd.DataFrame([row]))\n```'
    )


def _size(number: float) -> str:
    return layout.short_count(number)
