"""Helper threads for calls that may hang.

Name resolution, and an application's function that makes a connection, cannot be interrupted. So
they run on a helper thread, and the thread that needs the result stops waiting when it chooses. A
hanging helper thread remains until its call returns. The number of helper threads is bounded;
further tasks wait until one is free.

Nothing here waits for a lock that the calling thread may already hold, so all of it may be called
from a signal handler or a finalizer.
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

from tao.runtime.threads import is_over, spawn

__all__ = ["Bell", "HelperTask", "HelperThreads"]

T = TypeVar("T")

# The longest that poll() can wait, in milliseconds.
_POLL_MOST = 2**31 - 1


class _Ends:
    """The two ends of a socket pair, closed when the object is freed."""

    __slots__ = ("__weakref__", "far", "near")

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        for each in (self.near, self.far):
            weakref.finalize(self, each.close).atexit = False
            each.setblocking(False)


class Bell:
    """Wakes a thread that polls sockets.

    `ring` may be called from any thread, signal handler or finalizer, even after `close`. A thread
    that calls it keeps the descriptors open meanwhile, so it cannot write to one that was closed
    and reused. There is no lock that an exception could leave held.
    """

    __slots__ = ("_ends",)

    def __init__(self) -> None:
        self._ends: _Ends | None = _Ends()

    def ring(self) -> None:
        """Wake the waiting thread, or make the next wait return at once."""
        ends = self._ends
        if ends is not None:
            try:
                ends.far.send(b"\0")
            except OSError:
                pass  # the buffer is full, so it rings already; or this is a child process

    def wait(self, descriptors: Iterable[int], until: float) -> set[int]:
        """Wait until a descriptor is writable, the bell rings, or the time ``until`` has come.

        Callers of `ring` first change the state that they report, so check that state afterwards.

        Args:
            descriptors: of sockets.
            until: in seconds of ``time.monotonic()``.

        Returns:
            the descriptors that are ready.
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
        """Free the descriptors, once no thread is inside `ring`."""
        self._ends = None

    def __enter__(self) -> Bell:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class HelperTask(Generic[T]):
    """One task for a helper thread, with its result.

    Args:
        work: the function to call.
        discard: called with a result that no thread waits for any more; the task is skipped if no
            thread waits. None: the work is done and its result kept in any case.
    """

    def __init__(self, work: Callable[[], T], discard: Callable[[T], object] | None = None) -> None:
        self._work = work
        self._discard = discard
        self._waiting: set[Bell] = set()
        self.since: float = monotonic()  #: when it was made
        self._runners: dict[str, int] = {}  # under one key, the ident of the thread that runs it
        #: Set last, after the two attributes below.
        self.done: bool = False
        self.result: T | None = None
        self.error: BaseException | None = None

    @property
    def begun(self) -> bool:
        """Whether a thread has begun to run it."""
        return bool(self._runners)

    @property
    def begun_here(self) -> bool:
        """Whether the calling thread has begun to run it."""
        return self._runners.get("thread") == threading.get_ident()

    def join(self, bell: Bell) -> None:
        """Ring ``bell`` when the task is done; check `done` after this call."""
        self._waiting.add(bell)

    def take(self, bell: Bell) -> T | None:
        """Return the result of a task that is done, for the caller to own; None if it failed.

        `error` has the exception.
        """
        result = self.result
        if self._discard is not None:
            self.result = None
        self._waiting.discard(bell)
        return result

    def leave(self, bell: Bell) -> None:
        """Stop waiting for the task, done or not."""
        self._waiting.discard(bell)
        if self.done:
            self._discard_unwanted()

    def run(self) -> None:
        """Do the work, unless it is not wanted any more. Called by a helper thread."""
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
        """Finish with an error, unless there is a result."""
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


class HelperThreads:
    """A bounded number of threads that run tasks; there are none while there is no work.

    Args:
        name: of the threads; a number is appended.
        most: how many threads may run at once.
    """

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self.most: int = most
        self._numbers = itertools.count(1)
        # The threads that look for tasks. Each adds and removes itself. One that was ended by an
        # exception may be left in here, so only threads that are alive count.
        self._threads: list[threading.Thread] = []
        self._waiting: deque[HelperTask[Any]] = deque()
        self._unfinished: dict[HelperTask[Any], None] = {}  # waiting and running tasks

    @property
    def running(self) -> int:
        """How many threads are running."""
        return sum(thread.is_alive() for thread in list(self._threads))

    def submit(self, task: HelperTask[Any]) -> None:
        """Run a task as soon as a thread is free; it fails if no thread can be started."""
        self._unfinished[task] = None
        self._waiting.append(task)
        for thread in list(self._threads):
            if is_over(thread):
                self._remove(thread)
        if self.running >= self.most:
            return  # the next thread that is free takes it
        name = f"{self._name}-{next(self._numbers)}"
        thread = spawn(self._work, name=name, failed=self._go_on)
        try:
            self._threads.append(thread)
            thread.start()
        except BaseException as error:
            if not thread.withdraw():
                raise  # it has begun, and does the task
            self._remove(thread)
            if not isinstance(error, RuntimeError):
                self._fail(task, RuntimeError("it was interrupted"))
                raise
            self._fail(task, error.with_traceback(None))

    def _fail(self, task: HelperTask[Any], error: BaseException) -> None:
        task.fail(error)
        self._unfinished.pop(task, None)

    def _go_on(self, error: BaseException) -> None:
        """Continue on a thread that was interrupted by an asynchronous exception."""
        for task in list(self._unfinished):
            if task.begun_here and not task.done:
                task.fail(error)
            if task.done:
                self._unfinished.pop(task, None)
            elif not task.begun:
                self._waiting.append(task)  # maybe a second time; the first thread runs it
        self._threads.append(threading.current_thread())
        self._work()

    def _work(self) -> None:
        thread = threading.current_thread()
        while True:
            while (task := self._next()) is not None:
                task.run()
                self._unfinished.pop(task, None)
            # In this order: a task submitted before the removal is seen below, and one submitted
            # after it starts another thread.
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

    def _next(self) -> HelperTask[Any] | None:
        while True:
            try:
                task = self._waiting.popleft()
            except IndexError:
                return None
            if not task.done:
                return task
