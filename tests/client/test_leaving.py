"""A client that its server tells to leave: nothing is lost, whatever is under way."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

import tao
from tao.client import leaving
from tao.cluster.processes import draining
from tao.cluster.processes.draining import drain
from tao.connection.connection import core_of
from tao.errors import ConnectionLost
from tao.wire.capabilities import ANSWER, LEAVES, REQUESTS, capability_frame
from tao.wire.envelope import LEAVE_FRAME
from tests.asking import known
from tests.ends import Number, Seen, Text, text
from tests.support import PATIENCE, ends, recv_exactly, together, wait_until
from tests.tls_pairs import CLIENT, SERVER

LONG_ENOUGH = 0.05


class Pair:
    """Two servers that listen at the same socket, as a worker and its successor do."""

    def __init__(self, **options: Any) -> None:
        self.cleanup = ExitStack()
        self._listening = self.cleanup.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.address = self._listening.getsockname()
        self._options = options
        #: What each server has handled, in order.
        self.handled: list[list[Any]] = []
        self.old = self.start()

    def start(self) -> tao.Server:
        """Start a server."""
        server = self.cleanup.enter_context(tao.Server(registry=known(), **self._options))
        handled: list[Any] = []
        self.handled.append(handled)

        @server.handler(Number)
        def answer(ctx: Any, conn: Any) -> None:
            handled.append(ctx.message.value)
            ctx.reply(ctx.message)

        @server.handler(Text)
        def note(ctx: Any, conn: Any) -> None:
            handled.append(ctx.message.text)
            ctx.defer()

        server.start(self._listening.dup())
        return server

    def client(self, **options: Any) -> tao.ClientConn:
        """A client that has had an answer."""
        if "tls" in self._options:
            options["tls"] = CLIENT
        client = tao.connect(self.address, registry=known(), **options)
        self.cleanup.enter_context(client).request(Number(-1), timeout=PATIENCE)
        return client

    def stranger(self) -> socket.socket:
        """A peer of which the server knows nothing."""
        sock = socket.create_connection(self.address, PATIENCE)
        return (
            CLIENT.wrap_socket(sock, server_hostname="localhost")
            if "tls" in self._options
            else sock
        )

    def drain(self) -> tao.Server:
        """Replace the server by another one, and return that."""
        new = self.start()
        drain(self.old, 0.01)
        return new


@pytest.fixture(params=["own", "shared", "tls"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    way: Any = request.param
    made = Pair(tls=SERVER) if way == "tls" else Pair(readers=way)
    with made.cleanup:
        yield made


class Plain:
    """A server of which each byte is known. Its client is ``reconnect=True``."""

    def __init__(self, **options: Any) -> None:
        self.cleanup = ExitStack()
        self._listening = self.cleanup.enter_context(socket.create_server(("127.0.0.1", 0)))
        self._listening.settimeout(PATIENCE)
        address = self._listening.getsockname()
        client = tao.ClientConn(address, registry=known(), reconnect=True, **options)
        self.client = self.cleanup.enter_context(client)

    def accept(self) -> socket.socket:
        sock = self._listening.accept()[0]
        sock.settimeout(PATIENCE)
        return self.cleanup.enter_context(sock)


@pytest.fixture(params=["own", "shared"])
def plain(request: pytest.FixtureRequest) -> Iterator[Plain]:
    made = Plain(readers=request.param, requests=True, drain_timeout=0.2)
    with made.cleanup:
        yield made


@pytest.mark.parametrize("readers", ["own", "shared"])
def test_requests(pair: Pair, readers: Any) -> None:
    """None fails, and each is handled once, while the client moves to the other server."""
    client = pair.client(reconnect=True, readers=readers)
    begun = threading.Event()
    answers: list[int] = []

    def ask() -> None:
        for number in range(300):
            answers.append(client.request(Number(number), timeout=PATIENCE).value)
            if number == 20:
                begun.set()
        while not client.reconnects:
            client.request(Number(-1), timeout=PATIENCE)

    def end() -> None:
        begun.wait(PATIENCE)
        pair.drain()

    together(ask, end)
    assert answers == list(range(300))
    handled = [number for each in pair.handled for number in each if number >= 0]
    assert handled == answers
    assert client.reconnects == 1
    assert pair.old.stop().clean


def test_messages(pair: Pair) -> None:
    """All are handled, once and in order, by one server or the other."""
    client = pair.client(reconnect=True, queue_size=100_000)
    begun, over = threading.Event(), threading.Event()
    count = 0

    def send() -> None:
        nonlocal count
        while not over.is_set() or count < 1000:
            client.write(Text(str(count)))
            count += 1
            begun.set()

    def end() -> None:
        begun.wait(PATIENCE)
        new = pair.drain()
        wait_until(lambda: new.connections)
        over.set()

    together(send, end)
    client.request(Number(-2), timeout=PATIENCE)
    handled = [each for server in pair.handled for each in server if isinstance(each, str)]
    assert handled == [str(number) for number in range(count)]


def test_an_answer_that_takes_long(pair: Pair) -> None:
    """It is waited for, of either side; meanwhile other requests wait, and messages do not."""
    client = pair.client(reconnect=True)
    pair.start()
    asked, go_on = Seen(), threading.Event()

    @client.handler(Text, dispatch="pool")
    def wait(ctx: Any, conn: Any) -> None:
        asked.add(ctx.message.text)
        go_on.wait(PATIENCE)
        ctx.reply(ctx.message)

    (conn,) = pair.old.connections
    future = conn.request_async(Text("slow"), timeout=PATIENCE)
    asked.wait()
    core_of(conn).exchange.send_away()
    wait_until(lambda: core_of(client).exchange.told_to_leave)
    late = client.request_async(Number(7), timeout=PATIENCE)
    client.write(Text("plain"))
    wait_until(lambda: "plain" in pair.handled[0])
    assert not late.done() and client.reconnects == 0
    go_on.set()
    assert future.result(PATIENCE).text == "slow"
    assert late.result(PATIENCE).value == 7
    assert client.reconnects == 1


def test_a_handler_that_asks(pair: Pair) -> None:
    """It gets its answers before the client leaves."""
    client = pair.client(reconnect=True)
    begun, go_on, answers = threading.Event(), threading.Event(), Seen()

    @client.handler(Text, dispatch="pool")
    def ask(ctx: Any, conn: Any) -> None:
        begun.set()
        go_on.wait(PATIENCE)
        for number in range(5):
            answers.add(conn.request(Number(number), timeout=PATIENCE).value)
        ctx.reply(ctx.message)

    pair.start()
    (conn,) = pair.old.connections
    future = conn.request_async(Text("go"), timeout=PATIENCE)
    assert begun.wait(PATIENCE)
    core_of(conn).exchange.send_away()
    wait_until(lambda: core_of(client).exchange.told_to_leave)
    go_on.set()
    assert future.result(PATIENCE).text == "go"
    assert answers.items == list(range(5))
    wait_until(lambda: client.reconnects == 1)


def test_a_handler_that_asks_too_late(plain: Plain) -> None:
    """Its request fails, unsent, as the client connects again only when it has returned."""
    errors = Seen()

    @plain.client.handler(Text, dispatch="pool")
    def ask(ctx: Any, conn: Any) -> None:
        try:
            conn.request(Number(1), timeout=None)
        except ConnectionLost as error:
            errors.add(error.sent)

    with plain.accept() as sock:
        asked = recv_exactly(sock, 40)
        sock.sendall(capability_frame(0, ANSWER, REQUESTS, int.from_bytes(asked[32:], "little")))
        sock.sendall(LEAVE_FRAME)
        assert recv_exactly(sock, 1) == b""
        sock.sendall(text("late"))
    with plain.accept():
        assert errors.wait() == [False]


def test_who_is_not_told(pair: Pair) -> None:
    """A client that does not connect again, and one that has not told what it can."""
    plain = pair.client()
    with pair.stranger() as unknown:
        unknown.sendall(text("hi"))
        wait_until(lambda: "hi" in pair.handled[0])
        pair.drain()
        assert plain.wait_closed(PATIENCE)
        assert plain.close_reason == "peer closed"
        assert unknown.recv(1) == b""


def test_what_is_said(plain: Plain) -> None:
    """The capability is in the question; after the end of its stream the client still reads."""
    got = Seen()
    plain.client.handler(Text)(lambda ctx, conn: got.add(ctx.message.text))
    with plain.accept() as sock:
        asked = recv_exactly(sock, 40)
        assert asked[8 + 20 : 8 + 24] == bytes([REQUESTS | LEAVES, 0, 0, 0])
        sock.sendall(capability_frame(0, ANSWER, REQUESTS, int.from_bytes(asked[32:], "little")))
        sock.sendall(text("before") + LEAVE_FRAME)
        assert recv_exactly(sock, 1) == b""
        plain.client.write(Text("kept"))
        sock.sendall(text("after"))
        assert got.wait(2) == ["before", "after"]
    with plain.accept() as sock:
        assert recv_exactly(sock, 12) == text("kept")
    assert core_of(plain.client).statistics.snapshot().requests_in_flight == 0


def test_a_server_that_stays(plain: Plain) -> None:
    """The client does not wait for it longer than ``drain_timeout``."""
    with plain.accept() as sock:
        sock.sendall(text("hi") + LEAVE_FRAME)
        with plain.accept():
            wait_until(lambda: plain.client.reconnects == 1)


def test_a_close_meanwhile(plain: Plain) -> None:
    """It ends the client as ever; what waited for the next connection is told of."""
    with plain.accept() as sock:
        sock.sendall(LEAVE_FRAME)
        recv_exactly(sock, 41)
        plain.client.write(Text("never"))
        together(plain.client.close, sock.close)
    assert plain.client.closed
    assert core_of(plain.client).left_over == 1


def test_a_lost_server(plain: Plain) -> None:
    """A request under way fails with the connection, as ever."""
    with plain.accept() as sock:
        asked = recv_exactly(sock, 40)
        sock.sendall(capability_frame(0, ANSWER, REQUESTS, int.from_bytes(asked[32:], "little")))
        future = plain.client.request_async(Number(1), timeout=PATIENCE)
        recv_exactly(sock, 24)
        sock.sendall(LEAVE_FRAME)
        wait_until(lambda: core_of(plain.client).exchange.told_to_leave)
    error = future.exception(PATIENCE)
    assert isinstance(error, ConnectionLost) and error.sent


def test_a_server_that_would_keep_sending(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``half_close`` it does not, as the client has not closed its direction by chance."""
    monkeypatch.setattr(draining, "_LEAVING", 60.0)
    monkeypatch.setattr(draining, "_FRESH", 60.0)
    pair = Pair(half_close=True, half_close_timeout=60)
    with pair.cleanup:
        client = pair.client(reconnect=True, drain_timeout=60)
        assert ends(pair.drain)
        wait_until(lambda: client.reconnects == 1)


def test_one_that_never_finishes(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server does not wait for it for ever, and what it asks fails as ever."""
    monkeypatch.setattr(draining, "_LEAVING", LONG_ENOUGH)
    monkeypatch.setattr(leaving, "_AGAIN", LONG_ENOUGH)
    client = pair.client(reconnect=True)
    future = client.request_async(Text("never"), timeout=PATIENCE)
    wait_until(lambda: "never" in pair.handled[0])
    pair.drain()
    assert isinstance(future.exception(PATIENCE), ConnectionLost)
    assert client.request(Number(3), timeout=PATIENCE).value == 3
