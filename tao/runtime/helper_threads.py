"""Work that may hang, on helper threads that nobody has to wait for.

Resolving a name and a function of the application's that makes a connection cannot be interrupted.
So they run on a thread of their own: whoever wants the result waits for it as long as it likes,
then goes on without. A thread that hangs stays behind until what it called returns; how many can is
bounded, and more work than that waits for one of them.

Nothing here waits for a lock that the calling thread may hold already, so all of it may be called
in a signal handler or a finalizer as well.
"""

from __future__ import annotations

import itertools
import select
import socket
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any, Generic, TypeVar

from tao.runtime.threads import spawn

__all__ = ["Bell", "Errand", "Helpers"]

T = TypeVar("T")

# The longest that poll() can wait, in milliseconds.
_POLL_MOST = 2**31 - 1


class _Ends:
    """The two ends of a socket pair, which are closed with the object."""

    __slots__ = ("__weakref__", "near", "rope")

    def __init__(self) -> None:
        self.near, self.rope = socket.socketpair()
        for each in (self.near, self.rope):
            weakref.finalize(self, each.close).atexit = False
            each.setblocking(False)


class Bell:
    """Wakes a thread that waits for sockets.

    `ring` may come from any thread, a signal handler or a finalizer, also after `close`. A thread
    that rings keeps the descriptors until it has, so that it sends nothing by one that is another's
    by now; there is no lock that an exception could leave held.
    """

    __slots__ = ("_ends",)

    def __init__(self) -> None:
        self._ends: _Ends | None = _Ends()

    def ring(self) -> None:
        """Wake who waits, or who does so next."""
        ends = self._ends
        if ends is not None:
            try:
                ends.rope.send(b"\0")
            except OSError:
                pass  # it rings already, or this is a child process

    def wait(self, descriptors: Iterable[int], until: float) -> set[int]:
        """Wait until one of the descriptors is writable, it rings, or a time has come.

        Whoever rings sets first what is to be told, so look at that after this.

        Args:
            descriptors: of sockets.
            until: the time, monotonic.

        Returns:
            those descriptors at which something has happened.
        """
        ends = self._ends
        if ends is None:
            return set()
        poll = select.poll()
        poll.register(ends.near, select.POLLIN)
        for descriptor in descriptors:
            poll.register(descriptor, select.POLLOUT)
        milliseconds = max(0.0, until - monotonic()) * 1000
        ready = {descriptor for descriptor, _ in poll.poll(min(milliseconds, _POLL_MOST))}
        if ends.near.fileno() in ready:
            ready.remove(ends.near.fileno())
            ends.near.recv(4096)
        return ready

    def close(self) -> None:
        """Free the descriptors, as soon as nobody rings any more."""
        self._ends = None

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
        self._runners: dict[str, int] = {}  # under one key, the thread that runs it: the first
        #: Set at the end, after the two that follow.
        self.done: bool = False
        self.result: T | None = None
        self.error: BaseException | None = None

    @property
    def begun(self) -> bool:
        """Whether a thread has come to it."""
        return bool(self._runners)

    @property
    def begun_here(self) -> bool:
        """Whether that is the calling thread."""
        return self._runners.get("thread") == threading.get_ident()

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
        me = threading.get_ident()
        if self._runners.setdefault("thread", me) != me:
            return
        if self._discard is not None and not self._waiting:
            return
        try:
            self.result = self._work()
        except BaseException as error:
            self.error = error
        self._finish()

    def fail(self, error: BaseException) -> None:
        """Have it end without being done, unless that has been done."""
        if self.result is None:
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
        self._numbers = itertools.count(1)
        # Those that look for errands. Each adds and removes itself, but for one that an exception
        # has ended. Who is interrupted here loses nothing: only threads that live count.
        self._threads: list[threading.Thread] = []
        self._waiting: deque[Errand[Any]] = deque()
        self._unfinished: dict[Errand[Any], None] = {}  # those, and the ones that run

    @property
    def running(self) -> int:
        """How many threads there are."""
        return sum(thread.is_alive() for thread in list(self._threads))

    def submit(self, errand: Errand[Any]) -> None:
        """Have an errand run, as soon as a thread is free; it fails if there can be none."""
        self._unfinished[errand] = None
        self._waiting.append(errand)
        for thread in list(self._threads):
            if thread.ident is not None and not thread.is_alive():
                self._remove(thread)
        if self.running >= self.most:
            return  # whichever is done next looks once more
        name = f"{self._name}-{next(self._numbers)}"
        thread = spawn(self._work, name=name, failed=self._go_on)
        try:
            self._threads.append(thread)
            thread.start()
        except RuntimeError as error:
            self._remove(thread)
            self._fail(errand, error.with_traceback(None))
        except BaseException:
            self._remove(thread)
            self._fail(errand, RuntimeError("it was interrupted"))
            raise

    def _fail(self, errand: Errand[Any], error: BaseException) -> None:
        errand.fail(error)
        self._unfinished.pop(errand, None)

    def _go_on(self, error: BaseException) -> None:
        """Go on as a thread that an exception from outside has struck between two errands."""
        for errand in list(self._unfinished):
            if errand.begun_here and not errand.done:
                errand.fail(error)
            if errand.done:
                self._unfinished.pop(errand, None)
            elif not errand.begun:
                self._waiting.append(errand)  # again, maybe; the first who comes to it runs it
        self._threads.append(threading.current_thread())
        self._work()

    def _work(self) -> None:
        thread = threading.current_thread()
        while True:
            while (errand := self._next()) is not None:
                errand.run()
                self._unfinished.pop(errand, None)
            # In this order: what is submitted before is seen below, and what is submitted after
            # starts another thread.
            self._remove(thread)
            if not self._waiting:
                return
            self._threads.append(thread)

    def _remove(self, thread: threading.Thread) -> None:
        while thread in self._threads:
            try:
                self._threads.remove(thread)
            except ValueError:
                pass

    def _next(self) -> Errand[Any] | None:
        while True:
            try:
                errand = self._waiting.popleft()
            except IndexError:
                return None
            if not errand.done:
                return errand
