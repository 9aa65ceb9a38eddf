"""Waiting and waking: what ``threading.Event`` and ``Condition`` are for, callable from anywhere.

Those two have a lock inside that is not reentrant: a signal handler, or a finalizer that the
garbage collector runs, dead-locks if it sets an event while the thread that it interrupts is inside
``set`` or ``wait`` of the same event. Here is no lock that two threads could want. Each waiting
thread makes one of its own, blocks on it, and whoever wakes it releases that.

Guarantees:

- Every method may be called from any thread, a signal handler and a finalizer, also in the midst
  of another call on the same object. None waits, except those whose names say so.
- An exception that is raised inside a call, between any two bytecodes (by a signal handler, or by
  ``PyThreadState_SetAsyncExc``), leaves nothing half done: no thread goes on waiting for what has
  happened.
- As long as nobody waits there is no lock, so what is never waited for costs 100 bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from tao.runtime.deadline import Deadline

__all__ = ["Notifier", "Waitable", "Wakeup"]


class Waitable(Protocol):
    """What can be waited for: a `Wakeup`, a ``threading.Event``."""

    def is_set(self) -> bool: ...
    def wait(self, timeout: float | None = None) -> bool: ...


class Notifier:
    """Lets threads wait until something is true, as ``threading.Condition`` does, without a lock.

    Whoever changes what is waited for does so first, and then calls `notify_all`.
    """

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        # The locks that threads are blocked on. Each thread adds and removes its own; both are
        # single steps of the interpreter, as is the copy that `notify_all` takes.
        self._waiting: list[threading.Lock] = []

    @property
    def waiting(self) -> int:
        """How many threads wait."""
        return len(self._waiting)

    def notify_all(self) -> None:
        """Have all threads that wait look again."""
        if self._waiting:
            try:
                self._wake()
            except BaseException:
                self._wake()  # waking twice does no harm, not waking would
                raise

    def wait_for(self, condition: Callable[[], object], timeout: float | None = None) -> bool:
        """Wait until ``condition()`` is true, ``timeout`` seconds at most; tell whether it was.

        It is called at the beginning, and then by each `notify_all`, without any lock.
        """
        deadline = Deadline(timeout)
        while not condition():
            if not self._block(condition, deadline.remaining()):
                return bool(condition())
        return True

    def _block(self, ready: Callable[[], object], timeout: float | None) -> bool:
        """Wait to be woken; tell whether that was in time, or ``ready()`` true before."""
        lock = threading.Lock()
        lock.acquire()
        try:
            self._waiting.append(lock)
            # What became true before the lock was there to be seen: looking now closes the gap.
            return bool(ready()) or lock.acquire(timeout=_lock_timeout(timeout))
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


class Wakeup(Notifier):
    """A flag that threads can wait for; has the methods of ``threading.Event``."""

    __slots__ = ("_is_set",)

    def __init__(self) -> None:
        super().__init__()
        self._is_set: bool = False

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
            self._is_set = True
            self._wake()
            raise

    def clear(self) -> None:
        """Reset the flag: who waits from now on blocks. Those already woken stay awake."""
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the flag is set, ``timeout`` seconds at most; tell whether it was set."""
        return self._is_set or self._block(self.is_set, timeout) or self._is_set

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'set' if self._is_set else 'unset'}>"


def _lock_timeout(timeout: float | None) -> float:
    """Return what a lock takes as its timeout: -1 for ever, and no more than it can wait."""
    return -1 if timeout is None else min(max(0.0, timeout), threading.TIMEOUT_MAX)
