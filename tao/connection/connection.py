"""The connection object that applications hold: a thin facade over its core (``core.py``)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from concurrent.futures import Future
from datetime import datetime
from types import EllipsisType, SimpleNamespace
from typing import Any

from tao.callables import check_callable, check_quickly, checked_flag
from tao.connection.application import Application
from tao.connection.core import ConnectionCore
from tao.connection.lifecycle import Phase
from tao.connection.options.fields import check_number
from tao.connection.requests.asking import ask, ask_later
from tao.connection.requests.pending import DEFAULT_TIMEOUT, Request, RequestFuture
from tao.connection.sending.backlog import TrackedFrame
from tao.connection.sending.keyed_frames import ReplaceKey, keyed
from tao.connection.sending.ticket import Ticket
from tao.connection.sessions.agreeing import session_of
from tao.connection.sessions.stream import SessionFigures
from tao.connection.socket_access import HasTransport
from tao.connection.timers import ConnectionTimer
from tao.errors import WouldBlock
from tao.runtime.context import Context
from tao.runtime.timing_wheel import delay_until
from tao.safe_text import safe_repr, safe_str
from tao.session.frames import is_one_frame
from tao.transport.addresses import address_text
from tao.wire.message import AnyMessage

__all__ = ["CLOSED", "Connection", "check_reason", "core_of"]

#: The close reason of `Connection.close`, unless it is given another.
CLOSED = "closed by this side"
# Where `Connection.state` is among the values of a connection.
_STATE = object()


class Connection(HasTransport):
    """One end of a connection. All public methods may be called from any thread, at any time.

    Applications use its subclasses `ServerConn` and `ClientConn`.

    Args:
        application: handlers, callbacks and values; this is the only strong reference to it.
        core: does the work.
    """

    def __init__(self, application: Application, core: ConnectionCore) -> None:
        self._application = application
        self._core = core
        # Looked up once, as they are used for each message.
        self._encode = application.encode
        self._send_queue = core.send_queue

    # -- writing

    def write(
        self,
        message: AnyMessage,
        timeout: float | None = None,
        *,
        header: Mapping[str, Any] | None = None,
        replace: ReplaceKey | None = None,
    ) -> None:
        """Send a message, or queue it behind the messages that wait. Accepted messages keep order.

        The peer handles the messages of one connection in that order. After a client has
        reconnected, messages from its previous connection may still be handled at the same time.

        Args:
            message: anything with a ``message_number`` and a ``serialize()``; it is encoded here,
                in the caller's thread.
            timeout: seconds to wait for room in the send queue. With None the call does not wait,
                except in a handler or timer of this same connection: there up to
                ``reply_timeout``.
            header: values of the other fields of its frame, by name, if the codec has such.
            replace: a key, for values of which only the latest is of interest. A message that was
                written with the same key, and of which nothing has been sent, is not sent; this one
                takes its place in the queue.

        Raises:
            WouldBlock: the send queue is full; the message was not queued.
            ConnectionClosed: the connection is closed; the message was not queued.
            TypeError: there is a header, but the codec has no fields for it; or ``replace`` is
                no key.
            Exception: what ``serialize()`` raises; nothing was sent.
        """
        encode = self._encode  # an attribute is found faster when it is not called at once
        frame = (
            encode(message) if header is None else self._application.encode_with(message, header)
        )
        try:
            if replace is None:
                self._send_queue.write(frame, timeout)
            else:
                frame = keyed(frame, replace)
                self._send_queue.write_keyed(frame, timeout)
        except WouldBlock:
            if timeout is not None or not self._core.replies.may_wait:
                raise
            self._core.replies.write(frame)

    def write_frame(self, frame: bytes, timeout: float | None = None) -> None:
        """Send a message that is encoded already, for instance for many receivers; see `write`.

        Args:
            frame: one whole message. A ``bytearray`` or ``memoryview`` is copied.

        Raises:
            TypeError: it is not bytes.
            ValueError: the connection has a session, or is to have one, and this is not one whole
                message.
        """
        frame = _own_bytes(frame)
        if self._has_session and not is_one_frame(frame):
            raise ValueError("with a session, write_frame takes one whole message at a time")
        try:
            self._send_queue.write(frame, timeout)
        except WouldBlock:
            if timeout is not None or not self._core.replies.may_wait:
                raise
            self._core.replies.write(frame)

    @property
    def _has_session(self) -> bool:
        """Whether it has a session, or is to have one."""
        return self.session is not None

    def submit(
        self,
        message: AnyMessage,
        timeout: float | None = None,
        *,
        header: Mapping[str, Any] | None = None,
    ) -> Ticket:
        """Send or queue a message as `write` does, and return a `Ticket` that can withdraw it.

        Use it for a message that must not be sent once its caller has given up, such as a request:
        ``ticket.withdraw()`` returns True if the message was not sent and never will be.
        """
        frame = self._send_queue.tracked(
            self._encode(message)
            if header is None
            else self._application.encode_with(message, header)
        )
        self.write_frame(frame, timeout)
        return Ticket(self._send_queue, frame)

    # -- asking the peer

    def request(
        self,
        message: AnyMessage,
        timeout: float | None = DEFAULT_TIMEOUT,
        *,
        only_if_connected: bool = False,
        header: Mapping[str, Any] | None = None,
    ) -> Any:
        """Ask the peer, wait for its reply, and return that.

        The peer is another tao: a handler of the message there calls ``ctx.reply``. May be called
        by any thread, in handlers and timers of this connection too: messages that come meanwhile
        wait for the handler, the reply does not.

        Requests and writes leave in the order of the calls, except while requests wait: for
        ``max_in_flight``, or to learn whether the peer answers requests at all.

        Args:
            message: as for `write`.
            timeout: seconds until it is given up; None: never.
            only_if_connected: fail at once if the peer is away. Otherwise a client that reconnects
                sends the request when it is connected again, if it was not sent before. That of a
                handler fails in any case, as the client connects again when that has returned.
            header: values of the other fields of its frame, as for `write`.

        Raises:
            RequestTimeout: no reply came in time. If it was not sent, it never will be.
            ConnectionLost: the connection ended before the reply came; its ``sent`` says whether
                the peer may have executed the request.
            RemoteError: the peer refused, as its text says. `NoHandler`: it has no handler.
            RequestsNotSupported: the peer does not answer requests.
            WouldDeadlock: the reply could never have been read, because so many messages wait for
                this handler to end, or because the calling code is ``on_resume`` or has interrupted
                another call.
            BadData: the class of the reply is not registered on this side, or rejects it.
            Exception: what ``serialize()`` raises; nothing was sent.
        """
        requests = self._core.exchange.requests
        request = self._new_request(message, timeout, only_if_connected, header)
        return ask(self._core, requests, request)

    def request_async(
        self,
        message: AnyMessage,
        timeout: float | None = DEFAULT_TIMEOUT,
        *,
        only_if_connected: bool = False,
        header: Mapping[str, Any] | None = None,
    ) -> Future[Any]:
        """Ask the peer and return a future of its reply at once.

        ``future.cancel()`` gives the request up. Callbacks of the future may block: a thread that
        is there for those of this connection calls them, one after another. Only one that is added
        when the future is done is called at once, by the thread that adds it. What they raise is
        passed to ``on_error``. `wait_closed` waits for them.

        Args:
            message, timeout, only_if_connected, header: as for `request`.

        Raises:
            WouldBlock: ``queue_size`` requests wait to be sent, or (from the future) the send queue
                is full.
            ConnectionLost, RequestsNotSupported, WouldDeadlock: as for `request`, if they are known
                at once.
            Exception: what ``serialize()`` raises; nothing was sent.
        """
        exchange = self._core.exchange
        future, requests = RequestFuture(exchange.callbacks), exchange.requests
        request = self._new_request(message, timeout, only_if_connected, header, future)
        return ask_later(requests, request)

    def _new_request(
        self,
        message: AnyMessage,
        timeout: float | None,
        only_if_connected: bool,
        header: Mapping[str, Any] | None,
        future: RequestFuture | None = None,
    ) -> Request:
        if only_if_connected is not False:
            checked_flag("only_if_connected", only_if_connected)
        return Request(
            message,
            timeout,
            header=header,
            only_if_connected=only_if_connected,
            future=future,
        )

    @property
    def send_queue_length(self) -> int:
        """How many messages wait to be sent."""
        return self._send_queue.waiting

    def ready(self) -> None:
        """Declare the connection ready, as a login has succeeded.

        What was written meanwhile is sent. On a client this is for ``ready="manual"``, on a server
        for ``login``; other connections are ready when they are made. It may be called by a
        handler, by ``on_connect`` or by any other thread. When the connection is ready already, is
        lost, or is closed, it does nothing.
        """
        self._core.ready()

    # -- ending

    def close(self, reason: str = CLOSED) -> None:
        """Close the connection gracefully. Returns at once; see `wait_closed`.

        Messages written before are sent if the peer reads them; received messages that were not
        handled yet are dropped. Closing twice is harmless: the first reason counts.

        Args:
            reason: what ``close_reason`` is from then on, for ``on_close`` and the log.

        Raises:
            TypeError, ValueError: the reason is no str, or empty.
        """
        self._core.close(check_reason(reason))

    def abort(self) -> None:
        """End the connection now, for good. Returns at once; see `wait_closed`.

        Unsent data is discarded, here and in the kernel, and the peer sees a reset or the end of
        the stream. Running handlers have ``drain_timeout`` to return, as after `close`. Aborting a
        connection that is closing, or aborting twice, is harmless.
        """
        self._core.abort()

    def wait_closed(self, timeout: float | None = None) -> bool:
        """Wait until the connection and all its threads have ended; return whether they have.

        Also the callbacks of its futures have returned then.

        A handler that did not return within ``drain_timeout`` of a close is not waited for. If
        called from a signal handler or finalizer that interrupted a write, a request or the like,
        it does not wait: closing may depend on that call.

        Not to be called by a handler of this connection: it would wait for itself.
        """
        return self._core.wait_closed(timeout)

    @property
    def closed(self) -> bool:
        """Whether the connection is closed or closing: it reads and accepts nothing new."""
        return self._core.lifecycle.close_reason is not None

    @property
    def close_reason(self) -> str | None:
        """Why the connection ended or is ending, in words; None while it is open."""
        status = self._core.lifecycle.status
        return status.close_reason or status.disconnect_reason

    # -- properties

    @property
    def net_id(self) -> int:
        """The number of the connection, unique within its server or the process's clients."""
        return self._core.net_id

    @property
    def name(self) -> Any:
        """The name of the connection in logs; settable. Its number by default."""
        return self._core.name

    @name.setter
    def name(self, name: Any) -> None:
        self._core.name = name

    @property
    def remote_address(self) -> Any:
        """The peer's address; settable, for instance to an address reported by a proxy."""
        return self._core.remote_address

    @remote_address.setter
    def remote_address(self, address: Any) -> None:
        self._core.remote_address = address

    @property
    def local_address(self) -> Any:
        """The address of this side."""
        return self._core.local_address

    @local_address.setter
    def local_address(self, address: Any) -> None:
        self._core.local_address = address

    @property
    def session(self) -> SessionFigures | None:
        """How the session of this connection is now; None if it has none."""
        stream = session_of(self._core.transport)
        return None if stream is None else stream.figures

    @property
    def context(self) -> Context:
        """Cancelled when the connection ends; the contexts of its handlers are children of it."""
        return self._core.context

    @property
    def last_heartbeat(self) -> float:
        """When data last arrived from the peer, in seconds since the Unix epoch.

        The time of day is read once, when the connection is made, and advanced by the monotonic
        clock: setting the system's clock does not move it. See also `idle_time`.
        """
        return self._core.keep_alive.last_heartbeat

    def set_keepalive(
        self,
        *,
        heartbeat: float | EllipsisType | None = ...,
        idle_timeout: float | EllipsisType | None = ...,
    ) -> None:
        """Change ``heartbeat`` and ``idle_timeout`` of this connection, as a login negotiates them.

        The peer has at least the new ``idle_timeout`` from now on. A client that reconnects keeps
        what was set last. May be called before the connection is open.

        Args:
            heartbeat: seconds without anything sent until a heartbeat is; None: no heartbeats.
                What is not given stays as it is.
            idle_timeout: seconds without anything received until the connection is closed; None:
                never.

        Raises:
            TypeError, ValueError: a value is not a positive number; the text names it.
        """
        for name, value in (("heartbeat", heartbeat), ("idle_timeout", idle_timeout)):
            if value is not None and value is not ...:
                check_number(name, value)
        self._core.keep_alive.change(heartbeat, idle_timeout)

    @property
    def idle_time(self) -> float:
        """Seconds since data last arrived from the peer."""
        return self._core.keep_alive.idle_time

    @property
    def unhandled(self) -> int:
        """How many messages were read but not completely handled."""
        return self._core.unhandled

    @property
    def peer_finished(self) -> bool:
        """Whether the peer has ended its direction and this side still sends (``half_close``)."""
        return self._core.peer_finished

    @property
    def state(self) -> SimpleNamespace:
        """A place for what the application knows of this connection: ``conn.state.user = "ann"``.

        It is empty at first. On a client it is kept when that reconnects.
        """
        state: SimpleNamespace = self._application.values.setdefault(_STATE, SimpleNamespace())
        return state

    def value(self, key: Hashable) -> Any:
        """Return the value set for ``key``, or None."""
        return self._application.values.get(key)

    def set_value(self, key: Hashable, value: Any) -> None:
        """Store a value with the connection."""
        self._application.values[key] = value

    def __repr__(self) -> str:
        core, status = self._core, self._core.lifecycle.status
        opening = (Phase.NEW, Phase.CONNECTING, Phase.HANDSHAKE, Phase.GREETING)
        state = "connecting" if status.phase in opening else status.phase.value
        what = f"{type(self).__name__} {safe_str(core.name)}"
        return f"<{what} {address_text(core.remote_address)}: {status.close_reason or state}>"

    # -- timers

    def run_at(self, when: datetime | float, callback: ConnectionTimer) -> int:
        """Call ``callback(due, conn)`` at a time of day; see `run_after`.

        Args:
            when: an aware datetime, or seconds since the Unix epoch; the past means at once.
        """
        return self.run_after(delay_until(when, self._core.wheel.time_of_day()), callback)

    def run_after(self, delay: float, callback: ConnectionTimer) -> int:
        """Call ``callback(due, conn)`` in ``delay`` seconds, and return the timer's id.

        Callbacks are queued with the messages of the connection: they never run at the same time as
        another callback or a handler of it. Timers end with the connection.

        Raises:
            ConnectionClosed: the connection is closed.
        """
        check_timer(callback)
        check_quickly("callback", callback, "due", "conn")
        return self._core.timers.add(delay, callback, periodic=False)

    def run_every(self, interval: float, callback: ConnectionTimer) -> int:
        """Call ``callback(due, conn)`` every ``interval`` seconds; see `run_after`.

        A call that is due while the previous one still waits to run is skipped.
        """
        check_timer(callback)
        check_callable("callback", callback, "due", "conn")
        return self._core.timers.add(interval, callback, periodic=True)

    def cancel_timer(self, timer_id: int) -> bool:
        """Cancel a timer of this connection; return whether it was pending.

        It is pending until its callback is called for the last time, so one that waits for a
        handler to return is still cancelled.
        """
        return self._core.timers.cancel(timer_id)


def core_of(conn: Connection) -> Any:
    """Return the core of a connection, for the server, for tests and for tools."""
    return conn._core


def check_reason(reason: object) -> str:
    """Return why a connection is to be closed.

    Raises:
        TypeError, ValueError: it is no str, or empty.
    """
    if not issubclass(type(reason), str):
        raise TypeError(f"the reason of a close must be a str, not {safe_repr(reason)}")
    reason = str.__str__(reason)  # a subclass may do anything, and the reason is compared
    if not reason:
        raise ValueError("the reason of a close must not be empty")
    return reason


def check_timer(callback: Any) -> None:
    """Raise a ``TypeError`` if a timer's callback cannot be called."""
    if not callable(callback):
        raise TypeError(f"a timer's callback must be callable, not {callback!r}")


def _own_bytes(frame: Any) -> bytes:
    """Return a frame as immutable bytes."""
    if type(frame) is bytes or type(frame) is TrackedFrame:
        return frame
    if isinstance(frame, (bytes, bytearray, memoryview)):
        return bytes(frame)
    raise TypeError(f"a frame must be bytes, not {type(frame).__name__}")
