"""The registered predictor: an MLflow pyfunc model of a fitted law.

MLflow saves and runs this file ("model from code"), so it imports nothing from the project. Beside
it, the artifact holds `predictor.json`, the parameters, and copies of `laws.py` (the laws),
`spec.py` (what was fitted) and `input_checks.py`. So each version runs its own code, holds no
pickle and loads without torch.
"""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow
import numpy as np
import pandas as pd

MIXTURE, VAL_LOSS, UNIQUE_TOKENS = "mixture/", "val_loss/", "unique_tokens/"
N_PARAMS, TOKENS = "n_params", "tokens"
VAL_LOSS_LOW, VAL_LOSS_HIGH = "val_loss_low/", "val_loss_high/"
ACCURACY, ACCURACY_LOW, ACCURACY_HIGH = "accuracy/", "accuracy_low/", "accuracy_high/"
MOST_NUMBERS = 2**17  # in an array: it stays in the cache, and below where BLAS starts threads
SCALE_TOLERANCE = 1e-3  # relative, around a scale that all runs share


class MixturePredictor(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Mixtures → validation losses at the target, or at another n_params and tokens.

    A search also reads these attributes, through MLflow's `unwrap_python_model()`: `spec`, what was
    fitted (`spec.py`); `law`; `interval`, with the laws of its bootstrap; and `scales`, the law of
    each proxy size, fitted to its runs alone.
    """

    def load_context(self, context: Any) -> None:
        """Read the law and its code from the artifact."""
        code = {
            name: _load_module(Path(context.artifacts[name])) for name in ("laws", "rows", "spec")
        }
        raw = json.loads(Path(context.artifacts["predictor"]).read_text())
        self.spec = code["spec"].Spec.from_json(raw)
        self._checks, self._laws = code["rows"], code["laws"]
        self._mixtures = np.array(self.spec.mixtures)
        self._reach = code["laws"].reach(self._mixtures)
        from_json = code["laws"].from_json
        self.law, self.interval = from_json(self.spec.law), from_json(self.spec.interval)
        self.accuracies = {t: from_json(curve) for t, curve in self.spec.accuracies.items()}
        fitted, domains = self._mixtures.shape
        of_a_row = max(fitted, domains * len(self.spec.val_domains))
        self._block = max(1, MOST_NUMBERS // of_a_row)  # rows that are predicted at once
        self.scales = [(at.n_params, at.tokens, from_json(at.law)) for at in self.spec.scales]

    def predict(
        self,
        context: Any,  # noqa: ARG002 - the interface is MLflow's
        model_input: pd.DataFrame,  # or records or columns, which MLflow's routes parse from JSON
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Per row: val_loss/<domain>… in the unit of the fitted losses; objective (Σ w_i L_i) with
        its 90 % interval objective_low, objective_high; distance, the share of tokens by which the
        mixture differs from the nearest fitted one (0: it was trained); and accuracy/<task>,
        accuracy_low/<task>, accuracy_high/<task> of tasks whose accuracy follows their loss. With
        the parameter
        `domain_intervals` also val_loss_low/<domain>… and val_loss_high/<domain>…. With the
        parameter `reference`, domain → proportion, also difference, the objective less that of the
        reference mixture at the same scale, with its interval difference_low, difference_high: it
        is much tighter than that of either, because errors that mixtures share cancel.

        The optional columns unique_tokens/<domain> say how many unique tokens a domain has: where
        a mixture needs more, they are repeated, and the loss is that of repeated text.

        Raises InvalidInput for invalid input, with its row, column, value and rule.
        """
        names = [MIXTURE + domain for domain in self.spec.domains]
        supplies = [UNIQUE_TOKENS + domain for domain in self.spec.domains]
        rows = self._checks.table(model_input, names, (N_PARAMS, TOKENS, *supplies))
        mixtures = self._checks.mixtures(rows, names)
        n_params, tokens = self._scale(rows, N_PARAMS), self._scale(rows, TOKENS)
        asked = params or {}
        reference = None
        if asked.get("reference"):
            reference = self._checks.reference(asked["reference"], self.spec.domains)
        by_domain = bool(asked.get("domain_intervals"))
        blocks, order = [], []
        for unique, inside in self._texts(rows):
            laws = self.of_text(unique)
            for i in range(0, len(inside), self._block):
                part = inside[i : i + self._block]
                place = mixtures[part], n_params[part], tokens[part]
                blocks.append(self._answer(laws, *place, by_domain, reference))
            order.append(inside)
        columns = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
        back = np.argsort(np.concatenate(order))
        return pd.DataFrame(columns).iloc[back].set_axis(rows.index)

    def of_text(self, unique: np.ndarray) -> tuple[Any, Any]:
        """The law and the interval where each domain has so many unique tokens, (M,); where all are
        unlimited, those that were fitted."""
        if np.isinf(unique).all():
            return self.law, self.interval
        known, scarcity = self.spec.repetition, 1 / unique
        if known is None:  # what is published
            worth = np.full(len(unique), self._laws.PUBLISHED_WORTH)
            n0, wear, drawn = self.spec.target.n_params, 0.0, [np.append(np.log(worth), 0.0)]
        else:
            n0, worth, wear = known.n0, np.array(known.worth), known.wear
            drawn = [np.array(values) for values in known.drawn]

        def repeating(law: Any, worth: np.ndarray, wear: float) -> Any:
            return self._laws.RepetitionLaw(law, n0, worth, wear, scarcity)

        laws = [
            repeating(law, np.exp(drawn[b % len(drawn)][:-1]), drawn[b % len(drawn)][-1])
            for b, law in enumerate(self.interval.bootstrap)
        ]
        return repeating(self.law, worth, wear), replace(self.interval, bootstrap=tuple(laws))

    def _texts(self, rows: pd.DataFrame) -> list[tuple[np.ndarray, np.ndarray]]:
        """Unique tokens of each domain, (M,), and the rows that have so many, (k,).

        Those of a domain without a column, or with an empty cell, are unlimited.
        """
        each = np.full((len(rows), len(self.spec.domains)), np.inf)
        rule = "give the number of unique tokens from 1 to 2^63, or leave it empty"
        for j, domain in enumerate(self.spec.domains):
            if (name := UNIQUE_TOKENS + domain) in rows:
                given = rows[rows[name].notna()]
                if len(given):
                    each[rows[name].notna(), j] = self._checks.counts(given, name, rule)
        if np.isinf(each).all():
            return [(each[0], np.arange(len(rows)))]
        texts, of_row = np.unique(each, axis=0, return_inverse=True)
        return [(text, np.flatnonzero(of_row.ravel() == k)) for k, text in enumerate(texts)]

    def _answer(
        self,
        laws: tuple[Any, Any],
        mixtures: np.ndarray,
        n_params: np.ndarray,
        tokens: np.ndarray,
        by_domain: bool,
        reference: np.ndarray | None,
    ) -> dict[str, np.ndarray]:
        """The columns of the answer, (n,) each, for mixtures (n, M) at n_params and tokens (n,)."""
        val_domains, weights = self.spec.val_domains, np.array(self.spec.weights)
        law, interval = laws
        losses = law.predict(mixtures, n_params, tokens)
        objective = losses @ weights
        sums = weights[:, None]  # of the losses, whose half widths are asked: the objective first
        if by_domain or self.accuracies:
            sums = np.hstack([sums, np.eye(len(val_domains))])
        widths = interval.half_width(sums, mixtures, n_params, tokens)
        half_width, widths = widths[:, 0], widths[:, 1:]
        answer = {VAL_LOSS + d: losses[:, i] for i, d in enumerate(val_domains)} | {
            "objective": objective,
            "objective_low": objective - half_width,
            "objective_high": objective + half_width,
            "distance": self._distances(mixtures),
        }
        for task, curve in self.accuracies.items():
            i = list(val_domains).index(task)
            low, high = curve.ends(losses[:, i], widths[:, i] / self.interval.quantile)
            answer |= {
                ACCURACY + task: curve.predict(losses[:, i]),
                ACCURACY_LOW + task: low,
                ACCURACY_HIGH + task: high,
            }
        if by_domain:
            for name, ends in ((VAL_LOSS_LOW, losses - widths), (VAL_LOSS_HIGH, losses + widths)):
                answer |= {name + d: ends[:, i] for i, d in enumerate(val_domains)}
        if reference is not None:
            place = mixtures, reference, n_params, tokens, self._reach
            value, half = interval.of_difference(law, weights, *place)
            ends = {"difference_low": value - half, "difference_high": value + half}
            answer |= {"difference": value, **ends}
        return answer

    def _distances(self, mixtures: np.ndarray) -> np.ndarray:
        """From each mixture, (n, M), to the nearest fitted one, (n,)."""
        pairs = zip(mixtures.T, self._mixtures.T, strict=True)  # of proportions, by domain
        apart = sum(np.abs(mine[:, None] - fitted) for mine, fitted in pairs)
        return np.asarray(apart).min(axis=1) / 2

    def _scale(self, rows: pd.DataFrame, name: str) -> np.ndarray:
        """n_params or tokens of each row, (n,); the target's if the column is absent."""
        target = float(getattr(self.spec.target, name))
        if name not in rows:
            return np.full(len(rows), target)
        rule = f"give a number from 1 to 2^63, or leave it out for the target's {target:,.0f}"
        values = self._checks.counts(rows, name, rule)
        only = getattr(self.spec.only, name)
        if only is not None and (bad := np.abs(values / only - 1) > SCALE_TOLERANCE).any():
            i = int(np.argmax(bad))
            self._checks.refuse(
                f"{self._checks.place(rows, i, name)}: {values[i]:.6g}; every fitted run had "
                f"{only:.6g}, so the law cannot predict another {name}; leave it out"
            )
        return np.asarray(values)


def _load_module(path: Path) -> ModuleType:
    """A module of the artifact, loaded under a unique name."""
    name = f"mixture_{path.stem}_{abs(hash(str(path)))}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


mlflow.models.set_model(MixturePredictor())
