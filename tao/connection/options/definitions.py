"""Every option of a server and a client: type, default, unit, meaning and check, once.

All else is made from this: the types of the keyword arguments (``options/types.py``), and what
``help()`` and the guide show (``options/help.py``). Options are keyword-only and checked when the
server or client is made: a mistake is a ``TypeError`` or ``ValueError`` that names the option.
"""

# What is called in the classes below returns fields.
# ruff: noqa: RUF009

from __future__ import annotations

import ssl
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from tao.connection.options.common import Conn, OverRate, Readers, Settings, SlowConsumer
from tao.connection.options.fields import (
    callback,
    check_cluster,
    check_cluster_key,
    check_login,
    check_session,
    check_socket_options,
    check_source,
    check_workers,
    choice,
    count,
    hostname,
    instance,
    number,
    option,
)
from tao.connection.options.reconnecting import Reconnect
from tao.runtime.worker_pool import WorkerPool
from tao.session.outgoing import RETAIN, RETAIN_BYTES
from tao.session.sessions import Sessions
from tao.wire.codec import TypeLengthValueCodec
from tao.wire.proxy_protocol import Network, ProxyNetworks

__all__ = [
    "ClientSettings",
    "OverRate",
    "Readers",
    "Ready",
    "Reconnect",
    "ServerSettings",
    "Settings",
    "SlowConsumer",
]

