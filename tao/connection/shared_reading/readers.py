"""The threads that read many connections, and those that help them: `SharedReaders`.

A server with ``readers="shared"`` has such threads of its own; all clients of a process share
theirs, which exist while there is such a client.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable, Set
from typing import Any

from tao.connection.handling.block_watch import BlockWatch, watch_on
from tao.connection.shared_reading.host import SharedRolesHost
from tao.connection.shared_reading.loop import ReadingLoop
from tao.connection.shared_reading.roles import SharedRoles
from tao.runtime.deadline import Deadline
from tao.runtime.forks import renew_after_fork
from tao.runtime.threads import Joinable
from tao.runtime.timing_wheel import TimingWheel
from tao.runtime.worker_pool import WorkerPool

__all__ = ["ClientReaders", "SharedReaders", "client_readers", "giving_back"]

_CURRENT = "current"
# How many helper threads there are at most, besides those that wait.
_HELPERS = 64


class SharedReaders:
    """Some loops, among which connections are divided evenly. Any thread may call any method.

    Args:
        threads: how many loops.
        wheel: to find handlers that block a loop.
        pool: runs handlers; None: the helper threads do.
        cpus: the processors that the threads may run on; None: any.
        kind: ``"server"`` or ``"client"``, for the names of the threads.

    """

    def __init__(
        self,
        threads: int,
        wheel: TimingWheel,
        pool: WorkerPool | None,
        cpus: Set[int] | None = None,
        kind: str = "server",
    ) -> None:
        self._watch: BlockWatch = watch_on(wheel.in_real_time)
        self.helpers = WorkerPool(_HELPERS, name="tao-helper")
        self.pool: WorkerPool = pool or self.helpers
        self.loops = [ReadingLoop(f"tao-reader-{kind}s-{i}", cpus) for i in range(1, threads + 1)]
        self._next = itertools.cycle(self.loops)
        #: Those on whose behalf they exist, if they are shared. Changed in single steps.
        self.users: dict[Hashable, None] = {}

    def start(self) -> None:
        """Start the threads, unless that is done.

        Raises:
            OSError: there is no descriptor for a poller.
            RuntimeError: no thread can be started.
        """
        for loop in self.loops:
            loop.start(self._watch)

    def roles_for(self, core: SharedRolesHost, label: str) -> SharedRoles:
        """Return the roles of a new connection."""
        return SharedRoles(core, label, self.next_loop(), self)

    def next_loop(self) -> ReadingLoop:
        """Return the loop whose turn it is to get another connection."""
        return next(self._next)

    @property
    def threads(self) -> list[threading.Thread]:
        """The threads that read."""
        return [thread for loop in self.loops for thread in loop.threads]

    def retire(self) -> None:
        """Have the threads end, without waiting for them."""
        for loop in self.loops:
            loop.retire()
        self.helpers.shutdown(wait=False)

    def stop(self, deadline: Deadline, stuck: Iterable[Joinable] = ()) -> list[threading.Thread]:
        """End the threads, once the connections have ended; return those that did not in time.

        Args:
            stuck: threads or runs that are not waited for.
        """
        idents = {each.ident for each in stuck}
        left = [thread for loop in self.loops for thread in loop.stop(deadline, idents)]
        return left + self.helpers.stop(deadline.remaining(), drop=False)

    def after_fork(self) -> None:
        """In a child process: there are no threads."""
        for loop in self.loops:
            loop.after_fork()
        self.helpers.after_fork()


def giving_back(owner: object, give_back: Callable[..., object], *args: Any) -> Callable[[], None]:
    """Return what makes a call that may be repeated; so does the collector, unless that was made.

    A finalizer that is called itself does nothing later, even if an exception has interrupted it.
    """
    finalizer = weakref.finalize(owner, give_back, *args)
    finalizer.atexit = False

    def call() -> None:
        give_back(*args)
        finalizer.detach()

    return call


class ClientReaders:
    """The readers of the clients of this process, while there is a client that uses them.

    Any thread, signal handler or finalizer may call any method.
    """

    def __init__(self) -> None:
        # Under one key, the readers that further clients get. Changed in single steps.
        self._current: dict[str, SharedReaders] = {}

    def lease(
        self, owner: object, threads: int, wheel: TimingWheel
    ) -> tuple[SharedReaders | None, Callable[[], object]]:
        """Return the readers for a client, and what gives them back; no readers for 0 threads.

        They are given back at the latest when the owner is garbage collected.
        """
        if not threads:
            return None, bool
        user, used = object(), list[SharedReaders]()
        # First, so that they are given back if an exception interrupts the next step.
        give_back = giving_back(owner, self._give_back, user, used)
        return self._acquire(user, used, threads, wheel), give_back

    def _give_back(self, user: Hashable, used: list[SharedReaders]) -> None:
        for readers in used:
            self.release(user, readers)

    def _acquire(
        self, user: Hashable, used: list[SharedReaders], threads: int, wheel: TimingWheel
    ) -> SharedReaders:
        """Return readers that exist at least until they are given back."""
        while True:
            new = SharedReaders(threads, wheel, None, kind="client")
            readers = self._current.setdefault(_CURRENT, new)
            used.append(readers)
            readers.users[user] = None
            if self._current.get(_CURRENT) is readers:
                return readers
            self.release(user, readers)  # the last user before has just left

    def release(self, user: Hashable, readers: SharedReaders) -> None:
        """Give readers back; their last user ends them. It may be called again."""
        try:
            self._release(user, readers)
        except BaseException:
            self._release(user, readers)  # again, as a finalizer is called only once
            raise

    def _release(self, user: Hashable, readers: SharedReaders) -> None:
        readers.users.pop(user, None)
        if readers.users:
            return
        if self._current.get(_CURRENT) is readers:
            self._current.pop(_CURRENT, None)
        if readers.users:  # another client has come meanwhile
            self._current.setdefault(_CURRENT, readers)
        else:
            readers.retire()

    def after_fork(self, reason: str) -> None:
        """In a child process: there are no readers."""
        for readers in self._current.values():
            readers.after_fork()
        self._current.clear()


client_readers = ClientReaders()
renew_after_fork(client_readers, ClientReaders.after_fork)
