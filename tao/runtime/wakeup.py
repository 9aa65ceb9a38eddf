"""Events and conditions that may be used from signal handlers and finalizers.

``threading.Event`` and ``Condition`` contain a lock that is not reentrant. A signal handler, or a
finalizer run by the garbage collector, deadlocks if it sets an event while the thread that it
interrupts is inside ``set`` or ``wait`` of the same event. Here no lock is shared: each waiting
thread makes its own lock and blocks on it, and the thread that wakes it releases that lock.

Guarantees:

- Every method may be called from any thread, signal handler or finalizer, even during another call
  on the same object. Only the methods named ``wait`` block.
- If an exception is raised inside a call, between any two bytecodes (by a signal handler, or by
  ``PyThreadState_SetAsyncExc``), no thread keeps waiting for an event that has happened.
- Locks exist only while threads wait, so an object that is never waited for costs 100 bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from tao.runtime.deadline import Deadline

__all__ = ["ListenedNotifier", "Notifier", "Waitable", "Wakeup"]


class Waitable(Protocol):
    """An object that can be waited for: a `Wakeup` or a ``threading.Event``."""

    def is_set(self) -> bool: ...
    def wait(self, timeout: float | None = None) -> bool: ...


class Notifier:
    """Lets threads wait for a condition, like ``threading.Condition`` but without a lock.

    Change the state that threads wait for first, then call `notify_all`.
    """

    __slots__ = ("waiters",)

    def __init__(self) -> None:
        #: The locks on which threads block. Each thread adds and removes its own lock; both are
        #: single steps of the interpreter, as is the copy made by `notify_all`.
        self.waiters: list[threading.Lock] = []

    @property
    def waiting(self) -> int:
        """How many threads wait."""
        return len(self.waiters)

    def notify_all(self) -> None:
        """Make all waiting threads check their condition again."""
        if self.waiters:
            try:
                self._wake()
            except BaseException:
                self._wake()  # waking twice is harmless, a missed wake-up is not
                raise

    def wait_for(self, condition: Callable[[], object], timeout: float | None = None) -> bool:
        """Wait up to ``timeout`` seconds until ``condition()`` is true; return whether it was.

        The condition is checked first, and after each `notify_all`, without a lock.
        """
        deadline = Deadline(timeout)
        while not condition():
            if not self._block(condition, deadline.remaining()):
                return bool(condition())
        return True

    def _block(self, ready: Callable[[], object], timeout: float | None) -> bool:
        """Wait to be woken; return True if that happened in time or ``ready()`` was true before."""
        lock = threading.Lock()
        lock.acquire()
        try:
            self.waiters.append(lock)
            # Check again: the state may have changed before the lock was visible to `_wake`.
            return bool(ready()) or lock.acquire(timeout=_lock_timeout(timeout))
        finally:
            try:
                self.waiters.remove(lock)
            except ValueError:
                pass  # not added because of an interruption, or already removed by `_wake`

    def _wake(self) -> None:
        for lock in list(self.waiters):
            try:
                lock.release()
                # The waiting thread removes it too, unless it was interrupted.
                self.waiters.remove(lock)
            except (RuntimeError, ValueError):
                pass  # another thread has released or removed it already


class ListenedNotifier(Notifier):
    """A notifier that can also call a function."""

    __slots__ = ("listener",)

    def __init__(self) -> None:
        super().__init__()
        #: Called by `notify_all`, after the threads are woken; None: nothing is. Set before use.
        self.listener: Callable[[], object] | None = None

    def notify_all(self) -> None:
        if self.waiters:
            super().notify_all()
        if (listener := self.listener) is not None:
            listener()


class Wakeup(Notifier):
    """A flag that threads can wait for, with the methods of ``threading.Event``."""

    __slots__ = ("_is_set",)

    def __init__(self) -> None:
        super().__init__()
        self._is_set: bool = False

    def is_set(self) -> bool:
        """Return the flag."""
        return self._is_set

    def set(self) -> None:
        """Set the flag and wake all waiting threads."""
        try:
            self._is_set = True
            if self.waiters:
                self._wake()
        except BaseException:
            self._is_set = True
            self._wake()
            raise

    def clear(self) -> None:
        """Reset the flag. Later waits block; threads already woken stay awake."""
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        """Wait up to ``timeout`` seconds until the flag is set; return whether it is set."""
        return self._is_set or self._block(self.is_set, timeout) or self._is_set

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'set' if self._is_set else 'unset'}>"


def _lock_timeout(timeout: float | None) -> float:
    """Return the timeout for a lock: -1 for None, and at most what a lock accepts."""
    return -1 if timeout is None else min(max(0.0, timeout), threading.TIMEOUT_MAX)
