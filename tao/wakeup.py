"""A wake-up: what ``threading.Event`` is for, callable from anywhere.

``threading.Event`` has a lock inside that is not reentrant: a signal handler, or a finalizer that
the garbage collector runs, dead-locks if it sets an event while the thread that it interrupts is
inside ``set`` or ``wait`` of the same event. A `Wakeup` has no lock that two threads could want.
Each waiting thread makes one of its own, blocks on it, and whoever sets the wake-up releases it.

Guarantees:

- Every method may be called from any thread, a signal handler and a finalizer, also in the midst
  of another call on the same object. None waits, except `Wakeup.wait`.
- An exception that is raised inside a call, between any two bytecodes (by a signal handler, or by
  ``PyThreadState_SetAsyncExc``), leaves nothing half done: after `Wakeup.set` was interrupted, no
  thread goes on waiting although the flag is set.
- As long as nobody waits there is no lock, so one that is never waited for costs 100 bytes.
"""

from __future__ import annotations

import threading

__all__ = ["Wakeup"]


class Wakeup:
    """A flag that threads can wait for; has the methods of ``threading.Event``."""

    __slots__ = ("_is_set", "_waiting")

    def __init__(self) -> None:
        self._is_set: bool = False
        # The locks that threads are blocked on. Each thread adds and removes its own; both are
        # single steps of the interpreter, as is the copy that `set` takes.
        self._waiting: list[threading.Lock] = []

    def is_set(self) -> bool:
        """Return the flag."""
        return self._is_set

    def set(self) -> None:
        """Set the flag and wake all that wait."""
        try:
            self._is_set = True
            if self._waiting:
                self._wake()
        except BaseException:
            # Raised by a signal handler, say. Waking twice does no harm, not waking would.
            self._is_set = True
            self._wake()
            raise

    def clear(self) -> None:
        """Reset the flag: who waits from now on blocks. Those already woken stay awake."""
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the flag is set, ``timeout`` seconds at most; tell whether it was set."""
        if self._is_set:
            return True
        lock = threading.Lock()
        lock.acquire()
        try:
            self._waiting.append(lock)
            # Set before the lock was seen: looking once more closes the gap.
            return self._is_set or lock.acquire(timeout=_lock_timeout(timeout)) or self._is_set
        finally:
            try:
                self._waiting.remove(lock)
            except ValueError:
                pass  # it was interrupted before it was added, or `_wake` has removed it

    def _wake(self) -> None:
        for lock in self._waiting.copy():
            try:
                lock.release()
                # Its thread does so too, unless that was interrupted just there.
                self._waiting.remove(lock)
            except (RuntimeError, ValueError):
                pass  # another thread has released it already, or removed it

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'set' if self._is_set else 'unset'}>"


def _lock_timeout(timeout: float | None) -> float:
    """Return what a lock takes as its timeout: -1 for ever, and no more than it can wait."""
    return -1 if timeout is None else min(max(0.0, timeout), threading.TIMEOUT_MAX)
