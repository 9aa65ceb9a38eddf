"""Threads that start completely or not at all, and with a ``join`` that waits for their very end.

``threading.Thread.start`` waits until the new thread reports that it runs. If the thread dies
before that, for lack of memory, the starting thread waits for ever (python/cpython #140746), and a
listener would hang with an accepted connection. A thread that has reported may still be interrupted
by an exception before it begins its work.

Guarantees:

- The work is claimed in one step: by the new thread, which does it, or by a ``start`` that failed
  or was interrupted; then the work is not done. When ``start`` returns, the thread has claimed it.
- ``failed`` is called with any exception that the work raises, or that keeps a thread from doing
  work that it has claimed, at any bytecode. Only an uninterrupted series of exceptions prevents it,
  in which none comes more than a hundredth of a second after the one before it.
- An interrupted ``start`` does not wait for the new thread, and leaves no trace of it. The thread
  may have begun all the same: whoever lists threads asks `StartableThread.withdraw` whether to
  forget it, or whether it removes itself.
- Before CPython 3.13 a thread counts as ended once an exception, such as Ctrl-C, has interrupted
  ``join``. So this ``join`` waits for an event of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

from tao.runtime.deadline import Deadline
from tao.runtime.greenlets import in_event_loop, start_thread
from tao.runtime.native_threads import LateThread
from tao.runtime.wakeup import Wakeup

__all__ = ["StartableThread"]

# In seconds: how long a thread may take to start; how long to end after its work; how often to
# check whether it has died without a report, and how often while it starts.
_PATIENCE, _MOMENT, _LOOK, _LOOK_AT_BIRTH = 5.0, 0.1, 1.0, 0.05
# How many exceptions end the thread if they come in a series, as ``failed`` may be interrupted,
# too; and how many seconds without an exception end a series.
_TRIES, _PAUSE = 20, 0.01
# The claimants of the work, and of the standard library's entry for a thread that starts.
_THREAD, _STARTER = "thread", "starter"


class StartableThread(LateThread):
    """A daemon thread that runs ``target(*args)``.

    Args:
        target: the function to run, as for `threading.Thread`.
        args: its arguments.
        name: of the thread.
        failed: called on the thread with the exception that ``target`` raises or that prevents its
            call, and again if ``failed`` itself raises.
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
        # By what is claimed, the claimant; the first one counts.
        self._takers: dict[str, str] = {}
        self._begun = Wakeup()  # set when the thread has claimed the work
        self._done = Wakeup()  # set when the work is done, or there was none

    def _bootstrap(self) -> None:
        # The standard library needs the entry that it has made for the thread, and an interrupted
        # ``start`` removes it. Without it, there is no work for this thread either.
        if self._take("entry", _THREAD):
            super()._bootstrap()  # type: ignore[misc]

    def run(self) -> None:
        try:
            try:
                self._perform()
            except BaseException as error:
                self._perform(error)  # it has come between two attempts
        finally:
            self._done.set()
            self._work = self._failed = None  # break reference cycles with the owner

    def _perform(self, error: BaseException | None = None) -> None:
        """Do the work unless it was withdrawn; if it fails, call ``failed`` until that succeeds."""
        tries, began = 0, monotonic()
        while tries < _TRIES:
            tries += 1
            try:
                if monotonic() - began > _PAUSE:
                    tries = 1
                began = monotonic()
                if self._take("work", _THREAD):
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

    def _take(self, what: str, taker: str) -> bool:
        """Claim the work or the entry; return whether ``taker`` owns it. May be repeated."""
        return self._takers.setdefault(what, taker) == taker

    def join(self, timeout: float | None = None) -> None:
        """Wait up to ``timeout`` seconds until the thread has ended."""
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
        """Start the thread.

        If an asynchronous exception interrupts this, the work may have begun; it does not begin
        after this has raised.

        Raises:
            RuntimeError: no thread can be started, or it does not begin in time.
        """
        try:
            try:
                if self._start() and self._take("work", _STARTER):
                    raise RuntimeError("can't start new thread: it did not come up")
            except BaseException:
                self.withdraw()
                raise
        except BaseException:
            self.withdraw()  # again, as another exception may have interrupted that
            raise

    def withdraw(self) -> bool:
        """Keep the thread from beginning its work, unless it has begun; may be repeated.

        A thread that starts later nevertheless ends at once. Any thread may call it.

        Returns:
            whether the work is never done; otherwise it is done, or under way.
        """
        withdrawn = self._take("work", _STARTER)
        # If a start is interrupted, the standard library leaves its entry here and lists the thread
        # for ever. A thread that has begun removes its own entry.
        if self._take("entry", _STARTER):
            getattr(threading, "_limbo", {}).pop(self, None)
        return withdrawn

    @property
    def over(self) -> bool:
        """Whether the work is done, or will never be."""
        return self._done.is_set() or self._takers.get("work") == _STARTER

    def _start(self) -> bool:
        """Start the thread; return whether it has had time to claim its work."""
        started: Any = self._started  # type: ignore[attr-defined]
        try:
            try:
                started.wait = self._wait_until_begun
            except AttributeError:  # another kind of event, as under gevent
                start_thread(super().start)
                if in_event_loop():
                    return False  # it begins when the event loop runs next
                self._wait_until_begun()
            else:
                super().start()
            return True
        finally:
            getattr(started, "__dict__", {}).pop("wait", None)

    def _wait_until_begun(self) -> None:
        """Wait until the thread has claimed its work, has died, or has timed out."""
        deadline = Deadline(_PATIENCE)
        while not self._begun.wait(_LOOK_AT_BIRTH):
            if deadline.expired or (self._is_started() and not self.is_alive()):
                return

    def _is_started(self) -> bool:
        return bool(self._started.is_set())  # type: ignore[attr-defined]
