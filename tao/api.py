"""The public names of ``import tao``, collected from the modules."""

from tao.atomic import AtomicBoolean, AtomicInt32, AtomicInt64
from tao.client.client import ClientConn, ClientOptions, connect
from tao.connection.connection import Connection
from tao.connection.options import Reconnect
from tao.connection.ticket import Ticket
from tao.errors import (
    AlreadyRegistered,
    BadData,
    Cancelled,
    ConnectFailed,
    ConnectionClosed,
    DeadlineExceeded,
    HandshakeFailed,
    NotRegistered,
    ProtocolError,
    RegistrationError,
    ServerClosed,
    TaoError,
    TooManyTimers,
    UndefinedMessage,
    WouldBlock,
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
from tao.server.reports import Broadcast, StopReport
from tao.server.server import Server, ServerOptions
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
    HEARTBEAT,
    HeartbeatMessage,
    Message,
    Registry,
    default_registry,
    register,
    unregister,
)

__all__ = [
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
    "Codec",
    "ConnectFailed",
    "Connection",
    "ConnectionClosed",
    "Context",
    "DeadlineExceeded",
    "Decoder",
    "DevelopmentCA",
    "HandshakeFailed",
    "HeartbeatMessage",
    "Message",
    "Monitor",
    "NotRegistered",
    "ProtocolError",
    "Reconnect",
    "RegistrationError",
    "Registry",
    "Server",
    "ServerClosed",
    "ServerConn",
    "ServerOptions",
    "StopReport",
    "TaoError",
    "Ticket",
    "TimingWheel",
    "TooManyTimers",
    "TypeLengthValueCodec",
    "UndefinedMessage",
    "WorkerPool",
    "WouldBlock",
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
    "server_from_context",
    "unregister",
]
