"""What went wrong on one connection: to the log, to the figures, to the application."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tao.errors import UndefinedMessage
from tao.log import logger
from tao.transport import address_text

if TYPE_CHECKING:
    from tao.connection import Connection

__all__ = ["Reporter"]

# Unregistered numbers are logged once each, up to so many for a connection.
_UNDEFINED_LOGGED = 16


class Reporter:
    """Tells of a connection's errors. Any thread may call it; it never raises.

    Args:
        conn: the connection.
        on_error: the application's callback, or None.
    """

    __slots__ = ("_conn", "_lock", "_on_error", "_undefined", "errors", "undefined")

    def __init__(
        self, conn: Connection, on_error: Callable[[Any, BaseException], object] | None
    ) -> None:
        self._conn = conn
        self._on_error = on_error
        # Guards errors, as several threads may count at once.
        self._lock = threading.Lock()
        self.errors: int = 0
        # Owned by who handles messages, one at a time.
        self._undefined: set[int] = set()
        self.undefined: int = 0

    def log(self) -> Any:
        """Return a logger whose lines carry the connection's number and its peer."""
        conn = self._conn
        return logger.bind(connection=conn.net_id, peer=address_text(conn.remote_address))

    def raised(self, error: BaseException, doing: str) -> None:
        """Tell of an exception of the application's code or of tao's, with its traceback."""
        self.log().opt(exception=error).error("error {}", doing)
        self.tell(error)

    def tell(self, error: BaseException) -> None:
        """Count an error and pass it to ``on_error``."""
        with self._lock:
            self.errors += 1
        if self._on_error is None:
            return
        try:
            self._on_error(self._conn, error)
        except BaseException:
            self.log().exception("on_error raised")

    def unregistered(self, number: int) -> None:
        """Count a message whose number is not registered, and log the first of each number."""
        self.undefined += 1
        if number not in self._undefined and len(self._undefined) < _UNDEFINED_LOGGED:
            self._undefined.add(number)
            self.log().warning("{}; such messages are skipped", UndefinedMessage(number))
