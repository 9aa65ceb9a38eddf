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
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any, TypeVar

from tao.connection.context_variables import Variables
from tao.connection.options import Settings
from tao.wire.codec import Decoder, TypeLengthValueCodec
from tao.wire.codec_checks import checked_decoder, checked_encoder
from tao.wire.message import Registration, Registry

__all__ = ["Application", "ApplicationLink", "without_application"]

SettingsT = TypeVar("SettingsT", bound=Settings)


class Application:
    """Handlers, callbacks, codec, timers and values of one connection.

    Args:
        conn: the application's object.
        settings: the options.
        registry: messages and handlers.
        context: the initial context variables of its callbacks; None: the caller's.
    """

    __slots__ = (
        "__weakref__", "codec", "decoder", "encode", "entries", "find_conn", "on_close",
        "on_connect", "on_error", "on_message", "reconnect", "registry", "source", "timers",
        "values", "variables",
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
        #: Registrations by number.
        self.entries: dict[int, Registration] = registry.entries
        self.codec = settings.codec
        #: Returns the bytes of a message; the result is checked.
        self.encode = checked_encoder(settings.codec)
        #: Decodes the present transport. Used by the reading role.
        self.decoder: Decoder = self.new_decoder()
        self.variables = Variables(context)
        self.on_connect = settings.on_connect
        self.on_message = settings.on_message
        self.on_close = settings.on_close
        self.on_error = settings.on_error
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

    def new_decoder(self) -> Decoder:
        """Return a decoder for a new transport; its results are checked."""
        return checked_decoder(self.codec, self.registry)


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


def without_application(settings: SettingsT, **changes: Any) -> SettingsT:
    """Return settings that do not refer to anything that the application has given."""
    return replace(
        settings,
        codec=TypeLengthValueCodec(),
        registry=None,
        on_connect=None,
        on_message=None,
        on_close=None,
        on_error=None,
        **changes,
    )
