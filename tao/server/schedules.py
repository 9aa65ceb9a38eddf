"""Timers that run on every connection of a server, present and future."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

from tao.callables import check_callable
from tao.connection.connection import check_timer
from tao.connection.timers import ConnectionTimer
from tao.server.connection import ServerConnCore

__all__ = ["Schedules"]


class Schedules:
    """The schedules of a server. Any thread may call any method, at any moment.

    Args:
        connections: returns the cores of the open connections.
    """

    def __init__(self, connections: Callable[[], Iterable[ServerConnCore]]) -> None:
        self._connections = connections
        self._ids = itertools.count(1)
        # Changed by any thread, in single steps of the interpreter.
        self._all: dict[int, tuple[float, ConnectionTimer]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, schedule: object) -> bool:
        return schedule in self._all

    def add(self, interval: float, callback: Any) -> int:
        """Start a timer on every connection; see `Server.schedule`."""
        check_timer(callback)
        check_callable("callback", callback, "due", "conn")
        if not isinstance(interval, (int, float)) or not interval > 0:
            raise ValueError(f"interval must be a positive number of seconds, not {interval!r}")
        schedule = next(self._ids)
        try:
            self._all[schedule] = (interval, callback)
            for core in self._connections():
                core.follow(schedule, interval, callback)
        except BaseException:
            self.cancel(schedule)
            raise
        return schedule

    def cancel(self, schedule: int) -> bool:
        """Cancel a timer on every connection; see `Server.cancel_schedule`."""
        known = self._all.pop(schedule, None) is not None
        for core in self._connections():
            core.unfollow(schedule)
        return known

    def welcome(self, core: ServerConnCore) -> None:
        """Start all timers on a connection that has just been established."""
        for schedule, (interval, callback) in dict(self._all).items():
            core.follow(schedule, interval, callback)
