"""The stacks of all threads, listed so that no finalizer can run meanwhile.

CPython up to 3.11 holds a lock of its own while ``sys._current_frames`` lists the stacks. It makes
objects then, so the garbage collector may run; and a finalizer that starts a thread, or a thread
that ends while a finalizer runs, waits for that lock for ever, together with the whole process.
From 3.12 on, the collector runs only between two bytecodes.
"""

from __future__ import annotations

import gc
import sys
import threading
from types import FrameType
from typing import Any

from tao.runtime.forks import renew_after_fork

__all__ = ["frames_by_thread"]

_COLLECTS_ANYWHERE = sys.version_info < (3, 12)
# How long to wait for another thread that lists the stacks, in seconds. It may be in the midst of
# a signal handler.
_PATIENCE = 1.0


class _Collector:
    """Switches the garbage collector off while one thread at a time lists the stacks."""

    def __init__(self) -> None:
        # Held while the collector is off. Reentrant, as a signal handler may list stacks, too.
        self._lock: Any = threading.RLock()

    def renew(self, reason: str) -> None:
        """In a child process: no thread has the lock."""
        self._lock = threading.RLock()

    def frames(self) -> dict[int, FrameType]:
        lock, on = self._lock, False
        try:
            if not lock.acquire(timeout=_PATIENCE):
                return {}
            on = gc.isenabled()
            gc.disable()
            return sys._current_frames()
        finally:
            if on:
                gc.enable()
            if lock._is_owned():
                lock.release()


_collector = _Collector()
renew_after_fork(_collector, _Collector.renew)


def frames_by_thread() -> dict[int, FrameType]:
    """Return the innermost frame of each thread by its number; none if that takes too long."""
    return _collector.frames() if _COLLECTS_ANYWHERE else sys._current_frames()
