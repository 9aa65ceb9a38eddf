"""Leaving a server that is about to stop, without losing what is under way.

A server that is replaced tells its clients to leave, each at another moment. Such a client makes no
more requests on this connection, and waits until those that were made are answered. Then it sends
the end of the stream, reads until that of the server, which handles everything that has come, and
connects again at once. What is written meanwhile waits for the next connection.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final, Protocol

from tao.connection.lifecycle import Lifecycle
from tao.connection.options.definitions import Settings
from tao.connection.requests.exchange import Exchange
from tao.connection.sending.send_queue import SendQueue
from tao.connection.timers import TimerSet
from tao.transport.stream import Transport

__all__ = ["Leaving", "LeavingHost"]

# Seconds between two looks whether anything is under way.
_AGAIN: Final = 0.02


class LeavingHost(Protocol):
    """What this asks of a client's core."""

    error_reports: Any
    exchange: Exchange
    lifecycle: Lifecycle
    send_queue: SendQueue
    settings: Settings
    timers: TimerSet
    transport: Transport | None


class Leaving:
    """Leaves one server after another. Used by the reading role and the timing wheel.

    Args:
        host: the client's core.
    """

    __slots__ = ("_host",)

    def __init__(self, host: LeavingHost) -> None:
        self._host = host

    def begin(self, why: str) -> None:
        """Leave the present server as soon as nothing is under way. By the reading role."""
        self._host.error_reports.log().info("{}; connecting again", why)
        transport = self._host.transport
        if transport is not None:
            self._host.timers.set_clock("leave", 0.0, partial(self._look, transport))

    def _look(self, transport: Transport) -> None:
        host, delay, then = self._host, _AGAIN, self._look
        if transport is not host.transport or host.lifecycle.ended:
            return
        if host.lifecycle.open and not host.exchange.under_way:
            host.send_queue.part(transport)
            delay, then = host.settings.drain_timeout, self._cut
        host.timers.set_clock("leave", delay, partial(then, transport))

    def _cut(self, transport: Transport) -> None:
        """Do without the end of the server's stream, which should have come."""
        if transport is self._host.transport:
            transport.abort()
