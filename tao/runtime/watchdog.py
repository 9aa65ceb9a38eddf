"""A watchdog timer: it calls a function once it has not been kicked for a while.

A thread that looks at intervals would do as well, but it would take the interpreter lock each time,
also from a thread that is doing fine; and while it waits for the lock, each call that releases it
has to wake a thread. Here the thread sleeps in the kernel's timer, which a kick sets anew without
waking anybody.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Callable, Set
from io import FileIO
from threading import Thread, current_thread
from time import CLOCK_MONOTONIC
from typing import Any, Final

from tao.runtime.threads import spawn

__all__ = ["Watchdog", "new_watchdog"]

# The kernel's struct itimerspec: an interval, which is none, and a time from now, in seconds and
# nanoseconds.
_SPEC: Final = struct.Struct("@llll")
# What wakes the thread at once.
_AT_ONCE: Final = _SPEC.pack(0, 0, 0, 1)


def _timer_calls() -> tuple[Any, Any] | None:
    """Return the functions of the C library that make and set a timer, if it has them."""
    if not sys.platform.startswith("linux") or struct.calcsize("@l") < 8:
        return None
    try:
        library = ctypes.PyDLL(None)  # keeps the interpreter lock: neither function waits
        return library.timerfd_create, library.timerfd_settime
    except (AttributeError, OSError, TypeError):
        return None


_calls = _timer_calls()


class Watchdog:
    """Calls a function on a thread of its own; see `new_watchdog`.

    Args:
        name: of the thread.
        timeout: seconds after the last kick.
        bark: what is called; it does not raise. Then it waits for the next kick.
        cpus: the processors that the thread may run on; None: any.

    Raises:
        OSError: there is no descriptor for the timer.
    """

    def __init__(
        self, name: str, timeout: float, bark: Callable[[], object], cpus: Set[int] | None = None
    ) -> None:
        assert _calls is not None
        create, self._set = _calls
        self._name, self._bark, self._cpus = name, bark, cpus
        self._after = _SPEC.pack(0, 0, *divmod(int(timeout * 1e9), 1_000_000_000))
        self._stopped: bool = False
        # The descriptor becomes a file in the step that makes it: so none is lost.
        try:
            (self._timer,) = map(FileIO, map(create, [CLOCK_MONOTONIC], [os.O_CLOEXEC]))
        except ValueError as error:
            raise OSError("there is no descriptor for another timer") from error
        self._descriptor: int = self._timer.fileno()
        # Under one key, the thread that runs this; the first one counts.
        self._runner: dict[str, Thread] = {}
        #: The thread that was started last.
        self.thread: Thread | None = None

    def start(self) -> None:
        """Begin, unless that is done; the first kick sets the timer.

        It may be called again if that was impossible, or if an exception has interrupted it.

        Raises:
            RuntimeError: no thread can be started.
        """
        if not self._runner:
            self.thread = spawn(self._run, name=self._name, cpus=self._cpus, failed=self._run)
            self.thread.start()

    def kick(self) -> None:
        """Begin the time again. One thread at a time may call it; after the end it does nothing."""
        self._set(self._descriptor, 0, self._after, None)

    def stop(self) -> None:
        """Have the thread end. Any thread may call it, again too, and whether it was started."""
        self._stopped = True
        self._set(self._descriptor, 0, _AT_ONCE, None)
        if not self._runner:  # nor will one come that does not see that it is stopped
            self.close()

    def close(self) -> None:
        """Free the descriptor, if there is no thread: it was not started, or this is a child."""
        self._stopped = True
        self._descriptor = -1
        self._timer.close()

    def _run(self, interrupted: BaseException | None = None) -> None:
        thread = current_thread()
        if self._runner.setdefault("thread", thread) is not thread:
            return
        self.thread = thread
        if interrupted is not None and not self._stopped:
            self._bark()  # it may have been due
        while not self._stopped:
            os.read(self._descriptor, 8)
            if not self._stopped:
                self._bark()
        self.close()


def new_watchdog(
    name: str, timeout: float, bark: Callable[[], object], cpus: Set[int] | None = None
) -> Watchdog | None:
    """Return a `Watchdog`, or None where there are no such timers."""
    return None if _calls is None else Watchdog(name, timeout, bark, cpus)
