"""The core of a connection: what both ends share, from the socket to the handler and back.

Users hold a `Connection`; the threads of a connection, the server and the monitor hold its core.
The core makes the parts of the connection and passes on what one part has to tell the others. What
state it is in, the lifecycle knows (``lifecycle.py``).

Three threads belong to it: one reads, one handles, one writes; reading and handling are roles that
two of the threads may swap (see ``dispatcher.py``), and only the first is started before it is
needed.

How it ends, whoever begins it:

1. `ConnectionCore.begin_close` notes the reason, of which the first counts, cancels the context and
   the timers.
2. When the last handler that is still to run has returned, the send queue is sealed. ``close()``
   seals it at once.
3. When the send queue is empty, the peer is sent the end (FIN), and reads everything before it.
4. The peer closes too, which the reading thread sees. If it does not, or will not take what waits,
   the timing wheel aborts the connection after a while.
5. The reading thread sees the others leave, calls ``on_close``, frees the socket, and is gone.

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
        settings: checked. For a client without what belongs to the application.
        application: what that has given.
        wheel: for heartbeats, timeouts and timers, and to find handlers that block.
        run: runs a function on the workers and waits for it; None: on the handling thread.
        parent: the context above the connection's.
        tally: where the connection's counts go when it ends.
        server: what `tao.server_from` finds in the context; None for a client.
        keep: whether what is written without a transport waits for the next.
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
        #: What the connection is called in logs; the application may change it, and the next two.
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
        #: Cancelled when the connection ends; what its handlers get are children of it.
        self.context: Context = self.new_context()
        self.gate = ReadingGate()
        self.roles = Roles(self, self.label.format(net_id), settings.cpus)
        self.send_queue: SendQueue = self._new_send_queue(keep)
        self.dispatcher: Dispatcher = self._new_dispatcher(run)
        self.runner = self.dispatcher.runner
        self.send_queue.on_crowded = self._note_crowded
        self.timers = TimerSet(wheel, self.dispatcher.post, self.application)
        self.reporter = Reporter(self)
        self.greetings = Greetings(self)
        self.end_clock = EndClock(self)
        #: The present transport. Changed by the thread that connects or reads.
        self.transport: Transport | None = None
        # No lock guards the fields below, as any thread may close a connection at any moment, also
        # one that is interrupted in the midst of closing it. Each is changed in one step.
        self._counted: bool = False  # what it did has been added to the tally's counts
        # Owned by the reading role, which one thread at a time plays.
        self.reader = Reader(self, settings)
        #: Whether the peer has ended its direction, and this side goes on (``half_close``).
        self.peer_finished: bool = False
        self.unsent: int = 0  #: messages for transports that were lost, never to be sent
        self.left_over: int = 0  #: ... and those that waited in the end
        self.was_cut_off: bool = False  #: whether it was aborted, as it did not end in time
        # What the kernel had taken when a handler's write last waited in vain.
        self._waited_in_vain: int = -1
        #: Bytes that were on their way to the peer when it was cut off.
        self.in_flight: int = 0
        self.keep_alive = KeepAlive(self, settings)
        self.teardown = Teardown(self, settings.drain_timeout)
        #: Set when all is over but the last thread's last step; then `stuck` holds the threads
        #: whose handler never returned.
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

    # -- what users ask for, see Connection

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
        """A write has found the send queue more than half full: is it a handler's?"""
        application = self.application.find()
        if application is not None and application.variables.entered_here:
            self.runner.note_replies_wait()

    def lend_worker(self) -> AbstractContextManager[object]:
        """While a handler waits in this, it does not count as one of the workers."""
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
        """How many messages were read and are not handled to the end, or not yet."""
        return self.reader.messages_in - self.runner.handled

    # -- beginning

    def new_context(self) -> Context:
        """Return a context for a new transport."""
        return ConnectionContext(self._parent_context, self.net_id, self._server)

    def establish(self, transport: Transport) -> None:
        """Make a transport the connection's: handshake, ``on_connect``, clocks.

        Called by the thread that will read, or by the one that starts a client.

        Raises:
            HandshakeFailed: TLS was not agreed upon.
            ConnectionClosed: refused by ``on_connect``, or closed before that was asked.
        """
        self.transport = transport
        self.move(Event.ATTACH)  # whoever closes later finds the transport, and aborts it
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
        """Apply an event of a connection that is coming to be.

        Raises:
            ConnectionClosed: somebody has closed it.
        """
        status = self.lifecycle.apply(event)[1]
        if status.close_reason is not None:
            raise ConnectionClosed(status.close_reason)

    def shake_hands(self, transport: Transport) -> None:
        """Have the handshake of a new transport done."""
        transport.handshake(self.settings.handshake_timeout)

    def ask_on_connect(self) -> bool:
        """Call ``on_connect``; tell whether it agrees."""
        return self.greetings.ask_on_connect()

    def call_on_close(self) -> None:
        """Call ``on_close`` if it is owed."""
        self.greetings.call_on_close()

    def in_call_of_application(self) -> bool:
        """Tell whether an exception that is raised here reaches a caller of the application's."""
        return False

    # -- the roles that its threads play

    def start_writer(self) -> None:
        """Start the third thread. Called by the send queue, in its turn."""
        self.roles.start_writer(self.send_queue.run_writer)

    def start_handler(self) -> None:
        """Start the second thread; if none can be started, the connection is aborted."""
        self.roles.start_handler()

    def renew(self) -> bool:
        """The transport has ended. Get another and return True, or finish."""
        self.finish()
        return False

    # -- ending

    def transport_failed(self, error: OSError) -> None:
        """Reading has failed. Called by the reading role, as are the next two."""
        self.send_queue.give_up(error)
        self.fail(error, explain(error), ended=True)

    def stream_ended(self) -> None:
        """The peer has sent the end, or this side has ended the transport itself."""
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
        """Take the present for when something last came from the peer."""
        self.reader.last_received = monotonic()

    def protocol_error(self, error: BaseException) -> None:
        """The decoder can make nothing of what the peer sends, or has a bug."""
        if not isinstance(error, BadData):
            error = unintended(f"the decoder raised {type(error).__name__}", error)
        self.fail(error, f"protocol error: {safe_str(error)}")

    def fail(self, error: Exception, reason: str, *, ended: bool = False) -> None:
        """Give the peer up because of an error: its own, the network's or the decoder's."""
        # Nobody needs to hear what a peer does wrong to a connection that ends anyway.
        if not self.lifecycle.status.ended or getattr(error, "unintended", False):
            self.reporter.lost(reason, error)
            self.reporter.tell(error)
        self.drop(reason, ended=ended)

    def drop(self, reason: str, *, ended: bool = False) -> None:
        """Do without this transport, which may have ``ended`` already."""
        self.begin_close(reason, drain=True, ended=ended)

    def begin_close(
        self, reason: str, *, drain: bool, timeout: float | None = None, ended: bool = False
    ) -> None:
        """Start the graceful end, or make a draining one hasty.

        Args:
            drain: handle what was received first.
            timeout: seconds that all of it may take; None: what the options say.
            ended: the transport has ended. Then nobody needs to see to that, and a handler of the
                last messages may take its time.
        """
        seconds = self.settings.drain_timeout if timeout is None else timeout
        try:
            before, now = self.lifecycle.apply(Event.DRAIN if drain else Event.CLOSE, reason)
            self._take_first_steps(now.close_reason or reason, drain, not before.secured)
            if not ended:
                self.end_clock.start(seconds)
        except BaseException:
            if not ended:  # whatever was left out, it ends
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
        """End at once, for lack of a thread or because of an error that nobody foresaw."""
        self.dispatcher.recover()
        self.report(error, "which ends the connection")
        self.begin_close(f"error: {explain(error)}", drain=False, timeout=0)

    def drained(self) -> None:
        """Have the peer told the end, as all is handled. Called by the dispatcher."""
        status = self.lifecycle.apply(Event.SEAL)[1]
        self.send_queue.seal(status.close_reason or "closed")

    def unacknowledged(self) -> int:
        """How many bytes that the kernel took are still on their way to the peer."""
        transport = self.transport
        count = 0 if transport is None else transport.unacknowledged()
        # The end itself (FIN), which comes last, counts for one.
        return max(0, count - self.send_queue.fin_sent)

    def cut_off(self) -> None:
        """Abort what does not end by itself."""
        self.was_cut_off = True
        self.in_flight = self.unacknowledged()
        self.send_queue.give_up(TimeoutError("the peer took too long"))
        transport = self.transport
        if transport is not None:
            transport.abort()

    def finish(self) -> None:
        """Do the last steps, by the reading thread; more than once does nothing."""
        self.teardown.finish()

    def tell_unsent(self, what: str) -> None:
        """Warn of what will not reach the peer."""
        if self.lifecycle.close_reason != ABORTED:  # else that was the purpose
            self.reporter.undelivered(ConnectionClosed(what), "closing")

    def leave_owner(self) -> None:
        """Have the owner forget the connection."""
        if not self._counted or self in self.tally.living():  # an interruption may have undone it
            self._counted = True
            self.tally.ended(self)

    # -- errors and figures

    def report(self, error: BaseException, doing: str) -> None:
        """Log an exception with its traceback, count it, and pass it to ``on_error``."""
        self.reporter.raised(error, doing)

    def undefined(self, number: int) -> None:
        """Count a message whose number is not registered, and log the first of each number."""
        self.reporter.unregistered(number)

    def counts(self) -> Counts:
        """Return what this connection has done so far."""
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
        """In a child process: be the core of a connection that has ended, without telling the peer.

        It must not wait for anything, as nobody is there to release a lock.
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
