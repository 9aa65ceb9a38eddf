"""Every option of a server and a client: type, default, unit, meaning and check, once.

All else is made from this: the types of the keyword arguments (``option_types.py``), and what
``help()`` and the guide show (``option_help.py``). Options are keyword-only and checked when the
server or client is made: a mistake is a ``TypeError`` or ``ValueError`` that names the option.
"""

# What is called in the classes below returns fields.
# ruff: noqa: RUF009

from __future__ import annotations

import difflib
import math
import random
import ssl
from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, TypeVar

from tao.connection.option_fields import (
    callback,
    check_count,
    check_cpus,
    check_each,
    check_socket_options,
    check_source,
    choice,
    count,
    instance,
    made_by,
    number,
    option,
)
from tao.runtime.threads import usable_cpus
from tao.runtime.worker_pool import WorkerPool
from tao.wire.codec import Codec, TypeLengthValueCodec
from tao.wire.codec_checks import check_codec
from tao.wire.message import Dispatch, Registry, default_registry
from tao.wire.proxy_protocol import Network, ProxyNetworks

__all__ = [
    "ClientSettings",
    "OverRate",
    "Reconnect",
    "ServerSettings",
    "Settings",
    "SlowConsumer",
    "make_settings",
]

SlowConsumer = Literal["raise", "drop_newest", "drop_oldest", "close"]
OverRate = Literal["delay", "close"]
# Stands for a `ServerConn` or a `ClientConn`, of which this module knows nothing.
Conn = Any


def _check_tls(name: str, tls: object) -> None:
    if not isinstance(tls, ssl.SSLContext):
        # Not shown: a certificate is long, and may stand beside its key.
        raise TypeError(
            f"{name} must be an SSLContext, as load_tls_config() and load_client_tls_config() "
            f"return, or server_config() and client_config() of a certificate, not "
            f"{type(tls).__name__}"
        )


