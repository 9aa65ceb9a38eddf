"""Questions of other threads, a monitor's for example, that the supervisor passes on to workers."""

from __future__ import annotations

import itertools
import threading
from typing import Any

__all__ = ["Question"]

_numbers = itertools.count(1)


class Question:
    """A question to all workers, and their answers.

    The asking thread makes it and waits; the supervisor's thread does the rest.

    Args:
        what: is asked for.
        query: the details.
    """

    def __init__(self, what: str, query: dict[str, str]) -> None:
        self.number: int = next(_numbers)
        self.message = {"ask": self.number, "what": what, "query": query}
        #: The numbers of the workers that have not answered yet.
        self.waiting: set[int] = set()
        #: The answers, by the workers' numbers.
        self.answers: dict[int, Any] = {}
        #: Set when all have answered, or are gone.
        self.done = threading.Event()

    def asked(self, workers: set[int]) -> None:
        """It was sent to these workers."""
        self.waiting = workers
        self._look()

    def answered(self, worker: int, value: Any) -> None:
        """A worker has answered."""
        self.answers[worker] = value
        self.without(worker)

    def without(self, worker: int) -> None:
        """A worker will answer no more."""
        self.waiting.discard(worker)
        self._look()

    def _look(self) -> None:
        if not self.waiting:
            self.done.set()
