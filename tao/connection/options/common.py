"""The options that a server and a client share; see ``definitions.py``."""

# What is called in the class below returns fields.
# ruff: noqa: RUF009

from __future__ import annotations

import functools
import os
import ssl
from collections.abc import Callable, Collection, Set
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from tao.connection.correlation import Correlate, InOrder
from tao.connection.options.fields import (
    ErrorCallback,
    callback,
    check_cpus,
    check_each,
    check_on_error,
    check_tls,
    choice,
    count,
    instance,
    made_by,
    number,
    option,
    takes_context,
)
from tao.runtime.greenlets import is_patched
from tao.runtime.threads import has_interpreter_lock, usable_cpus
from tao.wire.codec import Codec, TypeLengthValueCodec
from tao.wire.codec_checks import check_codec
from tao.wire.message import Dispatch, Registry, UnknownMessage, default_registry

__all__ = ["Conn", "OverRate", "Readers", "Settings", "SlowConsumer"]

SlowConsumer = Literal["raise", "drop_newest", "drop_oldest", "close"]
OverRate = Literal["delay", "close"]
Readers = Literal["own", "shared"]
# Stands for a `ServerConn` or a `ClientConn`, which this module does not import.
Conn = Any


# What somebody may change who has it, or that may contain such a thing.
_CHANGEABLE = (list, tuple, set, bytearray)


