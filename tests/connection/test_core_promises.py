"""Guarantees of a connection that several of its parts keep together, at both ends."""

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
from tests.ends import OWN_READERS, End, MakeServer, Seen, Text, text
from tests.support import PATIENCE, ends, wait_until

OpenEnd = Callable[..., End]

user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")


# -- context variables


@pytest.mark.parametrize("dispatch", ["auto", "pool", "inline"])
def test_context_variables_are_shared_within_a_connection(open_end: OpenEnd, dispatch: str) -> None:
    """Later callbacks of a connection see what ``on_connect`` or a handler has set."""
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


@pytest.mark.parametrize("of", ["the handler", "the connection"])
def test_what_is_called_after_a_cancellation_sees_the_context_variables(
    open_end: OpenEnd, of: str
) -> None:
    """It sees those of the code that has asked for it, as they were then."""
    seen, registry = Seen(), Registry()

    @registry.handler(Text)
    def handle(ctx: Context, conn: Any) -> None:
        user.set(ctx.message.text)
        context = ctx if of == "the handler" else conn.context
        context.after_cancel(lambda: seen.add(user.get()))

    end = open_end(registry=registry)
    end.send(text("alice"))
    wait_until(lambda: end.conn._core.counts().handled == 1)
    end.peer.close()
    assert seen.wait() == ["alice"]
    assert user.get() == "nobody"


@pytest.mark.parametrize("dispatch", ["auto", "pool", "inline"])
def test_on_error_sees_the_context_variables(open_end: OpenEnd, dispatch: str) -> None:
    """``on_error`` runs with the connection's variables, even if no handler is involved."""
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
    end.peer.sendall(b"\xff" * 64)  # no message begins like this
    assert seen.wait(2)[1] == "BadData for alice"


def test_context_variables_are_not_shared_between_connections(make_server: MakeServer) -> None:
    """The next connection on the same thread starts with the program's variables."""
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


def test_replies_after_the_peers_end_of_stream(open_end: OpenEnd) -> None:
    """With ``half_close``, a thread can still reply after the peer's end of stream."""
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


def test_half_close_timeout(open_end: OpenEnd) -> None:
    """A connection that this side does not close in time is closed, with that reason."""
    end = open_end(half_close=True, half_close_timeout=0.05)
    end.peer.shutdown(socket.SHUT_WR)
    assert end.read_to_end() == b""
    assert "did not within 0.05 s" in str(end.conn.close_reason)


def test_half_close_and_a_peer_that_is_gone(open_end: OpenEnd) -> None:
    """A peer that has disconnected completely is detected by the next write."""
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


# -- data from users


@pytest.mark.parametrize("frame", ["text", None, 7, [1, 2]])
def test_a_frame_that_is_not_bytes(open_end: OpenEnd, frame: Any) -> None:
    """``write`` refuses it, even with a full queue, and the connection stays open."""
    end = open_end()
    end.conn.write(Text("x" * 5_000_000 if frame == "text" else "x"))
    with pytest.raises(TypeError, match="must be bytes"):
        end.conn.write_frame(frame)
    end.conn.write(Text("y"))
    end.read_frame()
    assert end.read_text() == "y"


def test_a_mutable_frame_is_copied(open_end: OpenEnd) -> None:
    """Changes to a bytearray after the write do not reach the peer."""
    end = open_end()
    end.conn.write(Text("x" * 7_000_000))
    changing = bytearray(text("first"))
    end.conn.write_frame(changing)  # type: ignore[arg-type]
    changing[:] = b"!" * len(changing)
    end.read_frame()
    assert end.read_text() == "first"


@pytest.mark.parametrize("open_end", OWN_READERS, indirect=True)
def test_a_failing_writer_thread_ends_the_connection(open_end: OpenEnd) -> None:
    """The exception of the writer thread is the close reason."""
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


# -- totals


@pytest.mark.parametrize("dispatch", ["auto", "pool", "inline"])
def test_messages_read_are_handled_or_reported(
    make_server: MakeServer, dispatch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a stop under load, each message read was handled or is reported as unhandled."""
    monkeypatch.setattr("tao.connection.shutdown._LINGER", 0.05)  # these peers do not close
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
    """Send messages until the peer closes."""
    try:
        while True:
            sock.sendall(text("x") * 500)
    except OSError:
        pass


# -- nested calls


@pytest.mark.parametrize("call", ["write", "broadcast", "close", "stop", "timer"])
def test_a_signal_handler_may_call_any_method(make_server: MakeServer, call: str) -> None:
    """A signal handler may write, close and stop during a write of the main thread."""
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
    """An object with a finalizer, which the garbage collector may run anywhere."""

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
    """Finalizers that write and broadcast may run in handlers and in tao's threads."""
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


def test_a_stop_that_interrupts_a_stop_meets_its_timeout(make_server: MakeServer) -> None:
    """It returns although a handler does not, and the first one ends as well."""
    leave, entered = threading.Event(), threading.Event()
    registry, interrupted = Registry(), Seen()
    registry.handler(Text)(lambda ctx, conn: entered.set() or leave.wait(PATIENCE))
    server, address = make_server(registry=registry, drain_timeout=PATIENCE)
    assert isinstance(server, Server)

    def handle(signum: int, frame: object) -> None:
        interrupted.add((server.stop(0.1).clean, leave.is_set()))
        leave.set()

    before = signal.signal(signal.SIGALRM, handle)
    try:
        with socket.create_connection(address, PATIENCE) as sock:
            sock.sendall(text("stay"))
            assert entered.wait(PATIENCE)
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            server.stop(PATIENCE)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        leave.set()
    assert interrupted.items == [(False, False)]


def test_two_stops_in_a_signal_handler(make_server: MakeServer) -> None:
    """A stop that interrupts a stop ends in order, and the first one continues."""
    server, address = make_server(registry=Registry(), drain_timeout=5)
    assert isinstance(server, Server)
    interrupted = []

    def handle(signum: int, frame: object) -> None:
        interrupted.append(server.stop(5))

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
