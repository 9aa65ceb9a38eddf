"""Threads that can be started as long as the process lives.

After the main thread has returned, CPython waits for all threads that are not daemons. CPython
3.12.0 to 3.12.2 cannot start threads from then on, nor in ``atexit`` functions (python/cpython
#113964). On these versions a `LateThread` is started like a thread of a C library: by the operating
system, and the interpreter learns of it when it first runs Python code.

These versions are frozen, so it is safe to use private names of their ``threading`` module.
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
    """A thread that can be started even after the main thread has returned."""

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: no thread can be started.
        """
        try:
            super().start()
        except RuntimeError as error:
            # There may also be too many threads, which is no reason to start another one.
            if not _WANTED or "shutdown" not in str(error) or sys.is_finalizing():
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


# The functions that starting threads will run, by the key passed to the thread.
_starting: dict[int, Callable[[], object]] = {}


@cache
def _natively() -> tuple[Any, Any]:
    """Return the C library and a C function pointer for the threads it starts."""
    return ctypes.CDLL(None), ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_begin)


def _begin(key: int) -> None:
    _starting.pop(key)()
