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

from tao.connection.handling.dispatcher import Dispatcher
from tao.connection.lifecycle import Lifecycle
from tao.connection.reading_gate import ReadingGate
from tao.connection.reading_loan import ReadingLoan
from tao.connection.receiving.reading import Reader
from tao.runtime.threads import Joinable, is_over, spawn
from tao.runtime.wakeup import Wakeup
from tao.transport.error_text import explain

__all__ = ["Borrowed", "ConnectionRoles", "Roles", "RolesHost"]

# So many times the end of a connection is tried again when that raises, too.
_TRIES = 3


class ConnectionRoles(Protocol):
    """The roles of a connection, whichever threads play them: `Roles` or `SharedRoles`."""

    @property
    def gate(self) -> ReadingGate: ...
    @property
    def threads(self) -> list[Joinable]: ...
    def name(self, role: str) -> str: ...
    def threads_now(self) -> list[Joinable]: ...
    def start_handler(self) -> None: ...
    def launch(
        self, failed: Callable[[BaseException], object], target: Callable[..., object], *args: Any
    ) -> None: ...
    def begin(self, open_up: Callable[[], bool]) -> None: ...
    def lend_reading(self, loan: ReadingLoan) -> None: ...
    def play(self, reading: bool) -> None: ...
    def struck(self, error: BaseException) -> None: ...
    def leave(self) -> None: ...


class Borrowed(Protocol):
    """What this asks of what calls ``on_connect``."""

    def give_reading_back(self, reason: str) -> bool:
        """Return the reading role if it is lent; return whether it was."""

    def has_lent_reading(self) -> bool:
        """Whether the calling thread has lent the reading role for good."""


class RolesHost(Protocol):
    """What this asks of a connection's core."""

    dispatcher: Dispatcher
    finished: Wakeup
    lifecycle: Lifecycle
    reader: Reader

    @property
    def readiness(self) -> Borrowed:
        """Knows whether a thread has lent the reading role."""

    def collapse(self, error: BaseException, *, for_good: bool = False) -> None:
        """End at once, with this reason; or lose the transport, unless it is to end for good."""

    def finish(self) -> None:
        """Do the last steps, once."""

    def renew(self) -> bool | None:
        """Get another transport and return True, or finish."""


