"""Searches in the background: one at a time, whose answers the page asks for."""

import threading
from collections.abc import Hashable
from dataclasses import dataclass

from optimization.domain.predictor import Predictor
from optimization.mixture import solve
from optimization.mixture.solve import Answer, Mixture, Problem
from training.record.errors import InputError


@dataclass
class RunningSearch:
    """A search that runs or has ended."""

    thread: threading.Thread
    answer: Answer | None = None
    error: Exception | None = None

    @property
    def best(self) -> Mixture | None:
        """The best mixture, once it is found."""
        return self.answer.best if self.answer else None

    @property
    def running(self) -> bool:
        return self.answer is None and self.error is None


class Searches:
    """Searches by a key. They run in threads that end with the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._one_at_a_time = threading.Lock()
        self._searches: dict[Hashable, RunningSearch] = {}

    def search(self, key: Hashable, predictor: Predictor, problem: Problem) -> RunningSearch:
        """The key's search, which its first use starts."""
        with self._lock:
            return self._searches.get(key) or self._start(key, predictor, problem)

    def start(self, key: Hashable, predictor: Predictor, problem: Problem) -> None:
        """Start the key's search again, with another problem. Raises InputError while it runs."""
        with self._lock:
            running = self._searches.get(key)
            if running is not None and running.running:
                raise InputError("a search is running; wait for its answer")
            self._start(key, predictor, problem)

    def get(self, key: Hashable) -> RunningSearch | None:
        """The key's search, if it was started."""
        return self._searches.get(key)

    def _start(self, key: Hashable, predictor: Predictor, problem: Problem) -> RunningSearch:
        def run() -> None:
            try:
                with self._one_at_a_time:
                    search.answer = solve.solve(predictor, problem, explain=False)
            except Exception as error:  # shown on the page
                search.error = error

        search = RunningSearch(threading.Thread(target=run, daemon=True))
        self._searches[key] = search
        search.thread.start()
        return search
