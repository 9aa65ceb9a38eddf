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

Whichever thread completes a step starts the next. Where reading is shared, the peer has closed, and
nothing is under way, all is done at once, see `Teardown.at_once`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from time import monotonic
from typing import Any

from tao.connection.application import Application, ApplicationLink
from tao.connection.assembly import new_dispatcher, new_roles, new_send_queue
from tao.connection.greetings import Greetings
from tao.connection.handling.dispatcher import Dispatcher
from tao.connection.handling.replies import Replies
from tao.connection.keepalive import KeepAlive
from tao.connection.lifecycle import Event, Lifecycle
from tao.connection.options.definitions import Settings
from tao.connection.readiness import HALF_CLOSED, Readiness
from tao.connection.receiving.reading import Reader
from tao.connection.reports.error_reporting import ErrorReports
from tao.connection.reports.statistics import Counts, Statistics
from tao.connection.requests.exchange import Exchange
from tao.connection.roles import Roles
from tao.connection.sending.send_queue import SendQueue
from tao.connection.shared_reading.readers import SharedReaders
from tao.connection.shared_reading.roles import SharedRoles
from tao.connection.shutdown import ShutdownClock
from tao.connection.teardown import Teardown
from tao.connection.timers import TimerSet
from tao.connection.totals import totals_of
from tao.errors import BadData, ConnectionClosed
from tao.runtime.combining import in_a_turn
from tao.runtime.context import ConnectionContext, Context
from tao.runtime.deadline import Deadline
from tao.runtime.threads import Joinable, gather
from tao.runtime.timing_wheel import TimingWheel
from tao.runtime.wakeup import Wakeup
from tao.safe_text import safe_str
from tao.transport.error_text import explain
from tao.transport.stream import Transport
from tao.wire.capabilities import REQUESTS
from tao.wire.codec import unintended

__all__ = ["ABORTED", "ConnectionCore"]

