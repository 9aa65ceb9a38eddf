"""The graceful shutdown of a server.

A thread of its own carries it out, so `Stopping.stop` may be called by a signal handler that has
interrupted anything, or by a handler of the server, and a caller stops waiting when its timeout has
passed. All steps may be repeated, also by two threads at once: if an exception from outside
interrupts the stopping thread, it begins again; if the thread dies, the next call starts another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from tao.connection.connection import core_of
from tao.runtime.deadline import Deadline
from tao.runtime.log import logger
from tao.runtime.threads import Joinable, gather, in_tao_thread, spawn
from tao.runtime.wakeup import Wakeup
from tao.server.reports import StopReport

if TYPE_CHECKING:
    from tao.connection.shared_reading.readers import SharedReaders
    from tao.runtime.context import Context
    from tao.runtime.worker_pool import WorkerPool
    from tao.server.connection import ServerConn
    from tao.server.listening.listener import Listener

__all__ = ["Parts", "Stopping"]

# How long the threads of what is aborted at the deadline may take to end, in seconds, and how much
# longer for each connection.
_MOMENT, _MOMENT_EACH = 0.25, 1e-4
# How often to look whether a call with a shorter timeout has come, in seconds.
_LOOK = 0.1
# How many times an interrupted stop begins again.
_TRIES = 20


class Parts(NamedTuple):
    """What a running server consists of."""

    listeners: list[Listener]
    conns: list[ServerConn]
    context: Context
    #: Its own workers; None if it shares those of others.
    pool: WorkerPool | None
    #: What reads all connections; None if each has its own thread.
    readers: SharedReaders | None
    #: Releases what it shares with others; returns how many publications a cluster did not get.
    release: Callable[[], int]


class Stopping:
    """The one stop of a server. Any thread may call any method, at any moment.

    Args:
        parts: returns what there is to stop; None if the server was never started.
        begins: called when the server begins to stop.
        ended: called when the stop is over, before `stop` returns.
    """

    def __init__(
        self,
        parts: Callable[[], Parts | None],
        begins: Callable[[], object],
        ended: Callable[[], object],
    ) -> None:
        self._parts = parts
        self._begins = begins
        self._ended = ended
        #: Whether it has begun; never reset.
        self.begun: bool = False
        #: Set when it is over.
        self.done = Wakeup()
        # The deadline of each call, monotonic; the earliest counts.
        self._ends: list[float] = []
        self._began: float = 0.0  # when the stop began, the last time
        self._thread: threading.Thread | None = None
        self._reports: list[StopReport] = []  # only the first counts

    def stop(self, timeout: float) -> StopReport:
        """Begin to stop, and wait for the end unless this is one of tao's threads.

        Args:
            timeout: seconds, after which what is not finished is aborted, even if another call
                allowed more.

        Returns:
            what could not be finished; if the stop is not over, what is still to be done. A call
            that has interrupted another on a connection, on the same thread, does not wait for that
            connection.

        Raises:
            RuntimeError: no thread can be started, and this one may not wait. The server runs on.
        """
        if not self.done.is_set():
            end = monotonic() + timeout
            alone = not self._ensure_thread(end)
            self.begun = True
            self._begins()
            if self._parts() is None:
                self.finish()
            elif alone:
                self._carry_out()
            elif not in_tao_thread():
                self._wait(end)
        return self._reports[0] if self.done.is_set() else self._so_far()

    @property
    def over(self) -> bool:
        """Whether the stop is over; never reset."""
        return self.done.is_set()

    def finish(self, report: StopReport | None = None) -> None:
        """Note that the stop is complete."""
        self.begun = True
        self._reports.append(report or StopReport())
        self.done.set()

    # -- inside

    def _ensure_thread(self, end: float) -> bool:
        """Have a thread carry it out; False if none can be started, so the caller has to."""
        self._ends.append(end)
        thread = self._thread
        if self._parts() is None or (thread is not None and thread.is_alive()):
            return True
        thread = spawn(self._carry_out, name="tao-stopper", failed=lambda _: self._carry_out())
        try:
            thread.start()
        except (RuntimeError, MemoryError):
            if in_tao_thread():
                self._ends.remove(end)
                raise
            return False
        self._thread = thread
        return True

    def _wait(self, end: float) -> None:
        """Wait until only work that needs this thread is left, or just after the deadline."""
        while (left := end + 2 * _MOMENT - monotonic()) > 0:
            if self.done.wait(min(left, _LOOK)) or self._held_up_here():
                return
            thread = self._thread
            if thread is not None and not thread.is_alive():
                self._ensure_thread(end)  # it has died

    def _held_up_here(self) -> bool:
        """Return whether nothing more can end before the calling thread goes on.

        It may be in a signal handler that has interrupted a write: that connection cannot end
        before the handler returns and the write goes on.
        """
        parts = self._parts()
        if parts is None or not all(listener.closed.is_set() for listener in parts.listeners):
            return False
        left = [core for core in map(core_of, parts.conns) if not core.finished.is_set()]
        return bool(left) and all(core.interrupted_here for core in left)

    def _carry_out(self) -> None:
        """Stop, as a rule on a thread of its own."""
        self.begun = True
        report = None
        for _ in range(_TRIES):
            try:
                report = self._stop()
                break
            except BaseException as error:
                logger.opt(exception=error).error("the stop was interrupted and begins again")
        try:
            if report is None:
                self._give_up()
            self._ended()
            self._log(report)
        finally:
            self.finish(report or self._so_far())

    def _stop(self) -> StopReport:
        self._began = monotonic()
        parts = self._parts()
        assert parts is not None
        for listener in parts.listeners:
            listener.discard()  # it may be about to be started
        for listener in parts.listeners:
            listener.closed.wait(self._left(_MOMENT))
        # All contexts at once; a callback that takes long delays nothing.
        parts.context.cancel_aside("server stopping")
        parts = self._parts() or parts  # with the connections accepted last
        report = self._drain(parts.conns)
        threads: list[Joinable] = []
        end = Deadline(self._left(_moment(parts.conns)))
        for conn in parts.conns:
            core = core_of(conn)
            stuck = list(core.stuck)
            threads += stuck
            threads += gather([each for each in core.roles.threads_now() if each not in stuck], end)
        for listener in parts.listeners:
            threads += listener.join(end, threads)
        if parts.readers is not None:
            threads += parts.readers.stop(end, threads)
        if parts.pool is not None:
            threads += parts.pool.stop(self._left())
        # These have run since the beginning: they get a moment only if the stop is shorter.
        end = Deadline(max(self._left(), self._began + _MOMENT - monotonic()))
        threads += gather(parts.context.callback_threads(), end)
        report.unpublished = parts.release()
        report.threads = [thread.name for thread in threads if thread.is_alive()]
        return report

    def _give_up(self) -> None:
        """Have all end by itself and give back what is shared, as each try to stop has failed."""
        parts = self._parts()
        assert parts is not None
        steps: list[Callable[[], object]] = [each.discard for each in parts.listeners]
        steps += [core_of(conn).abort for conn in parts.conns]
        steps.append(partial(parts.context.cancel_aside, "server stopping"))
        if parts.readers is not None:
            steps.append(parts.readers.retire)
        if parts.pool is not None:
            steps.append(partial(parts.pool.shutdown, wait=False))
        for step in [*steps, parts.release]:
            try:
                step()
            except BaseException as error:
                logger.opt(exception=error).error("a step of the stop has failed, and is skipped")

    def _drain(self, conns: list[ServerConn]) -> StopReport:
        """Close connections gracefully, and wait until they have ended."""
        end = self._close(conns)
        report = StopReport()
        for conn in conns:
            core = core_of(conn)
            while not core.finished.is_set() and (left := self._left(_moment(conns))):
                core.finished.wait(min(left, _LOOK))
                if min(self._ends) < end:
                    end = self._close(conns)  # a call with a shorter timeout has come
            unhandled, unsent = core.unhandled, core.send_queue.waiting
            if core.finished.is_set() and not (unhandled or unsent or core.in_flight):
                report.drained += 1
            else:
                report.abandoned.append((conn, unhandled, unsent))
        return report

    def _close(self, conns: list[ServerConn]) -> float:
        """Begin to close connections, and return the deadline that they were given."""
        end = min(self._ends)
        for core in map(core_of, conns):
            if not core.finished.is_set():
                core.begin_close("server stopping", drain=True, timeout=self._left())
        return end

    def _left(self, moment: float = 0.0) -> float:
        """Return the remaining seconds, plus a moment for the threads of aborted connections."""
        end = min(self._ends)
        if moment:
            end = max(end, self._began) + moment
        return max(0.0, end - monotonic())

    def _so_far(self) -> StopReport:
        """What is still to be done; this waits for nothing."""
        parts = self._parts()
        conns = [] if parts is None else parts.conns
        left = [(conn, conn.unhandled, conn.send_queue_length) for conn in conns]
        thread = self._thread
        names = [thread.name] if thread is not None and thread.is_alive() else []
        return StopReport(abandoned=left, threads=names, finished=False)

    def _log(self, report: StopReport | None) -> None:
        if report is not None and report.clean:
            logger.info("stopped; {} connections closed gracefully", report.drained)
        else:
            logger.warning("stopped, not cleanly: {}", report)


def _moment(conns: list[ServerConn]) -> float:
    return _MOMENT + _MOMENT_EACH * len(conns)
