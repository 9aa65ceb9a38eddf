"""The end of a connection, seen to: it comes in order if it can, and in time in any case."""

from __future__ import annotations

import atexit
import threading
from typing import TYPE_CHECKING

from tao.log import logger
from tao.metrics import tallies
from tao.threads import Deadline

if TYPE_CHECKING:
    from tao.connection import Connection

__all__ = ["EndClock"]

# How long a peer that was told the end may take to close as well, in seconds.
_LINGER = 1.0


class EndClock:
    """Cuts a connection off that does not end by itself; runs on the timing wheel's thread.

    A peer that has been told the end, and does not close as well, is cut off earlier, once it has
    all that was sent: who would free the socket before that, and then get a heartbeat, would answer
    it with a reset, which makes the rest void.

    Args:
        conn: the connection.
    """

    __slots__ = ("_conn", "_lock", "deadline")

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        # Guards the deadline, which only ever comes nearer.
        self._lock = threading.Lock()
        #: Of the orderly end, once it has begun.
        self.deadline: Deadline | None = None

    def start(self, timeout: float) -> None:
        """Grant the end ``timeout`` seconds, or what is left of those granted before."""
        with self._lock:
            if self.deadline is None or Deadline(timeout).before(self.deadline):
                self.deadline = Deadline(timeout)
            deadline = self.deadline
        conn = self._conn
        lingering = conn._send_queue.shut

        def set_clock(delay: float) -> None:
            # The peer is another program, and lives by real time.
            conn._timers.set_clock("end", delay, look, real=True)

        def look() -> None:
            nonlocal lingering
            if deadline.expired:
                conn._dispatcher.abandon()
            if deadline.expired or (lingering and not conn._unacknowledged()):
                conn._cut_off()
            if not deadline.expired:
                lingering = conn._send_queue.shut
                set_clock(min(_LINGER, deadline.remaining() or 0))

        if deadline.expired:
            look()  # and there may be no wheel any more
        else:
            set_clock(min(_LINGER, timeout))


def _tell_what_is_dropped() -> None:
    """At the end of the process: log what its connections have not done."""
    for tally in tallies():
        conns = list(tally.living())
        unhandled = sum(conn._dispatcher.unhandled for conn in conns)
        unsent = sum(conn._send_queue.waiting for conn in conns)
        if unhandled or unsent:
            logger.warning(
                "the process ends, so {} drops {} messages not handled and {} not sent, of {} "
                "connections", tally.name, unhandled, unsent, len(conns),
            )  # fmt: skip


atexit.register(_tell_what_is_dropped)
