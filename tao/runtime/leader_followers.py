"""Threads that take turns: one waits for the next connection, the others serve theirs.

To hand a connection over from a thread that accepts to one that serves takes two changes of threads
before the first byte is read, and to start a thread takes longer still. So whoever accepts a
connection serves it, and lets another thread wait for the next. This is Leader/Followers (Schmidt
et al., Pattern-Oriented Software Architecture 2, 2000): the leader waits for a connection, the
followers wait for the lead. A thread that has seen its connection to the end follows again.

As long as there is no end, somebody leads, whatever is raised in these threads and wherever:

- Each thread runs a loop that only the end of all, or a surplus of followers, leaves. What is
  raised inside, also by the handling of an error (a log sink, or for lack of memory), goes no
  further.
- The lead is a reentrant lock: a thread that was interrupted while it held it just takes it again.
- A thread takes on something to do only while another one follows, which has said so itself from
  inside its loop; that one was started is not enough.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Set
from functools import partial

from tao.runtime.deadline import Deadline
from tao.runtime.log import logger
from tao.runtime.threads import Joinable, gather, spawn
from tao.runtime.wakeup import Wakeup

__all__ = ["Run", "Turns"]

# A thread follows for so long, in seconds, unless it is the only one; and so many do at most.
_PATIENCE, _MOST = 1.0, 64
# How long a new thread may take until it follows, and how long to wait after an error that nobody
# has foreseen, in seconds.
_BIRTH, _PAUSE = 5.0, 0.05


class Run:
    """One run of a function on some thread: to who waits for its end, as good as a thread.

    Args:
        target: the function.
        name: what the thread is called meanwhile.
        failed: called with what ``target`` raises, or with what keeps it from being called.
    """

    __slots__ = ("_failed", "_over", "_target", "name", "thread")

    def __init__(
        self,
        target: Callable[[], object],
        name: str,
        failed: Callable[[BaseException], object] = bool,
    ) -> None:
        self._target = target
        self._failed = failed
        self.name: str = name
        self.thread: threading.Thread | None = None  # while it runs
        self._over = Wakeup()

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
        self._over.wait(timeout)

    def perform(self) -> None:
        """Do it, on the calling thread."""
        self.thread = thread = threading.current_thread()
        thread.name = self.name
        try:
            self._target()
        except BaseException as error:
            self.fail(error)
        finally:
            self._end()

    def fail(self, error: BaseException) -> None:
        """See to a run that ended with an exception, or never began; twice, if need be."""
        try:
            logger.opt(exception=error).error("thread {} died", self.name)
        finally:
            try:
                self._failed(error)
            finally:
                self._end()

    def _end(self) -> None:
        self.thread = None
        self._over.set()


class Turns:
    """A leader and its followers. Any thread may call `start` and `join`.

    Args:
        find: waits for something to do, appends it to a list, and returns True; False at the end.
            Called by the leader, and so by one thread at a time. Before it takes what it will
            append, it has to call `provide`. If it raises, what is in the list fails, and it is
            called again.
        name: what the leader is called.
        cpus: which the threads are pinned to, or None.
    """

    def __init__(self, find: Callable[[list[Run]], bool], name: str, cpus: Set[int] | None) -> None:
        self._find = find
        self._name: str = name
        self._cpus = cpus
        # Held by the leader, and free only while it is passed on.
        self._lead = threading.RLock()
        self._over: bool = False  # set by the leader
        # Each thread adds itself here and there, and takes itself out again.
        self._all: set[threading.Thread] = set()
        self._followers: set[threading.Thread] = set()
        self._leader: threading.Thread | None = None  # set by whoever takes the lead
        # Held to leave the followers, so that of the last two only one does.
        self._leaving = threading.Lock()

    def start(self) -> None:
        """Start the first thread.

        Raises:
            RuntimeError: it cannot be had.
        """
        self.provide()

    @property
    def following(self) -> int:
        """How many threads wait for the lead."""
        return len(self._followers)

    @property
    def led(self) -> bool:
        """Whether somebody leads, or is about to."""
        leader = self._leader
        return not self._over and (leader is None or leader.is_alive() or self.following > 0)

    @property
    def begun(self) -> bool:
        """Whether it has threads."""
        return bool(self._all)

    def provide(self) -> None:
        """See to it that somebody follows. Called by the leader.

        Raises:
            RuntimeError: nobody does, and no thread can be had.
        """
        # The last one stays until it gets the lead.
        if any(thread.is_alive() for thread in self._followers.copy()):
            return
        follows = threading.Lock()
        follows.acquire()
        follow = partial(self._take_turns, follows)
        thread = spawn(follow, name=self._name, cpus=self._cpus, failed=lambda _: follow())
        self._all.add(thread)
        try:
            thread.start()
            if not follows.acquire(timeout=_BIRTH):
                raise RuntimeError("can't start new thread: it died at once")
        except BaseException:
            self._all.discard(thread)
            raise

    def join(self, deadline: Deadline, stuck: Iterable[Joinable] = ()) -> list[threading.Thread]:
        """Wait for all threads, when `find` has returned False or is about to.

        Args:
            stuck: threads, or runs on them, that are not waited for.

        Returns:
            the other threads that did not end in time.
        """
        idents = {each.ident for each in stuck}
        threads = [thread for thread in self._all.copy() if thread.ident not in idents]
        return gather(threads, deadline)

    def abandon(self) -> None:
        """Have no more turns, in the child of a fork, where the others' threads are not."""
        self._over = True

    def _take_turns(self, follows: threading.Lock) -> None:
        """A thread, which follows at first, and says so by releasing ``follows``."""
        thread = threading.current_thread()
        self._all.add(thread)  # again, if `provide` has given it up
        going = True
        while going:
            try:
                try:
                    going = self._take_turn(thread, follows)
                except BaseException as error:
                    self._stumble(error)
            except BaseException:
                pass  # the handling of an error has raised, and so might anything done about it
        self._all.discard(thread)

    def _take_turn(self, thread: threading.Thread, follows: threading.Lock) -> bool:
        """Follow, lead, and do what was found; False if that was the last turn of this thread."""
        if not self._follow(thread, follows):
            self._pass_on()  # if it was interrupted while it held it
            return False
        self._leader = thread
        thread.name = self._name
        found: list[Run] = []
        try:
            if self._over or not self._find(found):
                self._over = True
                self._pass_on()  # and so does everyone who gets it
                return False
            self._pass_on()
            found[0].perform()
        except BaseException as error:
            for run in found:
                run.fail(error)  # it has not begun, or was interrupted in its last steps
            raise
        thread.name = "tao-spare"
        return True

    def _follow(self, thread: threading.Thread, follows: threading.Lock) -> bool:
        """Wait for the lead; False if there are enough who do."""
        followers = self._followers
        followers.add(thread)
        try:
            if follows.locked():
                follows.release()
            if self._over or len(followers) > _MOST:
                return False
            while not self._lead.acquire(timeout=_PATIENCE):
                if self._may_leave(thread):
                    return False
        finally:
            followers.discard(thread)
        return True

    def _may_leave(self, thread: threading.Thread) -> bool:
        """Take a thread out of those that follow, unless it is the last."""
        # If somebody else leaves just now, or was interrupted in here for good, it stays.
        if not self._leaving.acquire(blocking=False):
            return False
        try:
            enough = len(self._followers) > 1
            if enough:
                self._followers.discard(thread)
        finally:
            self._leaving.release()
        return enough

    def _pass_on(self) -> None:
        """Give the lead away, however often this thread has taken it."""
        try:
            while True:
                self._lead.release()
        except RuntimeError:
            pass  # this thread has it no more

    def _stumble(self, error: BaseException) -> None:
        """Go on after an error that nobody has foreseen."""
        try:
            logger.opt(exception=error).error("{} goes on after an error", self._name)
        finally:
            time.sleep(_PAUSE)
