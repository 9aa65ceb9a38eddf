"""Keeping a connection alive, and noticing when it is not: heartbeats and timeouts."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tao.errors import TaoError

if TYPE_CHECKING:
    from tao.connection import Connection

__all__ = ["KeepAlive"]


class KeepAlive:
    """The clocks of an established connection; they run on the timing wheel's thread.

    None is set anew for each message: when one is due it looks how long ago the last was, and sets
    itself for the rest. So they cost nothing while there is traffic.

    Args:
        conn: the connection.
    """

    __slots__ = ("_conn", "_options")

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._options = conn._options

    def start(self) -> None:
        """Set the clocks that the options ask for."""
        options = self._options
        self._set("heartbeat", options.heartbeat)
        self._set("idle", options.idle_timeout)
        self._set("write", options.write_timeout)

    def _set(self, purpose: str, delay: float | None) -> None:
        looks = {"heartbeat": self._beat, "idle": self._look_idle, "write": self._look_stuck}
        if delay is not None:
            self._conn._timers.set_clock(purpose, delay, looks[purpose])

    def _beat(self) -> None:
        """Send a heartbeat if nothing was sent for so long."""
        conn, interval = self._conn, self._options.heartbeat
        assert interval is not None
        left = conn._outbox.last_sent + interval - time.monotonic()
        if left <= 0:
            left = interval
            try:
                frame = conn._codec.heartbeat(time.time_ns())
                if frame and conn._established:
                    conn._outbox.write(frame)
            except TaoError:
                pass  # so much waits to be sent that a heartbeat is not needed, or it is over
            except Exception as error:
                conn.report(error, "in the codec's heartbeat")
        self._set("heartbeat", left)

    def _look_idle(self) -> None:
        """Close if nothing came for so long."""
        conn, limit = self._conn, self._options.idle_timeout
        assert limit is not None
        if not conn._established:
            return  # lost meanwhile; the next transport sets its own
        if conn._dispatcher.waiting_for_room:
            # Nothing is read because the handlers do not keep up: that is not the peer's fault.
            conn._reader.last_received = time.monotonic()
        left = conn._reader.last_received + limit - time.monotonic()
        if left > 0:
            self._set("idle", left)
        else:
            conn._drop(f"idle for {limit} s")

    def _look_stuck(self) -> None:
        """Close if the peer took nothing for so long although something waits."""
        outbox, limit = self._conn._outbox, self._options.write_timeout
        assert limit is not None
        left = outbox.last_sent + limit - time.monotonic()
        if outbox.blocked and left <= 0:
            # The reading thread sees it, and tells the application: here, that would delay others.
            outbox.give_up(TimeoutError(f"the peer took nothing for {limit} s"))
        else:
            self._set("write", left if left > 0 else limit)
