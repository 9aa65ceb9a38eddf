"""The stacks of all threads, listed and walked so that no finalizer can run meanwhile.

CPython up to 3.11 holds a lock of its own while ``sys._current_frames`` lists the stacks. It makes
objects then, so the garbage collector may run; and a finalizer that starts a thread, or a thread
that ends while a finalizer runs, waits for that lock for ever, together with the whole process.

It also makes an object for each frame when that is asked for, in ``f_back`` for one. If a finalizer
runs then, other threads go on and leave their frames, and the interpreter uses what is not there
any more: it crashes, or takes other objects for frames.

From 3.12 on, the collector runs only between two bytecodes.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tao.runtime.forks import renew_after_fork

__all__ = ["frames_by_thread", "while_walked"]

_COLLECTS_ANYWHERE = sys.version_info < (3, 12)
# How long to wait for another thread that lists the stacks, in seconds. It may be in the midst of
# a signal handler.
_PATIENCE = 1.0


class _Collector:
    """Switches the garbage collector off while one thread at a time looks at stacks."""

    def __init__(self) -> None:
        # Held while the collector is off. Reentrant, as a signal handler may list stacks, too.
        self._lock: Any = threading.RLock()

    def renew(self, reason: str) -> None:
        """In a child process: no thread has the lock."""
        self._lock = threading.RLock()

    @contextmanager
    def off(self) -> Iterator[bool]:
        """Keep the collector off in a ``with`` block; False if another thread does so for long."""
        lock, on, mine = self._lock, False, False
        try:
            if lock.acquire(timeout=_PATIENCE):
                mine, on = True, gc.isenabled()
                gc.disable()
            yield mine
        finally:
            if on:
                gc.enable()
            if lock._is_owned():
                lock.release()


_collector = _Collector()
renew_after_fork(_collector, _Collector.renew)


def frames_by_thread() -> dict[int, FrameType]:
    """Return the innermost frame of each thread by its number; none if that takes too long.

    Look at what they are called from, and at their variables, only `while_walked`.
    """
    if not _COLLECTS_ANYWHERE:
        return sys._current_frames()
    with _collector.off() as off:
        return sys._current_frames() if off else {}


@contextmanager
def while_walked() -> Iterator[None]:
    """Make it safe, in a ``with`` block, to list the stacks of running threads and walk them."""
    if not _COLLECTS_ANYWHERE:
        yield
        return
    with _collector.off():
        yield
