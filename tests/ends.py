"""Both ends of a connection, each with a plain socket as its peer; most tests run over both."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

from tao.client.client import ClientConn
from tao.connection.connection import Connection
from tao.server.connection import ServerConnCore
from tao.server.server import Server, server_core_of
from tao.wire.message import Registry
from tests.support import PATIENCE, recv_exactly

#: The fixture ``make_server``: takes options, returns a started server and its address.
MakeServer = Callable[..., tuple[Server, Any]]


#: Kinds of `End` for tests about the threads of a connection that reads by itself.
OWN_READERS = ["server", "client"]


class Text:
    """A message that contains text."""

    message_number = 1

    def __init__(self, text: str) -> None:
        self.text = text

    def serialize(self) -> bytes:
        return self.text.encode()

    @classmethod
    def deserialize(cls, data: bytes) -> Text:
        return cls(data.decode())


class Number:
    """A message that contains an integer."""

    message_number = 2

    def __init__(self, value: int) -> None:
        self.value = value

    def serialize(self) -> bytes:
        return struct.pack("<q", self.value)

    @classmethod
    def deserialize(cls, data: bytes) -> Number:
        return cls(struct.unpack("<q", data)[0])


def frame(number: int, value: bytes = b"") -> bytes:
    """Return a message in the encoding of the default codec."""
    return struct.pack("<iI", number, len(value)) + value


def text(value: str) -> bytes:
    return frame(1, value.encode())


def number(value: int) -> bytes:
    return frame(2, struct.pack("<q", value))


class Seen:
    """Collects events in order, and lets a test wait for them."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._changed = threading.Condition()

    def add(self, item: Any) -> None:
        with self._changed:
            self.items.append(item)
            self._changed.notify_all()

    def wait(self, count: int = 1, timeout: float = PATIENCE) -> list[Any]:
        """Wait until there are ``count`` items, and return them."""
        with self._changed:
            arrived = self._changed.wait_for(lambda: len(self.items) >= count, timeout)
            assert arrived, f"{len(self.items)} of {count} items: {self.items[:10]}"
            return list(self.items)


def _noting(server: Server) -> Seen:
    """Return a `Seen` to which each connection of the server is added once it is established."""
    established = Seen()
    schedules = server_core_of(server).schedules
    welcome = schedules.welcome

    def note(core: ServerConnCore) -> None:
        welcome(core)
        established.add(core.conn)

    schedules.welcome = note
    return established


class End:
    """A connection under test, and the plain socket that is its peer.

    Args:
        kind: ``"server"`` or ``"client"``; with ``"-shared"`` appended, its reading is shared.
        options: of the server or client; a ``registry`` is created unless given.
    """

    def __init__(self, kind: str, **options: Any) -> None:
        self.registry: Registry = options.setdefault("registry", Registry())
        self.server: Server | None = None
        self.listener: socket.socket | None = None
        self.conn: Connection
        kind, _, shared = kind.partition("-")
        if shared:
            options.setdefault("readers", "shared")
        if kind == "server":
            self.server = server = Server(**options)
            established = _noting(server)  # recorded even if the connection ends at once
            self.peer = socket.create_connection(server.start(("127.0.0.1", 0)), PATIENCE)
            self.conn = established.wait()[0]
        else:
            self.listener = socket.create_server(("127.0.0.1", 0))
            self.listener.settimeout(PATIENCE)
            self.conn = ClientConn(self.listener.getsockname(), **options).start()
            self.peer, _ = self.listener.accept()
        self.peer.settimeout(PATIENCE)

    def send(self, data: bytes) -> None:
        self.peer.sendall(data)

    def read(self, count: int) -> bytes:
        return recv_exactly(self.peer, count)

    def read_text(self) -> str:
        return self.read_frame()[1].decode()

    def read_frame(self) -> tuple[int, bytes]:
        """Return the next message, including heartbeats."""
        kind, length = struct.unpack("<iI", self.read(8))
        return kind, self.read(length)

    def read_to_end(self) -> bytes:
        data = bytearray()
        while piece := self.peer.recv(65536):
            data += piece
        return bytes(data)

    def stop(self) -> None:
        """Close both sides, the peer first, so that no side lingers."""
        self.peer.close()
        if self.listener is not None:
            self.listener.close()
        if self.server is not None:
            self.server.stop()
        else:
            self.conn.close()
