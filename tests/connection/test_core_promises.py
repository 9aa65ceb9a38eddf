"""Promises of a connection that its parts keep together, over both ends."""

from __future__ import annotations

import contextvars
import gc
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tao.client.client import ClientConn
from tao.errors import ConnectionClosed, TaoError
from tao.runtime.context import Context
from tao.server.server import Server
from tao.wire.message import Registry
from tests.ends import End, MakeServer, Seen, Text, text
from tests.support import PATIENCE, ends, wait_until

OpenEnd = Callable[..., End]

user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")


# -- context variables


@pytest.mark.parametrize("dispatch", ["auto", "pool", "inline"])
def test_context_variables_are_the_connections(open_end: OpenEnd, dispatch: str) -> None:
    """What ``on_connect`` or a handler sets, later callbacks of that connection see."""
    seen = Seen()
    registry = Registry()

    @registry.handler(Text)
    def handle(ctx: Context, conn: Any) -> None:
        seen.add(user.get())
        user.set(ctx.message.text)
        conn.run_after(0, lambda due, conn: seen.add(f"timer of {user.get()}"))

    end = open_end(
        registry=registry,
        dispatch=dispatch,
        on_connect=lambda conn: user.set("connected"),
        on_close=lambda conn: seen.add(f"closed for {user.get()}"),
    )
    end.send(text("alice"))
    assert seen.wait(2) == ["connected", "timer of alice"]
    end.send(text("bob"))
    assert seen.wait(4)[2:] == ["alice", "timer of bob"]
    end.peer.close()
    assert seen.wait(5)[4] == "closed for bob"
    assert user.get() == "nobody", "nothing leaks into the program"


@pytest.mark.parametrize("dispatch", ["auto", "pool", "inline"])
def test_on_error_sees_the_context_variables(open_end: OpenEnd, dispatch: str) -> None:
    """``on_error`` runs with the connection's variables, also where it interrupts no handler."""
    seen = Seen()
    registry = Registry()

    @registry.handler(Text)
    def handle(ctx: Context, conn: Any) -> None:
        user.set(ctx.message.text)
        raise ValueError

    end = open_end(
        registry=registry,
        dispatch=dispatch,
        on_error=lambda conn, error: seen.add(f"{type(error).__name__} for {user.get()}"),
    )
    end.send(text("alice"))
    assert seen.wait(1) == ["ValueError for alice"]
    end.peer.sendall(b"\xff" * 64)  # no message begins so
    assert seen.wait(2)[1] == "BadData for alice"


def test_context_variables_do_not_pass_between_connections(make_server: MakeServer) -> None:
    """The next connection on the same thread begins with what the program had set."""
    seen = Seen()

    def greet(conn: Any) -> None:
        seen.add(user.get())
        user.set("another")

    token = user.set("program")
    try:
        _, address = make_server(on_connect=greet)
    finally:
        user.reset(token)
    for number in range(1, 6):
        with socket.create_connection(address, PATIENCE):
            seen.wait(number)
    assert seen.items == ["program"] * 5


# -- half-close


def test_replies_after_the_peers_end(open_end: OpenEnd) -> None:
    """With half_close, a thread may reply after the peer has said that it sends no more."""
    seen = Seen()
    registry = Registry()
    registry.handler(Text)(lambda ctx, conn: seen.add(ctx.message.text))
    end = open_end(registry=registry, half_close=True)
    end.send(text("question"))
    end.peer.shutdown(socket.SHUT_WR)
    seen.wait()
    wait_until(lambda: end.conn.peer_finished)
    end.conn.write(Text("answer"))
    assert end.read_text() == "answer"
    end.conn.close()
    assert end.read_to_end() == b""
    assert end.conn.close_reason == "closed by this side"


def test_half_close_has_a_limit(open_end: OpenEnd) -> None:
    """Who does not close its own direction in time is closed, with a reason that says so."""
    end = open_end(half_close=True, half_close_timeout=0.05)
    end.peer.shutdown(socket.SHUT_WR)
    assert end.read_to_end() == b""
    assert "did not within 0.05 s" in str(end.conn.close_reason)


def test_half_close_and_a_peer_that_goes(open_end: OpenEnd) -> None:
    """A peer that is gone altogether is noticed when something is sent to it."""
    end = open_end(half_close=True)
    end.peer.close()
    wait_until(lambda: end.conn.peer_finished)

    def write() -> bool:
        try:
            end.conn.write(Text("anybody there?"))
        except ConnectionClosed:
            return True
        return False

    wait_until(write)
    wait_until(lambda: end.conn.closed)


# -- what users hand over


@pytest.mark.parametrize("frame", ["text", None, 7, [1, 2]])
def test_a_frame_that_is_not_bytes(open_end: OpenEnd, frame: Any) -> None:
    """It is refused where it is written, also behind a slow reader; the connection lives on."""
    end = open_end()
    end.conn.write(Text("x" * 5_000_000 if frame == "text" else "x"))
    with pytest.raises(TypeError, match="must be bytes"):
        end.conn.write_frame(frame)
    end.conn.write(Text("y"))
    end.read_frame()
    assert end.read_text() == "y"


def test_a_frame_that_changes_later_is_copied(open_end: OpenEnd) -> None:
    """What its owner does to a bytearray afterwards does not reach the peer."""
    end = open_end()
    end.conn.write(Text("x" * 7_000_000))
    changing = bytearray(text("first"))
    end.conn.write_frame(changing)  # type: ignore[arg-type]
    changing[:] = b"!" * len(changing)
    end.read_frame()
    assert end.read_text() == "first"


