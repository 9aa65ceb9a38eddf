"""The core of a connection: what both ends share, from the socket to the handler and back.

Users hold a `Connection`; the threads of a connection, the server and the monitor hold its core.
The core makes the parts of the connection and connects them. The state of the connection is kept
in its lifecycle (``lifecycle.py``).

Three threads belong to it: one reads, one handles, one writes; reading and handling are roles that
two of the threads may swap (see ``dispatcher.py``), and only the first is started before it is
needed.

How a connection ends, whichever side begins it:

1. `ConnectionCore.begin_close` records the reason (the first one counts) and cancels the context
   and the timers.
2. When the last handler has returned, the send queue is sealed. ``close()`` seals it at once.
3. When the send queue is empty, a FIN is sent; the peer reads everything before it.
4. The peer closes as well, which the reading thread notices. If the peer does not close, or does
   not read what waits for it, the timing wheel aborts the connection after a while.
5. The reading thread joins the others, calls ``on_close``, frees the socket, and ends.

Whichever thread completes a step starts the next.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from time import monotonic
from typing import Any

from tao.connection.application import Application, ApplicationLink
from tao.connection.block_watch import watch_on
from tao.connection.dispatcher import Dispatcher
from tao.connection.error_reporting import Reporter
from tao.connection.greetings import Greetings
from tao.connection.keepalive import KeepAlive
from tao.connection.lifecycle import Event, Lifecycle
from tao.connection.options import Settings
from tao.connection.reading import Reader
from tao.connection.reading_gate import ReadingGate
from tao.connection.roles import Roles
from tao.connection.send_queue import SendQueue
from tao.connection.shutdown import EndClock
from tao.connection.statistics import Counts, Tally
from tao.connection.teardown import Teardown
from tao.connection.timers import TimerSet
from tao.errors import BadData, ConnectionClosed, WouldBlock
from tao.runtime.context import ConnectionContext, Context
from tao.runtime.deadline import Deadline
from tao.runtime.threads import Joinable, gather
from tao.runtime.timing_wheel import TimingWheel
from tao.runtime.wakeup import Wakeup
from tao.safe_text import safe_str
from tao.transport.error_text import explain
from tao.transport.stream import Transport
from tao.wire.codec import unintended

__all__ = ["ABORTED", "ConnectionCore"]

#: The close reason of `ConnectionCore.abort`.
ABORTED = "aborted by this side"
# Why reading pauses.
_HALF_CLOSED = "half closed"


class ConnectionCore:
    """One end of a connection, as its threads, the server and the monitor know it.

    All methods without another note may be called from any thread, at any time.

    Args:
        net_id: the number of the connection, unique within its server or the process's clients.
        settings: the checked options; a client's hold nothing of the application's.
        application: handlers, callbacks and codec.
        wheel: for heartbeats, timeouts and timers, and to find handlers that block.
        run: runs a function on the workers and waits for it; None: on the handling thread.
        parent: the context above the connection's.
        tally: receives the connection's counts when it ends.
        server: what `tao.server_from` finds in the context; None for a client.
        keep: whether messages written without a transport wait for the next one.
    """

    label: str = "{}"  #: how threads are numbered

    def __init__(
        self,
        net_id: int,
        settings: Settings,
        application: Application,
        *,
        wheel: TimingWheel,
        run: Callable[[Callable[[], object]], object] | None,
        parent: Context,
        tally: Tally,
        server: Any = None,
        keep: bool = False,
    ) -> None:
        self.net_id: int = net_id
        #: The name in logs; the application may set it, and the next two.
        self.name: Any = str(net_id)
        self.remote_address: Any = None
        self.local_address: Any = None
        self.settings = settings
        self.application = ApplicationLink(application)
        self.wheel = wheel
        self.tally = tally
        self.lifecycle = Lifecycle()
        self._server = server
        self._parent_context = parent
        #: Cancelled when the connection ends; the contexts of its handlers are children of it.
        self.context: Context = self.new_context()
        self.gate = ReadingGate()
        self.roles = Roles(self, self.label.format(net_id), settings.cpus)
        self.send_queue: SendQueue = self._new_send_queue(keep)
        self.dispatcher: Dispatcher = self._new_dispatcher(run)
        self.runner = self.dispatcher.runner
        self.send_queue.when_crowded(self._note_crowded)
        self.timers = TimerSet(wheel, self.dispatcher.post, self.application)
        self.reporter = Reporter(self)
        self.greetings = Greetings(self)
        self.end_clock = EndClock(self)
        #: The present transport. Changed by the thread that connects or reads.
        self.transport: Transport | None = None
        # No lock guards the fields below: any thread may close a connection at any moment, even one
        # that was interrupted while closing it. Each field is changed in one step.
        self._counted: bool = False  # what it did has been added to the tally's counts
        # Owned by the reading role, which one thread at a time plays.
        self.reader = Reader(self, settings)
        #: Whether the peer has closed its direction while this side still sends (``half_close``).
        self.peer_finished: bool = False
        self.unsent: int = 0  #: messages for transports that were lost, never to be sent
        self.left_over: int = 0  #: ... and those that waited in the end
        self.was_cut_off: bool = False  #: whether it was aborted, as it did not end in time
        self._waited_in_vain: int = -1  # frames sent when a handler's write last timed out
        #: Bytes that were on their way to the peer when it was cut off.
        self.in_flight: int = 0
        self.keep_alive = KeepAlive(self, settings)
        self.teardown = Teardown(self, settings.drain_timeout)
        #: Set when only the last thread's return is left; `stuck` then holds the threads whose
        #: handlers never returned.
        self.finished = Wakeup()
        self.stuck: list[Joinable] = []

    def _new_send_queue(self, keep: bool) -> SendQueue:
        settings = self.settings
        return SendQueue(
            settings.queue_size,
            self.start_writer,
            limit_bytes=settings.queue_bytes,
            slow_consumer=settings.slow_consumer,
            keep=keep,
        )

    def _new_dispatcher(self, run: Callable[..., object] | None) -> Dispatcher:
        return Dispatcher(
            self,
            self.application,
            self.send_queue,
            watch_on(self.wheel.in_real_time),
            run=run,
            mode=self.settings.dispatch,
            limit=self.settings.queue_size,
            latencies=self.tally.latencies,
        )

    # -- the work behind Connection's methods

    @property
    def conn(self) -> Any:
        """The application's object; None if it is gone."""
        application = self.application.find()
        return None if application is None else application.find_conn()

    def reply(self, frame: bytes) -> None:
        """Send or queue the frame of a handler once there is room again.

        Raises:
            WouldBlock: there was none within ``reply_timeout``.
        """
        with self.lend_worker():
            try:
                self.send_queue.reply(frame, self.settings.reply_timeout)
            except WouldBlock:
                self._waited_in_vain = self.send_queue.frames_sent
                raise

    @property
    def may_wait(self) -> bool:
        """Whether a write waits for room: one of a handler of this connection.

        Not where one has waited in vain, and the peer has taken nothing since.
        """
        application = self.application.find()
        return (
            application is not None
            and application.variables.entered_here
            and self.settings.slow_consumer == "raise"
            and self.send_queue.crowded
            and self._waited_in_vain != self.send_queue.frames_sent
        )

    def _note_crowded(self) -> None:
        """A write has found the send queue more than half full; note it if it is a handler's."""
        application = self.application.find()
        if application is not None and application.variables.entered_here:
            self.runner.note_replies_wait()

    def lend_worker(self) -> AbstractContextManager[object]:
        """Return a context in which a waiting handler does not count as one of the workers."""
        return nullcontext()

    def close(self) -> None:
        """See `Connection.close`."""
        self.begin_close("closed by this side", drain=False)

    def abort(self) -> None:
        """See `Connection.abort`."""
        self.begin_close(ABORTED, drain=False)
        self.send_queue.give_up(ConnectionAbortedError(ABORTED))
        transport = self.transport
        if transport is not None:
            transport.abort(reset=True)

    def wait_closed(self, timeout: float | None = None) -> bool:
        """See `Connection.wait_closed`."""
        deadline = Deadline(0 if self.interrupted_here else timeout)
        if not self.finished.wait(deadline.remaining()):
            return False
        ending = [thread for thread in self.roles.threads_now() if thread not in self.stuck]
        return not (gather(ending, deadline) or self.stuck)

    @property
    def interrupted_here(self) -> bool:
        """Whether the calling thread has interrupted a call of its own on this connection.

        It is a signal handler or a finalizer then, and until it returns, so that the call goes on,
        the connection cannot end.
        """
        transport = self.transport
        return (
            self.send_queue.interrupted_here
            or self.dispatcher.interrupted_here
            or (transport is not None and transport.interrupted_here)
        )

    @property
    def unhandled(self) -> int:
        """How many messages were read but not completely handled."""
        return self.reader.messages_in - self.runner.handled

    # -- beginning

    def new_context(self) -> Context:
        """Return a context for a new transport."""
        return ConnectionContext(self._parent_context, self.net_id, self._server)

    def establish(self, transport: Transport) -> None:
        """Adopt a transport: handshake, ``on_connect``, clocks.

        Called by the thread that will read, or by the one that starts a client.

        Raises:
            HandshakeFailed: TLS was not agreed upon.
            ConnectionClosed: ``on_connect`` refused it, or it was closed before that was called.
        """
        self.transport = transport
        self.move(Event.ATTACH)  # a close from now on finds the transport, and aborts it
        self.shake_hands(transport)
        self.move(Event.SECURED)
        application = self.application.find()
        if application is not None:
            application.decoder = application.new_decoder()
        self.peer_finished = False
        self.gate.resume(_HALF_CLOSED)
        self.keep_alive.set_time()
        self.send_queue.attach(transport)
        if not self.ask_on_connect():
            raise ConnectionClosed("refused by on_connect")
        self.lifecycle.apply(Event.ACCEPT)
        self.tally.established(self)
        self.send_queue.open()
        self.keep_alive.start()

    def move(self, event: Event) -> None:
        """Apply an event of a connection that is being established.

        Raises:
            ConnectionClosed: it has been closed.
        """
        status = self.lifecycle.apply(event)[1]
        if status.close_reason is not None:
            raise ConnectionClosed(status.close_reason)

    def shake_hands(self, transport: Transport) -> None:
        """Complete the handshake of a new transport."""
        transport.handshake(self.settings.handshake_timeout)

    def ask_on_connect(self) -> bool:
        """Call ``on_connect``; return whether it agrees."""
        return self.greetings.ask_on_connect()

    def call_on_close(self) -> None:
        """Call ``on_close`` if it is owed."""
        self.greetings.call_on_close()

    def in_call_of_application(self) -> bool:
        """Whether an exception raised on this thread reaches a caller in the application."""
        return False

    # -- the roles that its threads play

    def start_writer(self) -> None:
        """Start the third thread. Called by the send queue, in its turn."""
        self.roles.start_writer(self.send_queue.run_writer)

    def start_handler(self) -> None:
        """Start the second thread; if none can be started, the connection is aborted."""
        self.roles.start_handler()

    def renew(self) -> bool:
        """Replace a transport that has ended and return True, or finish."""
        self.finish()
        return False

    # -- ending

    def transport_failed(self, error: OSError) -> None:
        """Handle a failed receive. Called by the reading role, as are the next two."""
        self.send_queue.give_up(error)
        self.fail(error, explain(error), ended=True)

    def stream_ended(self) -> None:
        """Handle the end of the stream, whichever side has ended it."""
        if (
            self.settings.half_close
            and not self.lifecycle.status.ended
            and self.send_queue.error is None
            and self.transport is not None
        ):
            self.peer_finished = True
            self.gate.pause(_HALF_CLOSED)
            limit = self.settings.half_close_timeout
            if not self.transport.wait_hung_up(limit):
                self.drop(f"peer closed, and this side did not within {limit:g} s")
                return
        unsendable = self.send_queue.error
        if unsendable is None:
            self.drop("peer closed", ended=True)
        else:  # it was this side that ended it, because sending failed
            self.fail(unsendable, explain(unsendable), ended=True)

    def heard(self) -> None:
        """Count the present as the time when data last arrived."""
        self.reader.last_received = monotonic()

    def protocol_error(self, error: BaseException) -> None:
        """End the connection: the decoder rejects the peer's bytes, or has a bug."""
        if not isinstance(error, BadData):
            error = unintended(f"the decoder raised {type(error).__name__}", error)
        self.fail(error, f"protocol error: {safe_str(error)}")

    def fail(self, error: Exception, reason: str, *, ended: bool = False) -> None:
        """Give the peer up because of an error of its own, of the network or of the decoder."""
        # What a peer does wrong on a connection that is ending anyway is not worth a report.
        if not self.lifecycle.status.ended or getattr(error, "unintended", False):
            self.reporter.lost(reason, error)
            self.reporter.tell(error)
        self.drop(reason, ended=ended)

    def drop(self, reason: str, *, ended: bool = False) -> None:
        """Give up this transport, which may have ``ended`` already."""
        self.begin_close(reason, drain=True, ended=ended)

    def begin_close(
        self, reason: str, *, drain: bool, timeout: float | None = None, ended: bool = False
    ) -> None:
        """Begin to close, or close a draining connection at once.

        Args:
            drain: handle what was received first.
            timeout: seconds until the connection is aborted; None: ``drain_timeout``.
            ended: the transport has ended already, so no clock is needed to end it, and handlers of
                the last messages may take their time.
        """
        seconds = self.settings.drain_timeout if timeout is None else timeout
        try:
            before, now = self.lifecycle.apply(Event.DRAIN if drain else Event.CLOSE, reason)
            self._take_first_steps(now.close_reason or reason, drain, not before.secured)
            if not ended:
                self.end_clock.start(seconds)
        except BaseException:
            if not ended:  # whatever step was skipped, the connection ends in time
                self.end_clock.start(seconds)
            raise

    def _take_first_steps(self, reason: str, drain: bool, in_handshake: bool) -> None:
        self.timers.close(reason)
        self.context.cancel_aside(reason)
        transport = self.transport
        if in_handshake and transport is not None:
            transport.abort()
        if drain:
            self.dispatcher.finish()
        else:
            self.dispatcher.finish(discard=True)
            self.drained()

    def collapse(self, error: BaseException) -> None:
        """Abort because of an unforeseen error, or because no thread could be started."""
        self.dispatcher.recover()
        self.report(error, "which ends the connection")
        self.begin_close(f"error: {explain(error)}", drain=False, timeout=0)

    def drained(self) -> None:
        """Seal the send queue, as everything is handled. Called by the dispatcher."""
        status = self.lifecycle.apply(Event.SEAL)[1]
        self.send_queue.seal(status.close_reason or "closed")

    def unacknowledged(self) -> int:
        """How many bytes in the kernel's send buffer the peer has not acknowledged."""
        transport = self.transport
        count = 0 if transport is None else transport.unacknowledged()
        # The FIN, which comes last, counts as one byte.
        return max(0, count - self.send_queue.fin_sent)

    def cut_off(self) -> None:
        """Abort the connection, as it does not end by itself."""
        self.was_cut_off = True
        self.in_flight = self.unacknowledged()
        self.send_queue.give_up(TimeoutError("the peer took too long"))
        transport = self.transport
        if transport is not None:
            transport.abort()

    def finish(self) -> None:
        """Take the last steps, on the reading thread; once only."""
        self.teardown.finish()

    def tell_unsent(self, what: str) -> None:
        """Warn that messages will not reach the peer."""
        if self.lifecycle.close_reason != ABORTED:  # else that was the intention
            self.reporter.undelivered(ConnectionClosed(what), "closing")

    def leave_owner(self) -> None:
        """Remove the connection from its owner's books."""
        if not self._counted or self in self.tally.living():  # an interrupted call left it there
            self._counted = True
            self.tally.ended(self)

    # -- errors and figures

    def report(self, error: BaseException, doing: str) -> None:
        """Log an exception with its traceback, count it, and pass it to ``on_error``."""
        self.reporter.raised(error, doing)

    def undefined(self, number: int) -> None:
        """Count a message with an unregistered number, and log the first of each number."""
        self.reporter.unregistered(number)

    def counts(self) -> Counts:
        """Return the counts of this connection."""
        intake = self.reader.intake
        return Counts(
            messages_in=self.reader.messages_in,
            bytes_in=self.reader.bytes_in,
            messages_out=self.send_queue.frames_sent,
            bytes_out=self.send_queue.bytes_sent,
            handled=self.runner.handled,
            handle_time=self.runner.busy_time,
            errors=self.reporter.errors,
            undefined=self.reporter.undefined,
            dropped=self.send_queue.dropped,
            unsent=self.unsent + self.left_over,
            over_rate=0 if intake is None else intake.over_rate,
            frame_timeouts=0 if intake is None else intake.frame_timeouts,
            overdue=self.reporter.overdue,
        )

    # -- after a fork

    def after_fork(self, reason: str) -> None:
        """In a child process: count as closed, without a word to the peer.

        It must not wait for a lock: the thread that holds it does not exist in the child.
        """
        transport, self.transport = self.transport, None
        if transport is not None:
            transport.after_fork()
        self.lifecycle.apply(Event.CLOSE, reason)
        self.greetings.after_fork()
        self.lifecycle.apply(Event.END)
        self.teardown.after_fork()
        self.roles.threads.clear()
        self.stuck = []
        self.timers.after_fork(reason)
        self.send_queue.after_fork(reason)
        self.end_clock = EndClock(self)
        self.dispatcher.after_fork()
        self.finished = Wakeup()
        self.finished.set()