def _frozen(value: Any) -> Any:
    """Return a copy that nobody can change, of what is inside as well."""
    if type(value) in (list, tuple):
        return tuple(map(_frozen, value))
    if type(value) is set:
        return frozenset(value)
    return bytes(value) if type(value) is bytearray else value


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)  # quicker to import
class Settings:
    """The options that servers and clients share, checked, with defaults filled in."""

    #: What callbacks get in the place of ``Conn``.
    conn_type: ClassVar[str] = "Connection"

    codec: Codec = made_by(
        TypeLengthValueCodec,
        """How messages are framed and encoded.""",
    )
    registry: Registry | None = instance(
        None,
        """The messages and handlers that are known. None: those of the default registry, and those
        declared on the server or client itself.""",
        Registry,
    )
    tls: ssl.SSLContext | None = option(
        None,
        """The own certificate and the requirements on the peer's, see `load_tls_config` and
        `load_client_tls_config`. None: plain TCP.""",
        check=check_tls,
    )

    on_connect: Callable[[Conn], object] | None = callback(
        """Called as ``on_connect(conn)`` when a connection has been made; returning False refuses
        it. What it writes is sent first. It may block, but nothing is read from that connection
        meanwhile, unless it calls ``conn.request``.""",
        "conn",
    )
    on_message: Callable[[Any, Conn], object] | None = callback(
        """Called as ``on_message(message, conn)`` for messages whose number is registered without a
        handler.""",
        "message",
        "conn",
    )
    on_close: Callable[[Conn], object] | None = callback(
        """Called as ``on_close(conn)`` when an established connection has ended and its last
        handler has returned; ``conn.close_reason`` says why.""",
        "conn",
    )
    on_error: ErrorCallback[Conn] | None = option(
        None,
        """Called as ``on_error(conn, error)`` with every exception of a handler, a callback, the
        codec or the socket. If it takes three arguments, ``on_error(conn, error, ctx)``: ``ctx`` is
        the context of the message whose handler has raised it, None for any other error.""",
        check=check_on_error,
    )

    on_resume: Callable[[Conn], object] | None = callback(
        """Called as ``on_resume(conn)`` when a session goes on over a new transport; returning
        False ends it, and so does an exception. Handlers of the connection may run at the same
        time. It must not block: a client that loses that transport, too, before this returns comes
        again, and it is called again.""",
        "conn",
    )
    on_session_lost: Callable[[Conn, list[UnknownMessage]], object] | None = callback(
        """Called as ``on_session_lost(conn, messages)`` before ``on_close`` when a session is lost,
        or has ended while messages were not acknowledged: those were sent, and the peer may have
        handled each of them, or not.""",
        "conn",
        "messages",
    )

    queue_size: int = count(
        256,
        "messages",
        """How many messages may wait to be sent on each connection, and how many to be handled.
        What one read brings, about 1000 messages at most, is queued to be handled as a whole.""",
    )
    queue_bytes: int | None = count(
        None,
        "bytes",
        """How many bytes may wait to be sent on each connection, in addition to ``queue_size``:
        ``queue_size`` large messages may be more than memory can hold. A longer message is accepted
        if none waits. None: no limit.""",
    )
    slow_consumer: SlowConsumer = choice(
        "raise",
        SlowConsumer,
        """What a write to a full send queue does: ``"raise"`` `WouldBlock`, ``"drop_newest"``,
        ``"drop_oldest"``, or ``"close"`` the connection.""",
    )
    message_rate: float | None = number(
        None,
        "messages a second",
        """How many messages the peer may send in the long run, heartbeats included. None: any
        number.""",
    )
    message_burst: int | None = count(
        None,
        "messages",
        """How many messages the peer may send at once after a quiet time. None: as many as
        ``message_rate`` allows in one second.""",
    )
    byte_rate: float | None = number(
        None,
        "bytes a second",
        """How many bytes the peer may send in the long run, counted without the overhead of TLS.
        None: any number.""",
    )
    byte_burst: int | None = count(
        None,
        "bytes",
        """How many bytes the peer may send at once after a quiet time. None: as many as
        ``byte_rate`` allows in one second.""",
    )
    over_rate: OverRate = choice(
        "delay",
        OverRate,
        """What happens to a peer that exceeds a rate. ``"delay"``: nothing is read until it is
        within the rate again, so TCP holds it back; that time does not count as idle. ``"close"``:
        the connection is closed.""",
    )
    frame_timeout: float | None = number(
        None,
        "seconds",
        """The longest time from the first byte of a message to its last, after which the connection
        is closed. Choose it longer than the longest message takes on the slowest line. A codec of
        your own has to support it, see `Decoder`. None: no limit.""",
    )
    write_timeout: float | None = number(
        None,
        "seconds",
        """Close a connection whose peer accepts nothing for this long while something waits to be
        sent. Where the platform has TCP_USER_TIMEOUT, data that the kernel has taken must also be
        acknowledged within that time and a second, so a peer that vanished is noticed. None:
        never.""",
    )
    reply_timeout: float = number(
        30.0,
        "seconds",
        """How long a handler's own write to its connection waits for room in a full send queue
        before it raises `WouldBlock`, so that no reply is lost because the peer reads slowly.
        Writes from elsewhere, and broadcasts, wait only if they are given a ``timeout``.""",
    )
    correlation: InOrder | Correlate | None = instance(
        None,
        """How replies find their requests in a protocol whose frames have no id: `InOrder`, or
        `Correlate` if messages themselves tell. None: by the field of the codec that is declared
        ``correlate=True`` or, with tao's own framing, in an envelope.""",
        InOrder,
        Correlate,
    )
    max_in_flight: int | None = count(
        1024,
        "requests",
        """How many requests may wait for their replies on each connection; further ones wait to be
        sent. 1 is for devices that answer one question at a time. None: any number.""",
    )
    half_close: bool = instance(
        False,
        """Whether this side may continue to send after the peer has ended its direction (FIN),
        until it closes the connection itself, see ``half_close_timeout``. Otherwise the peer's FIN
        ends the connection.""",
        bool,
    )
    half_close_timeout: float = number(
        60.0,
        "seconds",
        """How long this side may continue to send after the peer's FIN; then the connection is
        closed.""",
    )
    heartbeat: float | None = number(
        30.0,
        "seconds",
        """Send a heartbeat when nothing was sent for this long. None: no heartbeats.""",
    )
    idle_timeout: float | None = number(
        None,
        "seconds",
        """Close a connection on which nothing was received for this long; the peer should send
        heartbeats more often than that. The kernel's keep-alive probes are set to it as well. None:
        never.""",
    )
    handshake_timeout: float = number(
        10.0,
        "seconds",
        """How long the TLS handshake may take, together with a PROXY header that precedes it.""",
    )
    drain_timeout: float = number(
        10.0,
        "seconds",
        """How long a graceful shutdown may take: handlers that run are finished, and messages that
        wait are sent.""",
    )
    dispatch: Dispatch = choice(
        "auto",
        Dispatch,
        """Where handlers run: ``"auto"`` learns which of them block, ``"pool"`` always uses the
        workers, ``"inline"`` the thread that reads. With a worker initializer the default is
        ``"pool"``, as only the workers are prepared.""",
    )
    readers: Readers = choice(
        "own",
        Readers,
        """Which threads read: ``"own"``, one of each connection, or ``"shared"``, one for all that
        waits until any of them has received something: for hundreds to thousands of connections.
        A server's connections share, and so do all clients of a process.""",
    )
    reader_threads: int | None = count(
        None,
        "threads",
        """How many threads read with ``readers="shared"``. None: one, or as many as there are CPUs
        if Python has no interpreter lock.""",
    )
    handler_warn_after: float | None = number(
        30.0,
        "seconds",
        """Log a handler, ``on_connect`` or ``on_close`` that still runs after this time, once, with
        the stack of its thread. The default is longer than the usual I/O timeouts. None: never.""",
    )
    cpu_affinity: Literal["auto"] | int | Collection[int] | None = option(
        None,
        """Which CPUs the threads of connections run on (Linux): ``"auto"`` for one, or the numbers
        of one or several. On one CPU they do not compete for the interpreter lock, which makes many
        mostly quiet connections about twice as fast; the price is that handlers on the reading
        thread have no other CPU. Workers are never pinned. None: any.""",
        check=check_cpus,
    )

    def __post_init__(self) -> None:
        check_each(self)
        for each in fields(self):
            value = getattr(self, each.name)
            if type(value) in _CHANGEABLE:  # its owner may change it later
                object.__setattr__(self, each.name, _frozen(value))
        check_codec(self.codec, self.registry or default_registry)

    @functools.cached_property
    def on_error_takes_context(self) -> bool:
        """Whether ``on_error`` is called with a context."""
        return self.on_error is not None and takes_context(self.on_error)

    @property
    def readiness_limit(self) -> tuple[float, str] | None:
        """How long the application may take to declare a connection ready, see ``readiness.py``."""
        return None

    @property
    def cpus(self) -> Set[int] | None:
        """The CPUs to pin connection threads to, or None."""
        wanted = self.cpu_affinity
        if wanted is None:
            return None
        if isinstance(wanted, str):
            # The first CPU tends to be the one that takes the interrupts.
            return frozenset((max(usable_cpus()),))
        return frozenset((wanted,) if isinstance(wanted, int) else wanted)

    @property
    def shared_readers(self) -> int:
        """How many threads read all connections; 0: each connection has its own."""
        if self.readers == "own" or is_patched():  # a greenlet that blocks costs little
            return 0
        if self.reader_threads is not None:
            return self.reader_threads
        return 1 if has_interpreter_lock() else len(usable_cpus()) or os.cpu_count() or 1
