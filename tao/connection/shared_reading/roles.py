"""The roles of a connection whose reading is shared, see ``loop.py``.

There is no thread per connection. The leader of a loop reads, and sends what the kernel did not
accept at once, whenever the poller says that it can be done without waiting. Workers handle. What
may take long (``on_connect`` after a handshake, the last steps, dialling) runs on helper threads.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from tao.connection.handling.shared_dispatcher import SharedDispatcher
from tao.connection.reading_gate import SharedGate
from tao.connection.reading_loan import ReadingLoan
from tao.connection.shared_reading.blocked_stay import BlockedStay
from tao.connection.shared_reading.host import LoopOwner, SharedRolesHost
from tao.connection.shared_reading.loop import ReadingLoop
from tao.connection.shared_reading.member import NO_OUTBOX, Outbox
from tao.runtime.combining import Busy, Combiner, never_waiting
from tao.runtime.leader_followers import Run
from tao.runtime.threads import Joinable
from tao.runtime.worker_pool import WorkerPool
from tao.transport.error_text import explain
from tao.transport.poller import ENDED, READABLE, WRITABLE
from tao.transport.stream import Transport

__all__ = ["SharedRoles"]

# So many times the end of a connection is tried again when that raises, too.
_TRIES = 3
_NOW = int(socket.MSG_DONTWAIT)  # a plain int costs less than a flag
# Why reading pauses: a signal handler may have interrupted a sender; others are to have a share.
_SENDING, _BREAK = "sending", "break"
# Beside the events of the poller: some of the stream may have been received before it is read.
_BUFFERED = 1 << 30


class SharedRoles:
    """What the threads of a loop do for one connection. Any thread may call any method but `turn`.

    Args:
        host: the connection's core.
        label: the part of the threads' names that identifies the connection.
        loop: reads the connection.
        readers: has the loop, the workers, and helpers for what may take long.
    """

    __slots__ = (
        "_advance", "_blocked", "_buffering", "_combiner", "_descriptor", "_host", "_label",
        "_loan", "_loop", "_on_writable", "_open_up", "_readers", "_reading", "_receive",
        "_registered", "_waiting", "_wanted", "gate", "outbox", "threads",
    )  # fmt: skip

    def __init__(
        self, host: SharedRolesHost, label: str, loop: ReadingLoop, readers: LoopOwner
    ) -> None:
        self._host = host
        self._label = label
        self._loop = loop
        self._readers = readers
        #: What runs on other threads for this connection, as long as it runs.
        self.threads: list[Joinable] = []
        self.gate = SharedGate(self)
        # Changed in single steps; `sync` is called afterwards.
        self._wanted: int = 0  # the events that the handshake waits for
        self._reading: bool = False  # whether there is a transport that has not ended
        self._buffering: Transport | None = None  # the one that is read, if it is of TLS
        self._waiting: Transport | None = None  # the one that the send queue waits for
        self._advance: Callable[[], int] | None = None  # the leader's, while it is opened
        # Set by the watch, and taken back by the thread that is blocked.
        self._blocked: BlockedStay | None = None
        self._open_up: Callable[[], bool] | None = None
        self._loan: ReadingLoan | None = None  # the last; set before the loop may read by it
        # The owner of the turn owns these: what the poller waits for.
        self._descriptor: int = -1  # none
        self._registered: int = 0
        self._combiner = Combiner(self._apply)  # what an interruption left undone is done again
        self._receive: Callable[[int, int], bytes]
        self.outbox: Outbox = NO_OUTBOX
        self._on_writable: Callable[[Transport], object]

    def name(self, role: str) -> str:
        """Return what a thread in this role is called."""
        return f"tao-{role}-{self._label}"

    def threads_now(self) -> list[Joinable]:
        """Return a copy of the list of threads."""
        return list(self.threads)

    # -- what the poller waits for

    def listen(self) -> None:
        """Read the host's transport from now on, until it has ended."""
        transport = self._hold_descriptor()
        self._receive = transport.receive_now
        self.outbox = self._host.send_queue
        reader = self._host.reader
        reader.go_on(transport)
        if reader.early:
            self.call_back(reader.take_early)
        self._reading = True
        self.sync()
        if self._loop.stopped:
            self.end()  # too late: nothing will read it
            return
        self._buffering = transport if transport.buffers else None
        if transport.buffers:  # the poller cannot see what it may have
            self.call_back(partial(self.turn, READABLE | _BUFFERED))

    def _hold_descriptor(self) -> Transport:
        transport = self._host.transport
        assert transport is not None
        self._readers.start()
        self._descriptor = transport.descriptor
        if self._descriptor >= 0:
            self._loop.members[self._descriptor] = self
        return transport

    def leave(self) -> None:
        """Wait for nothing any more: the transport is about to be closed.

        Afterwards no thread changes what the poller waits for, as the descriptor may soon be that
        of another connection.
        """
        self._wanted, self._reading, self._waiting = 0, False, None
        if self._combiner.turn._is_owned():
            self._detach()
        else:
            self._combiner.run(self._detach)

    def _detach(self) -> None:
        """Give the descriptor up. Needs the turn."""
        if self._registered:
            self._apply()
        if self._loop.members.get(self._descriptor) is self:
            self._loop.members.pop(self._descriptor, None)
        self._descriptor = -1  # last, as this may be interrupted, and is repeated then

    def use_readers(self, readers: LoopOwner) -> None:
        """Be read by others, before anything was read: in a child process."""
        self._readers, self._loop = readers, readers.next_loop()

    def sync(self) -> None:
        """Have the poller wait for what is wanted now. It never waits."""
        self._combiner.settle()

    def _apply(self) -> None:
        wanted = self._wanted
        if self._reading and not self.gate.paused:
            wanted |= READABLE
        if self._waiting is not None and self._waiting.polls_writable:
            wanted |= WRITABLE
        if wanted != self._registered and self._descriptor >= 0:
            self._loop.change(self._descriptor, self._registered, wanted)
            self._registered = wanted
            if wanted & READABLE and self._buffering is not None and self._buffering.end_waits:
                self.call_back(partial(self.turn, READABLE))

    # -- the reading role, on the leader

    def turn(self, events: int, now: float = 0.0) -> None:
        """Send and receive what is possible without waiting, and dispatch that."""
        if not (events == READABLE == self._registered and self._reading):  # unusual
            if self._advance is not None:
                if self._wanted:  # else the thread that began is in there; the event is outdated
                    self._go_on_opening()
                return
            if events & WRITABLE:
                self._send()
            if events == WRITABLE or not self._reading:
                return
            if events & ENDED:  # it may have waited for that; `end_break` follows
                self.gate.lift(_BREAK)
            if self.gate.paused and not (self._registered & READABLE or events & _BUFFERED):
                return  # else the thread that has the poller wait for this is about to note that
        reader, receive = self._host.reader, self._receive
        try:
            data = receive(reader.recv_size, _NOW)
        except BlockingIOError:
            return
        except OSError as error:
            self._host.transport_failed(error)
            self.end()
            return
        except Busy:
            self.gate.pause(_SENDING)
            self._help("reader", self._wait_for_sender)
            return
        if not data:
            self._end_of_stream()
            return
        reader.take(data, now)
        if self._buffering is not None and self._buffering.end_waits:
            self.call_back(partial(self.turn, READABLE))

    def _wait_for_sender(self) -> None:
        """Read on when the thread that is sending has left the transport."""
        if (transport := self._host.transport) is not None:
            transport.wait_free()
        self.gate.resume(_SENDING)
        self.call_back(partial(self.turn, READABLE))

    def took(self, seconds: float) -> bool:
        """See `Resting.took`."""
        return self._host.reader.took(seconds)

    def take_break(self) -> None:
        """See `Resting.take_break`."""
        self.gate.pause(_BREAK)

    def end_break(self) -> None:
        """See `Resting.end_break`."""
        self.gate.lift(_BREAK)
        self.sync()

    def _end_of_stream(self) -> None:
        self._reading = False
        if self._host.reader.waits_at_end:
            self.sync()
            self._help("reader", self._take_end)
        else:
            self._take_end()

    def _take_end(self) -> None:
        self._host.reader.take_end()
        self.end()

    def look(self, now: float, grace: float) -> None:
        """See `Polled.look`."""
        dispatcher = self._host.dispatcher
        if dispatcher.occupies_reader:
            dispatcher.runner.look(now, grace)
        elif self._blocked is not None:
            self.pass_lead()  # again, if no thread could be started before

    def abandoned(self) -> None:
        if (transport := self._host.transport) is not None:
            transport.abort()
        if self._advance is not None:
            self._go_on_opening()
        elif self._reading:
            self.end()

    def blocked(self) -> None:
        """Note that this connection blocks the leader, which ceases to lead by that."""
        blocked = self._blocked = BlockedStay(self._loop.leader)
        self.threads.append(blocked)
        self.call_back(self._read_on)  # first of all, by the new leader
        self._loop.vacate_lead()

    def pass_lead(self) -> None:
        """Have another thread read. If there is none, the connection that blocks this one ends."""
        try:
            self._loop.pass_lead()
        except (RuntimeError, MemoryError) as error:
            if not self._host.lifecycle.ended:
                self._host.collapse(error)

    def unblocked(self) -> None:
        """Note that the thread that was blocked in a handler has left it."""
        blocked, self._blocked = self._blocked, None
        if blocked is not None:
            blocked.left.set()
            self.threads.remove(blocked)

    def _read_on(self) -> None:
        transport = self._host.transport
        if transport is not None and self._reading:
            self._host.reader.go_on(transport)

    def call_soon(self) -> None:
        """Have the leader see whether what waits, in reading or handling, can go on."""
        self.call_back(self._go_on)

    def call_back(self, function: Callable[[], object]) -> None:
        """Have the leader call a function that does not block, as a turn of this connection."""
        self._loop.call_soon(self, function)

    def _go_on(self) -> None:
        host, limits = self._host, self._host.reader.limits
        if limits is not None and limits.paused:
            limits.go_on()
        if isinstance(host.dispatcher, SharedDispatcher):
            host.dispatcher.go_on()
        self.sync()

    # -- the writing role: `Writer`, without a thread

    def writer(
        self, uses: Callable[[Transport], bool], on_writable: Callable[[Transport], None], left: Any
    ) -> SharedRoles:
        """Return what waits for transports that the send queue is to write to; see `Writer`."""
        self._on_writable = on_writable
        return self

    def start(self) -> None:
        """See `Writer.start`; ``on_connect`` may write before anything is read.

        Raises:
            OSError: nothing can be waited for, so that no more is sent than the kernel takes.
        """
        if self._descriptor < 0:
            try:
                self._hold_descriptor()
            except RuntimeError as error:
                raise OSError(str(error)) from error

    def wait_for(self, transport: Transport) -> None:
        """See `Writer.wait_for`."""
        self._waiting = transport
        self.sync()

    def stop(self) -> None:
        """See `Writer`: there is no thread, nor is any in a transport but in the queue's turn."""

    wait_left = run = stop

    def _send(self) -> None:
        transport, self._waiting = self._waiting, None
        if transport is not None:
            self._on_writable(transport)
        self.sync()

    # -- the handling role, and what may take long

    def start_handler(self) -> None:
        """Have a worker play the handling role; what waits is dropped if there is none."""
        dispatcher = self._host.dispatcher
        try:
            self._submit(self._readers.pool, "handler", dispatcher.handle)
        except (RuntimeError, MemoryError) as error:
            if self._readers.pool.stopped:
                dispatcher.refuse(error)
            else:
                self._host.collapse(error)
                self.call_back(dispatcher.drop)

    def launch(
        self, failed: Callable[[BaseException], object], target: Callable[..., object], *args: Any
    ) -> None:
        """Call a function that establishes the connection, on a helper thread.

        Raises:
            RuntimeError: there is none.
        """
        self._submit(self._readers.helpers, "reader", partial(target, *args), failed)

    def _help(self, role: str, target: Callable[[], object]) -> None:
        try:
            self._submit(self._readers.helpers, role, target)
        except (RuntimeError, MemoryError):
            target()  # without help, on this thread

    def _submit(
        self, pool: WorkerPool, role: str, target: Callable[[], object], failed: Any = None
    ) -> None:
        run = Run(target, self.name(role), failed or self.struck)
        self.threads.append(run)
        try:
            future = pool.submit(self._perform, run, pool)
        except BaseException:
            if run in self.threads:  # else it has run nevertheless
                self.threads.remove(run)
            raise
        future.add_done_callback(partial(self._ended, run))

    def _ended(self, run: Run, future: Future[None]) -> None:
        """End the connection if an exception has kept a worker from the run."""
        if run in self.threads and not future.cancelled() and (error := future.exception()):
            self.threads.remove(run)
            run.fail(error)

    def _perform(self, run: Run, pool: WorkerPool) -> None:
        name = (thread := threading.current_thread()).name
        if pool is not self._readers.helpers:
            run.name = name
        try:
            run.perform()
        finally:
            thread.name = name
            if run in self.threads:
                self.threads.remove(run)

    # -- from the beginning to the end

    def open_in_steps(self, advance: Callable[[], int], open_up: Callable[[], bool]) -> None:
        """Begin once a handshake is done, which costs no thread.

        Args:
            advance: goes on with the handshake; returns the events to wait for, or 0 when it is
                done. If it raises, the handshake is over as well.
            open_up: as in `begin`; it repeats the last step, and raises again what that raised.
        """
        self._advance, self._open_up = advance, open_up
        self._hold_descriptor()
        self._go_on_opening()

    def _go_on_opening(self) -> None:
        advance, open_up = self._advance, self._open_up
        assert advance is not None and open_up is not None
        try:
            self._wanted = advance()
        except Exception:
            self._wanted = 0
        if self._wanted:
            self.sync()  # at once another thread may be in here
            return
        self._advance = self._open_up = None
        self.sync()
        if self._host.greets:
            self._help("reader", partial(self.begin, open_up))
        else:
            self.begin(open_up)

    def begin(self, open_up: Callable[[], bool]) -> None:
        """Open the connection, then have it read; or finish, if ``open_up`` returns False."""
        self.play(True, open_up)

    def lend_reading(self, loan: ReadingLoan) -> None:
        """Have the present transport be read while the calling thread waits for what it brings."""
        self._loan = loan
        self.listen()

    def play(self, reading: bool, open_up: Callable[[], bool] = lambda: True) -> None:
        """See `begin`; whatever is raised ends the connection."""
        try:
            if opened := open_up():
                self._listen_unless_lent()
            elif opened is not None:
                self.end()
        except BaseException as error:
            self.struck(error)

    def _listen_unless_lent(self) -> None:
        if not self._host.readiness.has_lent_reading():  # else it is read already
            self.listen()

    def struck(self, error: BaseException) -> None:
        """End the connection, as this was raised in one of its roles."""
        if (blocked := self._blocked) and blocked.thread is threading.current_thread():
            self.unblocked()
        host = self._host
        if host.finished.is_set():
            return
        host.collapse(error)
        if host.lifecycle.close_reason is not None:
            self.end()
        elif not host.readiness.give_reading_back(explain(error)):
            self.call_back(self._end_lost) if self._reading else self.renew()

    def _end_lost(self) -> None:
        """Go on without the transport, unless that is replaced already; by the leader."""
        if not self._host.lifecycle.status.talking:
            (self.end if self._reading else self.renew)()

    def renew(self) -> None:
        """Renew a transport that is not read any more, on a thread that may wait."""
        self._help("reader", self._end)

    def others(self) -> list[Joinable]:
        """See `Roles.others`; what has not begun is among them."""
        return [each for each in self.threads_now() if each.ident != threading.get_ident()]

    def end(self) -> None:
        """Go on without the transport, which has ended: take the last steps, or renew it."""
        self._reading = False
        loan, self._loan = self._loan, None
        if loan is not None:
            self.sync()
            if loan.leave():
                return  # the lender goes on
        if self._host.finished.is_set():
            return  # it has ended at once
        if self._host.ends_at_once:
            try:
                never_waiting(self._end)  # which calls `leave`
                return
            except Busy:
                pass  # a signal handler may have interrupted what the last steps would wait for
        self.sync()
        self._help("reader", self._end)

    def _end(self) -> None:
        for tries in range(1, _TRIES + 1):
            try:
                if self._host.renew():
                    self._listen_unless_lent()
                return
            except Busy:
                raise
            except BaseException as error:
                self.sync()
                self._host.collapse(error, for_good=tries == _TRIES)
        self._host.finish()
