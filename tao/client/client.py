"""The client, as the application holds it: a thin face of its core (``reconnect.py``).

The client's threads hold the core alone. So if the application forgets a client without closing
it, the garbage collector finds out, whatever refers to the client from its own handlers, callbacks,
timers and values, and the client is closed; see ``connection/application.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from types import FrameType
from typing import TYPE_CHECKING, Any

from tao.client.dialling import Dialler, Source
from tao.client.endpoints import places_of
from tao.client.reconnect import ClientCore
from tao.connection.application import Application
from tao.connection.connection import Connection
from tao.connection.option_help import takes_options
from tao.connection.option_types import CommonOptions
from tao.connection.options import ClientSettings, Reconnect, make_settings
from tao.connection.statistics import Snapshot
from tao.wire.message import ReadableT, Registry, ResultT, default_registry

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from tao.wire.message import Dispatch, HandlerDecorator

__all__ = ["ClientConn", "ClientOptions", "connect"]


class ClientOptions(CommonOptions, total=False):
    """The options of a `ClientConn`, as a type for functions of your own; see `ServerOptions`."""

    on_connect: Callable[[ClientConn], object] | None
    on_message: Callable[[Any, ClientConn], object] | None
    on_close: Callable[[ClientConn], object] | None
    on_error: Callable[[ClientConn, BaseException], object] | None
    reconnect: bool | Reconnect
    connect_timeout: float
    source_address: tuple[str, int] | None
    socket_options: Collection[tuple[int, int, int | bytes]]
    server_hostname: str | None


class ClientConn(Connection):
    """A client's end of a connection. All methods may be called from any thread.

    With ``reconnect`` it outlives its transports: when one is lost it dials again; what was written
    meanwhile, and what was not wholly sent, waits and then goes out in order, after what
    ``on_connect`` writes. Timers and values stay; ``context`` is a new one for each. To the server
    each is a connection of its own: what came on the one before may still be handled beside what
    comes on the next, as order is kept within a connection only.

    Keep a reference to a client, and close it in the end. One that is forgotten, which means that
    nothing but its own handlers, callbacks, timers and values refers to it, is closed, with a
    `ResourceWarning`.

    In a child of ``os.fork`` one that was started is closed, see ``tao/runtime/forks.py``.

    Args:
        address: where to connect to: ``(host, port)``, the path of a Unix socket, a function that
            returns a connected socket, a socket that is connected already, or a list of these, each
            a server that will do; see ``dialling.py``. Names are resolved anew for each attempt.
            What is made of a socket belongs to the client.
        options: see `ClientOptions`; all are keyword-only.

    Raises:
        TypeError, ValueError: an option is unknown or wrong; the text names it.
    """

    _core: ClientCore

    @takes_options(ClientSettings, explain=True)
    def __init__(self, address: Any, **options: Unpack[ClientOptions]) -> None:
        """Make a client that is not started yet."""
        settings = make_settings(ClientSettings, "ClientConn", options)
        #: What this client knows beside the default registry, or the registry it was given.
        self.registry: Registry = settings.registry or Registry(default_registry)
        application = Application(self, settings, self.registry)
        source = address if isinstance(address, Source) else Dialler(places_of(address), settings)
        application.source = source
        super().__init__(application, ClientCore(application, settings, _caller()))

    def __del__(self) -> None:
        core = getattr(self, "_core", None)
        if core is not None and not sys.is_finalizing():
            core.forget(self._application, self)

    # -- what users call

    def start(self, keep_trying: bool = False) -> ClientConn:
        """Connect.

        Args:
            keep_trying: if nobody answers, go on in the background as after a lost connection
                (``reconnect`` must be set), and return at once; see `wait_connected`.

        Returns:
            the client itself, connected unless it keeps trying.

        Raises:
            ConnectFailed: nobody answered; it may be tried again.
            HandshakeFailed: TLS was not agreed upon.
            ConnectionClosed: closed meanwhile, or refused by ``on_connect``.
        """
        self._core.start(keep_trying)
        return self

    def close(self) -> None:
        """End the connection in order, for good, and wait until it has ended.

        What was written before is sent if there is a peer that reads it, within ``drain_timeout``;
        what came and was not handled yet is dropped. Back-off ends at once. Called by one of tao's
        threads (in a handler, say), or by a signal handler in the midst of a write to this very
        connection, it does not wait.
        """
        self._core.close_and_wait()

    @property
    def reconnects(self) -> int:
        """How many times the connection came back."""
        return self._core.reconnects

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._core.connected

    def wait_connected(self, timeout: float | None = None) -> bool:
        """Wait until there is a connection, ``timeout`` seconds at most; tell whether there is.

        It also returns, False, when the client is closed.
        """
        return self._core.wait_connected(timeout)

    def handler(
        self, message_class: type[ReadableT], *, dispatch: Dispatch | None = None
    ) -> HandlerDecorator[ReadableT, ClientConn, ResultT]:
        """Make the decorated function the handler of a message class, on this client only."""
        return self.registry.handler(message_class, dispatch=dispatch)

    def snapshot(self) -> Snapshot:
        """Return the figures of this client as they are now."""
        return self._core.tally.snapshot()

    def __enter__(self) -> ClientConn:
        """Connect, unless that is done."""
        self._core.enter()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _caller() -> tuple[str, int]:
    """Return file and line of the code outside of tao that called."""
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