class Roles:
    """Starts, names and runs the threads of a connection. Any thread may call it.

    Args:
        host: the connection's core.
        label: the part of the threads' names that identifies the connection.
        cpus: the processors that they may run on; None: any.
    """

    __slots__ = ("_cpus", "_host", "_label", "gate", "threads")

    def __init__(self, host: RolesHost, label: str, cpus: AbstractSet[int] | None) -> None:
        self._host = host
        self._label = label
        self._cpus = cpus
        self.gate = ReadingGate()
        #: The threads that the connection has, and some that have ended.
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
        for each in self.threads_now():
            if is_over(each):
                self._forget(each)  # as one that was struck leaves its entry
        thread = spawn(target, *args, name=self.name(role), cpus=self._cpus, failed=failed)
        self.threads.append(thread)
        return thread

    def _forget(self, thread: Joinable) -> None:
        try:
            self.threads.remove(thread)
        except ValueError:
            pass  # it is forgotten, or belongs to the server's group

    def threads_now(self) -> list[Joinable]:
        """Return a copy of the list of threads."""
        return list(self.threads)

    def launch(
        self, failed: Callable[[BaseException], object], target: Callable[..., object], *args: Any
    ) -> None:
        """Call a function that establishes the connection, and reads it, on the first thread.

        Raises:
            RuntimeError: it cannot be started.
        """
        self.thread("reader", failed, target, *args).start()

    def leave(self) -> None:
        """Have nothing to do with the transport any more, as it is about to be closed."""

    def start_writer(self, write: Callable[[], object]) -> threading.Thread:
        """Start the writing thread, and return it.

        Raises:
            OSError: no thread can be had, so the peer can be sent no more than the kernel takes.
        """
        try:
            thread = self.thread("writer", self._host.collapse, write)
            thread.start()
        except RuntimeError as error:
            raise OSError(str(error)) from error
        return thread

    def start_handler(self) -> None:
        """Start the handling thread; if that is impossible, the connection is aborted."""
        try:
            self.thread("handler", self.struck, self._handle_if_wanted).start()
        except RuntimeError as error:
            self._host.collapse(error)

    def _handle_if_wanted(self) -> None:
        if self._host.dispatcher.take_role():
            self.play(False)

    def begin(self, open_up: Callable[[], bool]) -> None:
        """Open the connection, then read it; or finish, if ``open_up`` returns False or raises."""
        self.play(True, open_up)

    def lend_reading(self, loan: ReadingLoan) -> None:
        """Have another thread read the present transport.

        Raises:
            RuntimeError: no thread can be started.
        """
        thread = self.thread("reader", self.struck, self._borrow, loan)
        try:
            thread.start()
        except BaseException:
            self.threads.remove(thread)
            raise

    def _borrow(self, loan: ReadingLoan) -> None:
        try:
            self.play(True, None, loan)
        finally:
            loan.left.set()

    def play(
        self,
        reading: bool,
        open_up: Callable[[], bool] | None = None,
        loan: ReadingLoan | None = None,
    ) -> None:
        """Play the reading or the handling role, then the other, until the connection is over.

        Args:
            open_up: called first; returns whether to go on.
            loan: by which the thread has the reading role, to be returned perhaps.
        """
        host = self._host
        failed: list[BaseException] = []  # in a row
        try:
            while len(failed) <= _TRIES:
                try:
                    opened: bool | None = True
                    if failed:
                        opened = self._go_on_after(failed[-1], reading or len(failed) > 1)
                        reading, loan = reading or opened, None
                    elif open_up is not None and (opened := open_up()) is False:
                        host.finish()
                    if not opened or ((failed or open_up) and self._has_lent_reading()):
                        return
                    failed.clear()
                    while (reads := self._take_role(reading, loan)) is not None:
                        reading = reads
                    return
                except BaseException as error:
                    failed.append(error)
            self._give_up(failed[-1])
        except BaseException as error:  # between the attempts
            if self._go_on_after(error, reading):
                self.play(True)

    def _take_role(self, reading: bool, loan: ReadingLoan | None) -> bool | None:
        """Read or handle; tell whether the thread is to read next. None: it is to end."""
        threading.current_thread().name = self.name("reader" if reading else "handler")
        if not reading:
            return True if self._host.dispatcher.handle() else None
        if self._host.reader.read():
            return False
        if loan is not None and loan.returned:
            self._retire()
            return None
        return True if self._host.renew() and not self._has_lent_reading() else None

    def _has_lent_reading(self) -> bool:
        """Whether another thread reads what this one has opened, so that this one is to end."""
        lent = self._host.readiness.has_lent_reading()
        if lent:
            self._retire()
        return lent

    def _retire(self) -> None:
        """Forget the calling thread, which is about to end."""
        self._forget(threading.current_thread())

    def _go_on_after(self, error: BaseException, ends_it: bool) -> bool:
        """Return True if there is another transport, after this was raised in a role.

        Args:
            ends_it: whether this thread takes the last steps, if it comes to that.
        """
        host = self._host
        host.collapse(error)
        if host.lifecycle.close_reason is not None:
            return ends_it and bool(host.renew())
        return not host.readiness.give_reading_back(explain(error)) and bool(host.renew())

    def _give_up(self, error: BaseException) -> None:
        self._host.collapse(error, for_good=True)
        self._host.finish()

    def others(self) -> list[Joinable]:
        """Return the other threads that read or handle."""
        spared, me = self.name("writer"), threading.get_ident()
        return [
            each
            for each in self.threads_now()
            if each.name != spared and each.ident != me and each.is_alive()
        ]

    def struck(self, error: BaseException) -> None:
        """End the connection, as an exception kept a thread from its role."""
        if not self._host.finished.is_set() and self._go_on_after(error, True):
            self.play(True)
