"""Threads that serve one connection after another.

To start a thread, and to free its stack at the end, takes as long as everything else in the life of
a short connection. So a thread that has seen a connection to its end waits for a moment whether
there is another to serve, instead of ending.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Set

from tao.log import logger
from tao.threads import Deadline, Joinable, gather, spawn

__all__ = ["Run", "Spares"]

# For how long a thread waits for another connection, in seconds, and how many do at most.
_PATIENCE, _MOST = 1.0, 64


class Run:
    """One run of a function on some thread: to who waits for its end, as good as a thread."""

    __slots__ = ("_over", "_target", "name", "thread")

    def __init__(self, target: Callable[[], object], name: str) -> None:
        self._target = target
        self.name: str = name
        self.thread: threading.Thread | None = None  # while it runs
        # Held until the run is over.
        self._over = threading.Lock()
        self._over.acquire()

    @property
    def ident(self) -> int | None:
        """The number of the thread it runs on."""
        thread = self.thread
        return None if thread is None else thread.ident

    def is_alive(self) -> bool:
        """Whether it has begun, and not ended."""
        return self.thread is not None

    def join(self, timeout: float | None = None) -> None:
        """Wait until it is over, ``timeout`` seconds at most."""
        if self._over.acquire(timeout=-1 if timeout is None else timeout):
            self._over.release()

    def perform(self) -> None:
        """Do it, on the calling thread."""
        thread = threading.current_thread()
        thread.name = self.name
        try:
            self._target()
        except BaseException:
            logger.exception("thread {} died", thread.name)
        finally:
            self.thread = None
            self._over.release()


class _Spare:
    """A thread that waits. Its fields are guarded by the lock of its `Spares`."""

    __slots__ = ("run", "thread", "woken")

    def __init__(self) -> None:
        self.run: Run | None = None
        self.thread = threading.current_thread()
        self.woken = threading.Lock()
        self.woken.acquire()


class Spares:
    """The threads of a server that wait for a connection. Any thread may call any method.

    Args:
        cpus: which its threads are pinned to, or None.
    """

    def __init__(self, cpus: Set[int] | None) -> None:
        self._cpus = cpus
        # Guards the fields below.
        self._lock = threading.Lock()
        self._all: set[threading.Thread] = set()
        self._waiting: list[_Spare] = []
        self._stopped: bool = False

    def start(self, run: Run) -> None:
        """Have a spare thread perform a run, or a new one if there is none.

        Raises:
            RuntimeError: no thread could be started; the run will not be performed.
        """
        with self._lock:
            spare = self._waiting.pop() if self._waiting else None
            if spare is not None:
                run.thread = spare.thread
                spare.run = run
        if spare is not None:
            spare.woken.release()
            return
        thread = spawn(self._serve, run, name=run.name, cpus=self._cpus)
        run.thread = thread
        with self._lock:
            self._all.add(thread)
        try:
            thread.start()
        except BaseException:
            run.thread = None
            with self._lock:
                self._all.discard(thread)
            raise

    def stop(self, deadline: Deadline, stuck: Iterable[Joinable] = ()) -> list[threading.Thread]:
        """End the threads that wait, and the others once their run is over.

        Args:
            deadline: for how long to wait for that.
            stuck: threads, or runs on them, that are not waited for.

        Returns:
            the other threads that did not end in time.
        """
        with self._lock:
            self._stopped = True
            waiting, self._waiting = self._waiting, []
            threads = list(self._all)
        for spare in waiting:
            spare.woken.release()
        idents = {each.ident for each in stuck}
        return gather([thread for thread in threads if thread.ident not in idents], deadline)

    def _serve(self, first: Run) -> None:
        """A thread, from its first run on."""
        run: Run | None = first
        spare = _Spare()
        while run is not None:
            spare.run = None
            run.perform()
            run = self._next(spare)
        with self._lock:
            self._all.discard(spare.thread)

    def _next(self, spare: _Spare) -> Run | None:
        """Wait for another run; None if none comes."""
        spare.thread.name = "tao-spare"
        with self._lock:
            if self._stopped or len(self._waiting) >= _MOST:
                return None
            self._waiting.append(spare)
        if not spare.woken.acquire(timeout=_PATIENCE):
            with self._lock:
                if spare in self._waiting:
                    self._waiting.remove(spare)
                    return None
            spare.woken.acquire()  # it was just chosen, and is about to be woken
        return spare.run
