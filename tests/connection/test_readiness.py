"""A client that is ready when its application says so: what waits, what goes ahead, how it ends."""

from __future__ import annotations

import queue
import select
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tao.client.client import ClientConn
from tao.connection.options.definitions import Reconnect
from tao.errors import ConnectionClosed, WouldBlock
from tao.testing import Clock
from tao.wire.message import Registry
from tests.ends import MakeServer, Number, Seen, Text, frame, number, text
from tests.support import PATIENCE, recv_exactly, together, wait_until

AT_ONCE = Reconnect(initial=0.001, maximum=0.005)


def log_on(conn: Any) -> None:
    conn.write(Number(7))


class Line:
    """A client that logs on with a `Number` and is ready when one comes back, and its peer."""

    def __init__(self, **options: Any) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(PATIENCE)
        self.registry, self.heard = Registry(), Seen()
        self.registry.handler(Number)(self.answered)
        self.registry.handler(Text)(lambda ctx, conn: self.heard.add(ctx.message.text))
        options = {"ready": "manual", "registry": self.registry, "on_connect": log_on, **options}
        self.errors, self.closed = Seen(), Seen()
        self.client = ClientConn(
            self.listener.getsockname(),
            on_error=lambda conn, error: self.errors.add(str(error)),
            on_close=lambda conn: self.closed.add(conn.close_reason),
            **options,
        )
        self.peers: list[socket.socket] = []

    def answered(self, ctx: Any, conn: Any) -> None:
        self.heard.add(ctx.message.value)
        conn.ready()

    def accept(self) -> socket.socket:
        """The next connection's other side, which has read the login."""
        self.peers.append(self.listener.accept()[0])
        self.peers[-1].settimeout(PATIENCE)
        assert self.read(len(number(7))) == number(7)
        return self.peers[-1]

    def start(self) -> socket.socket:
        self.client.start()
        return self.accept()

    def read(self, count: int = 2**30) -> bytes:
        return recv_exactly(self.peers[-1], count)

    def close(self) -> None:
        for sock in (*self.peers, self.listener):
            sock.close()
        self.client.close()


MakeLine = Callable[..., Line]


@pytest.fixture(params=["own", "shared"])
def readers(request: pytest.FixtureRequest) -> Any:
    """The option: who reads."""
    return request.param


