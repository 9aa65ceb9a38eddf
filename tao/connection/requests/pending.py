"""One request, from the call until its fate is known."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from functools import partial
from time import monotonic
from typing import Any, TypeVar

from tao.callables import check_quickly
from tao.connection.requests.callbacks import FutureCallbacks
from tao.connection.sending.backlog import TrackedFrame
from tao.errors import RequestCancelled
from tao.runtime.deadline import Deadline

__all__ = ["DEFAULT_TIMEOUT", "Outcome", "Request", "RequestFuture"]

#: How long a reply is waited for if the caller does not say, in seconds.
DEFAULT_TIMEOUT = 30.0
#: The reply, or None and the error.
Outcome = tuple[Any, BaseException | None]
T = TypeVar("T")


class RequestFuture(Future[Any]):
    """The future of a request. `cancel` works until the reply has come.

    Args:
        callbacks: calls its callbacks, when it is done.
    """

    _done_callbacks: list[Any]  # of the base class, which calls none of them before it is done

    def __init__(self, callbacks: FutureCallbacks) -> None:
        super().__init__()
        self._callbacks = callbacks
        #: Gives the request up; returns whether that came before the reply. Set by the caller.
        self.give_up: Callable[[], bool] = bool
        # Whether the kernel had all of the request that was cancelled. Set before it counts as
        # cancelled.
        self._sent: bool = False

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Call ``fn(future)`` when the future is done, or now. What it raises is reported.

        If the future is done, it is called here, else on a thread for such callbacks of the
        connection, one after another.
        """
        check_quickly("the callback of a future", fn, "future")
        super().add_done_callback(partial(_call_back, fn, self._callbacks.report))

    def _invoke_callbacks(self) -> None:
        pass  # the base class would call them here; see `settle`

    def _call_back(self) -> None:
        callbacks = self._done_callbacks
        while callbacks:
            # In one step, so that each is called once, whatever interrupts this.
            deque(map(partial.__call__, map(callbacks.pop, (0,)), (self,)), maxlen=0)

    def cancel(self) -> bool:
        """Give the request up, unless its fate is known.

        One that was not sent never will be. Of another the peer is told that nobody waits any more.
        """
        return self.cancelled() or (not self.done() and self.give_up())

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the reply, see `concurrent.futures.Future.result`."""
        return self._with_its_error(super().result, timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the error, see `concurrent.futures.Future.exception`."""
        return self._with_its_error(super().exception, timeout)

    def _with_its_error(self, wait: Callable[[float | None], T], timeout: float | None) -> T:
        try:
            return wait(timeout)
        except CancelledError:
            if self.cancelled():
                raise RequestCancelled("the request was cancelled", self._sent) from None
            raise

    def settle(self, outcome: Outcome) -> None:
        """Complete the future, unless it is done, and have its callbacks called.

        If this is interrupted, it may be called again.
        """
        reply, error = outcome
        try:
            if error is None:
                self.set_result(reply)
            elif isinstance(error, RequestCancelled):
                self._sent = error.sent
                super().cancel()
            else:
                self.set_exception(error)
        except InvalidStateError:
            pass  # it is done
        finally:
            self.give_up = bool  # what it was refers to this
        if self._done_callbacks:
            self._callbacks.add(self._call_back)

    def after_fork(self) -> None:
        """In a child process: be usable, whatever another thread of the parent was doing."""
        self._condition = threading.Condition()


def _call_back(
    callback: Callable[[Future[Any]], object],
    report: Callable[[BaseException, str], object],
    future: Future[Any],
) -> None:
    """Call a callback of a future. It ends neither the thread nor the callbacks after it."""
    try:
        callback(future)
    except BaseException as error:
        report(error, "in a callback of a request's future")
        # In the main thread a signal handler may have raised it, for the whole program.
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and not isinstance(error, Exception):
            raise


class Request:
    """A request. Whichever thread finishes it first decides its fate.

    Args:
        message: what is asked.
        timeout: seconds until it is given up; None: never.
        only_if_connected: whether it fails instead of waiting for another connection.
        future: completed at the end; None: the calling thread waits.
    """

    __slots__ = (
        "_gate", "_outcome", "asked_at", "body", "crowded", "deadline", "due", "frame", "future",
        "header", "key", "message", "number", "only_if_connected", "preface_of", "timeout",
    )  # fmt: skip

    def __init__(
        self,
        message: Any,
        timeout: float | None,
        *,
        header: Any = None,
        only_if_connected: bool = False,
        future: RequestFuture | None = None,
    ) -> None:
        self.message = message
        self.number: Any = getattr(message, "message_number", None)  #: for the figures
        self.body: bytes = b""  #: its frame, if that is made before it can be sent
        self.header = header
        self.timeout = timeout
        self.deadline = Deadline(timeout)
        self.only_if_connected = only_if_connected
        self.future = future
        self.asked_at: float = monotonic()
        #: When the connection gives it up, in the time of its wheel; see `Requests.watch`.
        self.due: float = math.inf
        # The calling thread blocks on it, and is woken by its release.
        self._gate: threading.Lock | None = None
        if future is None:
            self._gate = threading.Lock()
            self._gate.acquire()
        #: The thread that is to send it, as it precedes what waits: it is part of a login.
        self.preface_of: int | None = None
        #: Whether there was no room for it in the send queue.
        self.crowded: bool = False
        # Owned by the thread that has the turn of the table.
        self.key: Any = None  #: under which it is in flight
        self.frame: TrackedFrame | None = None  #: once it is in flight
        # Has the outcome under its one key: the first one counts.
        self._outcome: dict[None, Outcome] = {}

    @property
    def outcome(self) -> Outcome | None:
        """Reply and error, once one of them is there."""
        return self._outcome.get(None)

    def finish(self, reply: Any, error: BaseException | None = None) -> bool:
        """Decide the fate, unless it is decided; return whether this did. Not to be called in a
        turn or under a lock, as it may run callbacks of the application."""
        mine = reply, error
        first = self._outcome.setdefault(None, mine)
        try:
            if self.future is not None:
                self.future.settle(first)
        finally:
            self.wake()
        return first is mine

    def wait(self, timeout: float | None) -> bool:
        """Wait until there is something for the calling thread: the outcome, or to try again.

        Returns:
            whether that came in time.
        """
        assert self._gate is not None
        return self._gate.acquire(timeout=-1 if timeout is None else timeout)

    def wake(self) -> None:
        """Have the calling thread, if it waits, see what there is for it."""
        if self._gate is not None:
            try:
                self._gate.release()
            except RuntimeError:
                pass  # it is about to see

    def result(self) -> Any:
        """Return the reply, or raise the error. To be called once."""
        outcome = self.outcome
        assert outcome is not None
        reply, error = outcome
        if error is None:
            return reply
        self._outcome[None] = None, None  # as the error's traceback will refer to this
        try:
            raise error
        finally:
            del error, outcome  # the traceback refers to this frame
