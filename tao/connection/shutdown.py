"""The clock of a closing connection: it ends gracefully if possible, and in time in any case."""

from __future__ import annotations

import atexit
from time import monotonic
from typing import Protocol

from tao.connection.handling.dispatcher import Dispatcher
from tao.connection.receiving.reading import Reader
from tao.connection.reports.statistics import all_statistics
from tao.connection.sending.send_queue import SendQueue
from tao.connection.timers import TimerSet
from tao.runtime.deadline import Deadline
from tao.runtime.log import logger
from tao.transport.stream import Transport

__all__ = ["ShutdownClock"]

# How long a peer may take to close after our FIN, in seconds: a remote peer, and a silent one on
# this machine.
_LINGER, _LINGER_NEAR = 1.0, 0.05


class EndClockHost(Protocol):
    """What this asks of a connection's core."""

    dispatcher: Dispatcher
    reader: Reader
    send_queue: SendQueue
    timers: TimerSet
    transport: Transport | None

    def cut_off(self) -> None:
        """Abort the connection if it does not end by itself."""

    def unacknowledged(self) -> int:
        """How many bytes that the kernel took are still on their way to the peer."""


class ShutdownClock:
    """Aborts a connection that does not end by itself; runs on the timing wheel's thread.

    A peer that does not close after our FIN is cut off before the deadline, once its machine has
    acknowledged everything. It is given a second, as it may be about to send something, such as a
    heartbeat: a closed socket answers that with a reset, and on some systems a reset discards
    received data that was not read yet. Linux does not: a peer that has received the FIN reads
    everything before it, and then the end, whatever arrives later. So there is no need to wait if
    the peer is on this machine, and the machine runs Linux.

    Args:
        conn: the connection.
    """

    __slots__ = ("_conn", "_deadlines", "_step", "_told")

    def __init__(self, conn: EndClockHost) -> None:
        self._conn = conn
        # The deadlines of all calls of start; the earliest counts.
        self._deadlines: list[Deadline] = []
        # Owned by the thread that looks: the wheel's, except for the last look.
        self._step: float = _LINGER_NEAR  # until the next look
        self._told: float | None = None  # when the FIN was found to have been sent

    @property
    def deadline(self) -> Deadline | None:
        """The deadline of the graceful shutdown; None: it has not begun."""
        first: Deadline | None = None
        for deadline in list(self._deadlines):
            if first is None or deadline.before(first):
                first = deadline
        return first

    def start(self, timeout: float) -> None:
        """Allow ``timeout`` seconds from now, unless an earlier deadline is set."""
        deadline = Deadline(timeout)
        self._deadlines.append(deadline)
        self._step = _LINGER_NEAR
        if deadline.expired:
            self._look()  # and there may be no wheel any more
        else:
            self._look_later()

    def _look_later(self) -> None:
        """Look again after an interval that grows with each look, within the deadlines."""
        step, self._step = self._step, min(2 * self._step, _LINGER)
        told, deadline = self._told, self.deadline
        if told is not None and (left := told + _LINGER - monotonic()) > 0:
            step = min(step, left)
        if deadline is not None and (remaining := deadline.remaining()) is not None:
            step = min(step, remaining)
        # The peer is another program, so real time counts, whatever kind of wheel this is.
        self._conn.timers.set_clock("end", step, self._look, real=True)

    def _look(self) -> None:
        conn, deadline = self._conn, self.deadline
        if deadline is not None and deadline.expired:
            conn.dispatcher.abandon()
            conn.cut_off()
            return
        if self._told is None and conn.send_queue.fin_sent:
            self._told, self._step = monotonic(), _LINGER_NEAR
        elif self._told is not None and self._has_lingered(self._told):
            conn.cut_off()
        self._look_later()

    def _has_lingered(self, told: float) -> bool:
        """Whether the peer has received everything, and had time enough to close."""
        conn, waited = self._conn, monotonic() - told
        transport = conn.transport
        if transport is None or waited < _LINGER_NEAR:
            return False
        if waited >= _LINGER:
            return not conn.unacknowledged()
        silent = conn.reader.last_received < told
        return silent and transport.peer_is_near and not transport.unacknowledged()


def _tell_what_is_dropped() -> None:
    """At exit, log the unfinished messages of all connections."""
    for statistics in all_statistics():
        conns = list(statistics.living())
        client = statistics.client
        if not conns and client is not None and not client.lifecycle.ended:
            conns.append(client)  # it is not connected yet
        unhandled = sum(conn.unhandled for conn in conns)
        unsent = sum(conn.send_queue.waiting for conn in conns)
        if unhandled or unsent:
            logger.warning(
                "the process ends, so {} drops {} messages not handled and {} not sent, of {} "
                "connections", statistics.name, unhandled, unsent, len(conns),
            )  # fmt: skip


atexit.register(_tell_what_is_dropped)
