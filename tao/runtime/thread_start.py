"""Threads whose start is complete or has no effect, and whose end is not told before it comes.

``threading.Thread.start`` waits until the new thread says that it runs. If that dies before, as it
does where memory is short, nobody ever says so, and the starting thread waits for ever
(python/cpython #140746). A listener would hang there with a connection in its hands. And one that
has said so may still be struck by an exception before it comes to its work.

Guarantees:

- The work is taken in one step: by the new thread, which does it, or by the start that has failed
  or was interrupted, and then nobody does. A start that returns is one whose work was taken.
- Whatever keeps a thread that has taken its work from doing it, and whatever the work raises, is
  handed to ``failed``, at any bytecode. What cannot be told so has nothing but loops to run through
  between two exceptions.
- Before CPython 3.13 a thread counts as ended once an exception, Ctrl-C say, has interrupted
  whoever waits for it in ``join``. Here that is waited for elsewhere.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from tao.runtime.deadline import Deadline
from tao.runtime.greenlets import in_event_loop, start_thread
from tao.runtime.native_threads import LateThread
from tao.runtime.wakeup import Wakeup

__all__ = ["StartableThread"]

# How long a thread may take to come up, in seconds; how long to be gone when all is done; how often
# to look whether it has died before it could say so, and how often while it comes up.
_PATIENCE, _MOMENT, _LOOK, _LOOK_AT_BIRTH = 5.0, 0.1, 1.0, 0.05
# So many times at most is ``failed`` called, which may be interrupted, too.
_TRIES = 20
# Who takes the work.
_THREAD, _STARTER = "thread", "starter"


class StartableThread(LateThread):
    """A daemon thread that runs ``target(*args)``.

    Args:
        target: what to run, see `threading.Thread`.
        args: its arguments.
        name: the thread's.
        failed: called on the thread with what ``target`` raises, or what keeps it from being
            called, and again if this raises.
    """

    def __init__(
        self,
        target: Callable[..., object],
        args: tuple[Any, ...],
        name: str,
        failed: Callable[[BaseException], object],
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._work: tuple[Callable[..., object], tuple[Any, ...]] | None = target, args
        self._failed: Callable[[BaseException], object] | None = failed
        # Under one key, who has taken the work: the first.
        self._takers: dict[str, str] = {}
        self._begun = Wakeup()  # set when the thread has taken it
        self._done = Wakeup()  # set when that is over, or there was none

    def _bootstrap(self) -> None:
        # It may have been given up, and only be late: what begins takes itself out of this.
        getattr(threading, "_limbo", {}).setdefault(self, self)
        super()._bootstrap()  # type: ignore[misc]

    def run(self) -> None:
        try:
            self._perform()
        finally:
            self._done.set()
            self._work = self._failed = None  # which may refer to who keeps the thread

    def _perform(self) -> None:
        """Do the work, if there is still any; if it fails, say so until that succeeds."""
        error: BaseException | None = None
        for _ in range(_TRIES):
            try:
                if self._take(_THREAD):
                    self._begun.set()
                    self._go_on(error)
                return
            except BaseException as caught:
                error = caught

    def _go_on(self, error: BaseException | None) -> None:
        assert self._work is not None and self._failed is not None
        if error is None:
            target, args = self._work
            target(*args)
        else:
            self._failed(error)

    def _take(self, taker: str) -> bool:
        """Take the work, unless another has taken it before; again, too."""
        return self._takers.setdefault("work", taker) == taker

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

        If an exception comes from outside meanwhile, the work may be done all the same; it is not
        begun after this has raised.

        Raises:
            RuntimeError: it cannot be had, or does not come up in time.
        """
        try:
            if self._start() and self._take(_STARTER):
                raise RuntimeError("can't start new thread: it did not come up")
        except BaseException:
            self._withdraw()
            raise

    def _start(self) -> bool:
        """Start it; tell whether it has had the time to take its work."""
        started: Any = self._started  # type: ignore[attr-defined]
        try:
            try:
                started.wait = self._wait_until_begun
            except AttributeError:  # it is another kind of event, as under gevent
                start_thread(super().start)
                if in_event_loop():
                    return False  # it begins when the loop has its next turn
                self._wait_until_begun()
            else:
                super().start()
            return True
        finally:
            getattr(started, "__dict__", {}).pop("wait", None)

    def _wait_until_begun(self) -> None:
        """Wait until the thread has taken its work, has died, or has had time enough."""
        deadline = Deadline(_PATIENCE)
        while not self._begun.wait(_LOOK_AT_BIRTH):
            if deadline.expired or (self._is_started() and not self.is_alive()):
                return

    def _is_started(self) -> bool:
        return bool(self._started.is_set())  # type: ignore[attr-defined]

    def _withdraw(self) -> None:
        """Take the work away, if the thread has not taken it.

        If that comes up all the same, it ends at once.
        """
        limbo: dict[Any, Any] = getattr(threading, "_limbo", {})
        if self._take(_STARTER) and self in limbo:
            # The standard library leaves there what was interrupted before it began, and lists it
            # among the threads for ever; what has begun takes itself out.
            self._done.wait(_LOOK)
            if not self._is_started():
                limbo.pop(self, None)