Ready = Literal["auto", "manual"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ServerSettings(Settings):
    """The options of a server, checked, with defaults filled in."""

    conn_type: ClassVar[str] = "ServerConn"

    workers: int | WorkerPool = option(
        20,
        """How many blocking handlers may run at once, over all connections; or a `WorkerPool`,
        which several servers may share and which you stop yourself.""",
        unit="threads",
        check=check_workers,
    )
    worker_initializer: Callable[[], object] | None = callback(
        """Called in each worker thread as it starts, to open a database connection, say. Handlers
        then run on workers only, see ``dispatch``.""",
    )
    max_waiting_workers: int = count(
        256,
        "threads",
        """How many handlers may wait for a peer, in a request or for room to reply, without
        counting as one of the ``workers``. Those above it count. A `WorkerPool` has its own.""",
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
    max_groups: int = count(
        256,
        "groups",
        """How many groups each connection may be in, see `ServerConn.join`.""",
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
    login: Collection[type] | None = option(
        None,
        """The message classes of a login. Until ``conn.ready()`` is called, only these messages
        reach their handlers; any other closes the connection, see ``on_unready``. Nothing but what
        ``on_connect`` and the connection's own handlers write is sent, and broadcasts, groups and
        schedules leave the connection out. None: connections are ready at once.""",
        check=check_login,
    )
    login_timeout: float = number(
        10.0,
        "seconds",
        """How long a connection may take to become ready, see ``login``; then it is closed.""",
    )
    login_max_bytes: int = count(
        64 * 1024,
        "bytes",
        """The longest message until a connection is ready, see ``login``, if the codec's
        ``max_bytes`` is not smaller. A codec of your own has to support it, see `Decoder`.""",
    )
    on_unready: Callable[[Any, Conn], object] | None = callback(
        """Called as ``on_unready(ctx, conn)``, like a handler, for a message that comes before the
        connection is ready and is not one of ``login``; ``ctx.message`` is an `UnknownMessage` if
        its number is not registered. None: such a message closes the connection.""",
        "ctx",
        "conn",
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

    sessions: Sessions | None = instance(
        None,
        """Offers sessions to clients that ask for one (``session=True``): such a connection
        outlives its transport, and what is written is handled once. It waits up to one second for
        the first message of a client that does not ask, before ``on_connect`` is called. Only with
        tao's own framing. None: there are no sessions.""",
        Sessions,
    )
    cluster: str | None = option(
        None,
        """What joins this server with others, so that `Server.broadcast` and `Server.unicast` reach
        the connections of all of them. ``"local"``: the processes of one ``tao serve --processes``,
        which have it by default. ``"redis://host:6379/0?prefix=game"``, and ``rediss://`` or
        ``unix://``: all servers, of any machines, with the same prefix at that Redis or Valkey;
        needs ``tao-tcp[redis]``. None: this process is alone.""",
        check=check_cluster,
    )
    cluster_key: bytes | Sequence[bytes] | None = option(
        None,
        """Signs what goes through a cluster over Redis, so that nobody else who can write to that
        Redis can publish to the connections. The same for all servers; of several, the first one
        signs and any is accepted, so that keys can be replaced one server after the other.""",
        check=check_cluster_key,
    )
    on_gap: Callable[[int, int | None], object] | None = callback(
        """Called as ``on_gap(partition, missing)`` when publications of the cluster were missed:
        how many, or None if that is not known. It must not block. What it raises is logged and
        counted, as it belongs to no connection.""",
        "partition",
        "missing",
    )

    @property
    def readiness_limit(self) -> tuple[float, str] | None:
        return None if self.login is None else (self.login_timeout, "login_timeout")

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.workers, WorkerPool) and self.worker_initializer is not None:
            raise ValueError("worker_initializer belongs to the WorkerPool given as workers")
        if self.tls is not None and self.tls.protocol is ssl.PROTOCOL_TLS_CLIENT:
            raise ValueError("tls: a server cannot use a client's context")
        if self.sessions is not None and not isinstance(self.codec, TypeLengthValueCodec):
            raise ValueError("sessions need tao's own framing, and this is another codec")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ClientSettings(Settings):
    """The options of a client, checked, with defaults filled in."""

    conn_type: ClassVar[str] = "ClientConn"

    requests: bool = instance(
        False,
        """Whether to ask the peer at once, when connected, whether it answers requests. Otherwise
        the first request does, which takes the time of a round trip more.""",
        bool,
    )
    reconnect: bool | Reconnect = instance(
        False,
        """Whether to connect again when the connection is lost: True, or a `Reconnect` that says
        how.""",
        bool,
        Reconnect,
    )
    session: bool | Literal["required"] = option(
        False,
        """Whether to ask the server for a session, in which the connection outlives its transport,
        and what is written is handled once: True, or ``"required"`` if a server without sessions
        is to be refused. Needs ``reconnect``, and tao's own framing.""",
        check=check_session,
    )
    retain: int = count(
        RETAIN,
        "messages",
        """How many messages this side of a session keeps until the server has acknowledged them.
        When it keeps that many, further ones wait in the send queue. What is sent at once may
        exceed it. The server's bounds are those of its `Sessions`.""",
    )
    retain_bytes: int = count(
        RETAIN_BYTES,
        "bytes",
        """How many bytes, in addition to ``retain``.""",
    )
    ready: Ready = choice(
        "auto",
        Ready,
        """When messages that wait are sent: ``"auto"``, once ``on_connect`` has returned, or
        ``"manual"``, once ``conn.ready()`` is called, for example by the handler of the answer to a
        login. Until then only what ``on_connect`` and handlers write is sent.""",
    )
    ready_timeout: float = number(
        10.0,
        "seconds",
        """With ``ready="manual"``, how long a connection may take to become ready; then it is
        closed, or lost if the client reconnects.""",
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
    server_hostname: str | None = hostname(
        None, """The name that the server's certificate must have. None: the host connected to."""
    )

    @property
    def readiness_limit(self) -> tuple[float, str] | None:
        return (self.ready_timeout, "ready_timeout") if self.ready == "manual" else None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tls is not None and self.tls.protocol is ssl.PROTOCOL_TLS_SERVER:
            raise ValueError("tls: a client cannot use a server's context")
        if self.session and not self.reconnect:
            raise ValueError("session needs the option reconnect")
        if self.session and not isinstance(self.codec, TypeLengthValueCodec):
            raise ValueError("session needs tao's own framing, and this is another codec")
