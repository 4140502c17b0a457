"""Searches in the background: one at a time, whose answers the page asks for."""

import threading
from collections.abc import Hashable
from dataclasses import dataclass

from optimization.domain.predictor import Predictor
from optimization.mixture import solve
from optimization.mixture.solve import Answer, Mixture, Problem
from training.record.errors import InputError

KEPT = 64  # ended searches, and pages


@dataclass
class RunningSearch:
    """A search that waits for its turn, runs or has ended."""

    thread: threading.Thread
    begun: bool = False
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
    """Searches by a key. They run in threads that end with the process.

    One that waits for its turn is dropped once no page wants it any more. Of the ended ones the
    last `KEPT` are kept.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._one_at_a_time = threading.Lock()
        self._searches: dict[Hashable, RunningSearch] = {}
        self._wanted: dict[str, tuple[Hashable, ...]] = {}  # by page

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

    def want(self, page: str, *keys: Hashable) -> None:
        """A page wants the answers of these searches, and no longer of those it wanted before."""
        with self._lock:
            before = self._wanted.pop(page, ())
            self._wanted[page] = keys
            if len(self._wanted) > KEPT:
                del self._wanted[next(iter(self._wanted))]
            for key in before:
                search = self._searches.get(key)
                wanted = any(key in others for others in self._wanted.values())
                if search is not None and not search.begun and not wanted:
                    del self._searches[key]

    def _begins(self, key: Hashable, search: RunningSearch) -> bool:
        """Whether a search whose turn has come was not dropped."""
        with self._lock:
            search.begun = self._searches.get(key) is search
            return search.begun

    def _start(self, key: Hashable, predictor: Predictor, problem: Problem) -> RunningSearch:
        def run() -> None:
            try:
                with self._one_at_a_time:
                    if self._begins(key, search):
                        search.answer = solve.solve(predictor, problem, explain=False)
            except Exception as error:  # shown on the page
                search.error = error

        search = RunningSearch(threading.Thread(target=run, daemon=True))
        self._searches.pop(key, None)
        self._searches[key] = search
        ended = [other for other, kept in self._searches.items() if not kept.running]
        for other in ended[:-KEPT]:
            del self._searches[other]
        search.thread.start()
        return search
