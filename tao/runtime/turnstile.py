"""A turnstile: where a crowd of threads comes at once, one passes at a time.

A thread that waits for the interpreter lock wakes up every 5 milliseconds to ask for it
(``sys.getswitchinterval()``). If a thousand threads want it at once, because a thousand peers have
left, the processors do little else, and each thread is interrupted long before it is done. Threads
that wait for any other lock sleep. So those of a crowd wait here, and few compete for the
interpreter lock.

Nothing but speed depends on it: if the thread that is inside does not leave, because it is blocked
or was interrupted, the others go on without it after a moment.
"""

from __future__ import annotations

import threading

from tao.runtime.forks import renew_after_fork
from tao.runtime.greenlets import is_patched
from tao.runtime.threads import has_interpreter_lock

__all__ = ["Turnstile", "departures"]

# How much longer a thread waits than the one before it, in seconds, lest many wake up at once.
_LATER = 0.02


class Turnstile:
    """Lets threads of a crowd pass one at a time. Any thread may call any method.

    Args:
        few: so many threads are no crowd: they do not wait.
        moment: how long the first one waits while none passes, in seconds.
    """

    __slots__ = (
        "__weakref__", "_inside", "_needed", "_owner", "_passed", "_there", "few", "moment",
    )  # fmt: skip

    def __init__(self, few: int = 4, moment: float = 0.5) -> None:
        self.few = few
        self.moment = moment
        # By their idents, the threads that are inside or wait. Changed in single steps.
        self._there: dict[int, None] = {}
        # Held by a thread that is inside and had to wait, or on behalf of one that was interrupted
        # there. Any thread may release it.
        self._inside = threading.Lock()
        self._owner: int | None = None  # the ident of that thread. Set while it has the lock
        self._passed: int = 0  # how many had the lock; some may not be counted
        self._needed: bool = has_interpreter_lock() and not is_patched()
        renew_after_fork(self, Turnstile._renew)

    def _renew(self, reason: str) -> None:
        """In a child process: no thread is here."""
        self._inside, self._owner = threading.Lock(), None
        self._there.clear()

    def enter(self) -> None:
        """Go inside, after waiting while others of a crowd pass. Call `leave` in a ``finally``."""
        if not self._needed:
            return
        me = threading.get_ident()
        self._there[me] = None
        if len(self._there) > self.few:
            self._wait()
            self._owner = me
            self._passed += 1

    def _wait(self) -> None:
        passed = -1
        while not self._inside.acquire(timeout=self.moment + _LATER * len(self._there)):
            before, passed = passed, self._passed
            if before == passed:
                self._open()

    def leave(self) -> None:
        """Let the next thread in, if the calling one is inside."""
        me = threading.get_ident()
        self._there.pop(me, None)
        if self._owner == me:
            self._owner = None
            self._open()

    def _open(self) -> None:
        try:
            self._inside.release()
        except RuntimeError:
            pass  # another thread has just done so


#: Where the threads pass whose connections have ended: one for all, as is the interpreter lock.
departures = Turnstile()
