"""Every option of a server and a client: its meaning, unit, default and check, once.

Options are keyword-only and checked when the server or client is made: a mistake is a ``TypeError``
or ``ValueError`` that names the option, not a surprise at three in the morning.
"""

from __future__ import annotations

import difflib
import math
import random
import ssl
from collections.abc import Callable, Collection, Set
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

from tao.addresses import parse
from tao.codec import Codec, TypeLengthValueCodec
from tao.codec_checks import check_codec
from tao.message import Registry, check_callable, default_registry
from tao.proxy_protocol import ProxyNetworks
from tao.threads import usable_cpus
from tao.workers import WorkerPool

if TYPE_CHECKING:
    from tao.connection import Connection

__all__ = ["ClientSettings", "Reconnect", "ServerSettings", "Settings", "make_settings"]

_DISPATCH = ("auto", "pool", "inline")
_ARGUMENTS = {
    "on_connect": ("conn",),
    "on_message": ("message", "conn"),
    "on_close": ("conn",),
    "on_error": ("conn", "error"),
}
_SLOW_CONSUMER = ("raise", "drop_newest", "drop_oldest", "close")
_OVER_RATE = ("delay", "close")
# Those that may be None.
_TIMES = ("write_timeout", "heartbeat", "idle_timeout", "frame_timeout", "handler_warn_after")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What server and client have in common."""

    #: How messages look on the wire.
    codec: Codec = field(default_factory=TypeLengthValueCodec)
    #: The messages and handlers that are known; None: those of the default registry, and what is
    #: declared on the server or client itself.
    registry: Registry | None = None
    #: What to show and to demand in TLS, see `load_tls_config`; None: plain TCP.
    tls: ssl.SSLContext | None = None

    #: ``on_connect(conn) -> bool``: a connection was made; False refuses it. What it writes goes
    #: out first. It may block, but nothing is read from that connection meanwhile.
    on_connect: Callable[[Connection], object] | None = None
    #: ``on_message(message, conn)``: a message came whose number is registered without a handler.
    on_message: Callable[[Any, Connection], object] | None = None
    #: ``on_close(conn)``: an established connection is over, and its last handler has returned;
    #: ``conn.close_reason`` tells why.
    on_close: Callable[[Connection], object] | None = None
    #: ``on_error(conn, error)``: something raised: a handler, a callback, a codec, the socket.
    on_error: Callable[[Connection, BaseException], object] | None = None

    #: How many messages may wait to be sent, and as many to be handled, for each connection. (What
    #: one read brought, some 1000 at most, is queued to be handled as a whole.)
    queue_size: int = 256
    #: How many bytes may wait to be sent, beside that: with many large messages, ``queue_size`` of
    #: them may be more than there is memory. One message that is longer is taken if none waits.
    #: None: no limit of its own.
    queue_bytes: int | None = None
    #: What a write to a connection with a full send queue does: ``"raise"`` WouldBlock,
    #: ``"drop_newest"``, ``"drop_oldest"``, or ``"close"`` the connection.
    slow_consumer: str = "raise"
    #: How many messages a second the peer may send in the long run, heartbeats included; None: any
    #: number.
    message_rate: float | None = None
    #: How many may come at once after a quiet time; None: as many as in one second.
    message_burst: int | None = None
    #: How many bytes a second the peer may send in the long run, under TLS counted without it;
    #: None: any number.
    byte_rate: float | None = None
    #: How many may come at once after a quiet time; None: as many as in one second.
    byte_burst: int | None = None
    #: What becomes of a peer that sends more: ``"delay"`` reads nothing until it is within its rate
    #: again, so that TCP holds it back, and does not count that time as idle; ``"close"`` closes
    #: the connection.
    over_rate: str = "delay"
    #: Seconds that a message which has begun to come may take to become whole, after which the
    #: connection is closed; None: any time. Longer than the longest message takes on the slowest
    #: line. A codec of one's own has to tell, see `Decoder`.
    frame_timeout: float | None = None
    #: Seconds after which a connection is closed whose peer takes nothing although something waits
    #: to be sent; None: never. Where there is TCP_USER_TIMEOUT, also what the kernel has taken must
    #: arrive in that time, and a second: so a peer that vanished is noticed although the kernel
    #: takes what is sent to it.
    write_timeout: float | None = None
    #: Seconds that a handler's own write to its connection waits for room in a full send queue,
    #: before it raises `WouldBlock`: so no reply is lost because the peer is slow to read. Writes
    #: from anywhere else, and broadcasts, never wait unless they are given a ``timeout``.
    reply_timeout: float = 30.0
    #: Whether this side may go on sending after the peer has ended its direction (a FIN), until it
    #: closes the connection itself, see ``half_close_timeout``. Otherwise the peer's end is the
    #: connection's.
    half_close: bool = False
    #: Seconds that it may take to do so, after which the connection is closed.
    half_close_timeout: float = 60.0
    #: Seconds without sending after which a heartbeat is sent; None: none is.
    heartbeat: float | None = 30.0
    #: Seconds after which a connection is closed from which nothing came; None: never. The peer
    #: should send heartbeats more often than that. The kernel's own probes are set to it, too.
    idle_timeout: float | None = None
    #: Seconds that the TLS handshake may take, with the PROXY header that may come before.
    handshake_timeout: float = 10.0
    #: Seconds that an orderly end may take: handlers that run, messages still to be sent.
    drain_timeout: float = 10.0
    #: Where handlers run: ``"auto"`` learns, ``"pool"`` always uses the workers, ``"inline"`` the
    #: thread that reads. With an initializer of the workers it is ``"pool"`` unless it is given, as
    #: only the workers are prepared.
    dispatch: str = "auto"
    #: Seconds after which a handler, ``on_connect`` or ``on_close`` that still runs is told of in
    #: the log, once, with the stack of its thread; None: never. 30 is longer than usual timeouts of
    #: what they wait for: who runs for longer is, as a rule, waiting for what does not come.
    handler_warn_after: float | None = 30.0
    #: Which CPUs the threads of connections run on (Linux): None, any; ``"auto"``, one; a number or
    #: several. On one CPU they do not fight over the interpreter lock, which makes many connections
    #: with little to do at a time about twice as fast; the price is that handlers on the reading
    #: thread have no other CPU. Workers are never pinned.
    cpu_affinity: str | int | Collection[int] | None = None

    def __post_init__(self) -> None:
        _is(self, "registry", Registry, optional=True)
        check_codec(self.codec, self.registry or default_registry)
        if self.tls is not None and not isinstance(self.tls, ssl.SSLContext):
            # Not shown: a certificate is long, and may stand beside its key.
            raise TypeError(
                "tls must be an SSLContext, as load_tls_config() and load_client_tls_config() "
                f"return, or server_config() and client_config() of a certificate, not "
                f"{type(self.tls).__name__}"
            )
        for name in _ARGUMENTS:
            _callable(self, name, *_ARGUMENTS[name])
        _count(self, "queue_size")
        for name in ("queue_bytes", "message_burst", "byte_burst"):
            _count(self, name, optional=True)
        for name in ("message_rate", "byte_rate"):
            _seconds(self, name, optional=True)
        _one_of(self, "over_rate", _OVER_RATE)
        _one_of(self, "slow_consumer", _SLOW_CONSUMER)
        _one_of(self, "dispatch", _DISPATCH)
        for name in _TIMES:
            _seconds(self, name, optional=True)
        for name in ("handshake_timeout", "drain_timeout", "reply_timeout", "half_close_timeout"):
            _seconds(self, name)
        _is(self, "half_close", bool)
        _check_cpus(self.cpu_affinity)

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


@dataclass(frozen=True, kw_only=True)
class ServerSettings(Settings):
    """What only a server has."""

    #: How many handlers that block run at once, over all connections; or a pool, which several
    #: servers may share and which its maker stops.
    workers: int | WorkerPool = 20
    #: Called in each worker thread as it starts: to open a database connection, say. Handlers then
    #: run on workers only, see ``dispatch``.
    worker_initializer: Callable[[], object] | None = None
    #: How many connections there may be; one more is closed at once.
    max_connections: int = 1000
    #: The same for connections from one address; None: no limit of its own.
    max_connections_per_host: int | None = None
    #: The networks of the proxies (load balancers) through which peers come, as ``["10.0.0.0/8"]``;
    #: ``"unix:"`` stands for whoever connects to a Unix socket. From there each connection must
    #: begin with a header of the PROXY protocol, version 1 or 2, before TLS and within
    #: ``handshake_timeout``; it tells ``remote_address``, by which ``max_connections_per_host``
    #: then counts. Connections from elsewhere are closed. None: there is no proxy.
    proxy_protocol: Collection[Any] | None = None
    #: How many connections may wait in the kernel to be accepted.
    backlog: int = 1024
    #: How many connections a second are accepted in the long run; None: all that come. Who comes
    #: too soon waits in the kernel, as far as ``backlog`` goes.
    accept_rate: float | None = None
    #: How many are accepted at once after a quiet time; None: as many as in one second.
    accept_burst: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.workers, WorkerPool):
            if self.worker_initializer is not None:
                raise ValueError("worker_initializer belongs to the WorkerPool given as workers")
        else:
            _count(self, "workers")
        _callable(self, "worker_initializer")
        _count(self, "max_connections")
        _count(self, "max_connections_per_host", optional=True)
        if self.proxy_protocol is not None:
            ProxyNetworks(self.proxy_protocol)  # which checks it
        _count(self, "backlog")
        _seconds(self, "accept_rate", optional=True)
        _count(self, "accept_burst", optional=True)
        if self.tls is not None and self.tls.protocol is ssl.PROTOCOL_TLS_CLIENT:
            raise ValueError("tls: a server cannot use a client's context")


@dataclass(frozen=True, kw_only=True)
class ClientSettings(Settings):
    """What only a client has."""

    #: Connect again when the connection is lost: True, or a `Reconnect` that says how.
    reconnect: bool | Reconnect = False
    #: Seconds that reaching one server may take: to resolve its name, and to connect to any of the
    #: addresses that it has. Of several servers each has so long.
    connect_timeout: float = 10.0
    #: Where connections come from: ``(host, port)``, an address of this machine and port 0 for any.
    #: None: what the system chooses.
    source_address: tuple[str, int] | None = None
    #: Options of the sockets, as for ``socket.setsockopt``: ``[(level, name, value), ...]``. They
    #: are set before connecting, and count for more than what tao sets itself.
    socket_options: Collection[tuple[int, int, int | bytes]] = ()
    #: The name that the server's certificate must have; None: the host connected to.
    server_hostname: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _is(self, "reconnect", (bool, Reconnect))
        _seconds(self, "connect_timeout")
        _check_source(self.source_address)
        _check_socket_options(self.socket_options)
        _is(self, "server_hostname", str, optional=True)
        if self.tls is not None and self.tls.protocol is ssl.PROTOCOL_TLS_SERVER:
            raise ValueError("tls: a client cannot use a server's context")


@dataclass(frozen=True, kw_only=True)
class Reconnect:
    """How to connect again: exponential back-off, capped, with jitter.

    The n-th attempt in a row waits ``initial * factor ** (n - 1)`` seconds, at most ``maximum``, of
    which a share of up to ``jitter`` is taken off at random, so that a thousand clients of a server
    that restarts do not all come back in the same instant. (Marc Brooker, "Exponential Backoff and
    Jitter", 2015, compares the ways.)
    """

    #: Seconds before the first attempt.
    initial: float = 0.1
    #: Seconds before any attempt, at most.
    maximum: float = 30.0
    #: How much longer each wait is than the one before.
    factor: float = 2.0
    #: Which share of the wait is random, from 0 to 1.
    jitter: float = 0.5
    #: How many attempts in a row may fail before the client closes; None: any number. Only a
    #: connection that was of use is a success: one that brought a message whose number the client
    #: knows, heartbeats apart, or that lasted for 10 seconds and for longer than ``maximum``.
    attempts: int | None = None

    def __post_init__(self) -> None:
        for name in ("initial", "maximum", "factor"):
            _seconds(self, name)
        if self.factor < 1:
            raise ValueError(f"factor must be at least 1, not {self.factor!r}")
        if not isinstance(self.jitter, (int, float)) or not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter must be between 0 and 1, not {self.jitter!r}")
        _count(self, "attempts", optional=True)

    def delay(self, attempt: int) -> float:
        """Return how many seconds to wait before an attempt, the first being 1."""
        # A large exponent would overflow long after the maximum is reached.
        steps = min(attempt - 1, 1000 if self.factor == 1 else math.log(1e9, self.factor))
        wait = min(self.maximum, self.initial * self.factor**steps)
        return wait * (1 - self.jitter * random.random())


SettingsT = TypeVar("SettingsT", bound=Settings)


def make_settings(kind: type[SettingsT], owner: str, given: dict[str, Any]) -> SettingsT:
    """Check keyword arguments and make options of them; ``owner`` is named in errors.

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


def _prepares_workers(given: dict[str, Any]) -> bool:
    """Tell whether handlers may need what an initializer has set up in the workers."""
    workers = given.get("workers")
    if isinstance(workers, WorkerPool):
        return workers.initializer is not None
    return given.get("worker_initializer") is not None


def _check_source(address: Any) -> None:
    if address is None:
        return
    if not isinstance(address, tuple):
        raise TypeError(f"source_address must be (host, port), not {address!r}")
    try:
        parse(address, listening=True)
    except (TypeError, ValueError) as error:
        raise type(error)(f"source_address: {error}") from None


def _check_socket_options(options: Any) -> None:
    if not isinstance(options, Collection) or isinstance(options, (str, bytes)):
        raise TypeError(f"socket_options must be a list of (level, name, value), not {options!r}")
    for each in options:
        if not (
            isinstance(each, (tuple, list))
            and len(each) == 3
            and all(isinstance(number, int) for number in each[:2])
            and isinstance(each[2], (int, bytes, bytearray))
        ):
            raise TypeError(f"socket_options must hold (level, name, value), not {each!r}")


def _check_cpus(wanted: Any) -> None:
    if wanted is None:
        return
    if not usable_cpus():
        raise ValueError("cpu_affinity: this platform cannot pin threads to CPUs")
    if wanted == "auto":
        return
    several = isinstance(wanted, Collection) and not isinstance(wanted, str) and len(wanted) > 0
    cpus = wanted if several else (wanted,)
    if not all(isinstance(cpu, int) and not isinstance(cpu, bool) for cpu in cpus):
        raise TypeError(f"cpu_affinity must be 'auto', a CPU number or several, not {wanted!r}")
    if not usable_cpus() >= set(cpus):
        raise ValueError(
            f"cpu_affinity: of {sorted(cpus)} only {sorted(usable_cpus())} can be used here"
        )


def _is(options: Any, name: str, kind: type | tuple[type, ...], optional: bool = False) -> None:
    value = getattr(options, name)
    if isinstance(value, kind) or (optional and value is None):
        return
    kinds = kind if isinstance(kind, tuple) else (kind,)
    expected = " or ".join(each.__name__ for each in kinds)
    raise TypeError(f"{name} must be {expected}, not {value!r}")


def _callable(options: Any, name: str, *arguments: str) -> None:
    value = getattr(options, name)
    if value is not None:
        check_callable(name, value, *arguments)


def _one_of(options: Any, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(options, name)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def _count(options: Any, name: str, optional: bool = False) -> None:
    value = getattr(options, name)
    if optional and value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")


def _seconds(options: Any, name: str, optional: bool = False) -> None:
    value = getattr(options, name)
    if optional and value is None:
        return
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite, not {value!r}")
