"""A connection, as the application holds it: a thin face of its core (``core.py``)."""

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

    What users meet are its subclasses `ServerConn` and `ClientConn`.

    Args:
        application: what the application has given; held here, and here alone.
        core: what does the work.
    """

    def __init__(self, application: Application, core: ConnectionCore) -> None:
        self._application = application
        self._core = core
        # Bound here, as they are called for each message.
        self._encode = application.encode
        self._send_queue = core.send_queue

    # -- writing

    def write(self, message: Message, timeout: float | None = None) -> None:
        """Send a message, or queue it behind those that wait. What it takes is sent in order.

        The peer handles the messages of one connection in that order; those of a connection before,
        of a client that has come back, may still be handled beside them.

        Args:
            message: anything with a ``message_number`` and a ``serialize()``; it is encoded here,
                in the caller's thread.
            timeout: seconds to wait for room in the send queue. None does not wait, but in a
                handler or timer of this same connection up to ``reply_timeout``.

        Raises:
            WouldBlock: the send queue is full; the message was not queued.
            ConnectionClosed: the connection is closed; the message was not queued.
            Exception: whatever ``serialize()`` raises; nothing was sent.
        """
        frame = self._encode(message)
        try:
            self._send_queue.write(frame, timeout)
        except WouldBlock:
            if timeout is not None or not self._core.may_wait:
                raise
            self._core.reply(frame)

    def write_frame(self, frame: bytes, timeout: float | None = None) -> None:
        """Send bytes that the codec made before, for many receivers of one; else as `write`.

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
        """Send or queue a message as `write` does, and return a `Ticket` that can take it back.

        For a message that must not be sent any more once its caller has given up, a request say:
        ``ticket.withdraw()`` is True if it was not sent and never will be.
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
        """Close the connection gracefully; return at once, see `wait_closed`.

        What was written before is sent if the peer reads it; what came and was not handled yet is
        dropped. Closing twice is harmless.
        """
        self._core.close()

    def abort(self) -> None:
        """End the connection now, for good; return at once, see `wait_closed`.

        What waits to be sent is discarded, here and in the kernel, and the peer sees a reset or the
        end of the stream. Handlers that run have ``drain_timeout`` to return, as after `close`.
        Aborting what is closing already, or twice, is harmless.
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
        """Whether the connection is over or about to be: nothing new is read or may be written."""
        return self._core.lifecycle.close_reason is not None

    @property
    def close_reason(self) -> str | None:
        """Why the connection ended or is ending, in words; None while it lives."""
        status = self._core.lifecycle.status
        return status.close_reason or status.disconnect_reason

    # -- what it is

    @property
    def net_id(self) -> int:
        """The number of the connection, unique within its server or the process's clients."""
        return self._core.net_id

    @property
    def name(self) -> Any:
        """What the connection is called in logs; its number, unless it is set to something else."""
        return self._core.name

    @name.setter
    def name(self, name: Any) -> None:
        self._core.name = name

    @property
    def remote_address(self) -> Any:
        """The peer's address. It may be set, where a callback knows better, behind a proxy say."""
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
        """Cancelled when the connection ends; what its handlers get are children of it."""
        return self._core.context

    @property
    def last_heartbeat(self) -> float:
        """When something last came from the peer, in seconds since the Unix epoch.

        The time of day is read when the connection is made, and goes on by the monotonic clock:
        setting the system's clock does not move it. How long ago that was, `idle_time` tells.
        """
        return self._core.keep_alive.last_heartbeat

    @property
    def idle_time(self) -> float:
        """For how long nothing has come from the peer, in seconds."""
        return self._core.keep_alive.idle_time

    @property
    def unhandled(self) -> int:
        """How many messages were read and are not handled to the end, or not yet."""
        return self._core.unhandled

    @property
    def peer_finished(self) -> bool:
        """Whether the peer has ended its direction, and this side goes on (``half_close``)."""
        return self._core.peer_finished

    def value(self, key: Hashable) -> Any:
        """Return what was set for ``key``, or None."""
        return self._application.values.get(key)

    def set_value(self, key: Hashable, value: Any) -> None:
        """Keep something with the connection."""
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

        Callbacks take their turn among the messages of the connection: never two at a time, never
        one beside a handler. They go with the connection.

        Raises:
            ConnectionClosed: the connection is closed.
        """
        check_timer(callback)
        check_quickly("callback", callback, "due", "conn")
        return self._core.timers.add(delay, callback, periodic=False)

    def run_every(self, interval: float, callback: ConnectionTimer) -> int:
        """Call ``callback(due, conn)`` every ``interval`` seconds; else as `run_after`.

        A call that is due while the one before still waits for its turn is left out.
        """
        check_timer(callback)
        check_callable("callback", callback, "due", "conn")
        return self._core.timers.add(interval, callback, periodic=True)

    def cancel_timer(self, timer_id: int) -> bool:
        """Cancel a timer of this connection; tell whether it was pending."""
        return self._core.timers.cancel(timer_id)


def core_of(conn: Connection) -> Any:
    """Return the core of a connection: for tests, and for tools that look inside."""
    return conn._core


def check_timer(callback: Any) -> None:
    """Raise a ``TypeError`` if something is no callback of a timer."""
    if not callable(callback):
        raise TypeError(f"a timer's callback must be callable, not {callback!r}")


def _own_bytes(frame: Any) -> bytes:
    """Return a frame as bytes that nobody can change."""
    if type(frame) is bytes or type(frame) is TrackedFrame:
        return frame
    if isinstance(frame, (bytes, bytearray, memoryview)):
        return bytes(frame)
    raise TypeError(f"a frame must be bytes, not {type(frame).__name__}")
