"""Calling ``on_connect`` and ``on_close``: one of the latter for each of the former that agreed.

This holds whatever a signal handler or another thread raises in between. An ``on_close`` becomes
owed in the same step of the interpreter in which ``on_connect`` returns, and ceases to be owed in
the step in which ``on_close`` begins: `map` and the like call them without a bytecode of this
module before or after. A `map` takes a StopIteration that the callback raises for the end of its
items; the next one has not taken its second item then, and that tells.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import compress
from operator import is_not, length_hint
from threading import get_ident
from typing import Any, Protocol

from tao.connection.application import ApplicationLink
from tao.connection.handling.slow_handlers import Watcher, telling_if_long
from tao.connection.lifecycle import Lifecycle
from tao.transport.stream import Transport

__all__ = ["Greetings", "GreetingsHost"]

# How often a call of ``on_close`` is attempted if exceptions from outside keep it from beginning.
_TRIES = 3


class GreetingsHost(Watcher, Protocol):
    """What this asks of a connection's core."""

    application: ApplicationLink
    lifecycle: Lifecycle
    transport: Transport | None

    def report(self, error: BaseException, doing: str) -> None:
        """Tell log and application of an error."""

    def in_call_of_application(self) -> bool:
        """Return whether an exception that is raised here reaches a caller of the application's."""


# The threads that are in an ``on_resume``, and whose it is. Each adds and removes itself.
_resuming: dict[int, Greetings] = {}


class Greetings:
    """The two callbacks of one connection. Used by the thread that connects, and the one that ends.

    Args:
        host: the connection's core.
    """

    __slots__ = ("_host", "_owed", "_speakers")

    def __init__(self, host: GreetingsHost) -> None:
        self._host = host
        self._owed: list[bool] = []  # not empty while on_close is to be called
        self._speakers: dict[int, None] = {}  # the thread that calls on_connect

    @property
    def speaks_here(self) -> bool:
        """Whether the calling code is ``on_connect``, or called by it."""
        return get_ident() in self._speakers

    def ask_on_connect(self) -> bool:
        """Call ``on_connect``; return whether it accepts the connection."""
        self._speakers[get_ident()] = None
        try:
            if not self._call("on_connect", self._make_on_connect):
                self._owed.append(True)
        finally:
            self._speakers.clear()
        return bool(self._owed)

    def owe_on_close(self) -> None:
        """Take the connection for accepted, although ``on_connect`` is not called."""
        self._owed.append(True)

    def forgo_on_close(self) -> None:
        """Owe nothing any more: another process goes on."""
        self._host.lifecycle.on_close_called()
        self._owed.clear()

    def call_on_close(self) -> None:
        """Call ``on_close`` if it is owed."""
        self._host.lifecycle.on_close_called()
        transport = self._host.transport
        if self._owed and transport is not None:
            transport.farewell()
            self._tell_of_session(transport)
        for _ in range(_TRIES):
            if not self._owed:
                break
            if not self._call("on_close", self._make_on_close):
                self._owed.clear()

    def _make_on_connect(self, callback: Callable[[Any], object], conn: Any) -> None:
        refusal = iter((False,))
        self._owed.extend(filter(None, map(is_not, map(callback, (conn,)), refusal)))
        _check_taken(refusal)

    def _tell_of_session(self, transport: Transport) -> None:
        """Call ``on_session_lost`` if a session has left anything uncertain."""
        messages = transport.lost_messages()
        if messages is not None:
            self._call("on_session_lost", lambda callback, conn: callback(conn, messages))

    def _make_on_close(self, callback: Callable[[Any], object], conn: Any) -> None:
        called = map(callback, compress((conn,), map(list.pop, (self._owed,))))
        returned = iter((True,))
        deque(zip(called, returned, strict=False), maxlen=0)
        _check_taken(returned)

    def call(self, what: str) -> bool:
        """Call ``on_resume``, say, beside a handler; return whether it agrees.

        The connection's context variables are the handler's.
        """
        host, application = self._host, self._host.application.find()
        callback = None if application is None else getattr(application, what)
        if application is None or callback is None:
            return True
        _resuming[get_ident()] = self
        try:
            with telling_if_long(host, what):
                return callback(application.find_conn()) is not False
        except Exception as error:
            host.report(error, f"in {what}")
            return False
        finally:
            _resuming.pop(get_ident(), None)

    @property
    def resumes_here(self) -> bool:
        """Whether the calling thread is in ``on_resume``."""
        return _resuming.get(get_ident()) is self

    def _call(self, what: str, make: Callable[..., object]) -> bool:
        """Call ``on_connect``, say, by ``make``; return False if there is no callback."""
        host, application = self._host, self._host.application.find()
        callback = None if application is None else getattr(application, what)
        if application is None or callback is None:
            return False
        try:
            with telling_if_long(host, what):
                application.variables.run(make, callback, application.find_conn())
        except BaseException as error:
            if not isinstance(error, Exception) and host.in_call_of_application():
                raise
            host.report(error, f"in {what}")
        return True

    def after_fork(self) -> None:
        """In a child process: nothing is owed."""
        self._host.lifecycle.on_close_called()
        self._owed.clear()
        self._speakers.clear()


def _check_taken(items: Iterator[bool]) -> None:
    """Raise if the only item is left: as in a generator, a StopIteration is an error."""
    if length_hint(items):
        raise RuntimeError("it raised StopIteration")
