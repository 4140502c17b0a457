"""What it takes to ask a predictor: over HTTP, in the process, and the bare law without interval.

    python -m tests.benchmarks.serve_predictor [folder of Olmix's two CSV files]

Two predictors are fitted and registered: 5 domains with 4 losses from a known law, and the 24
domains with 110 losses of Olmix. Each is asked for 1 row and for 10,000: milliseconds (median and
99th percentile, which of a few large requests is the slowest), and rows a second.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import psutil

from fitting import fit
from fitting.artifact.spec import Target
from fitting.data.observations import Observations
from tests.benchmarks import stores
from tests.support import fits, serving, synthetic, tables
from training.record import keys

DOMAINS = ("web", "code", "papers", "books", "chat")
ROWS = {1: 300, 10_000: 5}  # rows of a request → how often it is sent


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else tables.DATA / "olmix"
    with stores.opened("sqlite"), tempfile.TemporaryDirectory() as place:
        artifacts = Path(place).as_uri()
        mlflow.set_experiment(
            experiment_id=mlflow.create_experiment("serve", artifact_location=artifacts)
        )
        for o, target in (five_domains(), olmix(folder)):
            weights = np.full(len(o.val_domains), 1 / len(o.val_domains))
            report(fits.registered(fit.fit(o, weights, target)).uri, Path(place))


def five_domains() -> tuple[Observations, Target]:
    """Runs of a known law of three domains, two of which say nothing."""
    truth = synthetic.joint_law(power=0.5)
    law = replace(truth, slope=np.pad(truth.slope, ((0, 0), (0, 0), (0, 2))))
    table = synthetic.table(law, 16, noise=0.002, domains=DOMAINS)
    return Observations.from_tidy(table), Target(**synthetic.TARGET)


def olmix(folder: Path) -> tuple[Observations, Target]:
    o = tables.swarm("olmix", folder)
    return o, Target(float(o.n_params.max()), float(o.tokens.max()))


def report(uri: str, logs: Path) -> None:
    """Ask a predictor in every way and print what it took."""
    model = mlflow.pyfunc.load_model(uri)
    spec = model.unwrap_python_model().spec
    print(
        f"\n{len(spec.domains)} domains, {len(spec.val_domains)} losses, "
        f"{len(spec.mixtures)} fitted mixtures\n"
        f"{'':34} {'rows':>6} {'p50 ms':>9} {'p99 ms':>9} {'rows/s':>9}"
    )
    began = time.perf_counter()
    with serving.served(uri, logs) as server:
        started, memory = time.perf_counter() - began, peak_memory(server)
        for count, repeats in ROWS.items():
            mixtures = np.random.default_rng(0).dirichlet(np.ones(len(spec.domains)), count)
            rows = pd.DataFrame(mixtures, columns=[keys.MIXTURE + d for d in spec.domains])
            for name, ask in ways(model, server, rows).items():
                measure(name, ask, count, repeats)
        print(
            f"the server answers after {started:.1f} s and takes {memory:.0f} MiB, "
            f"{peak_memory(server):.0f} MiB at its peak"
        )


def peak_memory(server: serving.Server) -> float:
    """The most memory that the server's largest process has had, in MiB; on Linux."""
    processes = psutil.Process(server.process.pid)
    pids = [processes.pid, *(child.pid for child in processes.children(recursive=True))]
    status = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    return max(int(text.split("VmHWM:")[1].split()[0]) for text in status) / 1024


def ways(model: Any, server: serving.Server, rows: pd.DataFrame) -> dict[str, Callable[[], object]]:
    """The ways to ask for these rows."""
    python = model.unwrap_python_model()
    mixtures, target = rows.to_numpy(), python.spec.target
    scale = np.full(len(rows), target.n_params), np.full(len(rows), target.tokens)
    split = json.dumps({"dataframe_split": rows.to_dict("split", index=False)}).encode()
    csv = rows.to_csv(index=False).encode()

    def post(kind: str, body: bytes) -> None:
        status, answer = server.post(kind, body)
        assert status == 200, answer
        assert len(answer["predictions"]) == len(rows)

    return {
        "HTTP, JSON (dataframe_split)": lambda: post(serving.JSON, split),
        "HTTP, CSV": lambda: post(serving.CSV, csv),
        "in the process, mlflow.pyfunc": lambda: model.predict(rows),
        "in the process, without MLflow": lambda: python.predict(None, rows),
        "the bare law, without interval": lambda: python.law.predict(mixtures, *scale),
    }


def measure(name: str, ask: Callable[[], object], rows: int, repeats: int) -> None:
    """Print the milliseconds and the rows a second of a request."""
    ask()  # to warm up
    seconds = np.empty(repeats)
    for i in range(repeats):
        began = time.perf_counter()
        ask()
        seconds[i] = time.perf_counter() - began
    half, slowest = np.quantile(seconds, [0.5, 0.99], method="higher") * 1e3
    rate = rows * repeats / seconds.sum()
    print(f"{name:34} {rows:6,d} {half:9.2f} {slowest:9.2f} {rate:9,.0f}", flush=True)


if __name__ == "__main__":
    main()
