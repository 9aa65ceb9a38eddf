"""What a server lets through before a login: the messages of the login, and nothing else.

A message is judged when it is about to be handled, not when it arrives. So one that follows a login
directly is handled if the login succeeds, however many of them one read brings. While a connection
is not ready, its handlers are looked up here; afterwards in the registry, as those of any other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from tao.connection.application import ApplicationLink, is_heartbeat
from tao.connection.handling.handler_runner import HandlerRunner
from tao.connection.handling.inbox import CALL
from tao.connection.lifecycle import Lifecycle
from tao.connection.options.definitions import ServerSettings
from tao.safe_text import number_text
from tao.wire.codec_checks import limit_decoder
from tao.wire.message import (
    HEARTBEAT,
    Entries,
    Handler,
    Registration,
    Registry,
    UnknownMessage,
)
from tao.wire.middleware import around

__all__ = ["LoginGate", "LoginHost", "check_login_handlers"]


class LoginHost(Protocol):
    """What this asks of a connection's core."""

    application: ApplicationLink
    lifecycle: Lifecycle
    runner: HandlerRunner

    @property
    def error_reports(self) -> Any:
        """Where it is logged that a message is refused."""

    def begin_close(self, reason: str, *, drain: bool) -> None:
        """Begin to close the connection."""

    def report(self, error: BaseException, doing: str) -> None:
        """Tell log and application of an error."""


class LoginGate:
    """Finds handlers for one connection while it is not ready, in place of the registry.

    Args:
        host: the connection's core.
        settings: the options; there is a ``login``.
    """

    __slots__ = ("_entries", "_host", "_lift", "_most", "_numbers", "_on_unready", "_opened")

    def __init__(self, host: LoginHost, settings: ServerSettings) -> None:
        self._host = host
        self._most: int = settings.login_max_bytes
        self._on_unready = settings.on_unready
        self._numbers: frozenset[Any] = frozenset(_numbers(settings))
        self._entries: Entries = {}
        # Set by the thread that opens it, in this order.
        self._lift: Callable[[], object] = bool
        self._opened: bool = False  # whether the application has the registry's entries again

    def shut(self) -> None:
        """Let only a login through from now on. Called before anything is read."""
        application = self._host.application.find()
        if application is not None:
            self._entries = application.registry.entries
            application.entries = self
            self._lift = limit_decoder(application.decoder, self._most)

    def open(self) -> None:
        """Let everything through. Any thread may call it."""
        application = self._host.application.find()
        if application is not None:
            application.entries = application.registry.entries
        self._opened = True
        self._lift()

    def get(self, number: Any, /) -> Registration | None:
        """Return the registration of a number, or one that refuses its messages."""
        entry = self._entries.get(number)
        if number is CALL or number in self._numbers:
            return entry
        application = self._host.application.find()
        if application is None or is_heartbeat(application, number, self._host.report):
            return Registration(number, bytes)  # reaches no handler
        # Numbers that are not registered share one histogram: the peer chooses them.
        known = HEARTBEAT if entry is None else entry.number
        if self._on_unready is None:
            return Registration(
                known, bytes, self._judge(number, partial(self._refuse, number)), "inline"
            )
        on_unready = around(self._on_unready, application.registry.middleware)
        return Registration(known, bytes, self._judge(number, on_unready))

    def _judge(self, number: Any, refuse: Handler) -> Handler:
        """Return what handles a message that does not belong to a login."""

        def judge(context: Any, conn: Any) -> None:
            if self._opened:  # by the message before this one
                self._pass_on(number, context, conn)
                return
            if context.message is None:
                context.message = UnknownMessage(number, None)
            refuse(context, conn)

        return judge

    def _pass_on(self, number: Any, context: Any, conn: Any) -> None:
        application = self._host.application.find()
        if application is not None:
            handler = self._host.runner.find_handler(application, number)
            if handler is not None:
                handler(context, conn)

    def _refuse(self, number: Any, context: Any, conn: Any) -> None:
        if self._host.lifecycle.close_reason is None:
            reason = f"message {number_text(number)} came before the login"
            self._host.error_reports.flood("{}", reason)
            self._host.begin_close(reason, drain=False)


def check_login_handlers(settings: ServerSettings, registry: Registry) -> None:
    """Raise a ``ValueError`` if a login would reach no handler."""
    if settings.on_message is not None:
        return
    for each in settings.login or ():
        entry = registry.entries.get(getattr(each, "message_number", HEARTBEAT))
        if entry is None or entry.handler is None:
            raise ValueError(f"login: there is no handler for {each.__name__}")


def _numbers(settings: ServerSettings) -> list[Any]:
    return [each.message_number for each in settings.login or ()]  # type: ignore[attr-defined]
