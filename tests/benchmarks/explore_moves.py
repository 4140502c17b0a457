"""How long the page of `explore` takes for a move, over HTTP on a warm server.

    python -m tests.benchmarks.explore_moves

Each size moves one slider after another. The share is the median over that of a bare call of the
predictor, which every move makes once, in the same run. On a busy machine the processor's time says
more: it is that of server and client together.
"""

import json
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from optimization.domain import predictor as predictors
from pipelines import explore
from pipelines.explorer import app, layout, server, state
from pipelines.explorer.copies import Origin
from pipelines.explorer.explorer import Explorer
from tests.support import wide
from tests.support.stores import empty_store

SIZES = ((5, 7, 4), (24, 110, 4), (64, 110, 4), (200, 20, 1))  # domains, losses, laws in the sum
MOVES, WARM = 100, 5


def main() -> None:
    print("domains  losses  laws   start s   move ms p50   p99   cpu   predictor ms p50  share")
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder, empty_store(Path(folder)):
            print(measured(*size), flush=True)


def measured(domains: int, losses: int, members: int) -> str:
    """A line of the table."""
    predictor = predictors.load(wide.register(domains, losses, members))
    began = time.perf_counter()
    explored = explore.explorer(predictor, None)
    explored.search_at(explored.target).thread.join()
    start = time.perf_counter() - began
    made = app.app(explored, Origin(predictor.uri, "0"), "benchmark")
    with threadpool_limits(1), running(made) as url:
        bare = timed(lambda _: predictor.table(predictor.fitted[:1]))
        page = Page(explored, url)
        cpu = time.process_time()
        moves = timed(page.move)
        cpu = 1000 * (time.process_time() - cpu) / (WARM + MOVES)
    p50, p99 = np.percentile(moves, [50, 99])
    usual = np.median(bare)
    return (
        f"{domains:7} {losses:7} {members:5} {start:9.2f} {p50:13.1f} {p99:5.1f} {cpu:5.1f} "
        f"{usual:18.1f} {p50 / usual:6.2f}"
    )


class Page:
    """A browser's part: it sends an event with the state that came last."""

    def __init__(self, explored: Explorer, url: str) -> None:
        self.url = url
        self.state = layout.with_controls(explored, state.first(explored))

    def move(self, i: int) -> None:
        """Move a slider to another place."""
        names = self.state["shown"]
        name = names[i % len(names)]
        value = 0.01 + 0.002 * (i % 50)
        self.send({"kind": "slider", "name": name, "value": str(value)})

    def send(self, event: dict[str, Any]) -> dict[str, Any]:
        """The answer to an event, by part of the page."""
        body = {
            "output": OUTPUT,
            "outputs": [{"id": name, "property": prop} for name, prop in PARTS],
            "inputs": [{"id": "event", "property": "data", "value": event}],
            "state": [{"id": "state", "property": "data", "value": self.state}],
            "changedPropIds": ["event.data"],
        }
        request = urllib.request.Request(
            f"{self.url}_dash-update-component",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            response: dict[str, Any] = json.load(answer)["response"]
        self.state = response["state"]["data"]
        return response


PARTS = (
    *(("state", "data"), ("rows", "children"), ("poll", "disabled")),
    *((name, "children") for name in app.FILLED),
)
OUTPUT = f"..{'...'.join('.'.join(part) for part in PARTS)}.."


def timed(do: Callable[[int], object]) -> list[float]:
    """Milliseconds of each call after a few."""
    took = []
    for i in range(WARM + MOVES):
        began = time.perf_counter()
        do(i)
        took.append(1000 * (time.perf_counter() - began))
    return took[WARM:]


@contextmanager
def running(made: Any) -> Iterator[str]:
    """The URL of a server of an app in this process."""
    host = "127.0.0.1"
    listening = server.listen(host, 0)
    with server.serving(made, host, listening) as serving:
        thread = threading.Thread(target=serving.serve_forever, daemon=True)
        thread.start()
        yield server.url(host, listening)
        serving.shutdown()
        thread.join()


if __name__ == "__main__":
    main()
