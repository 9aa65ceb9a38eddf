"""Connecting until it succeeds: the attempts of a client, and the waits between them.

A client with a reading thread of its own waits on that thread. Where reading is shared, a timer
ends the wait, so that thousands of clients whose servers are away hold no thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from tao.client.usefulness import Usefulness
from tao.connection.application import ApplicationLink
from tao.connection.lifecycle import Lifecycle
from tao.connection.requests.exchange import Exchange
from tao.errors import ConnectionClosed
from tao.runtime.timing_wheel import TimingWheel
from tao.runtime.wakeup import Wakeup
from tao.transport.error_text import explain

__all__ = ["BackOff", "BackOffHost"]


class BackOffHost(Protocol):
    """What this asks of a client's core."""

    application: ApplicationLink
    error_reports: Any
    exchange: Exchange
    lifecycle: Lifecycle
    reconnects: int
    usefulness: Usefulness
    wheel: TimingWheel

    def connect_once(self) -> None:
        """Dial and establish a connection; `ConnectionClosed` if that fails."""

    def begin_close(self, reason: str, *, drain: bool) -> None:
        """Begin to close the client."""

    def report(self, error: BaseException, doing: str) -> None:
        """Tell log and application of an error."""


class BackOff:
    """The attempts of one client. Used by the thread that connects, but for `hurry`.

    Args:
        host: the client's core.
        resume: has `go_on` called again on a thread that may wait, after a wait that was not waited
            for; None: waits are waited for.
    """

    __slots__ = ("_attempt", "_host", "_hurry", "_resume", "_why", "first", "paused", "waits")

    def __init__(self, host: BackOffHost, resume: Callable[[], object] | None) -> None:
        self._host = host
        self._resume = resume
        self._hurry = Wakeup()  # set when the client is closed
        self._attempt: int = 0  # since the last useful connection
        self._why: str | None = None  # the last attempt failed, or the connection was lost
        #: Whether the client has not been connected yet.
        self.first: bool = True
        #: Whether a timer is to end the wait before the next attempt, or has done so.
        self.paused: bool = False
        #: Holds one item while a timer runs that ends the wait before the next attempt. Whatever
        #: takes the item out has the attempts go on.
        self.waits: deque[None] = deque()

    def begin(self) -> None:
        """Begin to connect, again or for the first time."""
        host, again = self._host, not self.first
        if again and host.usefulness.judge():
            self._attempt = 0
            again = not host.exchange.told_to_leave  # it has chosen the moment: no wait
        self._why = host.lifecycle.status.disconnect_reason
        self._attempt += again

    def go_on(self) -> bool | None:
        """Make attempts until one succeeds, the first at once if a timer has ended its wait.

        Returns:
            False if the client has given up or is closed; None if a timer has to end a wait first.
        """
        host = self._host
        waited, self.paused = self.paused, False
        self.waits.clear()  # an exception may have kept the timer of one from being set
        while host.lifecycle.close_reason is None:
            delay = 0.0 if waited else self._delay()  # asked once for each attempt
            if delay is None:
                reason = f"gave up after {self._attempt - 1} attempts: {self._why}"
                host.begin_close(reason, drain=False)
                return False
            if self._attempt and not waited:
                if self._resume is not None:
                    self._wait_aside(delay)
                    return None
                if host.wheel.wait(self._hurry, delay):
                    return False
            waited = False
            if self._try():
                return True
        return False

    def _try(self) -> bool:
        host = self._host
        try:
            host.connect_once()
        except ConnectionClosed as error:
            if host.lifecycle.close_reason is None:
                host.error_reports.log().info("attempt {}: {}", self._attempt, error)
                host.error_reports.tell(error)
                self._note_failure(str(error))
            return False
        except BaseException as error:
            # An exception that nobody expected costs the attempt, and not the client.
            host.report(error, "while connecting")
            self._note_failure(explain(error))
            return False
        host.reconnects += not self.first
        self.first = False
        return True

    def _note_failure(self, why: str) -> None:
        self._why = why
        self._attempt += 1

    def _delay(self) -> float | None:
        """Return the seconds to wait before this attempt; None if it is one too many."""
        application = self._host.application.find()
        how = None if application is None else application.reconnect
        return None if how is None else how.delay_before(self._attempt)

    def _wait_aside(self, delay: float) -> None:
        self.paused = True
        self.waits.append(None)
        self._host.wheel.run_clock(delay, lambda _: self.end_wait())
        if self._hurry.is_set():
            self.end_wait()

    def end_wait(self) -> None:
        """Have the attempts go on, if a timer was to do that. Any thread may call it."""
        assert self._resume is not None
        try:
            self.waits.pop()
            self._resume()
        except IndexError:
            pass  # that is done
        except BaseException:
            self._resume()  # maybe again, which does no harm
            raise

    def hurry(self) -> None:
        """End the wait, as the client is closed. Any thread may call it."""
        self._hurry.set()
        if self.waits:
            self.end_wait()
        elif self.paused and self._resume is not None:
            self._resume()  # again, as an exception may have interrupted the first call

    def after_fork(self) -> None:
        """In a child process: there are no waits."""
        self._hurry = Wakeup()
        self.waits.clear()
