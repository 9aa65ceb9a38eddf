"""A server with sessions, a client with one, and a proxy between them, for tests of sessions."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

import tao
from tao.connection.connection import core_of
from tao.session.agreement import Opening
from tao.session.frames import Hello
from tao.testing.fault_proxy import FaultProxy
from tao.wire.capabilities import REQUESTS
from tao.wire.message import Registry
from tests.ends import Number, Seen
from tests.support import PATIENCE, recv_exactly, wait_until
from tests.tls_pairs import CLIENT, SERVER

READERS = pytest.mark.parametrize("readers", ["own", "shared"])


class Both:
    """A server with sessions, a client with one, and a proxy between them.

    Args:
        before: called by the handlers of both, with each number, before they note it.
        server, client, both: their options.
    """

    def __init__(
        self,
        *,
        server: Any = None,
        client: Any = None,
        before: Callable[[int], object] = bool,
        **both: Any,
    ) -> None:
        self.events = Seen()
        self.at_server, self.at_client = Seen(), Seen()
        registry = _noting(self.at_server, before)
        options = {
            "registry": registry,
            "sessions": tao.Sessions(),
            "on_connect": lambda conn: self.events.add("connect"),
            "on_resume": lambda conn: self.events.add("resume"),
            "on_close": lambda conn: self.events.add("close"),
            "on_session_lost": lambda conn, lost: self.events.add(("lost", values(lost))),
            **both,
            **(server or {}),
        }
        self.server = tao.Server(**options)
        self.address = self.server.start(("127.0.0.1", 0))
        self.proxy = FaultProxy(self.address)
        self.client_events = Seen()
        mine = _noting(self.at_client, before)
        options = {
            "registry": mine,
            "session": True,
            "reconnect": tao.Reconnect(initial=0.001, maximum=0.05),
            "on_connect": lambda conn: self.client_events.add("connect"),
            "on_resume": lambda conn: self.client_events.add("resume"),
            "on_close": lambda conn: self.client_events.add("close"),
            "on_session_lost": lambda conn, lost: self.client_events.add(("lost", values(lost))),
            **both,
            **(client or {}),
        }
        if options.get("tls") is SERVER:
            options.update(tls=CLIENT, server_hostname="localhost")
        self.client = tao.ClientConn(self.proxy.address, **options)

    def start(self) -> Both:
        self.client.start()
        wait_until(
            lambda: self.server.connections and all(map(established, [self.client, self.conn]))
        )
        return self

    @property
    def conn(self) -> tao.ServerConn:
        return self.server.connections[0]

    def lose(self) -> None:
        """Cut the connection, and wait until the client has noticed."""
        self.proxy.reset()
        wait_until(lambda: not getattr(core_of(self.client).transport, "connected", False))

    def cut(self) -> None:
        """Cut the connection, and wait until both sides have resumed the session."""
        client, server = self.client.session, self.conn.session
        assert client is not None and server is not None
        self.proxy.reset()
        wait_until(lambda: self._resumed(self.client, client) and self._resumed(self.conn, server))

    @staticmethod
    def _resumed(conn: Any, before: tao.SessionFigures) -> bool:
        now: tao.SessionFigures = conn.session
        return now.connected and now.resumes > before.resumes

    def close(self) -> None:
        self.client.close()
        self.server.stop()
        self.proxy.close()


def _noting(seen: Seen, before: Callable[[int], object]) -> Registry:
    registry = Registry()

    @registry.handler(Number)
    def note(ctx: Any, conn: Any) -> None:
        before(ctx.message.value)
        seen.add(ctx.message.value)

    return registry


def established(conn: Any) -> bool:
    """Whether its ``on_connect`` has returned."""
    released: bool = core_of(conn).lifecycle.status.released
    return released


def wait_established(server: tao.Server) -> None:
    """Wait until its session can be resumed; a client that comes sooner is to try again."""
    wait_until(lambda: any(map(established, server.connections)))


def values(messages: list[tao.UnknownMessage]) -> list[int]:
    return [Number.deserialize(each.value).value for each in messages]


def write_all(conn: Any, count: int, timeout: float = PATIENCE) -> None:
    for value in range(count):
        conn.write(Number(value), timeout=timeout)


def open_session(address: Any, hello: Hello, secret: bytes = b"") -> tuple[socket.socket, Opening]:
    """Agree on a session, as a client does."""
    sock, opening = begin_session(address, hello, secret)
    try:
        finish_opening(sock, opening)
    except BaseException:
        sock.close()
        raise
    return sock, opening


def begin_session(address: Any, hello: Hello, secret: bytes = b"") -> tuple[socket.socket, Opening]:
    """Agree on a session, up to the HELLO, which is not sent yet."""
    sock = socket.create_connection(address, PATIENCE)
    opening = Opening(1, REQUESTS, 2, hello, secret)
    sock.sendall(opening.output)
    opening.output = b""
    while not opening.output:
        opening.feed(recv_exactly(sock, opening.wanted))
    return sock, opening


def finish_opening(sock: socket.socket, opening: Opening) -> None:
    """Send the HELLO, and read the answer; an OSError if the server closes instead."""
    sock.sendall(opening.output)
    while not opening.over:
        if not (data := recv_exactly(sock, opening.wanted)):
            raise ConnectionAbortedError("the server has closed")
        opening.feed(data)
