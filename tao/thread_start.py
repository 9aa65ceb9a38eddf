"""Threads whose start cannot hang, and whose end is not told before it comes.

``threading.Thread.start`` waits until the new thread says that it runs. If that dies before, as it
does where memory is short, nobody ever says so, and the starting thread waits for ever
(python/cpython #140746). A listener would hang there with a connection in its hands.

Here the wait has an end, after which the start has failed, and the work is withdrawn: a thread that
comes up later, on a machine that was suspended, say, does nothing.

And before CPython 3.13 a thread counts as ended once an exception, Ctrl-C say, has interrupted
whoever waits for it in ``join``. Here that is waited for elsewhere.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from tao.deadline import Deadline
from tao.greenlets import start_thread
from tao.late_threads import LateThread
from tao.wakeup import Wakeup

__all__ = ["StartableThread"]

# How long a thread may take to come up, in seconds; how long to be gone when all is done; and how
# often to look whether it has died before it could say so.
_PATIENCE, _MOMENT, _LOOK = 5.0, 0.1, 1.0


class StartableThread(LateThread):
    """A daemon thread that runs ``target(*args)``.

    Args:
        target: what to run, see `threading.Thread`.
        args: its arguments.
        name: the thread's.
    """

    def __init__(self, target: Callable[..., object], args: tuple[Any, ...], name: str) -> None:
        super().__init__(name=name, daemon=True)
        # Whoever takes it out, in one step, runs it or has withdrawn it.
        self._work: list[tuple[Callable[..., object], tuple[Any, ...]]] = [(target, args)]
        self._done = Wakeup()  # set when the target has returned

    def run(self) -> None:
        try:
            target, args = self._work.pop()
        except IndexError:
            return  # withdrawn
        try:
            target(*args)
        finally:
            self._done.set()

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, ``timeout`` seconds at most."""
        deadline = Deadline(timeout)
        if self is not threading.current_thread():
            while self.is_alive() and not self._done.is_set():
                left = deadline.remaining()
                if left == 0:
                    return
                self._done.wait(_LOOK if left is None else min(left, _LOOK))
        left = deadline.remaining()
        super().join(left if left is None else max(left, _MOMENT))

    def start(self) -> None:
        """Start it.

        Raises:
            RuntimeError: it cannot be had, or does not come up in time.
        """
        started: Any = self._started  # type: ignore[attr-defined]
        wait = started.wait
        try:
            started.wait = lambda: wait(_PATIENCE)
        except AttributeError:  # it is another kind of event, as under gevent
            start_thread(super().start)
            return
        try:
            super().start()
        finally:
            del started.wait
        if not started.is_set() and self._withdraw():
            raise RuntimeError("can't start new thread: it did not come up")

    def _withdraw(self) -> bool:
        """Take the work away; False if the thread has it already."""
        try:
            self._work.pop()
        except IndexError:
            return False
        return True
