"""From a new transport to an open connection: handshake, ``on_connect``, and perhaps a login.

A connection is open, so that anybody may write to it and everything may be handled, once
``on_connect`` has agreed and the connection is ready. Most are ready from the start. A client with
``ready="manual"`` and a server with ``login`` are ready when the application calls
`Connection.ready`, as soon as the peer has accepted a login, or has been accepted.

Guarantees for a connection that is not ready:

- Of all that is written, only what ``on_connect`` and the handlers of this connection write is
  sent: the preface. The rest waits, is sent when the connection becomes ready, and is never sent if
  it ends before.
- It does not count as open: broadcasts, groups and schedules leave it out, and no heartbeat is
  sent.
- If it does not become ready in time, it is dropped.

``on_connect`` may make a request. From then on another thread reads, see ``reading_loan.py``, and
handlers run beside it. What they write belongs to the preface, too.

`Readiness.declare` may be called by any thread, while ``on_connect`` runs and while the transport
is lost or replaced. The transport for which it counts is part of the status, so a late call never
opens the next one. Of ``on_connect`` and `declare`, whichever comes last opens the connection.
"""

from __future__ import annotations

from functools import partial
from threading import get_ident
from typing import Any, Protocol

from tao.connection.application import ApplicationLink
from tao.connection.greetings import Greetings
from tao.connection.handling.dispatcher import Dispatcher
from tao.connection.keepalive import KeepAlive
from tao.connection.lifecycle import Event, Lifecycle
from tao.connection.reading_gate import ReadingGate
from tao.connection.reading_loan import ReadingLoan
from tao.connection.requests.exchange import Exchange
from tao.connection.sending.send_queue import SendQueue
from tao.connection.timers import TimerSet
from tao.errors import ConnectionClosed
from tao.transport.stream import Transport

__all__ = ["HALF_CLOSED", "Readiness", "ReadinessHost"]

#: Why reading pauses once the peer has closed its direction.
HALF_CLOSED = "half closed"
_CLOCK = "ready"  # the purpose of the clock, among those of the connection


class Lender(Protocol):
    """What this asks of the roles of a connection."""

    def lend_reading(self, loan: ReadingLoan) -> None:
        """Have another thread read the present transport.

        Raises:
            RuntimeError: no thread can be started.
        """


class ReadinessHost(Protocol):
    """What this asks of a connection's core."""

    application: ApplicationLink
    dispatcher: Dispatcher
    exchange: Exchange
    gate: ReadingGate
    greetings: Greetings
    keep_alive: KeepAlive
    lifecycle: Lifecycle
    peer_finished: bool
    send_queue: SendQueue
    timers: TimerSet
    transport: Transport | None

    @property
    def roles(self) -> Lender:
        """The threads of the connection."""

    @property
    def statistics(self) -> Any:
        """Where connections are counted."""

    def shake_hands(self, transport: Transport) -> Transport:
        """Complete the handshake of a new transport, and return what takes its place."""

    def ask_on_connect(self) -> bool:
        """Call ``on_connect``; return whether it agrees."""

    def await_login(self) -> None:
        """Let only a login reach its handlers from now on, if the application has one."""

    def admit(self) -> None:
        """Let all messages reach their handlers from now on."""

    def open_up(self, transport: Transport) -> None:
        """Send what waits, and start what an open connection has. May be called again."""

    def drop(self, reason: str) -> None:
        """Do without the peer."""


