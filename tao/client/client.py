"""The public client class, a thin layer on top of its core (``reconnect.py``).

The client's threads refer only to the core. So if the application drops a client without closing
it, the garbage collector finds it, even if its own handlers, callbacks, timers and values refer to
it, and the client is closed; see ``connection/application.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from tao.callables import checked_flag
from tao.client.dialling import Dialler, Source
from tao.client.endpoints import endpoints_of
from tao.client.reconnect import ClientCore
from tao.connection.application import Application
from tao.connection.connection import CLOSED, Connection, check_reason
from tao.connection.options.definitions import ClientSettings, Ready, Reconnect
from tao.connection.options.fields import ErrorCallback
from tao.connection.options.given import make_settings
from tao.connection.options.help import takes_options
from tao.connection.options.types import CommonOptions
from tao.connection.reports.statistics import Snapshot
from tao.wire.codec_checks import restricted
from tao.wire.message import (
    MiddlewareT,
    ReadableT,
    Registry,
    ResultT,
    UnknownMessage,
    default_registry,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from tao.wire.message import Dispatch, HandlerDecorator

__all__ = ["ClientConn", "ClientOptions", "connect"]


class ClientOptions(CommonOptions, total=False):
    """The options of a `ClientConn`, as a type for functions of your own; see `ServerOptions`."""

    on_connect: Callable[[ClientConn], object] | None
    on_message: Callable[[Any, ClientConn], object] | None
    on_close: Callable[[ClientConn], object] | None
    on_error: ErrorCallback[ClientConn] | None
    on_resume: Callable[[ClientConn], object] | None
    on_session_lost: Callable[[ClientConn, list[UnknownMessage]], object] | None
    requests: bool
    reconnect: bool | Reconnect
    session: bool | Literal["required"]
    retain: int
    retain_bytes: int
    ready: Ready
    ready_timeout: float
    connect_timeout: float
    source_address: tuple[str, int] | None
    socket_options: Collection[tuple[int, int, int | bytes]]
    server_hostname: str | None


class ClientConn(Connection):
    """A client's end of a connection. All methods may be called from any thread.

    With ``reconnect`` the client dials again when its connection is lost. Messages that were
    written meanwhile or not completely sent are kept, and are sent in order after those that
    ``on_connect`` writes. Timers and values are kept; each connection has a new ``context``. For
    the server each is a separate connection: it may still handle messages of the old one beside
    those of the new one, as order is kept only within a connection. An unexpected exception in a
    thread of the client, such as a MemoryError, costs the connection and not the client, too.

    Keep a reference to a client, and close it at the end. A client that nothing refers to except
    its own handlers, callbacks, timers and values is closed, with a `ResourceWarning`.

    In a child of ``os.fork`` a started client is closed, see ``tao/runtime/forks.py``.

    Args:
        address: where to connect to: ``(host, port)``, the path of a Unix socket, a function that
            returns a connected socket, a connected socket, or a list of these as alternatives; see
            ``dialling.py``. Names are resolved for each attempt. The client owns a given socket.
        options: see `ClientOptions`; all are keyword-only.

    Raises:
        TypeError, ValueError: an option is unknown or invalid; the text names it.
    """

    _core: ClientCore

    @takes_options(ClientSettings, explain=True)
    def __init__(self, address: Any, **options: Unpack[ClientOptions]) -> None:
        """Make a client that is not started yet."""
        settings = make_settings(ClientSettings, "ClientConn", options)
        #: The client's own layer on top of the default registry, or the registry it was given.
        self.registry: Registry = restricted(
            settings.codec, settings.registry or Registry(default_registry)
        )
        application = Application(self, settings, self.registry)
        source = (
            address if isinstance(address, Source) else Dialler(endpoints_of(address), settings)
        )
        application.source = source
        super().__init__(application, ClientCore(application, settings, _caller()))

    def __del__(self) -> None:
        core = getattr(self, "_core", None)
        if core is not None and not sys.is_finalizing():
            try:
                core.forget(self._application, self)
            except BaseException:
                core.forget(self._application, self)  # an exception has interrupted the first call
                raise

    @property
    def _has_session(self) -> bool:
        return bool(self._core.resuming.wanted)

    # -- what users call

    def start(self, keep_trying: bool = False) -> ClientConn:
        """Connect.

        Args:
            keep_trying: return at once and connect in the background, with the retries of
                ``reconnect``, which must be set; see `wait_connected`.

        Returns:
            the client itself, connected unless it keeps trying.

        Raises:
            ConnectFailed: no server accepted the connection; `start` may be called again.
            HandshakeFailed: the TLS handshake failed.
            ConnectionClosed: closed meanwhile, or refused by ``on_connect``.
        """
        self._core.start(checked_flag("keep_trying", keep_trying))
        return self

    def close(self, reason: str = CLOSED) -> None:
        """Close the connection gracefully and permanently, and wait until it has ended.

        Queued messages are sent within ``drain_timeout`` if the peer reads them. Received messages
        that were not handled yet are dropped. A back-off ends at once. Called on one of tao's
        threads (in a handler), or in a signal handler that interrupts a write, it does not wait.

        Args:
            reason: what ``close_reason`` is from then on, unless it has been closed before.

        Raises:
            TypeError, ValueError: the reason is no str, or empty.
        """
        self._core.close_and_wait(check_reason(reason))

    @property
    def reconnects(self) -> int:
        """How many times the client has reconnected."""
        return self._core.reconnects

    @property
    def connected(self) -> bool:
        """Whether the client is connected now."""
        return self._core.connected

    def wait_connected(self, timeout: float | None = None) -> bool:
        """Wait up to ``timeout`` seconds for a connection; return whether there is one.

        Returns False when the client is closed.
        """
        return self._core.wait_connected(timeout)

    def handler(
        self, message_class: type[ReadableT], *, dispatch: Dispatch | None = None
    ) -> HandlerDecorator[ReadableT, ClientConn, ResultT]:
        """Make the decorated function the handler of a message class, for this client only."""
        return self.registry.handler(message_class, dispatch=dispatch)

    def use(self, middleware: MiddlewareT) -> MiddlewareT:
        """Call ``function(ctx, conn, call_next)`` around every handler of this client only.

        See `Registry.use`.
        """
        return self.registry.use(middleware)

    def snapshot(self) -> Snapshot:
        """Return the current statistics of this client."""
        return self._core.statistics.snapshot()

    def __enter__(self) -> ClientConn:
        """Connect, unless connected already."""
        self._core.enter()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _caller() -> tuple[str, int]:
    """Return file and line of the nearest caller outside tao."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_ours(frame):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] == "tao"


@takes_options(ClientSettings)
def connect(address: Any, **options: Unpack[ClientOptions]) -> ClientConn:
    """Make a `ClientConn` and start it."""
    return ClientConn(address, **options).start()
