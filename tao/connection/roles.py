"""The threads of one connection, and the roles that they play.

One thread reads, one handles, one writes. The reading and the handling role are swapped when a
handler blocks the thread that reads (see ``dispatcher.py``), so one method plays both. Only the
reading thread is started with the connection; the others are started when they are needed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any, Protocol

from tao.connection.dispatcher import Dispatcher
from tao.connection.reading import Reader
from tao.runtime.threads import Joinable, spawn
from tao.runtime.wakeup import Wakeup

__all__ = ["Roles", "RolesHost"]

# So many times the end of a connection is tried again when that raises, too.
_TRIES = 3


class RolesHost(Protocol):
    """What this asks of a connection's core."""

    dispatcher: Dispatcher
    finished: Wakeup
    reader: Reader

    def collapse(self, error: BaseException) -> None:
        """End at once, with this reason."""

    def finish(self) -> None:
        """Do the last steps, once."""

    def renew(self) -> bool:
        """Get another transport and return True, or finish."""


class Roles:
    """Starts, names and runs the threads of a connection. Any thread may call it.

    Args:
        host: the connection's core.
        label: the part of the threads' names that identifies the connection.
        cpus: the processors that they may run on; None: any.
    """

    __slots__ = ("_cpus", "_host", "_label", "threads")

    def __init__(self, host: RolesHost, label: str, cpus: AbstractSet[int] | None) -> None:
        self._host = host
        self._label = label
        self._cpus = cpus
        #: The threads that the connection has, or had.
        self.threads: list[Joinable] = []

    def name(self, role: str) -> str:
        """Return what a thread in this role is called."""
        return f"tao-{role}-{self._label}"

    def thread(
        self,
        role: str,
        failed: Callable[[BaseException], object],
        target: Callable[..., object],
        *args: Any,
    ) -> threading.Thread:
        """Return a new thread of this connection, which is not started yet.

        Args:
            failed: called with an exception that keeps the thread from its work.
        """
        thread = spawn(target, *args, name=self.name(role), cpus=self._cpus, failed=failed)
        self.threads.append(thread)
        return thread

    def threads_now(self) -> list[Joinable]:
        """Return a copy of the list of threads."""
        return list(self.threads)

    def start_writer(self, write: Callable[[], object]) -> None:
        """Start the writing thread.

        Raises:
            OSError: no thread can be had, so the peer can be sent no more than the kernel takes.
        """
        try:
            self.thread("writer", self._host.collapse, write).start()
        except RuntimeError as error:
            raise OSError(str(error)) from error

    def start_handler(self) -> None:
        """Start the handling thread; if that is impossible, the connection is aborted."""
        try:
            self.thread("handler", self.struck, self.play, False).start()
        except RuntimeError as error:
            self._host.collapse(error)

    def begin(self, open_up: Callable[[], bool]) -> None:
        """Open the connection, then read it; or finish, if ``open_up`` returns False or raises."""
        self.play(True, open_up)

    def play(self, reading: bool, open_up: Callable[[], bool] = lambda: True) -> None:
        """Play the reading or the handling role, then the other, until the connection is over."""
        host = self._host
        failed: list[BaseException] = []
        try:
            while len(failed) <= _TRIES:
                try:
                    if failed:
                        host.collapse(failed[-1])
                    elif open_up():
                        while (reads := self._take_role(reading)) is not None:
                            reading = reads
                        return
                    if reading:
                        host.finish()
                    return
                except BaseException as error:
                    failed.append(error)
        except BaseException as error:  # another one, where the first was to be noted
            host.collapse(error)
            if reading:
                host.finish()

    def _take_role(self, reading: bool) -> bool | None:
        """Read or handle; tell whether the thread is to read next. None: it is to end."""
        threading.current_thread().name = self.name("reader" if reading else "handler")
        if not reading:
            return True if self._host.dispatcher.handle() else None
        if self._host.reader.read():
            return False
        return True if self._host.renew() else None

    def struck(self, error: BaseException) -> None:
        """End the connection, as an exception kept a thread from its role."""
        if not self._host.finished.is_set():
            self._host.collapse(error)
            self._host.finish()
