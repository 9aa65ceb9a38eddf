"""Two taos that ask each other, and plain sockets that take part in it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from tao.client.client import ClientConn
from tao.connection.connection import Connection
from tao.server.server import Server
from tao.wire.capabilities import ANSWER, REQUESTS, capability_frame
from tao.wire.envelope import Inside, read_request
from tao.wire.message import Registry
from tests.ends import End, Number, Seen, Text

REQUEST, REPLY, ERROR, CANCEL = range(-(2**31), -(2**31) + 4)


class Peers:
    """A server and a client, connected; both know `Text` and `Number`.

    Args:
        server: options of the server.
        client: options of the client.
    """

    def __init__(self, *, server: dict[str, Any] | None = None, **client: Any) -> None:
        established = Seen()
        self.server = Server(registry=known(), on_connect=established.add, **(server or {}))
        self.address = self.server.start(("127.0.0.1", 0))
        self.client = ClientConn(self.address, registry=known(), **client).start()
        #: The server's end.
        self.conn: Connection = established.wait()[0]

    def ends(self) -> dict[str, tuple[Any, Connection]]:
        """What declares the handlers of the one that is asked, and the connection that asks."""
        return {"client": (self.server, self.client), "server": (self.client, self.conn)}

    def close(self) -> None:
        self.client.close()
        self.server.stop()

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def known() -> Registry:
    """A registry with `Text` and `Number`."""
    registry = Registry()
    for kind in (Text, Number):
        registry.register(kind.message_number, kind.deserialize)
    return registry


def echo(ctx: Any, conn: Any) -> None:
    ctx.reply(ctx.message)


def read_other(end: End) -> tuple[int, bytes]:
    """The next message that is no plain heartbeat."""
    while True:
        number, value = end.read_frame()
        if number or len(value) == 32:
            return number, value


def agree(end: End) -> None:
    """Answer the question for capabilities, which is to come next."""
    number, value = read_other(end)
    assert (number, len(value), value[17]) == (0, 32, 1)
    answer_question(end, value)


def answer_question(end: End, value: bytes) -> None:
    """Answer a question for capabilities, given as the value of its heartbeat."""
    end.send(capability_frame(0, ANSWER, REQUESTS, struct.unpack_from("<Q", value, 24)[0]))


def read_asked(end: End) -> Inside:
    """The next message, which is to be a request."""
    number, value = read_other(end)
    assert number == REQUEST
    return read_request(value)


def in_thread(function: Callable[[], Any]) -> Callable[[], Any]:
    """Begin to call a function; return one that waits for its result, or raises its error."""
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(1, "test-asking")
    future = pool.submit(function)
    pool.shutdown(wait=False)
    return lambda: future.result(20)
