"""Context variables that the callbacks of a connection share."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["Variables"]

T = TypeVar("T")


class Variables:
    """The ``contextvars`` of one connection, for all its callbacks, on any thread.

    Callbacks run one at a time, as a rule. One that may run beside another (``on_error`` for an
    error of the network) sees a copy, as a context can be entered only once: so it keeps no other
    out, also of those that begin while it runs.

    Args:
        context: what they begin with; None: a copy of the caller's.
    """

    __slots__ = ("_context", "enter", "in_timer", "thread")

    def __init__(self, context: contextvars.Context | None = None) -> None:
        self._context = contextvars.copy_context() if context is None else context.copy()
        #: Calls a function with these variables; RuntimeError if a thread is inside already. For
        #: a caller that knows that none is, and maintains `thread`: it costs next to nothing.
        self.enter = self._context.run
        #: The thread that runs a callback inside; written by that thread alone.
        self.thread: int | None = None
        #: Whether that callback is a timer's; written by the same thread.
        self.in_timer: bool = False

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function with these variables. Any thread may do so, at any time."""
        if self.entered_here:
            return function(*args)
        begun: list[bool] = []
        try:
            return self.enter(self._note_thread, begun, function, *args)
        except RuntimeError:
            if begun:
                raise
        try:
            return self._context.copy().run(function, *args)
        finally:
            if self.thread == threading.get_ident():  # noted by what was called
                self.thread = None

    def run_beside(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function that is not one of those that run one at a time. Any thread may do so.

        It sees these variables if it is called by a callback that is inside, and else a copy.
        """
        if self.entered_here:
            return function(*args)
        return self._context.copy().run(function, *args)

    def _note_thread(self, begun: list[bool], function: Callable[..., T], *args: Any) -> T:
        begun.append(True)
        try:
            self.thread = threading.get_ident()
            return function(*args)
        finally:
            self.thread = None

    @property
    def entered_here(self) -> bool:
        """Whether the calling thread is inside."""
        return self.thread == threading.get_ident()
