"""Threads that take turns: one waits for the next connection, the others serve theirs.

To hand a connection over from a thread that accepts to one that serves takes two changes of threads
before the first byte is read, and to start a thread takes longer still. So whoever accepts a
connection serves it, and lets another thread wait for the next. This is Leader/Followers (Schmidt
et al., Pattern-Oriented Software Architecture 2, 2000): the leader waits for a connection, the
followers wait for the lead. A thread that has seen its connection to the end follows again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Set

from tao.log import logger
from tao.threads import Deadline, Joinable, gather, spawn

__all__ = ["Run", "Turns"]

# A thread follows for so long, in seconds, unless it is the only one; and so many do at most.
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
        self.thread = thread = threading.current_thread()
        thread.name = self.name
        try:
            self._target()
        except BaseException:
            logger.exception("thread {} died", thread.name)
        finally:
            self.thread = None
            self._over.release()


class Turns:
    """A leader and its followers. Any thread may call `start`, `stop` and `join`.

    Args:
        find: waits for something to do and returns it, or None at the end. Called by the leader,
            and so by one thread at a time. Before it takes something that it will return, it has to
            call `provide`.
        name: what the leader is called.
        cpus: which the threads are pinned to, or None.
    """

    def __init__(self, find: Callable[[], Run | None], name: str, cpus: Set[int] | None) -> None:
        self._find = find
        self._name: str = name
        self._cpus = cpus
        # Held by the leader; it is passed on, and free only for a moment.
        self._lead = threading.Lock()
        self._lead.acquire()
        self._over: bool = False  # set by the leader
        # Guards the fields below.
        self._lock = threading.Lock()
        self._all: set[threading.Thread] = set()
        self._following: int = 0  # how many wait for the lead, without one who is about to get it

    def start(self) -> None:
        """Start the first thread.

        Raises:
            RuntimeError: it cannot be had.
        """
        try:
            self.provide()
        except BaseException:
            self._over = True
            self._lead.release()
            raise
        self._pass_on()

    def provide(self) -> None:
        """See to it that somebody follows. Called by the leader.

        Raises:
            RuntimeError: nobody does, and no thread can be had.
        """
        with self._lock:
            if self._following:
                return  # the last one stays until it gets the lead
        thread = spawn(self._take_turns, name=self._name, cpus=self._cpus)
        with self._lock:
            self._all.add(thread)
            self._following += 1
        try:
            thread.start()
        except BaseException:
            with self._lock:
                self._all.discard(thread)
                self._following -= 1
            raise

    def join(self, deadline: Deadline, stuck: Iterable[Joinable] = ()) -> list[threading.Thread]:
        """Wait for all threads, when `find` has returned None or is about to.

        Args:
            stuck: threads, or runs on them, that are not waited for.

        Returns:
            the other threads that did not end in time.
        """
        with self._lock:
            threads = list(self._all)
        idents = {each.ident for each in stuck}
        return gather([thread for thread in threads if thread.ident not in idents], deadline)

    def _take_turns(self) -> None:
        """A thread, which follows at first."""
        thread = threading.current_thread()
        self._lead.acquire()
        while True:
            thread.name = self._name
            run = None if self._over else self._lead_once()
            if run is None:
                self._over = True
                self._lead.release()  # and so does everyone who gets it
                break
            self._pass_on()
            run.perform()
            run = None  # and with it goes what it holds, a connection
            thread.name = "tao-spare"
            if not self._follow():
                break
        with self._lock:
            self._all.discard(thread)

    def _lead_once(self) -> Run | None:
        try:
            return self._find()
        except BaseException:
            logger.exception("{} ends", self._name)
            return None

    def _pass_on(self) -> None:
        """Give the lead to somebody who follows."""
        with self._lock:
            self._following -= 1
        self._lead.release()

    def _follow(self) -> bool:
        """Wait for the lead; False if there are enough who do."""
        with self._lock:
            if self._over or self._following >= _MOST:
                return False
            self._following += 1
        if not self._lead.acquire(timeout=_PATIENCE):
            with self._lock:
                if self._following > 1:
                    self._following -= 1
                    return False
            self._lead.acquire()
        return True
