"""Slow readers: their replies are not lost, and they do not delay others."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tao.client.client import ClientConn
from tao.connection.sending.send_queue import SendQueue
from tao.errors import WouldBlock
from tao.runtime.context import Context
from tao.server.connection import ServerConn
from tao.server.server import Server
from tao.transport.certificates import self_signed_certificate
from tao.transport.stream import Transport
from tao.transport.tls_stream import TlsTransport
from tao.wire.message import Registry
from tests.ends import MakeServer, Seen, Text, text
from tests.session_pairs import READERS
from tests.support import PATIENCE, wait_until

SIZE, MANY = 20_000, 1500
CERTIFICATE = self_signed_certificate("localhost")

pytestmark = pytest.mark.parametrize("dispatch", ["auto", "pool", "inline"])


class Peer:
    """A peer that reads only on request, with or without TLS."""

    def __init__(self, address: Any, tls: bool) -> None:
        sock = socket.create_connection(address, PATIENCE)
        sock.settimeout(None)
        self._transport = Transport(sock)
        if tls:
            self._transport = TlsTransport(
                sock, CERTIFICATE.client_config(), server_side=False, server_hostname="localhost"
            )
        self._transport.handshake(PATIENCE)
        self._received = b""
        self._sender = threading.Thread()

    def send(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            taken = self._transport.send(rest)
            rest = rest[taken:]
            if not taken:
                self._transport.wait_writable()

    def send_beside(self, data: bytes) -> None:
        """Send from a separate thread, which ends with the connection."""

        def send() -> None:
            try:
                self.send(data)
            except OSError:
                pass  # it was closed meanwhile

        self._sender = threading.Thread(target=send)
        self._sender.start()

    def read(self, count: int) -> bytes:
        while len(self._received) < count:
            data = self._transport.recv(64 * 1024)
            assert data, "the end came too soon"
            self._received += data
        data, self._received = self._received[:count], self._received[count:]
        return data

    def read_frame(self) -> bytes:
        header = self.read(8)
        return header + self.read(int.from_bytes(header[4:], "little"))

    def close(self) -> None:
        self._transport.abort()
        if self._sender.ident is not None:
            self._sender.join(PATIENCE)
        self._transport.close()


@pytest.fixture
def connect() -> Iterator[Callable[[Any, bool], Peer]]:
    """Connects peers, and closes them."""
    peers: list[Peer] = []

    def make(address: Any, tls: bool) -> Peer:
        peers.append(Peer(address, tls))
        return peers[-1]

    yield make
    for peer in peers:
        peer.close()


def echo(server: Server) -> None:
    @server.handler(Text)
    def reply(ctx: Context, conn: ServerConn) -> None:
        conn.write(ctx.message)


def test_room_that_comes_at_once(
    make_server: MakeServer,
    connect: Callable[[Any, bool], Peer],
    dispatch: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A handler whose write finds none waits for it, even if there is some by the time it looks."""
    original = SendQueue.write

    def write(queue: SendQueue, frame: bytes, timeout: float | None = None) -> None:
        try:
            original(queue, frame, timeout)
        except WouldBlock:
            queue.wait_uncrowded()
            raise

    monkeypatch.setattr(SendQueue, "write", write)
    errors = Seen()
    server, address = make_server(
        registry=Registry(), dispatch=dispatch, queue_size=4, on_error=lambda _, e: errors.add(e)
    )

    @server.handler(Text)
    def pour(ctx: Context, conn: ServerConn) -> None:
        for _ in range(MANY):
            conn.write(ctx.message)

    peer = connect(address, False)
    peer.send(text("x" * SIZE))
    for _ in range(MANY):
        assert len(peer.read_frame()) == SIZE + 8
    assert errors.items == []


@READERS
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_no_reply_is_lost(
    make_server: MakeServer,
    connect: Callable[[Any, bool], Peer],
    dispatch: str,
    tls: bool,
    readers: str,
) -> None:
    """All requests are sent before any reply is read; each gets its reply, in order."""
    errors = Seen()
    server, address = make_server(
        dispatch=dispatch,
        readers=readers,
        registry=Registry(),
        tls=CERTIFICATE.server_config() if tls else None,
        on_error=lambda conn, error: errors.add(error),
    )
    echo(server)
    peer = connect(address, tls)
    requests = [text(f"{number} ".ljust(SIZE, "x")) for number in range(MANY)]
    peer.send_beside(b"".join(requests))
    wait_until(lambda: any(conn._core.send_queue.crowded for conn in server.connections))
    for expected in requests:
        assert peer.read_frame() == expected
    assert errors.items == []