def test_a_writer_thread_that_fails_ends_its_connection(open_end: OpenEnd) -> None:
    """Whatever is raised in the writer, the connection ends with that as its reason."""
    end = open_end()
    transport = end.conn._core.transport
    assert transport is not None

    class Failing(type(transport)):  # type: ignore[misc]
        __slots__ = ()

        def wait_writable(self) -> None:
            raise MemoryError("no more")

    transport.__class__ = Failing
    end.conn.write(Text("x" * 8_000_000))
    wait_until(lambda: end.conn.closed)
    assert "no more" in str(end.conn.close_reason)
    assert end.conn.wait_closed(PATIENCE)


# -- sums


@pytest.mark.parametrize("dispatch", ["auto", "pool", "inline"])
def test_what_is_read_is_handled_or_reported(make_server: MakeServer, dispatch: str) -> None:
    """At a stop under load, each message read was handled, or the report has it as unhandled."""
    for _ in range(3):
        handled = Seen()
        registry = Registry()
        registry.handler(Text)(lambda ctx, conn, handled=handled: handled.add(None))
        server, address = make_server(registry=registry, dispatch=dispatch)
        socks = [socket.create_connection(address, PATIENCE) for _ in range(4)]
        load = [threading.Thread(target=pour, args=(sock,)) for sock in socks]
        for thread in load:
            thread.start()
        handled.wait(10)
        report = server.stop()
        unhandled = sum(count for _, count, _ in report.abandoned)
        figures = server.snapshot()
        assert figures.handled == len(handled.items)
        assert figures.messages_in == figures.handled + unhandled
        for thread in load:
            thread.join(PATIENCE)
        for sock in socks:
            sock.close()


def pour(sock: socket.socket) -> None:
    """Send messages until the other side ends."""
    try:
        while True:
            sock.sendall(text("x") * 500)
    except OSError:
        pass


# -- calls in the midst of calls


@pytest.mark.parametrize("call", ["write", "broadcast", "close", "stop", "timer"])
def test_a_signal_handler_may_call_anything(make_server: MakeServer, call: str) -> None:
    """In the midst of the main thread's writes a signal handler may write, close and stop."""
    server, address = make_server(registry=Registry(), drain_timeout=2)
    done = []

    def handle(signum: int, frame: object) -> None:
        try:
            for conn in server.connections[:1]:
                calls: dict[str, Callable[[], object]] = {
                    "write": lambda conn=conn: conn.write(Text("signal")),
                    "broadcast": lambda: server.broadcast(Text("signal")),
                    "close": lambda conn=conn: conn.close(),
                    "stop": lambda: server.stop(1),
                    "timer": lambda conn=conn: conn.cancel_timer(conn.run_after(1, print)),
                }
                calls[call]()
        except TaoError:
            pass
        done.append(signum)
        if len(done) < 50:
            signal.setitimer(signal.ITIMER_REAL, 0.0007)

    before = signal.signal(signal.SIGALRM, handle)
    try:
        with socket.create_connection(address, PATIENCE) as sock:
            reader = threading.Thread(target=drain, args=(sock,))
            reader.start()
            wait_until(lambda: server.connections)
            signal.setitimer(signal.ITIMER_REAL, 0.0007)
            while len(done) < 50:
                server.broadcast(Text("x" * 1000))
            assert ends(lambda: server.stop(2))
        reader.join(PATIENCE)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def drain(sock: socket.socket) -> None:
    try:
        while sock.recv(1 << 20):
            pass
    except OSError:
        pass


class Cyclic:
    """An object whose finalizer calls something, run by the collector wherever it finds it."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._cycle = self

    def __del__(self) -> None:
        try:
            self._call()
        except TaoError:
            pass


@pytest.mark.parametrize("dispatch", ["auto", "pool"])
def test_finalizers_may_write_anywhere(make_server: MakeServer, dispatch: str) -> None:
    """The collector runs finalizers that write and broadcast, in handlers and in tao's threads."""
    registry = Registry()
    server, address = make_server(registry=registry, dispatch=dispatch, workers=4, drain_timeout=2)

    @registry.handler(Text)
    def handle(ctx: Context, conn: Any) -> None:
        Cyclic(lambda: conn.write(Text("finalizer")))
        Cyclic(lambda: server.broadcast(Text("finalizer")))
        conn.write(ctx.message)

    before = gc.get_threshold()
    gc.set_threshold(20, 2, 2)
    try:
        clients = [ClientConn(address, registry=Registry()) for _ in range(4)]
        got = Seen()
        for client in clients:
            client.handler(Text)(lambda ctx, conn: got.add(None))
            client.start()
        for _ in range(100):
            for client in clients:
                client.write(Text("x"), PATIENCE)
        got.wait(400)
        for client in clients:
            assert ends(client.close)
        assert ends(lambda: server.stop(5))
    finally:
        gc.set_threshold(*before)


def test_two_stops_in_a_signal_handler(make_server: MakeServer) -> None:
    """A stop that interrupts a stop returns in its time, and the first one goes on."""
    server, address = make_server(registry=Registry(), drain_timeout=5)
    assert isinstance(server, Server)
    interrupted = []

    def handle(signum: int, frame: object) -> None:
        interrupted.append(server.stop(0.1))

    before = signal.signal(signal.SIGALRM, handle)
    try:
        with socket.create_connection(address, PATIENCE):
            wait_until(lambda: server.connections)
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            report = server.stop(5)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert report.clean
