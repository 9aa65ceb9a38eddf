"""A server whose connections have to log in: what passes before, in and out, and how it ends."""

from __future__ import annotations

import os
import queue
import socket
import struct
import threading
from typing import Any

import pytest

from tao.client.client import ClientConn
from tao.connection.options.definitions import Reconnect
from tao.errors import ConnectionLost
from tao.framing import FrameDecoder
from tao.server.server import Server
from tao.testing import Clock, FaultProxy, Faults
from tao.wire.codec import TypeLengthValueCodec
from tao.wire.message import ANY, HEARTBEAT, HeartbeatMessage, Registry
from tests.ends import MakeServer, Number, Seen, Text, frame, number, text
from tests.support import PATIENCE, recv_exactly, together, wait_until
from tests.tls_pairs import CLIENT, SERVER

AT_ONCE = Reconnect(initial=1e-6, maximum=0.005)


class Desk:
    """A server that takes a `Number` for a login, and peers that it does not know."""

    def __init__(self, make_server: MakeServer, **options: Any) -> None:
        self.heard, self.closed = Seen(), Seen()
        registry = Registry()
        registry.handler(Number)(self.log_in)
        registry.handler(Text)(lambda ctx, conn: self.heard.add(ctx.message.text))
        self.server, self.address = make_server(
            **{"login": (Number,), "registry": registry, **options},
            on_close=lambda conn: self.closed.add(conn.close_reason),
        )

    def log_in(self, ctx: Any, conn: Any) -> None:
        self.heard.add(ctx.message.value)
        conn.ready()
        conn.write(ctx.message)

    def dial(self) -> socket.socket:
        return socket.create_connection(self.address, PATIENCE)


def read_to_end(sock: socket.socket) -> bytes:
    return recv_exactly(sock, 2**30)


@pytest.mark.parametrize("readers", ["own", "shared"])
@pytest.mark.parametrize("dispatch", ["auto", "pool", "inline"])
def test_what_follows_a_login_is_handled(
    make_server: MakeServer, dispatch: str, readers: str
) -> None:
    """Also what one read brings with it, and what the peer has sent before it closed."""
    desk = Desk(make_server, dispatch=dispatch, readers=readers)
    with desk.dial() as sock:
        sock.sendall(number(1) + text("order") * 2000 + number(2))
        sock.shutdown(socket.SHUT_WR)
        assert read_to_end(sock) == number(1) + number(2)
    desk.closed.wait()
    assert desk.heard.items == [1, *["order"] * 2000, 2]


@pytest.mark.parametrize("dispatch", ["auto", "pool", "inline"])
@pytest.mark.parametrize("kind", [1, 5, -1, 2**31 - 1])
def test_any_other_message_closes_the_connection(
    make_server: MakeServer, dispatch: str, kind: int
) -> None:
    """Whether its number is registered or not; nothing after it is handled."""
    desk = Desk(make_server, dispatch=dispatch)
    desk.server.registry.register(5, Text.deserialize)
    with desk.dial() as sock:
        sock.sendall(frame(kind, b"early") + number(1) + text("late"))
        assert read_to_end(sock) == b""
    assert desk.closed.wait() == [f"message {kind} came before the login"]
    assert desk.heard.items == []


def test_heartbeats_pass_and_reach_no_handler(make_server: MakeServer) -> None:
    """A slow login is kept alive by them, and they say nothing."""
    desk = Desk(make_server)
    desk.server.registry.handler(HeartbeatMessage)(lambda ctx, conn: desk.heard.add("beat"))
    with desk.dial() as sock:
        sock.sendall(frame(HEARTBEAT, bytes(8)) * 2 + number(1))
        assert recv_exactly(sock, 16) == number(1)
    assert desk.heard.items == [1]


def test_unready_messages_may_have_a_handler_of_their_own(make_server: MakeServer) -> None:
    """It sees each of them until the connection is ready, and may make it so."""

    def judge(ctx: Any, conn: Any) -> None:
        seen.add(getattr(ctx.message, "text", ctx.message.message_number))
        if seen.items[-1] == "open":
            conn.ready()

    seen = Seen()
    desk = Desk(make_server, on_unready=judge)
    with desk.dial() as sock:
        desk.server.handler(ANY)(lambda ctx, conn: desk.heard.add(ctx.message.message_number))
        sock.sendall(frame(9) + text("early") + text("open") + text("x") * 2 + frame(9) + text("y"))
        assert desk.heard.wait(4) == ["x", "x", 9, "y"]
    assert seen.items == [9, "early", "open"]