@pytest.fixture
def line() -> Iterator[MakeLine]:
    """Makes a `Line`, which is closed afterwards."""
    made: list[Line] = []

    def make(**options: Any) -> Line:
        made.append(Line(**options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("dispatch", ["auto", "pool", "inline"])
def test_what_was_written_waits_for_the_answer(line: MakeLine, dispatch: str, readers: str) -> None:
    """Only the login is sent; after its answer, what the handler wrote, and then what waited."""
    it = line(dispatch=dispatch, readers=readers)

    def respond(ctx: Any, conn: Any) -> None:
        conn.write(Text(ctx.message.text.upper()))

    it.registry.register(3, Text.deserialize, respond)
    it.client.write(Text("first"))
    peer = it.start()
    it.client.write(Text("second"))
    assert not it.client.connected and it.client.send_queue_length == 2
    peer.sendall(frame(3, b"challenge"))
    assert it.read(len(text("challenge"))) == text("CHALLENGE")
    peer.sendall(number(8))
    assert it.read(len(text("firstsecond")) + 8) == text("first") + text("second")
    assert it.client.wait_connected(PATIENCE)


def test_nothing_else_goes_out_before(line: MakeLine) -> None:
    """No way to write goes ahead of the login: only its handlers do."""
    with Clock() as clock:
        it = line(heartbeat=1)
        peer = it.start()
        it.client.run_after(0.5, lambda due, conn: conn.write(Text("timer")))
        it.client.write(Text("write"))
        it.client.write_frame(text("frame"))
        it.client.submit(Text("submit"))
        together(lambda: it.client.write(Text("thread"), timeout=PATIENCE))
        clock.advance(5)
        wait_until(lambda: it.client.send_queue_length == 5)
        peer.sendall(number(8))
        expected = b"".join(map(text, ("write", "frame", "submit", "thread", "timer")))
        assert it.read(len(expected)) == expected
        # Its clock is set once the connection is open, which may be after any one second.
        wait_until(lambda: clock.advance(1) or select.select([peer], [], [], 0)[0])
        assert it.read(8) == frame(0, b"x" * 8)[:8]


def test_a_full_queue_does_not_hold_up_the_login(line: MakeLine) -> None:
    """What waits takes no room of the login's, and its handlers go on, whatever the policy is."""
    for policy in ("raise", "drop_oldest", "close"):
        it = line(queue_size=2, slow_consumer=policy)
        for word in ("1", "2"):
            it.client.write(Text(word))
        peer = it.start()
        if policy != "drop_oldest":
            with pytest.raises(WouldBlock):
                it.client.write(Text("3"))
        it.registry.register(3, Text.deserialize, lambda ctx, conn: conn.write(ctx.message))
        peer.sendall(frame(3, b"a") + frame(3, b"b") + number(8))
        assert it.read(4 * 9) == text("a") + text("b") + text("1") + text("2")


def test_ready_counts_once_from_anywhere(line: MakeLine) -> None:
    """In on_connect, where it takes effect afterwards, from other threads, again, and too late."""

    def soon(conn: Any) -> None:
        together(conn.ready, conn.ready)
        together(lambda: conn.write(Text("waits")))
        log_on(conn)

    it = line(on_connect=soon)
    it.start()
    assert it.client.connected
    assert it.read(len(text("waits"))) == text("waits")
    together(*[it.client.ready] * 3)
    it.client.write(Text("more"))
    assert it.read(len(text("more"))) == text("more")
    it.client.close()
    it.client.ready()
    assert it.read() == b""


def test_not_ready_in_time(line: MakeLine) -> None:
    """The connection is closed with a reason, and what waited is reported as unsent."""
    with Clock() as clock:
        it = line(ready_timeout=3)
        it.start()
        it.client.write(Text("never"))
        clock.advance(2.9)
        assert not it.client.closed
        clock.advance(0.2)
        assert it.read() == b""
    assert it.client.wait_closed(PATIENCE) is True
    assert it.client.close_reason == "not ready within 3 s (ready_timeout)"
    assert it.errors.items == [f"1 messages (13 bytes) could not be sent: {it.closed.items[0]}"]
    assert it.client.snapshot().unsent == 1


def test_ready_in_time(line: MakeLine) -> None:
    """The clock of a login closes nothing afterwards."""
    with Clock() as clock:
        it = line(ready_timeout=3, heartbeat=None)
        it.start().sendall(number(8))
        assert it.client.wait_connected(PATIENCE)
        clock.advance(10)
        assert it.client.connected


def test_closing_during_the_login(line: MakeLine) -> None:
    """What on_connect wrote is sent, and the end; what waited is not."""
    it = line()
    it.start()
    it.client.write(Text("never"))
    it.client.close()
    it.client.ready()
    assert it.read() == b""
    assert it.closed.items == ["closed by this side"] and it.client._core.send_queue.fin_sent
    with pytest.raises(ConnectionClosed):
        it.client.write(Text("later"))


def test_a_connection_lost_during_the_login(line: MakeLine) -> None:
    """The next one logs on again; a call of ready that came in between counts for none."""

    class Between(Reconnect):
        def delay(self, attempt: int) -> float:
            it.client.ready()
            return 0.001

    it = line(reconnect=Between())
    it.client.write(Text("waits"))
    it.start().close()
    peer = it.accept()
    wait_until(lambda: it.client.reconnects == 1)
    assert not it.client.connected
    peer.sendall(number(8))
    assert it.read(len(text("waits"))) == text("waits")


def test_a_late_call_opens_no_other_transport(line: MakeLine) -> None:
    """A thread that is held up in ready, while its connection is lost, does not open the next."""
    it = line(reconnect=AT_ONCE)
    core = it.client._core
    first = it.start()
    open_up, entered, leave = core.open_up, threading.Event(), threading.Event()

    def held_up(transport: Any) -> None:
        entered.set()
        leave.wait(PATIENCE)
        open_up(transport)

    core.open_up = held_up
    late = threading.Thread(target=it.client.ready, name="test-late")
    late.start()
    entered.wait(PATIENCE)
    core.open_up = open_up
    first.close()
    peer = it.accept()
    it.client.write(Text("waits"))
    wait_until(lambda: it.client.reconnects == 1)
    leave.set()
    late.join()
    assert not it.client.connected and it.client.send_queue_length == 1
    peer.sendall(number(8))
    assert it.read(len(text("waits"))) == text("waits")


def test_a_login_that_fails_does_not_reset_the_back_off(line: MakeLine) -> None:
    """Answers prove nothing until the application calls ready."""
    waits: list[int] = []

    class Noting(Reconnect):
        def delay(self, attempt: int) -> float:
            waits.append(attempt)
            return 0.001

    it = line(reconnect=Noting())
    it.client.start()
    for _ in range(3):
        it.accept().sendall(text("wrong password"))
        it.heard.wait(len(it.peers))
        it.peers[-1].close()
    it.accept().sendall(number(8))
    assert it.client.wait_connected(PATIENCE) and waits == [1, 2, 3]
    it.peers[-1].close()
    it.accept()
    assert waits == [1, 2, 3, 1]


def test_ready_means_nothing_to_other_connections(make_server: MakeServer) -> None:
    """A client that is ready at once, and a server without a login, take no notice."""
    server, address = make_server()
    registry, heard = Registry(), Seen()
    registry.handler(Text)(lambda ctx, conn: heard.add(ctx.message.text))
    server.registry.handler(Text)(lambda ctx, conn: (conn.ready(), conn.write(ctx.message)))
    with ClientConn(address, registry=registry) as client:
        client.ready()
        client.write(Text("echo"))
        assert heard.wait() == ["echo"]


# -- on_connect that waits for what the peer sends, as it does in a request


class Asking(Line):
    """A line whose on_connect waits for a handler, which echoes."""

    def __init__(self, **options: Any) -> None:
        self.agree, self.asked = True, Seen()
        self.answers: queue.Queue[int] = queue.Queue()
        super().__init__(**{"on_connect": self.ask, "ready_timeout": 60, **options})

    def ask(self, conn: Any) -> bool:
        log_on(conn)
        conn._core.readiness.read_meanwhile()
        conn._core.readiness.read_meanwhile()
        self.asked.add(conn)
        self.answers.get(timeout=PATIENCE)
        return self.agree

    def answered(self, ctx: Any, conn: Any) -> None:
        conn.write(ctx.message)
        super().answered(ctx, conn)
        self.answers.put(ctx.message.value)

    def start(self, meanwhile: Callable[[], object] | None = None) -> Any:
        """Start the client, whose on_connect gets an answer; return why it was refused."""

        def start() -> str | None:
            try:
                self.client.start()
            except ConnectionClosed as error:
                return str(error)
            return None

        return together(start, meanwhile or (lambda: self.accept().sendall(number(8))))[0]

    def close(self) -> None:
        self.answers.put(0)
        super().close()


@pytest.fixture
def asking() -> Iterator[Callable[..., Asking]]:
    """Makes an `Asking`, which is closed afterwards."""
    made: list[Asking] = []

    def make(**options: Any) -> Asking:
        made.append(Asking(**options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("ready", ["auto", "manual"])
@pytest.mark.parametrize("dispatch", ["auto", "pool", "inline"])
def test_on_connect_may_wait_for_an_answer(
    asking: Callable[..., Asking], ready: str, dispatch: str, readers: str
) -> None:
    """Handlers run and write meanwhile; what waits follows when on_connect has returned."""
    it = asking(ready=ready, dispatch=dispatch, reconnect=AT_ONCE, readers=readers)
    it.client.write(Text("waits"))
    it.start()
    for count in range(1, 4):
        assert it.read(16 + len(text("waits"))) == number(8) + text("waits")
        it.peers[-1].sendall(text("more"))
        assert it.heard.wait(2 * count)[-1] == "more"
        assert it.client.wait_connected(PATIENCE)
        it.peers[-1].close()
        wait_until(lambda: not it.client.connected)
        it.client.write(Text("waits"))
        it.accept().sendall(number(8))
    wait_until(lambda: len(it.client._core.roles.threads) <= 3)


def test_on_connect_that_waits_may_refuse(asking: Callable[..., Asking], readers: str) -> None:
    """The client can be started again, and has no thread left of the attempt."""
    it = asking(readers=readers)
    for agree in (False, False, True):
        it.agree = agree
        assert it.start() == (None if agree else "refused by on_connect")
        assert it.read(16) == number(8)
    assert it.client.wait_connected(PATIENCE)


@pytest.mark.parametrize("reconnect", [False, AT_ONCE])
@pytest.mark.parametrize("agree", [False, True])
def test_the_peer_leaves_while_on_connect_waits(
    asking: Callable[..., Asking], agree: bool, reconnect: Any, readers: str
) -> None:
    """It is as if that had been noticed afterwards: on_connect decides first."""
    it = asking(reconnect=reconnect, readers=readers)
    it.agree = agree

    def leave() -> None:
        it.accept().shutdown(socket.SHUT_WR)
        it.asked.wait()
        wait_until(lambda: it.client._core.readiness._loan.returned)
        it.answers.put(0)

    why = it.start(leave)
    if not agree:
        assert why == "refused by on_connect" and it.closed.items == [] and not it.client.closed
    elif reconnect:
        it.accept().sendall(number(8))
        assert it.client.wait_connected(PATIENCE) and it.closed.items == ["peer closed"]
    else:
        assert it.closed.wait() == ["peer closed"]
