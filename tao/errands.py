"""Work that may hang, on helper threads that nobody has to wait for.

Resolving a name and a function of the application's that makes a connection cannot be interrupted.
So they run on a thread of their own: whoever wants the result waits for it as long as it likes,
then goes on without. A thread that hangs stays behind until what it called returns; how many can is
bounded, and more work than that waits for one of them.

Nothing here waits for a lock that the calling thread may hold already, so all of it may be called
in a signal handler or a finalizer as well.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, Generic, TypeVar

from tao.threads import spawn

__all__ = ["Bell", "Errand", "Helpers"]

T = TypeVar("T")


class Bell:
    """A descriptor that becomes readable when `ring` is called, to end a ``poll``.

    The thread that polls makes and closes it, by a ``with`` block. `ring` may come from any thread,
    a signal handler or a finalizer, also after `close`.
    """

    __slots__ = ("_lock", "_reader", "_writer")

    def __init__(self) -> None:
        # Guards _writer, so that nothing is written to a descriptor that is someone else's by now.
        # Reentrant, as a signal handler may call `ring` while this thread is in it.
        self._lock = threading.RLock()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def fileno(self) -> int:
        """Return what to poll."""
        return self._reader

    def ring(self) -> None:
        """Wake who polls, or who does so next."""
        with self._lock:
            if self._writer >= 0:
                try:
                    os.write(self._writer, b"\0")
                except BlockingIOError:
                    pass  # it rings already

    def clear(self) -> None:
        """Have the next ``poll`` wait again. What was to be told must be looked at after this."""
        try:
            os.read(self._reader, 4096)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Free the descriptors."""
        with self._lock:
            descriptors = self._reader, self._writer
            self._reader = self._writer = -1
        for each in descriptors:
            if each >= 0:
                os.close(each)

    def forked(self) -> None:
        """In a child process, where nobody polls any more: close."""
        self._lock = threading.RLock()  # who held it is not there
        self.close()

    def __enter__(self) -> Bell:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Errand(Generic[T]):
    """One piece of work, for whoever waits for it.

    Args:
        work: what is to be done.
        discard: given a result that nobody waits for any more; None: whatever the result, it is
            kept, and the work is done although nobody waits.
    """

    def __init__(self, work: Callable[[], T], discard: Callable[[T], object] | None = None) -> None:
        self._work = work
        self._discard = discard
        self._waiting: set[Bell] = set()
        self.since: float = monotonic()  #: when it was wanted first
        self.begun: bool = False  #: whether a thread has come to it
        #: Set at the end, after the two that follow.
        self.done: bool = False
        self.result: T | None = None
        self.error: BaseException | None = None

    def join(self, bell: Bell) -> None:
        """Have ``bell`` ring when it is done; look at `done` after this."""
        self._waiting.add(bell)

    def take(self, bell: Bell) -> T | None:
        """Return the result of what is done, which is the caller's from now on; None if it failed.

        What it raised is in `error`.
        """
        result = self.result
        if self._discard is not None:
            self.result = None
        self._waiting.discard(bell)
        return result

    def leave(self, bell: Bell) -> None:
        """Wait no more, whether it is done or not."""
        self._waiting.discard(bell)
        if self.done:
            self._discard_unwanted()

    def run(self) -> None:
        """Do the work, unless nobody wants it any more. Called by a helper thread."""
        self.begun = True
        if self._discard is not None and not self._waiting:
            return
        try:
            self.result = self._work()
        except BaseException as error:
            self.error = error
        self._finish()

    def fail(self, error: BaseException) -> None:
        """Have it end without being done."""
        self.error = error
        self._finish()

    def _finish(self) -> None:
        self.done = True
        waiting = list(self._waiting)
        for bell in waiting:
            bell.ring()
        if not waiting:
            self._discard_unwanted()

    def _discard_unwanted(self) -> None:
        if self._discard is not None:
            result, self.result = self.result, None
            if result is not None:
                self._discard(result)


class Helpers:
    """Threads that run errands, at most so many at once; there are none while there is no work.

    Args:
        name: of the threads.
        most: how many there may be.
    """

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self.most: int = most
        self._free: deque[int] = deque(range(most, 0, -1))  # numbers of threads that do not run
        self._waiting: deque[Errand[Any]] = deque()

    def submit(self, errand: Errand[Any]) -> None:
        """Have an errand run, as soon as a thread is free; it fails if there can be none."""
        self._waiting.append(errand)
        try:
            number = self._free.pop()
        except IndexError:
            return  # whichever thread is done next looks once more
        try:
            spawn(self._work, number, name=f"{self._name}-{number}").start()
        except RuntimeError as error:
            self._free.append(number)
            errand.fail(error)
        except BaseException:
            self._free.append(number)
            raise

    def _work(self, number: int) -> None:
        while True:
            try:
                while (errand := self._next()) is not None:
                    errand.run()
            finally:
                # In this order: what is submitted before finds no thread free, and is seen below;
                # what is submitted after starts one.
                self._free.append(number)
            if not self._waiting:
                return
            try:
                number = self._free.pop()
            except IndexError:
                return

    def _next(self) -> Errand[Any] | None:
        while True:
            try:
                errand = self._waiting.popleft()
            except IndexError:
                return None
            if not errand.done:
                return errand