#: The close reason of `ConnectionCore.abort`.
ABORTED = "aborted by this side"


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
        statistics: receives the connection's counts when it ends.
        server: what `tao.server_from` finds in the context; None for a client.
        keep: whether messages written without a transport wait for the next one.
        readers: read the connection, with others; None: it has a reading thread of its own.
    """

    __slots__ = (
        "__weakref__", "_counted", "_parent_context", "_server", "application", "context",
        "dispatcher", "error_reports", "exchange", "finished", "gate", "greetings", "in_flight",
        "keep_alive", "left_over", "lifecycle", "local_address", "name", "net_id",
        "peer_finished", "reader", "readiness", "remote_address", "replies", "roles", "runner",
        "send_queue", "settings", "shutdown_clock", "statistics", "stuck", "teardown", "timers",
        "transport", "unsent", "was_cut_off", "wheel",
    )  # fmt: skip

    label: str = "{}"  #: how threads are numbered
    capabilities: int = REQUESTS  #: what the peer is told that this side can
    #: Whether nothing but `finish` follows the end of a transport.
    ends_for_good: bool = False

    def __init__(
        self,
        net_id: int,
        settings: Settings,
        application: Application,
        *,
        wheel: TimingWheel,
        run: Callable[[Callable[[], object]], object] | None,
        parent: Context,
        statistics: Statistics,
        server: Any = None,
        keep: bool = False,
        readers: SharedReaders | None = None,
    ) -> None:
        self.net_id: int = net_id
        #: The name in logs; the application may set it, and the next two.
        self.name: Any = str(net_id)
        self.remote_address: Any = None
        self.local_address: Any = None
        self.settings = settings
        self.application = ApplicationLink(application)
        self.wheel = wheel
        self.statistics = statistics
        self.readiness = Readiness(self, settings.readiness_limit)
        self.lifecycle = Lifecycle(manual=self.readiness.manual)
        self._server = server
        self._parent_context = parent
        self.exchange = Exchange(self)
        #: Cancelled when the connection ends; the contexts of its handlers are children of it.
        self.context: Context = self.new_context()
        self.roles: Roles | SharedRoles = new_roles(self, self.label.format(net_id), readers)
        self.gate = self.roles.gate
        self.send_queue: SendQueue = new_send_queue(self, keep)
        self.dispatcher: Dispatcher = new_dispatcher(self, run)
        self.runner = self.dispatcher.runner
        self.replies = Replies(self)
        self.timers = TimerSet(wheel, self.dispatcher.post, self.application)
        self.error_reports = ErrorReports(self)
        self.greetings = Greetings(self)
        self.shutdown_clock = ShutdownClock(self)
        #: The present transport. Changed by the thread that connects or reads.
        self.transport: Transport | None = None
        # No lock guards the fields below: any thread may close a connection at any moment, even one
        # that was interrupted while closing it. Each field is changed in one step.
        self._counted: bool = False  # what it did has been added to the statistics
        # Owned by the reading role, which one thread at a time plays.
        self.reader = Reader(self, settings)
        #: Whether the peer has closed its direction while this side still sends (``half_close``).
        self.peer_finished: bool = False
        self.unsent: int = 0  #: messages for transports that were lost, never to be sent
        self.left_over: int = 0  #: ... and those that waited in the end
        self.was_cut_off: bool = False  #: whether it was aborted, as it did not end in time
        #: Bytes that were on their way to the peer when it was cut off.
        self.in_flight: int = 0
        self.keep_alive = KeepAlive(self, settings)
        self.teardown = Teardown(self, settings.drain_timeout)
        #: Set when only the last thread's return is left; `stuck` then holds the threads whose
        #: handlers never returned.
        self.finished = Wakeup()
        self.stuck: Sequence[Joinable] = ()

    # -- the work behind Connection's methods

    @property
    def conn(self) -> Any:
        """The application's object; None if it is gone."""
        application = self.application.find()
        return None if application is None else application.find_conn()

    def lend_worker(self) -> AbstractContextManager[object]:
        """Return a context in which a waiting handler does not count as one of the workers."""
        return nullcontext()

    def ready(self) -> None:
        """See `Connection.ready`."""
        self.readiness.declare()

    def close(self, reason: str) -> None:
        """See `Connection.close`."""
        self.begin_close(reason, drain=False)

    def abort(self) -> None:
        """See `Connection.abort`."""
        self.begin_close(ABORTED, drain=False)
        self.send_queue.give_up(ConnectionAbortedError(ABORTED))
        transport = self.transport
        if transport is not None:
            transport.abort(reset=True)

    def wait_closed(self, timeout: float | None = None) -> bool:
        """See `Connection.wait_closed`."""
        deadline = Deadline(0 if self.interrupted_here or in_a_turn() else timeout)
        if not self.finished.wait(deadline.remaining()):
            return False
        ending = [thread for thread in self.roles.threads_now() if thread not in self.stuck]
        return not (gather(ending, deadline) or self.stuck) and self.exchange.called_back(deadline)

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
            or self.exchange.interrupted_here
            or (transport is not None and transport.interrupted_here)
        )

    @property
    def must_not_wait_here(self) -> bool:
        """The same, but ``on_connect`` may wait for what the peer sends, if not for the end."""
        return self.interrupted_here

    @property
    def unhandled(self) -> int:
        """How many messages were taken in but not completely handled."""
        return self.reader.messages_in - self.dispatcher.too_late - self.runner.handled

    # -- beginning

    def new_context(self) -> Context:
        """Return a context for a new transport."""
        return ConnectionContext(
            self._parent_context, self.net_id, self._server, self.exchange.responder
        )

    def shake_hands(self, transport: Transport) -> Transport:
        """Complete the handshake of a new transport, and return what takes its place."""
        transport.handshake(self.settings.handshake_timeout)
        return transport

    def ask_on_connect(self) -> bool:
        """Call ``on_connect``; return whether it agrees."""
        return self.greetings.ask_on_connect()

    def await_login(self) -> None:
        """Let only a login reach its handlers from now on, if the application has one."""

    def admit(self) -> None:
        """Let all messages reach their handlers from now on."""

    def open_up(self, transport: Transport) -> None:
        """Send what waits, and start what an open connection has. May be called again."""
        self.send_queue.open(transport)
        self.exchange.opened()
        self.keep_alive.start()

    def leave_peer(self, why: str) -> bool:
        """Leave the peer when nothing is under way, and connect again; return whether it does."""
        return False

    def call_on_close(self) -> None:
        """Call ``on_close`` if it is owed."""
        self.greetings.call_on_close()

    def in_call_of_application(self) -> bool:
        """Whether an exception raised on this thread reaches a caller in the application."""
        return False

    @property
    def waits_for_reply(self) -> bool:
        """Whether a handler waits for the reply to a request of its own."""
        return self.exchange.spill is not None

    def may_spill(self) -> bool:
        """Whether reading goes on although the inbox is full: what is waited for comes later."""
        spill, transport = self.exchange.spill, self.transport
        ahead = transport is not None and transport.reads_ahead(self.dispatcher.inbox.spilt)
        return ahead or (spill is not None and spill())

    # -- the roles that its threads play

    def start_handler(self) -> None:
        """Start the second thread; if none can be started, the connection is aborted."""
        self.roles.start_handler()

    def renew(self) -> bool | None:
        """Replace a transport that has ended and return True; or finish.

        None, which only shared reading sees: it goes on later, when the roles are told to `end`.
        """
        self.finish()
        return False

    @property
    def greets(self) -> bool:
        """Whether the application wants to be asked when a connection opens."""
        application = self.application.find()
        return application is not None and application.on_connect is not None

    @property
    def ends_at_once(self) -> bool:
        """Whether `finish` has nothing to wait for, and calls nothing of the application's."""
        application = self.application.find()
        quiet = application is None or application.on_close is None
        requests = self.exchange.requests_so_far
        asked = requests is not None and (requests.in_flight or requests.waiting)
        return quiet and not asked and self.dispatcher.idle and self.send_queue.over

    # -- ending

    def transport_failed(self, error: OSError) -> None:
        """Handle a failed receive. Called by the reading role, as are the next two."""
        if isinstance(error, ConnectionClosed):  # a stream of TLS that was cut, maybe by this side
            error = self.send_queue.error or error
        self.send_queue.give_up(error)
        if self.readiness.give_reading_back(explain(error)):
            return
        self.fail(error, explain(error), ended=True)

    def stream_ended(self) -> None:
        """Handle the end of the stream, whichever side has ended it."""
        if self.readiness.give_reading_back("peer closed"):
            return
        if (
            self.settings.half_close
            and not self.lifecycle.status.ended
            and self.send_queue.error is None
            and self.transport is not None
        ):
            self.peer_finished = True
            self.gate.pause(HALF_CLOSED)
            limit = self.settings.half_close_timeout
            if not self.transport.wait_hung_up(limit):
                self.drop(f"peer closed, and this side did not within {limit:g} s")
                return
        unsendable = self.send_queue.error
        if unsendable is None:
            if not (self.ends_for_good and self.teardown.at_once("peer closed")):
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
            self.error_reports.lost(reason, error)
            self.error_reports.tell(error)
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
                self.shutdown_clock.start(seconds)
        except BaseException:
            if not ended:  # whatever step was skipped, the connection ends in time
                self.shutdown_clock.start(seconds)
            raise

    def _take_first_steps(self, reason: str, drain: bool, in_handshake: bool) -> None:
        self.timers.close(reason)
        self.context.cancel_aside(reason)
        self.exchange.ended(reason)
        transport = self.transport
        if in_handshake and transport is not None:
            transport.abort()
        if drain:
            self.dispatcher.finish()
        else:
            self.dispatcher.finish(discard=True)
            self.drained()

    def collapse(self, error: BaseException, *, for_good: bool = False) -> None:
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
        self.exchange.ended(self.lifecycle.close_reason or "closed")
        self.teardown.finish()
        # Again, as another thread may have been in the midst of something; now none is.
        self.exchange.ended(self.lifecycle.close_reason or "closed")

    def tell_unsent(self, what: str) -> None:
        """Warn that messages will not reach the peer."""
        if self.lifecycle.close_reason != ABORTED:  # else that was the intention
            self.error_reports.undelivered(ConnectionClosed(what), "closing")

    def leave_owner(self) -> None:
        """Remove the connection from its owner's books."""
        if not self._counted or self in self.statistics.living():  # left there by an interruption
            self._counted = True
            self.statistics.ended(self, self.stuck)

    # -- errors and figures

    def report(self, error: BaseException, doing: str, context: Context | None = None) -> None:
        """Log an exception with its traceback, count it, and pass it to ``on_error``."""
        self.error_reports.raised(error, doing, context)

    def undefined(self, number: Any) -> None:
        """Count a message with an unregistered number, and log the first of each number."""
        self.error_reports.unregistered(number)

    totals = totals_of

    def counts(self) -> Counts:
        """Return what `totals` does, with names."""
        return Counts(*self.totals())

    def requests_now(self) -> tuple[int, float]:
        """Return how many requests are in flight, and for how many seconds the oldest one."""
        requests = self.exchange.requests_so_far
        return (0, 0.0) if requests is None else (requests.in_flight, requests.oldest)

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
        self.stuck = ()
        self.timers.after_fork(reason)
        self.send_queue.after_fork(reason)
        self.shutdown_clock = ShutdownClock(self)
        self.dispatcher.after_fork()
        self.exchange.after_fork(reason)
        self.finished = Wakeup()
        self.finished.set()