def test_not_logged_in_in_time(make_server: MakeServer) -> None:
    """The connection is closed; one that is logged in is not."""
    with Clock() as clock:
        desk = Desk(make_server, login_timeout=3, heartbeat=None)
        with desk.dial() as quick, desk.dial() as slow:
            quick.sendall(number(1))
            assert recv_exactly(quick, 16) == number(1)
            wait_until(lambda: desk.server.snapshot().connections_total == 2)
            clock.advance(4)
            assert read_to_end(slow) == b""
            assert desk.closed.wait() == ["not ready within 3 s (login_timeout)"]
            quick.sendall(text("still here"))
            assert desk.heard.wait(2) == [1, "still here"]
    desk.server.stop()


class Packets(TypeLengthValueCodec):
    """A codec of the user's: the same frames, by another decoder."""

    def decoder(self, registry: Registry) -> Any:
        class Decoder(FrameDecoder):
            def frame(self, data: memoryview, start: int) -> tuple[int, Any, Any] | None:
                if len(data) - start < 8:
                    return None
                kind, length = struct.unpack_from("<iI", data, start)
                self.need(start, 8 + length)
                end = start + 8 + length
                return None if len(data) < end else (end, kind, data[start + 8 : end])

            def feed(self, data: bytes, batch: Any) -> None:
                super().feed(data, batch)

        return Decoder(registry, self.max_bytes)


@pytest.mark.parametrize("codec", [TypeLengthValueCodec(), Packets()])
def test_a_login_is_short(make_server: MakeServer, codec: Any) -> None:
    """A longer message is refused by its header; after the login it is not."""
    desk = Desk(make_server, login_max_bytes=100, codec=codec)
    long = text("x" * 1000)
    with desk.dial() as sock:
        sock.sendall(long[:8])
        assert read_to_end(sock) == b""
    with desk.dial() as sock:
        sock.sendall(number(1))
        assert recv_exactly(sock, 16) == number(1)
        sock.sendall(long)
        assert desk.heard.wait(2)[1] == "x" * 1000
    assert "the limit is 100" in desk.closed.items[0]


def test_nothing_is_sent_to_others_before(make_server: MakeServer) -> None:
    """Broadcasts, unicasts, schedules, heartbeats and the server's list leave them out."""
    conns = Seen()
    with Clock() as clock:
        desk = Desk(make_server, on_connect=conns.add, heartbeat=1, login_timeout=60)
        server = desk.server
        with desk.dial() as sock:
            (conn,) = conns.wait()
            server.schedule(2, lambda due, conn: conn.write(Text("tick")))
            wait_until(lambda: conn._core.lifecycle.status.on_close_owed)
            together(lambda: conn.write(Text("direct")))
            clock.advance(5)
            assert server.broadcast(Text("all")).queued == 0 and server.connections == []
            assert server.conn(conn.net_id) is None
            sock.sendall(number(1))
            expected = text("direct") + number(1)
            assert sorted(recv_exactly(sock, len(expected))) == sorted(expected)
            assert server.broadcast(Text("all")).queued == 1 and server.connections == [conn]
            assert recv_exactly(sock, len(text("all"))) == text("all")
            clock.advance(2)
            assert text("tick") in recv_exactly(sock, 12 + 16)


def test_challenge_and_response_go_ahead(make_server: MakeServer) -> None:
    """What on_connect and handlers write is sent at once, what other threads write afterwards."""

    def greet(conn: Any) -> None:
        together(lambda: conn.write(Text("other")))
        conn.write(Text("challenge"))

    desk = Desk(make_server, on_connect=greet, login=(Number, Text))
    desk.server.registry.unregister(1)
    desk.server.registry.handler(Text)(lambda ctx, conn: conn.write(ctx.message))
    with desk.dial() as sock:
        assert recv_exactly(sock, 17) == text("challenge")
        sock.sendall(text("response"))
        assert recv_exactly(sock, 16) == text("response")
        sock.sendall(number(1))
        assert recv_exactly(sock, 13 + 16) == text("other") + number(1)


def test_closing_before_the_login(make_server: MakeServer) -> None:
    """Refused by on_connect, closed or stopped: the preface is sent, and what waited is not."""
    for refuse in (True, False):

        def greet(conn: Any, refuse: bool = refuse) -> bool:
            conn.write(Text("go away"))
            together(lambda: conn.write(Text("never")))
            return not refuse

        desk = Desk(make_server, on_connect=greet)
        with desk.dial() as sock:
            assert recv_exactly(sock, 15) == text("go away")
            if not refuse:
                desk.server.stop()
            assert read_to_end(sock) == b""