class Readiness:
    """Establishes one transport after another, and opens each when it is ready.

    Args:
        host: the connection's core.
        limit: how long the application may take to declare a connection ready, in seconds, and the
            option that says so; None: it is ready at once.
    """

    __slots__ = ("_host", "_lenders", "_limit", "_loan", "manual")

    def __init__(self, host: ReadinessHost, limit: tuple[float, str] | None) -> None:
        self._host = host
        self._limit = limit
        #: Whether the application declares a connection ready.
        self.manual: bool = limit is not None
        # While on_connect runs and has lent the reading role. Set by the thread that calls it.
        self._loan: ReadingLoan | None = None
        # The threads that have lent the role for good, and do not know it yet. Changed in single
        # steps.
        self._lenders: dict[int, None] = {}

    # -- for the thread that will read, or the one that starts a client

    def establish(self, transport: Transport) -> None:
        """Adopt a transport: handshake, ``on_connect``, clocks.

        Raises:
            HandshakeFailed: TLS was not agreed upon.
            ConnectionClosed: ``on_connect`` refused it, or it was closed before that was called.
        """
        host, lifecycle = self._host, self._host.lifecycle
        host.transport = transport
        lifecycle.advance(Event.ATTACH, transport)  # a close finds it from now on, and aborts it
        host.transport = transport = host.shake_hands(transport)
        lifecycle.advance(Event.SECURED, transport)
        application = host.application.find()
        if application is not None:
            application.decoder = application.new_decoder()
            host.exchange.attached(application)
            transport.begin()
        host.peer_finished = False
        host.gate.resume(HALF_CLOSED)
        host.keep_alive.set_time()
        if self.manual:
            host.await_login()
            self._set_clock(transport)
        host.send_queue.attach(transport, self.speaks_here, withheld=self.manual)
        if not host.ask_on_connect():
            raise ConnectionClosed("refused by on_connect")
        status = lifecycle.apply(Event.ACCEPT)[1]
        host.statistics.established(host)
        if status.released:
            host.open_up(transport)
        self.end_loan()

    def read_meanwhile(self) -> None:
        """Have another thread read, as ``on_connect``, which calls this, waits for an answer.

        Raises:
            RuntimeError: no thread can be started.
        """
        if self._loan is not None:
            return
        self._loan = loan = ReadingLoan()
        self._host.dispatcher.note_done(-1)  # so messages are queued
        try:
            self._host.roles.lend_reading(loan)
        except BaseException:
            self._forget_loan()
            raise

    def end_loan(self) -> None:
        """Let the borrower keep the reading role, as ``on_connect`` has returned."""
        loan = self._loan
        if loan is not None:
            if loan.keep():
                self._lenders[get_ident()] = None
            else:
                loan.left.wait()
            self._forget_loan()

    def take_reading_back(self, transport: Transport) -> None:
        """Abort a transport, and have the reading role again, if that was lent."""
        loan = self._loan
        self._host.timers.clear_clock(_CLOCK)
        transport.abort()
        if loan is not None:
            loan.left.wait()
            self._forget_loan()
            self._host.dispatcher.wait_idle()  # for handlers of what was received

    def _forget_loan(self) -> None:
        self._loan = None
        self._host.dispatcher.note_done(1)

    def has_lent_reading(self) -> bool:
        """Whether the calling thread has just lent the reading role for good; asked once."""
        return self._lenders.pop(get_ident(), False) is None

    # -- for the reading role

    def give_reading_back(self, reason: str) -> bool:
        """Return the reading role if it is lent, as the stream has ended; return whether it was.

        What ``on_connect`` waits for does not come any more.
        """
        loan = self._loan
        if loan is None or not loan.give_back():
            return False
        self._host.exchange.lost(reason)
        return True

    # -- for any thread

    def speaks_here(self) -> bool:
        """Whether what the calling code writes belongs to the preface.

        That is what ``on_connect`` writes, what tells capabilities and, before a login or beside
        ``on_connect``, what handlers write. A timer may be older than the transport, and knows
        nothing of a login.
        """
        host = self._host
        if host.greetings.speaks_here or host.exchange.speaks_here:
            return True
        if not self.manual and self._loan is None:
            return False
        application = host.application.find()
        if application is None:
            return False
        return application.variables.entered_here and not application.variables.in_timer

    def declare(self) -> None:
        """Declare the present transport ready. If there is none, or if it is, nothing happens."""
        lifecycle = self._host.lifecycle
        try:
            before, now = lifecycle.apply(Event.READY)
            if now.ready and not before.ready:
                self._release()
        except BaseException:
            if lifecycle.status.ready:
                self._release()  # again, as a later call would do nothing
            raise

    def _release(self) -> None:
        """Do what follows from being ready; each step may be repeated."""
        host = self._host
        host.timers.clear_clock(_CLOCK)
        host.admit()
        status = host.lifecycle.status
        if status.released and isinstance(status.link, Transport):
            host.open_up(status.link)

    def _set_clock(self, transport: Transport) -> None:
        assert self._limit is not None
        self._host.timers.set_clock(_CLOCK, self._limit[0], partial(self._look, transport))

    def _look(self, transport: Transport) -> None:
        """Drop a transport that is not ready in time; on the timing wheel's thread."""
        assert self._limit is not None
        seconds, option = self._limit
        status = self._host.lifecycle.status
        if status.link is transport and status.talking and not status.ready:
            self._host.drop(f"not ready within {seconds:g} s ({option})")
