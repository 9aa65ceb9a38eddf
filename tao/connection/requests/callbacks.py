"""Calling the callbacks of futures, which may block.

A future is completed by the thread that decides its fate. That may read other connections as well,
keep the time for all of them, or be about to close them. So its callbacks are called on a thread of
their own, which exists while there are any to be called. One that blocks holds up only those of the
same connection that come after it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import get_ident
from typing import Protocol

from tao.runtime.context import Context
from tao.runtime.deadline import Deadline
from tao.runtime.wakeup import Wakeup

__all__ = ["CallbacksHost", "FutureCallbacks"]

_THREAD = "thread"


class ThreadNames(Protocol):
    """What names the threads of a connection."""

    def name(self, role: str) -> str:
        """Return what a thread in this role is called."""


class CallbacksHost(Protocol):
    """What this asks of a connection's core."""

    context: Context

    @property
    def roles(self) -> ThreadNames:
        """The roles that its threads play."""

    def report(self, error: BaseException, doing: str) -> None:
        """Tell log and application of an error."""


class FutureCallbacks:
    """Calls the callbacks of one connection's futures, one after another.

    Any thread may call any method.

    Args:
        host: the connection's core.
    """

    __slots__ = ("_due", "_roles", "_start", "_turn", "report")

    def __init__(self, host: CallbacksHost) -> None:
        self._roles = host.roles
        # Now, as a stopping server finds only the threads of contexts that were not cancelled.
        self._start = host.context.thread_starter()
        #: Called with what a callback raises, and where that was.
        self.report = host.report
        # What is to be called; it may be called twice. Any thread appends, in one step; the thread
        # that has the turn removes what it has called.
        self._due: deque[Callable[[], object]] = deque()
        # Under one key, the ident of the thread that has the turn. Changed in single steps.
        self._turn: dict[str, int] = {}

    def add(self, call: Callable[[], object]) -> None:
        """Have a function called after those that were added before."""
        self._due.append(call)
        # If a thread has the turn, it looks again after it has given that back.
        if not self._turn:
            self._start(self._call_all, self._roles.name("callbacks"))

    def _call_all(self) -> None:
        """Call what is due, unless another thread does. It may be interrupted and repeated."""
        due, turn, me = self._due, self._turn, get_ident()
        # Also if nothing is due: it may have been interrupted before it gave the turn back.
        while turn.setdefault(_THREAD, me) == me:
            try:
                while due:
                    due[0]()
                    due.popleft()
            finally:
                turn.clear()
            if not due:
                return

    def wait(self, deadline: Deadline) -> bool:
        """Wait until all that is due has been called; not in a callback, which is due itself."""
        if not self._due or self._turn.get(_THREAD) == get_ident():
            return True
        passed = Wakeup()
        self.add(passed.set)
        return passed.wait(deadline.remaining())

    def after_fork(self) -> None:
        """In a child process: what is due is called in the parent."""
        self._due.clear()
        self._turn.clear()
