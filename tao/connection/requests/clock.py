"""The clock of a connection's requests: it rings when the first of them is due."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

from tao.connection.requests.host import RequestsHost
from tao.connection.requests.pending import Request

__all__ = ["RequestClock"]

# How far a clock may ring before a request is due, as sums of times are rounded, in seconds.
_EARLY = 1e-6
# After a look at all requests, so many seconds for each pass before the next look.
_PACE = 2e-6


class RequestClock:
    """Rings when the first of a connection's requests is due.

    All methods but `watch` need the turn of the requests.

    Args:
        host: the connection's core.
        settle: has a look taken in the turn; called by the timing wheel, it must not wait.
    """

    __slots__ = ("_host", "_rings_at", "_settle", "rung")

    def __init__(self, host: RequestsHost, settle: Callable[[], object]) -> None:
        self._host = host
        self._settle = settle
        self._rings_at: float = math.inf  # in the time of the wheel
        #: Whether it has rung, and was not wound since.
        self.rung: bool = False

    def watch(self, request: Request) -> None:
        """Note when a request is due that no thread gives up. Any thread, before it is made."""
        if request.timeout is not None:
            request.due = self._host.wheel.now() + request.timeout

    def add(self, request: Request) -> None:
        """Ring at the latest when this request is due."""
        if request.due < self._rings_at:
            self._set(request.due)

    def _set(self, due: float) -> None:
        delay = max(0.0, due - self._host.wheel.now())
        self._host.timers.set_clock("requests", delay, self._ring)
        self._rings_at = due

    def _ring(self) -> None:
        """By the timing wheel, which calls it again if it is interrupted."""
        self.rung = True
        self._settle()

    def overdue(self, requests: Collection[Request]) -> list[Request]:
        """Return those of the requests that are due."""
        now = self._host.wheel.now() + _EARLY
        return [request for request in requests if request.due <= now]

    def wind(self, requests: Collection[Request], *, at_once: bool) -> None:
        """Ring again when the first of these is due, or at once."""
        self._rings_at = math.inf
        due = 0.0 if at_once else min((each.due for each in requests), default=math.inf)
        if due < math.inf:
            self._set(max(due, self._host.wheel.now() + len(requests) * _PACE))
        self.rung = False
