"""What went wrong on one connection: to the log, to the figures, to the application."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from traceback import format_tb
from types import TracebackType
from typing import Any, Protocol

from tao.atomic import AtomicInt64
from tao.connection.application import ApplicationLink
from tao.connection.handling.slow_handlers import Running
from tao.connection.lifecycle import Lifecycle
from tao.connection.reports.statistics import Statistics
from tao.connection.sending.send_queue import SendQueue
from tao.errors import BadData, ConnectionClosed, UndefinedMessage, WouldBlock
from tao.runtime.context import Context
from tao.runtime.log import logger
from tao.runtime.turnstile import departures
from tao.safe_text import FORMATTING_ERRORS, number_text
from tao.transport.addresses import address_text

__all__ = ["ErrorReports", "ReporterHost"]

# Unregistered numbers are logged once each, up to so many for a connection.
_UNDEFINED_LOGGED = 16


class ReporterHost(Protocol):
    """What this asks of a connection's core."""

    net_id: int
    remote_address: Any
    application: ApplicationLink
    lifecycle: Lifecycle
    send_queue: SendQueue
    statistics: Statistics


class ErrorReports:
    """Tells of a connection's errors. Any thread may call it; it never raises.

    Args:
        conn: the connection's core.
    """

    __slots__ = ("_conn", "_errors", "_undefined", "overdue", "undefined", "unheard")

    def __init__(self, conn: ReporterHost) -> None:
        self._conn = conn
        # The count, made with the first error, as most connections have none. Should two threads
        # make one, the first in the list counts.
        self._errors: list[AtomicInt64] = []
        # Owned by the thread that handles messages.
        self._undefined: dict[str, None] = {}
        self.undefined: int = 0
        #: Called with the first number that is not registered, if the log does not say so.
        self.unheard: Callable[[Any], object] | None = None
        # Owned by the timing wheel's thread.
        self.overdue: int = 0

    def log(self) -> Any:
        """Return a logger that adds the connection's number and its peer to its lines."""
        conn = self._conn
        return logger.bind(connection=conn.net_id, peer=address_text(conn.remote_address))

    def lost(self, reason: str, error: BaseException) -> None:
        """Tell that the peer is given up, and where the cause was raised, in a decoder as a rule.

        A bug of the decoder's is an error of the application's; all else is the peer's fault or the
        network's. The cause's text is left out above TRACE: it may quote what the peer has sent, as
        that of ``int()`` does. For an error of TLS the reason says enough.
        """
        cause, tell = error.__cause__, self.log()
        if cause is None or isinstance(cause, ssl.SSLError):
            tell.info("connection lost: {}", reason)
        elif getattr(error, "unintended", False):
            tell.opt(exception=_without_text(cause)).error("connection lost: {}", reason)
        else:
            tell.info("connection lost: {}; raised at\n{}", reason, _Place(cause))
        if cause is not None:
            tell.opt(exception=cause).trace("what was raised")

    def raised(self, error: BaseException, doing: str, context: Context | None = None) -> None:
        """Tell of an exception of the application's code or of tao's, with its traceback.

        But for what the peer brings about with each message: a send queue that is full because it
        does not read, or a write to a connection that it has closed.

        Args:
            context: that of the message, if a handler has raised it.
        """
        conn = self._conn
        ended = conn.lifecycle.close_reason is not None or conn.send_queue.error is not None
        if isinstance(error, WouldBlock) or (ended and isinstance(error, ConnectionClosed)):
            self.flood("error {}: {}", doing, error)
        else:
            self.log().opt(exception=error).error("error {}", doing)
        self.tell(error, doing, context)

    def undelivered(self, error: ConnectionClosed, doing: str) -> None:
        """Warn that messages did not reach the peer because of the peer or the network."""
        self.log().warning("{}: {}", doing, error)
        self.tell(error, doing)

    def tell(self, error: BaseException, doing: str = "", context: Context | None = None) -> None:
        """Count an error, keep its reason for the monitor, and pass it to ``on_error``."""
        self._count(error, doing)
        application = self._conn.application.find()
        if application is None or application.on_error is None:
            return
        departures.leave()  # as it may take long
        about = (error, context) if application.on_error_takes_context else (error,)
        try:
            application.variables.run_beside(application.on_error, application.find_conn(), *about)
        except BaseException as another:
            self.log().exception("on_error raised")
            self._count(another, "in on_error")

    def _count(self, error: BaseException, doing: str) -> None:
        conn = self._conn
        if not self._errors:
            self._errors.append(AtomicInt64())
        self._errors[0].increment_and_get()
        conn.statistics.failures.add(error, doing, conn.net_id, address_text(conn.remote_address))

    @property
    def errors(self) -> int:
        """How many errors there were."""
        return self._errors[0].get() if self._errors else 0

    def flood(self, text: str, *args: object) -> None:
        """Log a warning that a peer can cause any number of times, at a limited rate."""
        conn = self._conn
        who = f"connection {conn.net_id} from {address_text(conn.remote_address)}: "
        conn.statistics.floods.warn(self.log(), "{}" + text, who, *args)

    def overdue_handler(self, running: Running, stack: str) -> None:
        """Warn of a handler that runs for too long. Called by the timing wheel's thread only."""
        number, seconds, ident = running
        what = "a timer's callback" if number is None else f"the handler of {running.what}"
        self.overdue_callback(what, seconds, ident, stack)

    def overdue_callback(self, what: str, seconds: float, ident: int, stack: str) -> None:
        """Warn of a callback that does. Called by the timing wheel's thread only."""
        self.overdue += 1
        self._conn.statistics.overdue.warn(
            self.log(),
            "{} has been running for {:.1f} s on connection {} from {}, in thread {}; "
            "its stack:\n{}",
            what,
            seconds,
            self._conn.net_id,
            address_text(self._conn.remote_address),
            _thread_name(ident),
            stack,
        )

    def unregistered(self, number: Any) -> None:
        """Count a message with an unregistered number, and log the first of each number."""
        self.undefined += 1
        known = self._undefined
        if len(known) < _UNDEFINED_LOGGED and (shown := number_text(number)) not in known:
            known[shown] = None
            what = _Noticed(UndefinedMessage(number))
            self.log().warning("{}; such messages are skipped", what)
            unheard, self.unheard = self.unheard, None
            if unheard is not None and not what.logged:
                unheard(number)


class _Noticed:
    """Part of a log line that notices whether a sink formats the line.

    (loguru has no other way to ask whether a line would be kept.)
    """

    __slots__ = ("_what", "logged")

    def __init__(self, what: object) -> None:
        self._what = what
        self.logged: bool = False

    def __str__(self) -> str:
        self.logged = True
        return str(self._what)


class _Place:
    """Where an exception was raised; formatted only if a sink keeps the line."""

    __slots__ = ("_error",)

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __str__(self) -> str:
        return "".join(format_tb(self._error.__traceback__)).rstrip()


def _thread_name(ident: int) -> str:
    names = [each.name for each in threading.enumerate() if each.ident == ident]
    return names[0] if names else f"number {ident}"


def _without_text(error: BaseException) -> tuple[type, BaseException, TracebackType | None]:
    """Return an exception of the same class, raised at the same place, that says nothing."""
    kind = type(error)
    try:
        silent = kind.__new__(kind)
    except FORMATTING_ERRORS:  # its class wants arguments
        kind, silent = BadData, BadData(kind.__name__)
    return kind, silent, error.__traceback__
