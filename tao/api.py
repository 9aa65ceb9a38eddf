"""The public names of ``import tao``, collected from the modules."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tao.atomic import AtomicBoolean, AtomicInt32, AtomicInt64
from tao.cli.serving import serve
from tao.client.client import ClientConn, ClientOptions, connect
from tao.connection.connection import Connection
from tao.connection.correlation import Correlate, InOrder
from tao.connection.options.definitions import Reconnect
from tao.connection.sending.ticket import Ticket
from tao.connection.sessions.stream import SessionFigures
from tao.errors import (
    AlreadyRegistered,
    BadData,
    Cancelled,
    ClusterUnavailable,
    ConnectFailed,
    ConnectionClosed,
    ConnectionLost,
    DeadlineExceeded,
    HandshakeFailed,
    IdentityTaken,
    NoHandler,
    NotRegistered,
    ProtocolError,
    RegistrationError,
    RemoteError,
    RequestCancelled,
    RequestError,
    RequestsNotSupported,
    RequestTimeout,
    ServerClosed,
    TaoError,
    TooManyGroups,
    TooManyTimers,
    UndefinedMessage,
    WouldBlock,
    WouldDeadlock,
)
from tao.monitor.monitor import Monitor, monitor_on
from tao.runtime.context import (
    Context,
    background,
    context_with_message,
    context_with_net_id,
    message_from_context,
    net_id_from_context,
    server_from_context,
)
from tao.runtime.log import log_to_stdlib
from tao.runtime.timing_wheel import TimingWheel
from tao.runtime.worker_pool import WorkerPool
from tao.server.connection import ServerConn
from tao.server.membership.cluster_member import LocalConnections, open_clusters_with
from tao.server.membership.groups import Group
from tao.server.reports import Broadcast, StopReport
from tao.server.server import Server, ServerOptions
from tao.session.sessions import Sessions
from tao.transport.certificates import (
    Certificate,
    DevelopmentCA,
    load_client_tls_config,
    load_tls_config,
    self_signed_certificate,
)
from tao.version import __version__
from tao.wire.codec import Batch, Codec, Decoder, TypeLengthValueCodec
from tao.wire.message import (
    ANY,
    HEARTBEAT,
    HeartbeatMessage,
    Message,
    Registry,
    UnknownMessage,
    default_registry,
    register,
    unregister,
)
from tao.wire.struct_message import StructMessage

if TYPE_CHECKING:
    from tao.cluster.publisher import Publisher, PublisherGroup
    from tao.server.membership.cluster_member import ClusterPort

#: Names whose modules are imported when they are first used, and where they are.
LATE = {"Publisher": "tao.cluster.publisher", "PublisherGroup": "tao.cluster.publisher"}

__all__ = [
    "ANY",
    "HEARTBEAT",
    "AlreadyRegistered",
    "AtomicBoolean",
    "AtomicInt32",
    "AtomicInt64",
    "BadData",
    "Batch",
    "Broadcast",
    "Cancelled",
    "Certificate",
    "ClientConn",
    "ClientOptions",
    "ClusterUnavailable",
    "Codec",
    "ConnectFailed",
    "Connection",
    "ConnectionClosed",
    "ConnectionLost",
    "Context",
    "Correlate",
    "DeadlineExceeded",
    "Decoder",
    "DevelopmentCA",
    "Group",
    "HandshakeFailed",
    "HeartbeatMessage",
    "IdentityTaken",
    "InOrder",
    "Message",
    "Monitor",
    "NoHandler",
    "NotRegistered",
    "ProtocolError",
    "Publisher",
    "PublisherGroup",
    "Reconnect",
    "RegistrationError",
    "Registry",
    "RemoteError",
    "RequestCancelled",
    "RequestError",
    "RequestTimeout",
    "RequestsNotSupported",
    "Server",
    "ServerClosed",
    "ServerConn",
    "ServerOptions",
    "SessionFigures",
    "Sessions",
    "StopReport",
    "StructMessage",
    "TaoError",
    "Ticket",
    "TimingWheel",
    "TooManyGroups",
    "TooManyTimers",
    "TypeLengthValueCodec",
    "UndefinedMessage",
    "UnknownMessage",
    "WorkerPool",
    "WouldBlock",
    "WouldDeadlock",
    "__version__",
    "background",
    "connect",
    "context_with_message",
    "context_with_net_id",
    "default_registry",
    "load_client_tls_config",
    "load_tls_config",
    "log_to_stdlib",
    "message_from_context",
    "monitor_on",
    "net_id_from_context",
    "register",
    "self_signed_certificate",
    "serve",
    "server_from_context",
    "unregister",
]


def __getattr__(name: str) -> Any:
    if name in LATE:
        return getattr(import_module(LATE[name]), name)
    raise AttributeError(f"module 'tao.api' has no attribute {name!r}")


def _open_cluster(node: str, server: LocalConnections) -> ClusterPort | None:
    """Import what clusters need only for a server that is in one."""
    from tao.cluster.link import open_cluster

    return open_cluster(node, server)


open_clusters_with(_open_cluster)
