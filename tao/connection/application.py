"""What an application gives to a connection, and how the connection finds it.

The threads of a connection hold its core (``core.py``); the application holds a `Connection`,
which holds the core and an `Application`. The core has only weak references to these two: a
handler, a callback, a codec or a value may refer to the connection, and must not keep alive a
client that is otherwise unreachable. So a thread takes a strong reference to the `Application` when
it has something to run, and never while it waits.
"""

from __future__ import annotations

import contextvars
import weakref
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar

from tao.connection.context_variables import Variables
from tao.connection.correlation import Correlate, Ids, InOrder
from tao.connection.handling.request_context import context_of
from tao.connection.options.definitions import ServerSettings, Settings
from tao.runtime.context import Context, RequestContext
from tao.wire.codec import Decoder, TypeLengthValueCodec
from tao.wire.codec_checks import checked_decoder, checked_encoder, headed_frame
from tao.wire.message import Message, Registration, Registry

__all__ = [
    "Application",
    "ApplicationLink",
    "HandlerTable",
    "is_heartbeat",
    "without_application",
]

# The greatest id of a codec that does not say.
_GREATEST_ID = 2**16 - 1

SettingsT = TypeVar("SettingsT", bound=Settings)


class HandlerTable(Protocol):
    """Registrations by number, as the calling of handlers looks them up."""

    def get(self, number: Any, /) -> Registration | None:
        """Return the registration of a number, None if there is none."""


class Application:
    """Handlers, callbacks, codec, timers and values of one connection.

    Args:
        conn: the application's object.
        settings: the options.
        registry: messages and handlers.
        context: the initial context variables of its callbacks; None: the caller's.
    """

    __slots__ = (
        "__weakref__", "codec", "correlation", "decoder", "encode", "entries", "find_conn", "ids",
        "is_heartbeat", "make_context", "on_close", "on_connect", "on_error",
        "on_error_takes_context", "on_message", "on_resume", "on_session_lost", "reconnect",
        "registry", "source", "timers", "values", "variables",
    )  # fmt: skip

    def __init__(
        self,
        conn: Any,
        settings: Settings,
        registry: Registry,
        context: contextvars.Context | None = None,
    ) -> None:
        #: Returns the application's object; None if it is gone, so that nothing may be called.
        self.find_conn: Callable[[], Any] = weakref.ref(conn)
        self.registry = registry
        #: Registrations by number, of the messages that may be handled.
        self.entries: HandlerTable = registry.entries
        self.codec = settings.codec
        #: Returns the bytes of a message; the result is checked.
        self.encode = checked_encoder(settings.codec)
        #: Tells whether messages of a number only show that the peer is alive. May raise.
        self.is_heartbeat: Callable[[Any], bool] = getattr(
            settings.codec, "is_heartbeat", _never_a_heartbeat
        )
        #: Decodes the present transport. Used by the reading role, once there is a transport.
        self.decoder: Decoder
        #: Makes the contexts of handlers. One that looks what came with a message costs a little.
        self.make_context: Callable[[Context, Any], Context] = RequestContext
        if getattr(settings.codec, "gives_headers", False):
            self.make_context = context_of
        #: How replies find their requests, if neither the codec's fields nor an envelope tell.
        self.correlation: InOrder | Correlate | None = settings.correlation
        #: The ids of all frames, if a field of them has one.
        self.ids: Ids | None = None
        if getattr(settings.codec, "correlate", None) is not None and self.correlation is None:
            greatest = getattr(settings.codec, "greatest_id", _GREATEST_ID)
            # A server begins in the middle, so its ids are seldom those of a client's requests.
            serves = isinstance(settings, ServerSettings)
            self.ids = Ids(greatest, greatest // 2 + 1 if serves else 0)
            self.encode = partial(_encode_with_id, settings.codec, self.ids)
        self.variables = Variables(context)
        self.on_connect = settings.on_connect
        self.on_message = settings.on_message
        self.on_close = settings.on_close
        self.on_resume = settings.on_resume
        self.on_session_lost = settings.on_session_lost
        self.on_error: Callable[..., object] | None = settings.on_error
        self.on_error_takes_context: bool = settings.on_error_takes_context
        #: Where a client's transports come from.
        self.source: Any = None
        #: How long a client waits before it connects again; None: it does not.
        self.reconnect: Any = None
        #: The callbacks of timers, by their ids. Changed by any thread, in single steps.
        self.timers: dict[int, Callable[..., object]] = {}
        self.values: dict[Hashable, Any] = {}

    def hold(self, conn: Any) -> None:
        """Keep the application's object alive from now on."""
        self.find_conn = lambda: conn

    def encode_with(self, message: Message, header: Mapping[str, Any]) -> bytes:
        """Return the bytes of a message, with values of the other fields of its frame."""
        if self.ids is not None:
            field = getattr(self.codec, "correlate", "")
            if field not in header:
                header = {**header, field: self.ids.take()}
        return headed_frame(self.codec, message, header)

    def encode_as(self, message: Message, header: Mapping[str, Any] | None) -> bytes:
        """Return the bytes of a message, with a header or without."""
        return self.encode(message) if header is None else self.encode_with(message, header)

    def new_decoder(self) -> Decoder:
        """Return a decoder for a new transport; its results are checked."""
        return checked_decoder(self.codec, self.registry)


def _encode_with_id(codec: Any, ids: Ids, message: Message) -> bytes:
    """Return the frame of a plain message, with an id that no request in flight has."""
    return headed_frame(codec, message, {codec.correlate: ids.take()})


class ApplicationLink:
    """The way from a core to its application. Any thread may use it.

    Attributes:
        find: returns the `Application`; None if it is gone, so that nothing may be called.
    """

    __slots__ = ("find",)

    def __init__(self, application: Application) -> None:
        self.find: Callable[[], Application | None] = weakref.ref(application)

    def hold(self, application: Application, conn: Any) -> None:
        """Keep application and object alive until `release`."""
        application.hold(conn)
        self.find = lambda: application

    def release(self) -> None:
        """Hold them weakly again, as the connection has ended."""
        application = self.find()
        conn = None if application is None else application.find_conn()
        if application is not None and conn is not None:
            application.find_conn = weakref.ref(conn)
            self.find = weakref.ref(application)


def is_heartbeat(
    application: Application, number: Any, report: Callable[[BaseException, str], object]
) -> bool:
    """Ask the codec whether a number is its heartbeat; if that raises, report it and say no."""
    try:
        return application.is_heartbeat(number)
    except BaseException as error:
        report(error, "in the codec's is_heartbeat")
        return False


def _never_a_heartbeat(number: Any) -> bool:
    return False


def without_application(settings: SettingsT, **changes: Any) -> SettingsT:
    """Return settings that do not refer to anything that the application has given."""
    return replace(
        settings,
        codec=TypeLengthValueCodec(),
        correlation=None,
        registry=None,
        on_connect=None,
        on_message=None,
        on_close=None,
        on_resume=None,
        on_session_lost=None,
        on_error=None,
        **changes,
    )
