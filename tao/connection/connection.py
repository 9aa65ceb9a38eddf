"""The connection object that applications hold: a thin facade over its core (``core.py``)."""

from __future__ import annotations

from collections.abc import Hashable
from datetime import datetime
from typing import Any

from tao.callables import check_callable, check_quickly
from tao.connection.application import Application
from tao.connection.backlog import TrackedFrame
from tao.connection.core import ConnectionCore
from tao.connection.lifecycle import Phase
from tao.connection.socket_access import HasTransport
from tao.connection.ticket import Ticket
from tao.connection.timers import ConnectionTimer
from tao.errors import WouldBlock
from tao.runtime.context import Context
from tao.runtime.timing_wheel import delay_until
from tao.safe_text import safe_str
from tao.transport.addresses import address_text
from tao.wire.message import Message

__all__ = ["Connection", "core_of"]


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

    def write(self, message: Message, timeout: float | None = None) -> None:
        """Send a message, or queue it behind the messages that wait. Accepted messages keep order.

        The peer handles the messages of one connection in that order. After a client has
        reconnected, messages from its previous connection may still be handled at the same time.

        Args:
            message: anything with a ``message_number`` and a ``serialize()``; it is encoded here,
                in the caller's thread.
            timeout: seconds to wait for room in the send queue. With None the call does not wait,
                except in a handler or timer of this same connection: there up to
                ``reply_timeout``.

        Raises:
            WouldBlock: the send queue is full; the message was not queued.
            ConnectionClosed: the connection is closed; the message was not queued.
            Exception: what ``serialize()`` raises; nothing was sent.
        """
        frame = self._encode(message)
        try:
            self._send_queue.write(frame, timeout)
        except WouldBlock:
            if timeout is not None or not self._core.may_wait:
                raise
            self._core.reply(frame)

    def write_frame(self, frame: bytes, timeout: float | None = None) -> None:
        """Send a message that is encoded already, for instance for many receivers; see `write`.

        Args:
            frame: one whole message. A ``bytearray`` or ``memoryview`` is copied.

        Raises:
            TypeError: it is not bytes.
        """
        frame = _own_bytes(frame)
        try:
            self._send_queue.write(frame, timeout)
        except WouldBlock:
            if timeout is not None or not self._core.may_wait:
                raise
            self._core.reply(frame)

    def submit(self, message: Message, timeout: float | None = None) -> Ticket:
        """Send or queue a message as `write` does, and return a `Ticket` that can withdraw it.

        Use it for a message that must not be sent once its caller has given up, such as a request:
        ``ticket.withdraw()`` returns True if the message was not sent and never will be.
        """
        frame = self._send_queue.tracked(self._encode(message))
        self.write_frame(frame, timeout)
        return Ticket(self._send_queue, frame)

    @property
    def send_queue_length(self) -> int:
        """How many messages wait to be sent."""
        return self._send_queue.waiting

    # -- ending

    def close(self) -> None:
        """Close the connection gracefully. Returns at once; see `wait_closed`.

        Messages written before are sent if the peer reads them; received messages that were not
        handled yet are dropped. Closing twice is harmless.
        """
        self._core.close()

    def abort(self) -> None:
        """End the connection now, for good. Returns at once; see `wait_closed`.

        Unsent data is discarded, here and in the kernel, and the peer sees a reset or the end of
        the stream. Running handlers have ``drain_timeout`` to return, as after `close`. Aborting a
        connection that is closing, or aborting twice, is harmless.
        """
        self._core.abort()

    def wait_closed(self, timeout: float | None = None) -> bool:
        """Wait until the connection is over and none of its threads is left; tell whether it is.

        A handler that did not return within ``drain_timeout`` of a close is not waited for. Where a
        signal handler or finalizer has interrupted a call on this very connection, it does not wait
        at all: the connection cannot end before that call goes on.

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

    # -- what it is

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
        """The peer's address; settable, for instance where a proxy tells a better one."""
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
        """Cancel a timer of this connection; return whether it was pending."""
        return self._core.timers.cancel(timer_id)


def core_of(conn: Connection) -> Any:
    """Return the core of a connection, for the server, for tests and for tools."""
    return conn._core


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
