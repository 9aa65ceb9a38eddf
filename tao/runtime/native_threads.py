"""Threads that can be started as long as the process lives.

When the main thread has returned, CPython waits for the other threads that are not daemons, however
long they go on. CPython 3.12.0 to 3.12.2 start no thread from then on (python/cpython #113964), nor
in functions of ``atexit``. There a `LateThread` is started like a thread of a C library: by the
operating system, and the interpreter is told of it when it first runs Python code.

Those versions will not change any more, so what is used of their module ``threading``, private
names included, is what it is.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

__all__ = ["LateThread"]

_WANTED = sys.implementation.name == "cpython" and (3, 12) <= sys.version_info < (3, 12, 3)


class LateThread(threading.Thread):
    """A thread; see the module."""

    def start(self) -> None:
        """Start it.

        Raises:
            RuntimeError: it cannot be had.
        """
        try:
            super().start()
        except RuntimeError:
            if not _WANTED or self.ident is not None or sys.is_finalizing():
                raise
            self._start_natively()

    def _start_natively(self) -> None:
        threads: Any = threading
        with threads._active_limbo_lock:
            threads._limbo[self] = self
        key = id(self)
        _starting[key] = self._bootstrap  # type: ignore[attr-defined]
        thread = ctypes.c_ulong()
        libc, run = _natively()
        if libc.pthread_create(ctypes.byref(thread), None, run, ctypes.c_void_p(key)):
            del _starting[key]
            with threads._active_limbo_lock:
                del threads._limbo[self]
            raise RuntimeError("can't start new thread")
        libc.pthread_detach(thread)
        self._started.wait()  # type: ignore[attr-defined]


# What threads that are being started are to run, by the number that they are given.
_starting: dict[int, Callable[[], object]] = {}


@cache
def _natively() -> tuple[Any, Any]:
    """Return the C library, and a function that it can start a thread with."""
    return ctypes.CDLL(None), ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_begin)


def _begin(key: int) -> None:
    _starting.pop(key)()
