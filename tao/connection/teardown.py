"""The last steps of a connection, taken by its reading thread once the stream has ended."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from tao.connection.application import ApplicationLink
from tao.connection.handling.dispatcher import Dispatcher
from tao.connection.lifecycle import Event, Lifecycle
from tao.connection.reading_gate import ReadingGate
from tao.connection.receiving.reading import Reader
from tao.connection.requests.exchange import Exchange
from tao.connection.roles import ConnectionRoles
from tao.connection.sending.send_queue import SendQueue
from tao.connection.shutdown import ShutdownClock
from tao.connection.timers import TimerSet
from tao.runtime.combining import Busy, never_waiting
from tao.runtime.context import Context
from tao.runtime.deadline import Deadline
from tao.runtime.threads import Joinable, gather
from tao.runtime.wakeup import Wakeup
from tao.transport.stream import Transport

__all__ = ["Teardown", "TeardownHost"]

# A peer that sends more than so many bytes after the end may be about to fill its window, and would
# then wait for a minute until the kernel tells it. It is more than a heartbeat or two.
_MUCH = 4 * 1024
# How long threads are joined when a handler has been given up, in seconds: that one runs on, and
# the others need no longer than this.
_MOMENT = 0.05


class TeardownHost(Protocol):
    """What this asks of a connection's core."""

    application: ApplicationLink
    context: Context
    dispatcher: Dispatcher
    exchange: Exchange
    finished: Wakeup
    gate: ReadingGate
    in_flight: int
    left_over: int
    lifecycle: Lifecycle
    reader: Reader
    send_queue: SendQueue
    shutdown_clock: ShutdownClock
    stuck: Sequence[Joinable]
    timers: TimerSet
    transport: Transport | None
    was_cut_off: bool

    @property
    def roles(self) -> ConnectionRoles:
        """The roles that its threads play."""

    def call_on_close(self) -> None:
        """Call ``on_close`` if it is owed."""

    def leave_owner(self) -> None:
        """Have the owner forget the connection."""

    def tell_unsent(self, what: str) -> None:
        """Log a warning about messages that will not reach the peer."""


class Teardown:
    """Waits for handlers, writer and peer, and frees the resources of a connection.

    Args:
        host: the connection's core.
        drain_timeout: seconds that sending may take if no deadline is set.
    """

    __slots__ = ("_drain_timeout", "_finisher", "_host", "_told")

    def __init__(self, host: TeardownHost, drain_timeout: float) -> None:
        self._host = host
        self._drain_timeout = drain_timeout
        # Each is changed in one step, by any thread.
        self._finisher: dict[str, int] = {}  # the thread that takes the steps: the first
        self._told: bool = False  # unsent messages have been logged

    def finish(self) -> None:
        """Take the last steps. If it is interrupted, it may be called again.

        A thread whose reading role was taken over may get here as well, if it was interrupted
        before it noticed; only the first thread takes the steps.
        """
        self._take(self._all_steps)

    def at_once(self, reason: str) -> bool:
        """Begin to close, and take the last steps if there is nothing to wait for.

        It does in a few steps what most ends come to: the peer has closed, and nothing is under
        way. To be called in the reading role. It waits for nothing, and whatever it has done, the
        general way may follow, also if it was interrupted.

        Returns:
            whether it has taken the last steps; otherwise `begin_close` and `finish` have to do so.
        """
        host = self._host
        application = host.application.find()
        if application is None or application.on_close is not None or not host.lifecycle.open:
            return False
        first = host.lifecycle.apply(Event.DRAIN, reason)[1].close_reason or reason
        host.timers.close(reason)
        host.context.cancel_aside(reason)
        if host.exchange.requests_so_far is not None or host.gate.paused:
            return False
        try:
            return never_waiting(partial(self._finish_at_once, first))
        except Busy:
            return False

    def _finish_at_once(self, reason: str) -> bool:
        host = self._host
        # In this order: a handler that still runs may use what is closed next.
        if not host.dispatcher.stop_at_once() or host.roles.threads:
            return False
        if not host.send_queue.leave_at_once(reason):
            return False
        host.timers.end()
        self._take(self._final_steps)
        return True

    def _take(self, steps: Callable[[], None]) -> None:
        """Take steps, unless another thread takes the last steps."""
        me = threading.get_ident()
        try:
            if self._finisher.setdefault("thread", me) == me:
                steps()
        except BaseException:
            if self._finisher.get("thread") == me:
                self._finisher.clear()  # so that it, or another, can begin anew
            raise

    def _all_steps(self) -> None:
        host = self._host
        host.lifecycle.apply(Event.TEAR_DOWN)
        idle = self._wait_for_parts()
        host.dispatcher.stop()
        frames, size = host.send_queue.stop()
        host.left_over = frames
        if not self._told:
            self._tell_of_rest(frames, size)
            self._told = True
        host.timers.end()
        threads = host.roles.threads_now()
        host.stuck = gather(threads, Deadline(None if idle else _MOMENT)) if threads else ()
        host.call_on_close()
        self._final_steps()

    def _final_steps(self) -> None:
        """Free what the connection has, and tell everybody."""
        host = self._host
        if host.transport is not None:
            if host.was_cut_off and host.reader.discarded > _MUCH:
                host.transport.reset()
            host.roles.leave()
            host.transport.close()
        host.leave_owner()
        host.lifecycle.apply(Event.END)
        host.finished.set()

    def _wait_for_parts(self) -> bool:
        """Wait for handlers and for the send queue; return whether all handlers returned."""
        host = self._host
        idle = host.dispatcher.wait_idle()
        if host.transport is not None:
            if not host.send_queue.over:
                deadline = host.shutdown_clock.deadline or Deadline(self._drain_timeout)
                host.send_queue.wait_sent(deadline)
            if not host.send_queue.fin_sent:
                host.transport.abort()
        return idle

    def _tell_of_rest(self, frames: int, size: int) -> None:
        """Report messages and bytes that will not reach the peer."""
        host = self._host
        if frames:
            reason = host.lifecycle.close_reason
            host.tell_unsent(f"{frames} messages ({size} bytes) could not be sent: {reason}")
        elif host.in_flight:
            host.tell_unsent(
                f"{host.in_flight} bytes that were sent did not reach the peer in time"
            )

    def after_fork(self) -> None:
        """In a forked child: report nothing, because the parent sends the waiting messages."""
        self._told = True
