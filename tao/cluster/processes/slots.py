"""The places of a supervisor's workers, and which worker has which: decisions, no I/O.

Each slot has one worker that serves, or is about to. At a reload its successor boots beside it; the
worker is asked to leave only when the successor is ready, and stays if the successor never is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["Slot"]


class Leaving(Protocol):
    """What a slot asks of a worker."""

    def leave(self, spread: float | None = None, heir: Any = None) -> None:
        """Stop gracefully; the heir, another one, goes on with what can be handed over."""


WorkerT = TypeVar("WorkerT", bound=Leaving)


class Slot(Generic[WorkerT]):
    """One of the places.

    Args:
        number: from 1; it identifies the slot in figures.
        drain_spread: seconds that a worker has to leave.
    """

    def __init__(self, number: int, drain_spread: float) -> None:
        self.number: int = number
        self._drain_spread = drain_spread
        #: The worker that serves or boots; None between a crash and the next start.
        self.current: WorkerT | None = None
        #: The worker that is to take its place.
        self.successor: WorkerT | None = None
        #: Those that were replaced, and are not gone yet.
        self.leaving: list[WorkerT] = []
        #: When to start a worker again after a crash, monotonic; None: no worker is missing.
        self.retry_at: float | None = None

    @property
    def workers(self) -> Iterator[WorkerT]:
        """All workers of the slot."""
        yield from (each for each in (self.current, self.successor) if each is not None)
        yield from self.leaving

    def started(self, worker: WorkerT) -> None:
        """A worker was started: as the successor, if there is a worker."""
        self.retry_at = None
        if self.current is None and self.successor is None:
            self.current = worker
        else:
            if self.successor is not None:  # of an earlier reload, not ready yet
                self._dismiss(self.successor, None, None)
            self.successor = worker

    def ready(self, worker: WorkerT) -> None:
        """A worker serves."""
        if worker is self.successor:
            before, self.current, self.successor = self.current, worker, None
            if before is not None:
                self._dismiss(before, self._drain_spread, worker)

    def _dismiss(self, worker: WorkerT, spread: float | None, heir: WorkerT | None) -> None:
        self.leaving.append(worker)
        worker.leave(spread, heir)

    def gone(self, worker: WorkerT) -> bool:
        """A worker has ended; return whether one is missing now."""
        if worker in self.leaving:
            self.leaving.remove(worker)
            return False
        if worker is self.successor:
            self.successor = None
        else:
            self.current = None
        return self.current is None and self.successor is None
