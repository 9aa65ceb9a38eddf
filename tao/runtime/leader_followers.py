"""Leader/Followers: one thread waits for the next connection, the others serve theirs.

Handing a connection from an acceptor thread to a serving thread costs two thread switches before
the first byte is read, and starting a thread costs more. So the thread that accepts a connection
also serves it, and another thread waits for the next one. This is the Leader/Followers pattern
(Schmidt et al., Pattern-Oriented Software Architecture 2, 2000): the leader waits for a connection,
the followers wait to become the leader. A thread whose connection has ended becomes a follower.

Guarantee: until the group ends there is always a leader, whatever is raised in these threads:

- Each thread runs a loop that it leaves only when the group ends or there are too many followers.
  Exceptions are caught inside the loop, including those raised by error handling (a log sink, lack
  of memory).
- The leadership is a reentrant lock, so a thread that was interrupted while it held the lock simply
  acquires it again.
- A leader takes a connection only while another thread follows. A follower reports itself from
  inside its loop; having been started is not enough.
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

__all__ = ["LeaderFollowers", "Run"]

# How long a surplus follower waits before it ends, in seconds, and how many may follow at once.
_PATIENCE, _MOST = 1.0, 64
# How long a new thread may take until it follows, and the pause after an unexpected error, in
# seconds.
_BIRTH, _PAUSE = 5.0, 0.05


class Run:
    """One run of a function on a thread of the group; it can be joined like a thread.

    Args:
        target: the function.
        name: of the thread during the run.
        failed: called with the exception that ``target`` raises, or that prevents its call.
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
        """The ident of the thread it runs on."""
        thread = self.thread
        return None if thread is None else thread.ident

    def is_alive(self) -> bool:
        """Return whether it has begun and not ended."""
        return self.thread is not None

    def join(self, timeout: float | None = None) -> None:
        """Wait up to ``timeout`` seconds until it has ended."""
        self._over.wait(timeout)

    def perform(self) -> None:
        """Call the function on the calling thread."""
        self.thread = thread = threading.current_thread()
        thread.name = self.name
        try:
            self._target()
        except BaseException as error:
            self.fail(error)
        finally:
            self._end()

    def perform_aside(self) -> None:
        """Call the function as a part of what the calling thread does; nobody may join this."""
        try:
            self._target()
        except BaseException as error:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Report a run that was ended or prevented by an exception. May be called twice."""
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


class LeaderFollowers:
    """A leader and its followers. `start` and `join` may be called from any thread.

    Args:
        find: waits for work, appends one `Run` to the given list, and returns True; returns False
            at the end. Only the leader calls it, so one thread at a time. It must call `provide`
            before it takes the work. If it raises, the run in the list fails, and it is called
            again.
        name: of the leader's thread.
        cpus: the CPUs that the threads are pinned to, or None.
    """

    def __init__(self, find: Callable[[list[Run]], bool], name: str, cpus: Set[int] | None) -> None:
        self._find = find
        self._name: str = name
        self._cpus = cpus
        # Held by the leader; free only while the lead passes to the next.
        self._lead = threading.RLock()
        self._over: bool = False  # set by the leader
        # Each thread adds itself to these two, and removes itself.
        self._all: set[threading.Thread] = set()
        self._followers: set[threading.Thread] = set()
        self._leader: threading.Thread | None = None  # set by the thread that takes the lead
        # Serialises leaving the followers, so that the last two do not both leave.
        self._leaving = threading.Lock()

    def start(self) -> None:
        """Start the first thread.

        Raises:
            RuntimeError: it cannot be started.
        """
        self.provide()

    @property
    def following(self) -> int:
        """How many threads wait for the lead."""
        return len(self._followers)

    @property
    def led(self) -> bool:
        """Whether a thread leads or is about to."""
        leader = self._leader
        return not self._over and (leader is None or leader.is_alive() or self.following > 0)

    @property
    def begun(self) -> bool:
        """Whether there are threads."""
        return bool(self._all)

    def provide(self) -> None:
        """Start a follower unless there is one. Called by the leader.

        Raises:
            RuntimeError: there is no follower, and no thread can be started.
        """
        # The last follower stays until it gets the lead.
        if any(thread.is_alive() for thread in list(self._followers)):
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
            if thread.withdraw():
                self._all.discard(thread)
            raise

    def join(self, deadline: Deadline, stuck: Iterable[Joinable] = ()) -> list[threading.Thread]:
        """Wait for all threads, once `find` has returned False or is about to.

        Args:
            stuck: threads or runs not to wait for.

        Returns:
            the other threads that have not ended in time.
        """
        idents = {each.ident for each in stuck}
        threads = [thread for thread in list(self._all) if thread.ident not in idents]
        return gather(threads, deadline)

    def abandon(self) -> None:
        """End the group in the child of a fork, where its other threads do not exist."""
        self._over = True

    def _take_turns(self, follows: threading.Lock) -> None:
        """Run a thread of the group; it releases ``follows`` once it is a follower."""
        thread = threading.current_thread()
        self._all.add(thread)  # again, if this was interrupted as it ended
        going = True
        while going:
            try:
                try:
                    going = self._take_turn(thread, follows)
                except BaseException as error:
                    self._stumble(error)
            except BaseException:
                pass  # the error handling has raised, so more error handling might raise too
        self._all.discard(thread)

    def _take_turn(self, thread: threading.Thread, follows: threading.Lock) -> bool:
        """Follow, lead, and do the work found; return False if this thread is to end."""
        if not self._follow(thread, follows):
            self._pass_on()  # in case it holds the lead since an interruption
            return False
        self._leader = thread
        thread.name = self._name
        found: list[Run] = []
        try:
            if self._over or not self._find(found):
                self._over = True
                self._pass_on()  # each thread that gets the lead passes it on and ends
                return False
            self._pass_on()
            found[0].perform()
        except BaseException as error:
            for run in found:
                run.fail(error)  # not begun, or interrupted in its last steps
            raise
        thread.name = "tao-spare"
        return True

    def _follow(self, thread: threading.Thread, follows: threading.Lock) -> bool:
        """Wait for the lead; return False if there are enough followers without this thread."""
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
        """Remove a thread from the followers, unless it is the last; return whether it may end."""
        # If the lock is held, another thread is leaving or was interrupted in here: stay.
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
        """Release the lead, however often this thread has acquired it."""
        try:
            while True:
                self._lead.release()
        except RuntimeError:
            pass  # this thread no longer holds it

    def _stumble(self, error: BaseException) -> None:
        """Log an unexpected error and pause before going on."""
        try:
            logger.opt(exception=error).error("{} continues after an error", self._name)
        finally:
            time.sleep(_PAUSE)
