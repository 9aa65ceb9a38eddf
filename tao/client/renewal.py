"""From a lost connection of a client to the next one, whatever was raised in its threads.

A client that reconnects survives an exception that nobody expected: one that is raised in its
threads from outside (``PyThreadState_SetAsyncExc``), a lack of memory, or a fault of tao's own. It
loses its connection by that, as by any other error. But the exception may have struck anywhere, so
what the threads of the connection share is in doubt until all but one have left it; then that is
made as new.

Several threads may want the next connection: the one that has read the last, one in which an
exception was raised, and one that a timer has woken. One of them gets it and reads it. The others
end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any, Protocol

from tao.client.back_off import BackOff
from tao.connection.handling.dispatcher import Dispatcher
from tao.connection.lifecycle import Lifecycle, Phase
from tao.connection.readiness import Readiness
from tao.connection.reading_gate import ReadingGate
from tao.connection.receiving.reading import Reader
from tao.connection.requests.exchange import Exchange
from tao.connection.shutdown import ShutdownClock
from tao.connection.timers import TimerSet
from tao.transport.stream import Transport

__all__ = ["Renewal", "RenewalHost"]

_THREAD = "thread"
# How often a thread that waits for others looks whether it still has to, in seconds.
_LOOK = 0.05


class RenewalHost(Protocol):
    """What this asks of a client's core."""

    back_off: BackOff
    dispatcher: Dispatcher
    error_reports: Any
    exchange: Exchange
    gate: ReadingGate
    lifecycle: Lifecycle
    reader: Reader
    readiness: Readiness
    roles: Any
    shutdown_clock: ShutdownClock
    timers: TimerSet
    transport: Transport | None

    @property
    def unhandled(self) -> int:
        """How many messages were taken in but not completely handled."""

    def call_on_close(self) -> None:
        """Call ``on_close`` if it is owed."""

    def take_down(self, transport: Transport) -> None:
        """Do without a transport from now on, and close it."""

    def drop(self, reason: str) -> None:
        """Give up the present transport, if there is a peer to talk to."""

    def finish(self) -> None:
        """Do the last steps, once."""


class Renewal:
    """Replaces the transports of one client. Any thread of its connection may call `go_on`.

    Args:
        host: the client's core.
    """

    __slots__ = ("_at_work", "_host", "doubt", "from_start")

    def __init__(self, host: RenewalHost) -> None:
        self._host = host
        # Under one key, the ident of the thread that connects. Changed in single steps.
        self._at_work: dict[str, int] = {}
        #: Why what the threads share is in doubt; None if it is not.
        self.doubt: str | None = None
        #: Whether the first transport comes from here, too, and not from ``start``.
        self.from_start: bool = False

    @property
    def _wanted(self) -> bool:
        """Whether there is to be another transport, or an end."""
        status = self._host.lifecycle.status
        if status.close_reason is not None:
            return True
        return not status.talking and (status.phase is not Phase.NEW or self.from_start)

    def go_on(self) -> bool | None:
        """Get another transport and return True; or finish and return False.

        Returns:
            None if another thread does it, or a timer has to end a wait first.
        """
        back: bool | None = None
        while self._wanted:
            # Whoever is turned away here leaves it to the thread that works, which looks again
            # after its work.
            if self._at_work.setdefault(_THREAD, get_ident()) != get_ident():
                return None
            try:
                if self._wanted:
                    back = self._renew()
            finally:
                self._leave_work()
            if back is False or (back is None and self._host.back_off.waits):
                break  # it is over, or a timer has not ended the wait yet
            if back and self._wanted:  # it was lost before this thread was ready to read
                self._host.readiness.has_lent_reading()  # which does not count any more
                back = None  # whichever thread gets the next one reads that
        return back

    @contextmanager
    def by_this_thread(self) -> Iterator[None]:
        """Have no other thread connect in this ``with`` block, which leaves a thread that reads."""
        try:
            try:
                self._at_work[_THREAD] = get_ident()
                yield
            finally:
                self._leave_work()
        finally:
            self._leave_work()  # again, as an exception may have interrupted the first call

    def _leave_work(self) -> None:
        if self._at_work.get(_THREAD) == get_ident():
            self._at_work.clear()

    def _renew(self) -> bool | None:
        host = self._host
        back: bool | None = False
        if host.lifecycle.close_reason is None:
            self.clear_doubt()
            if not host.back_off.paused:
                if host.lifecycle.phase is Phase.LOST:
                    self._leave()
                host.back_off.begin()
            back = host.back_off.go_on()
        if back is False:
            host.finish()
        return back

    def _leave(self) -> None:
        """Finish with a lost transport."""
        host = self._host
        why = host.lifecycle.status.disconnect_reason
        host.error_reports.log().info("connection lost: {}; connecting again", why)
        host.exchange.lost(why or "connection lost")
        # Until the handler has returned, no message of a new connection could be handled anyway.
        host.dispatcher.wait_idle()
        host.call_on_close()
        if host.transport is not None:
            host.take_down(host.transport)

    def drop_doubtful(self) -> None:
        """Do without a new transport, if something has struck another thread meanwhile."""
        doubt = self.doubt
        if doubt is not None:
            self._host.drop(doubt)

    def clear_doubt(self) -> None:
        """Make what was in doubt as new, once no other thread is in there."""
        host = self._host
        if self.doubt is None:
            return
        host.dispatcher.stop(discard=False)
        while others := host.roles.others():
            deadline = host.shutdown_clock.deadline
            if deadline is not None and deadline.expired:
                return  # the client was closed meanwhile
            others[0].join(_LOOK)
            host.dispatcher.stop(discard=False)  # again, as another may have been started
        self.doubt = None  # first, as an exception may come from elsewhere during the next steps
        lost = host.unhandled
        host.dispatcher.start_over(lost)
        host.timers.start_over()
        host.reader.start_over()
        host.gate.open()
        if lost > 0:
            host.error_reports.log().warning("{} received messages were not handled", lost)
        if host.lifecycle.close_reason is not None:  # meanwhile
            host.dispatcher.abandon()
