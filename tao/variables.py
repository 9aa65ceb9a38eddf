"""Context variables: what one callback of a connection sets, its later callbacks see."""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["Variables"]

T = TypeVar("T")


class Variables:
    """The ``contextvars`` of one connection, for all its callbacks, whatever thread they run on.

    Callbacks run one at a time, as a rule. One that runs beside another (``on_error`` for an error
    of the network, while a handler runs) sees a copy, as a context can be entered only once.

    Args:
        context: what they begin with; None: a copy of the caller's.
    """

    __slots__ = ("_context", "_free", "_thread")

    def __init__(self, context: contextvars.Context | None = None) -> None:
        self._context = contextvars.copy_context() if context is None else context.copy()
        # Holds one item while nobody is inside. Popping and appending it are single steps.
        self._free: deque[None] = deque((None,))
        self._thread: int | None = None  # who is inside; written by that thread

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function with these variables. Any thread may do so, at any time."""
        try:
            self._free.pop()
        except IndexError:
            if self.entered_here:
                return function(*args)
            return self._context.copy().run(function, *args)
        try:
            self._thread = threading.get_ident()
            return self._context.run(function, *args)
        finally:
            self._thread = None
            self._free.append(None)

    @property
    def entered_here(self) -> bool:
        """Whether the calling thread is inside."""
        return self._thread == threading.get_ident()