@pytest.mark.parametrize("login", [None, (Number,)])
@pytest.mark.parametrize("end", ["agree", "refuse", "peer leaves", "stop"])
@pytest.mark.parametrize("readers", ["own", "shared"])
def test_on_connect_may_wait_for_an_answer(
    make_server: MakeServer, end: str, login: Any, readers: str
) -> None:
    """Handlers run and write meanwhile, and it ends like any other connection."""
    answers: queue.Queue[Any] = queue.Queue()
    meanwhile = Seen()

    def ask(conn: Any) -> bool:
        together(lambda: conn.write(Text("waits")))
        conn.write(Text("question"))
        conn._core.readiness.read_meanwhile()
        meanwhile.add(conn)
        return bool(answers.get(timeout=PATIENCE) != "refuse")

    desk = Desk(make_server, on_connect=ask, login=login, drain_timeout=2, readers=readers)
    desk.server.registry.unregister(2)
    desk.server.registry.handler(Number)(lambda ctx, conn: (conn.ready(), conn.write(ctx.message)))
    with desk.dial() as sock:
        assert recv_exactly(sock, 16) == text("question")
        sock.sendall(number(1))
        assert recv_exactly(sock, 16) == number(1)
        meanwhile.wait()
        if end == "peer leaves":
            sock.shutdown(socket.SHUT_WR)
            wait_until(lambda: meanwhile.items[0]._core.readiness._loan.returned)
        answers.put(end)
        if end == "stop":
            assert desk.server.stop().clean
        rest = b"" if end == "refuse" and login else text("waits")
        assert recv_exactly(sock, len(rest)) == rest
        if end == "agree":
            sock.sendall(text("more"))
            assert desk.heard.wait() == ["more"]
            return
        assert read_to_end(sock) == b""
    wait_until(lambda: meanwhile.items[0].wait_closed(0))
    assert desk.closed.items == {
        "refuse": [], "peer leaves": ["peer closed"], "stop": ["server stopping"],
    }[end]  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "error", "why"),
    [
        (Number, TypeError, "login must be a tuple"),
        ((), ValueError, "login must name"),
        ((7,), TypeError, "login must hold message classes"),
        ((int,), TypeError, "login must hold message classes"),
    ],
)
def test_wrong_logins(wrong: Any, error: type[Exception], why: str) -> None:
    """They are refused when the server is made."""
    with pytest.raises(error, match=why):
        Server(login=wrong)


def test_a_login_needs_a_handler() -> None:
    """A server whose login nobody handles does not start."""
    server = Server(login=(Number,), registry=Registry())
    with pytest.raises(ValueError, match="login: there is no handler for Number"):
        server.start(("127.0.0.1", 0))
    server.stop()
    Server(login=(Number,), on_message=lambda message, conn: None).stop()


# -- requests in on_connect, and in handlers of a login


@pytest.mark.parametrize("readers", ["own", "shared"])
@pytest.mark.parametrize("dispatch", ["auto", "pool", "inline"])
def test_on_connect_may_request(make_server: MakeServer, dispatch: str, readers: str) -> None:
    """A login by a request, whose handler asks back; what waits follows when both are done."""
    log, theirs = Seen(), Registry()
    desk = Desk(make_server, dispatch=dispatch, readers=readers)
    desk.server.registry.unregister(2)
    desk.server.registry.register(3, Text.deserialize)
    theirs.register(3, Text.deserialize, lambda ctx, conn: ctx.reply(Number(5)))

    class Challenge(Text):
        message_number = 3

    def log_in(ctx: Any, conn: Any) -> None:
        answer = conn.request(Challenge("who?"), timeout=PATIENCE).value
        log.add(ctx.message.value)
        conn.ready()
        ctx.reply(Number(ctx.message.value + answer))

    desk.server.registry.handler(Number)(log_in)
    theirs.register(2, Number.deserialize)
    with FaultProxy(desk.address) as proxy:
        client = ClientConn(
            proxy.address,
            registry=theirs,
            reconnect=AT_ONCE,
            dispatch=dispatch,
            readers=readers,
            on_connect=lambda conn: log.add(conn.request(Number(7), timeout=PATIENCE).value),
        )
        for count in range(1, 4):
            client.write(Text("waits"))
            client.start() if count == 1 else None
            assert desk.heard.wait(count) == ["waits"] * count
            assert log.items == [7, 12] * count
            proxy.reset()
            wait_until(lambda count=count: not client.connected or client.reconnects == count)
        client.close()


