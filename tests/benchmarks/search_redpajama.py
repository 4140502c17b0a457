"""Search the paper's runs' predictor: certified bound, other ways to search, and their time.

    python -m tests.benchmarks.search_redpajama [folder of the logs]

Fitted on 70M–410M up to step 30,000, registered, searched at 1B parameters and 100,000 steps.
All ways minimise the same weighted loss by the same predictor over the same mixtures: no domain
beyond the share that the published code allows it. Beside ours: the published code's grid of halved
proportions, RegMix's way (arXiv 2407.01492; the mean of the best 128 of 100,000 Dirichlet draws,
around the uniform mixture and around the default one), and Optuna's trials alone.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from fitting.importing import mixinglaws
from fitting.selection.forms import Options
from optimization.design import space_filling
from optimization.domain import objective
from optimization.domain import predictor as predictors
from optimization.domain.constraints import Constraints
from optimization.domain.feasible import Feasible, feasible
from optimization.domain.objective import Objective
from optimization.domain.predictor import Predictor
from optimization.mixture import solve
from optimization.mixture.solve import Problem
from optimization.search import search
from pipelines import entry, fit, imports
from pipelines.runs.fitted_runs import Checkpoints
from tests.benchmarks.fit_redpajama import DOMAINS, LAST_STEP, TARGET
from tests.support.commands import call
from tests.support.stores import empty_store
from tests.support.tables import MIXINGLAWS
from training.record import keys

Array = np.ndarray

HIGHEST = (1.0, 1.0, 0.5857, 0.2588, 0.2254, 0.1779, 0.1727)  # of DOMAINS, by the published code
DRAWS, KEPT = 100_000, 128
POWERS = ("", "1")  # of φ: chosen by cross-validation, and the paper's


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else MIXINGLAWS / "RedPajama"
    bounds = {d: (0.0, h) for d, h in zip(DOMAINS, HIGHEST, strict=True)}
    with tempfile.TemporaryDirectory() as scratch, empty_store(Path(scratch)):
        default = _import(folder)
        for power in POWERS:
            predictor = predictors.load(_fit(power))
            print(f"\nφ(r) = r^{predictor.artifact_model.law.power:g}")
            with threadpool_limits(1):
                _compare(predictor, bounds, default)
            began = time.perf_counter()
            solve.solve(predictor, Problem(constraints=Constraints(bounds=bounds)))
            print(f"the whole answer (ranges, sensitivity …): {time.perf_counter() - began:.2f} s")


def _import(folder: Path) -> Array:
    """Import the runs; returns the default mixture, that of check run 999, (M,)."""
    found = mixinglaws.logs(str(folder), DOMAINS, {})
    given = {"source": str(folder), "format": "mixinglaws", "domains": ",".join(DOMAINS)}
    given["weights"] = str(MIXINGLAWS / "valid_weight.json")
    with entry.stage(keys.IMPORT):
        call(imports, **given)
    return np.array(next([*r.mixture.values()] for r in found.runs if r.name.endswith("999")))


def _fit(power: str) -> str:
    options = Options(("joint",), power=float(power) if power else None, compare=False)
    with entry.stage(keys.FIT):
        done = fit.fit(
            ["0"], "params.size != '1B'", "redpajama", options,
            {"n_params": TARGET.n_params, "tokens": TARGET.tokens},
            checkpoints=Checkpoints(max_step=LAST_STEP),
        )  # fmt: skip
    return done.registered.uri


def _compare(predictor: Predictor, bounds: dict[str, tuple[float, float]], default: Array) -> None:
    weighted = objective.weighted(predictor, predictor.weights)
    began = time.perf_counter()
    allowed = feasible(Constraints(bounds=bounds), DOMAINS, TARGET.tokens)
    known = {"default": default, "uniform": np.full(len(DOMAINS), 1 / len(DOMAINS))}
    found = search.search(weighted, allowed, known, 300, seed=0)
    seconds = time.perf_counter() - began
    bound = found.bound
    assert bound is not None
    tried = found.trials[found.trials["kind"] == search.SEARCH]["objective"]
    print(f"certified: no mixture is below {bound:.7f} nats/token")
    print(f"{'':46} {'objective':>10} {'above bound':>12} {'seconds':>8} {'mixtures':>9}")

    def tell(name: str, value: float, seconds: float | None, mixtures: int) -> None:
        took = "" if seconds is None else f"{seconds:.3f}"
        print(f"{name:46} {value:10.6f} {value - bound:12.1e} {took:>8} {mixtures:9,}")

    tell("Optuna's trials and their polish", found.value, seconds, len(found.trials))
    tell("  Optuna's trials alone", float(tried.min()), None, len(tried))
    ways: dict[str, Callable[[], tuple[Array, int]]] = {
        "published code: grid of halved proportions": lambda: _grid(weighted, allowed),
        "RegMix: mean of the best 128, uniform draws": lambda: _drawn(weighted, allowed, None),
        "RegMix: the same, drawn around the default": lambda: _drawn(weighted, allowed, default),
    }
    for name, way in ways.items():
        began = time.perf_counter()
        mixture, count = way()
        seconds = time.perf_counter() - began
        tell(name, float(weighted(mixture[None])[0]), seconds, count)
    tell("the default mixture", float(weighted(default[None])[0]), None, 1)


def _grid(weighted: Objective, allowed: Feasible) -> tuple[Array, int]:
    grid = np.array(list(space_filling.halved_grid(allowed)))
    return grid[weighted(grid).argmin()], len(grid)


def _drawn(weighted: Objective, allowed: Feasible, around: Array | None) -> tuple[Array, int]:
    shape = np.ones(len(DOMAINS)) if around is None else len(DOMAINS) * around
    drawn = np.random.default_rng(0).dirichlet(shape, DRAWS)
    drawn = drawn[allowed.inside(drawn)]
    best = drawn[weighted(drawn).argsort()[:KEPT]]
    return best.mean(axis=0), len(drawn)


if __name__ == "__main__":
    main()