def _check_workers(name: str, workers: object) -> None:
    if not isinstance(workers, WorkerPool):
        check_count(name, workers)


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
        """The certificate to show and what to demand of the peer's, see `load_tls_config` and
        `load_client_tls_config`. None: plain TCP.""",
        check=_check_tls,
    )

    on_connect: Callable[[Conn], object] | None = callback(
        """Called as ``on_connect(conn)`` when a connection has been made; returning False refuses
        it. What it writes is sent first. It may block, but nothing is read from that connection
        meanwhile.""",
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
    on_error: Callable[[Conn, BaseException], object] | None = callback(
        """Called as ``on_error(conn, error)`` with every exception of a handler, a callback, the
        codec or the socket.""",
        "conn",
        "error",
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
    half_close: bool = instance(
        False,
        """Whether this side may go on sending after the peer has ended its direction (FIN), until
        it closes the connection itself, see ``half_close_timeout``. Otherwise the peer's FIN ends
        the connection.""",
        bool,
    )
    half_close_timeout: float = number(
        60.0,
        "seconds",
        """How long this side may go on sending after the peer's FIN; then the connection is
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
        check_codec(self.codec, self.registry or default_registry)

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


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ServerSettings(Settings):
    """The options of a server, checked, with defaults filled in."""

    conn_type: ClassVar[str] = "ServerConn"

    workers: int | WorkerPool = option(
        20,
        """How many handlers that block may run at once, over all connections; or a `WorkerPool`,
        which several servers may share and which you stop yourself.""",
        unit="threads",
        check=_check_workers,
    )
    worker_initializer: Callable[[], object] | None = callback(
        """Called in each worker thread as it starts, to open a database connection, say. Handlers
        then run on workers only, see ``dispatch``.""",
    )
    max_connections: int = count(
        1000,
        "connections",
        """How many connections there may be; one more is closed at once.""",
    )
    max_connections_per_host: int | None = count(
        None,
        "connections",
        """How many connections there may be from one address. None: no limit.""",
    )
    proxy_protocol: Collection[str | Network] | None = option(
        None,
        """The networks of the proxies (load balancers) in front of this server, as
        ``["10.0.0.0/8"]``; ``"unix:"`` stands for any peer on a Unix socket. Each connection from
        there must begin with a PROXY protocol header, version 1 or 2, before TLS and within
        ``handshake_timeout``. The header gives ``remote_address``, and ``max_connections_per_host``
        counts by that. Connections from elsewhere are closed. None: there is no proxy.""",
        check=lambda _, networks: ProxyNetworks(networks),
    )
    backlog: int = count(
        1024,
        "connections",
        """How many connections may wait in the kernel to be accepted.""",
    )
    accept_rate: float | None = number(
        None,
        "connections a second",
        """How many connections are accepted in the long run; those above the rate wait in the
        listen backlog, see ``backlog``. None: any number.""",
    )
    accept_burst: int | None = count(
        None,
        "connections",
        """How many connections are accepted at once after a quiet time. None: as many as
        ``accept_rate`` allows in one second.""",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.workers, WorkerPool) and self.worker_initializer is not None:
            raise ValueError("worker_initializer belongs to the WorkerPool given as workers")
        if self.tls is not None and self.tls.protocol is ssl.PROTOCOL_TLS_CLIENT:
            raise ValueError("tls: a server cannot use a client's context")


@dataclass(frozen=True, kw_only=True)
class Reconnect:
    """How to connect again: exponential back-off, capped, with jitter.

    The n-th attempt in a row waits ``initial * factor ** (n - 1)`` seconds, at most ``maximum``, of
    which a share of up to ``jitter`` is taken off at random, so that a thousand clients of a server
    that restarts do not all come back in the same instant. (Marc Brooker, "Exponential Backoff and
    Jitter", 2015, compares the ways.)
    """

    initial: float = number(0.1, "seconds", """The wait before the first attempt.""")
    maximum: float = number(30.0, "seconds", """The longest wait before any attempt.""")
    factor: float = number(2.0, "", """How many times longer each wait is than the last one.""")
    jitter: float = option(0.5, """Which share of each wait is random, from 0 to 1.""")
    attempts: int | None = count(
        None,
        "attempts",
        """How many attempts in a row may fail before the client closes. An attempt has succeeded
        once the connection was of use: it brought a message whose number the client knows,
        heartbeats apart, or lasted for 10 seconds and for longer than ``maximum``. None: any
        number.""",
    )

    def __post_init__(self) -> None:
        check_each(self)
        if self.factor < 1:
            raise ValueError(f"factor must be at least 1, not {self.factor!r}")
        if not isinstance(self.jitter, (int, float)) or not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter must be between 0 and 1, not {self.jitter!r}")

    def delay(self, attempt: int) -> float:
        """Return how many seconds to wait before an attempt, the first being 1."""
        # A large exponent would overflow long after the maximum is reached.
        steps = min(attempt - 1, 1000 if self.factor == 1 else math.log(1e9, self.factor))
        wait = min(self.maximum, self.initial * self.factor**steps)
        return wait * (1 - self.jitter * random.random())


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ClientSettings(Settings):
    """The options of a client, checked, with defaults filled in."""

    conn_type: ClassVar[str] = "ClientConn"

    reconnect: bool | Reconnect = instance(
        False,
        """Whether to connect again when the connection is lost: True, or a `Reconnect` that says
        how.""",
        bool,
        Reconnect,
    )
    connect_timeout: float = number(
        10.0,
        "seconds",
        """How long reaching one server may take: to resolve its name, and to connect to any of its
        addresses. Each of several servers has that long.""",
    )
    source_address: tuple[str, int] | None = option(
        None,
        """Where connections come from: ``(host, port)``, an address of this machine, and port 0 for
        any. None: the system chooses.""",
        check=check_source,
    )
    socket_options: Collection[tuple[int, int, int | bytes]] = option(
        (),
        """Options of the sockets, as for ``socket.setsockopt``: ``[(level, name, value), ...]``.
        They are set before connecting, and override what tao sets itself.""",
        check=check_socket_options,
    )
    server_hostname: str | None = instance(
        None,
        """The name that the server's certificate must have. None: the host connected to.""",
        str,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tls is not None and self.tls.protocol is ssl.PROTOCOL_TLS_SERVER:
            raise ValueError("tls: a client cannot use a server's context")


SettingsT = TypeVar("SettingsT", bound=Settings)


def make_settings(kind: type[SettingsT], owner: str, given: Mapping[str, Any]) -> SettingsT:
    """Check keyword arguments and make settings of them; ``owner`` is named in errors.

    Raises:
        TypeError, ValueError: naming the option, and its likely spelling if it is unknown.
    """
    known = [field.name for field in fields(kind)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            for other, whose in ((ServerSettings, "a Server"), (ClientSettings, "a ClientConn")):
                if name in other.__dataclass_fields__:
                    hint = f"; it is one of {whose}"
            raise TypeError(f"{owner} has no option {name!r}{hint}")
    if "dispatch" not in given and _prepares_workers(given):
        given = {**given, "dispatch": "pool"}
    return kind(**given)


def _prepares_workers(given: Mapping[str, Any]) -> bool:
    """Tell whether handlers may need what an initializer has set up in the workers."""
    workers = given.get("workers")
    if isinstance(workers, WorkerPool):
        return workers.initializer is not None
    return given.get("worker_initializer") is not None