def test_a_request_before_the_login_is_refused(make_server: MakeServer) -> None:
    """The envelope of a request does not carry a message past the gate."""
    desk, registry = Desk(make_server), Registry()
    with ClientConn(desk.address, registry=registry) as client, pytest.raises(ConnectionLost):
        client.request(Text("early"), timeout=PATIENCE)
    assert desk.closed.wait() == ["message 1 came before the login"]
    assert desk.heard.items == []


@pytest.mark.parametrize("readers", ["own", "shared"])
def test_a_login_by_request_that_fails(make_server: MakeServer, readers: str) -> None:
    """A server that closes instead of replying fails it at once, and another is tried."""
    bad = Desk(make_server)
    bad.server.registry.unregister(2)
    bad.server.registry.handler(Number)(lambda ctx, conn: conn.close("no"))
    good, registry, errors = Desk(make_server), Registry(), Seen()
    good.server.registry.unregister(2)
    good.server.registry.handler(Number)(lambda ctx, conn: (conn.ready(), ctx.reply(ctx.message)))
    registry.register(2, Number.deserialize)
    client = ClientConn(
        [bad.address, good.address],
        registry=registry,
        readers=readers,
        on_connect=lambda conn: conn.request(Number(7), timeout=PATIENCE),
        on_error=lambda conn, error: errors.add(type(error).__name__),
    )
    with client:
        client.write(Text("hello"))
        assert good.heard.wait() == ["hello"] and errors.items == ["ConnectionLost"]
    assert bad.closed.items == ["no"]


class Log:
    """What a server hears on each connection, in order."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lines: dict[int, list[int]] = {}

    def add(self, conn: Any, line: int) -> None:
        with self.lock:
            self.lines.setdefault(conn.net_id, []).append(line)


@pytest.mark.parametrize(("tls", "readers"), [(False, "own"), (False, "shared"), (True, "own")])
def test_a_login_comes_before_the_backlog_each_time(
    make_server: MakeServer, tls: bool, readers: str
) -> None:
    """Over connections that break: login, answer, then what waited; nothing twice or late.

    Many more of them are made by `make pairs`.
    """
    times, log = (20 if tls else 200) * int(os.environ.get("PAIRS", "1")), Log()
    answered: set[int] = set()
    desk = Desk(make_server, tls=SERVER if tls else None, workers=2, readers=readers)
    registry = desk.server.registry
    registry.unregister(1)
    registry.unregister(2)

    def log_in(ctx: Any, conn: Any) -> None:
        log.add(conn, -ctx.message.value)
        conn.write(ctx.message)
        answered.add(conn.net_id)
        conn.ready()

    registry.handler(Number)(log_in)
    registry.handler(Text)(lambda ctx, conn: log.add(conn, int(ctx.message.text)))
    theirs, attempts = Registry(), iter(range(1, 10**6))
    theirs.handler(Number)(lambda ctx, conn: conn.ready())

    def plan(count: int) -> tuple[Faults, Faults]:
        ends = None if count > times else 16 + 9 * (count % 9) + (2000 if tls else 0)
        return Faults(reset_after=ends), Faults()

    with FaultProxy(desk.address, plan=plan) as proxy:
        client = ClientConn(
            ("localhost", proxy.address[1]) if tls else proxy.address,
            registry=theirs,
            ready="manual",
            readers=readers,
            queue_size=8,
            reconnect=AT_ONCE,
            tls=CLIENT if tls else None,
            on_connect=lambda conn: conn.write(Number(next(attempts))),
        ).start()
        sent = 0
        while proxy.accepted <= times:
            client.write(Text(str(sent)), timeout=PATIENCE)
            sent += 1
        client.write(Text(str(sent)), timeout=PATIENCE)
        wait_until(lambda: any(lines[-1] == sent for lines in log.lines.values()))
        client.close()
    heard = [line for lines in log.lines.values() for line in lines]
    assert all(lines[0] < 0 and min(lines[1:], default=0) >= 0 for lines in log.lines.values())
    assert all(lines[1:] == sorted(lines[1:]) for lines in log.lines.values())
    assert len(heard) == len(set(heard))
    assert {net_id for net_id, lines in log.lines.items() if len(lines) > 1} <= answered