@READERS
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_slow_readers_do_not_delay_others(
    make_server: MakeServer,
    connect: Callable[[Any, bool], Peer],
    dispatch: str,
    tls: bool,
    readers: str,
) -> None:
    """More peers than workers do not read their replies; another peer is still answered."""
    server, address = make_server(
        dispatch=dispatch,
        readers=readers,
        workers=4,
        registry=Registry(),
        tls=CERTIFICATE.server_config() if tls else None,
        drain_timeout=1,
    )
    echo(server)
    for _ in range(8):
        connect(address, tls).send_beside(text("x" * SIZE) * MANY)
    wait_until(lambda: sum(conn._core.send_queue.crowded for conn in server.connections) == 8)
    newcomer = connect(address, tls)
    newcomer.send(text("hello"))
    assert newcomer.read_frame() == text("hello")


def test_a_handler_that_writes_much_waits(
    make_server: MakeServer, connect: Callable[[Any, bool], Peer], dispatch: str
) -> None:
    """A handler that writes more than the queue holds waits for its peer, and frees its worker."""
    server, address = make_server(dispatch=dispatch, workers=1, queue_size=8, registry=Registry())

    @server.handler(Text)
    def pour(ctx: Context, conn: ServerConn) -> None:
        for number in range(int(ctx.message.text)):
            conn.write(Text(f"{number} ".ljust(SIZE, "x")))

    peer, other = connect(address, False), connect(address, False)
    peer.send(text("600"))
    wait_until(lambda: any(conn._core.send_queue.waiters for conn in server.connections))
    other.send(text("1"))
    assert other.read_frame() == text("0 ".ljust(SIZE, "x"))
    for number in range(600):
        assert peer.read_frame() == text(f"{number} ".ljust(SIZE, "x"))


def test_the_wait_for_room_times_out(make_server: MakeServer, dispatch: str) -> None:
    """After ``reply_timeout`` the write raises; later writes raise at once until there is room."""
    raised = Seen()
    server, address = make_server(
        dispatch=dispatch, queue_size=4, reply_timeout=0.05, registry=Registry(), drain_timeout=1
    )

    @server.handler(Text)
    def pour(ctx: Context, conn: ServerConn) -> None:
        while len(raised.items) < 50:
            try:
                conn.write(Text("x" * 100_000))
            except WouldBlock as error:
                raised.add(error)

    with socket.create_connection(address, PATIENCE) as sock:
        sock.sendall(text("go"))
        assert len(raised.wait(50)) == 50


def test_other_writes_do_not_wait(make_server: MakeServer, dispatch: str) -> None:
    """Writes of other threads to a full queue, and broadcasts, fail at once."""
    arrived = Seen()
    server, address = make_server(
        dispatch=dispatch,
        queue_size=4,
        registry=Registry(),
        on_connect=arrived.add,
        drain_timeout=1,
    )
    with socket.create_connection(address, PATIENCE):
        conn = arrived.wait()[0]
        with pytest.raises(WouldBlock):
            for _ in range(1000):
                conn.write(Text("x" * 100_000))
        wait_until(lambda: server.connections)
        assert [each for each, _ in server.broadcast(Text("x")).failed] == [conn]


def test_two_ends_that_send_continuously_do_not_block_each_other(
    make_server: MakeServer, dispatch: str
) -> None:
    """A client's thread sends as fast as possible, and its handlers get all replies."""
    server, address = make_server(dispatch=dispatch, registry=Registry())
    server.handler(Text)(lambda ctx, conn: conn.write(ctx.message))
    registry, all_in, count = Registry(), threading.Event(), 0

    @registry.handler(Text)
    def hear(ctx: Context, conn: ClientConn) -> None:
        nonlocal count
        count += 1
        if count == MANY:
            all_in.set()

    with ClientConn(address, registry=registry, dispatch=dispatch) as client:
        message = Text("x" * SIZE)
        for _ in range(MANY):
            client.write(message, timeout=PATIENCE)
        assert all_in.wait(PATIENCE), count
