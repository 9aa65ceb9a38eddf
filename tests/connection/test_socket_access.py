"""Socket access for users: socket options, and aborting a connection."""

from __future__ import annotations

import signal
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tao.client.client import ClientConn
from tao.connection.options.definitions import Reconnect
from tao.errors import ConnectionClosed
from tao.server.server import Server
from tao.testing import memory_pair
from tao.wire.message import Registry
from tests.ends import End, MakeServer, Seen, Text, text
from tests.support import PATIENCE, together, wait_until
from tests.tls_pairs import CLIENT, SERVER

OpenEnd = Callable[..., End]

TCP, SOL = socket.IPPROTO_TCP, socket.SOL_SOCKET


# -- options


def test_options_are_read_and_set(open_end: OpenEnd) -> None:
    """They work as in getsockopt and setsockopt, with numbers and bytes."""
    conn = open_end().conn
    assert conn.socket_option(TCP, socket.TCP_NODELAY) != 0
    conn.socket_option(TCP, socket.TCP_NODELAY, 0)
    assert conn.socket_option(TCP, socket.TCP_NODELAY) == 0
    conn.socket_option(SOL, socket.SO_LINGER, struct.pack("ii", 1, 5))
    linger = conn.socket_option(SOL, socket.SO_LINGER, length=8)
    assert struct.unpack("ii", linger) == (1, 5)


def test_options_that_are_refused(open_end: OpenEnd) -> None:
    """Errors of the kernel are raised; socket timeouts are refused, because reading would fail."""
    conn = open_end().conn
    with pytest.raises(OSError):
        conn.socket_option(TCP, 9999)
    for name in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        with pytest.raises(ValueError, match="idle_timeout"):
            conn.socket_option(SOL, name, struct.pack("ll", 1, 0))
    with pytest.raises(TypeError):
        conn.socket_option(SOL, socket.SO_RCVBUF, "4096")  # type: ignore[call-overload]
    assert not conn.closed


def test_on_connect_may_set_options_before_the_handshake(make_server: MakeServer) -> None:
    """The socket is available from the first callback on, at both ends."""
    seen = Seen()

    def small(conn: Any) -> None:
        conn.socket_option(SOL, socket.SO_KEEPALIVE, 0)
        seen.add(conn.socket_option(SOL, socket.SO_KEEPALIVE))

    _, address = make_server(on_connect=small, tls=SERVER)
    with ClientConn(address, on_connect=small, tls=CLIENT, registry=Registry()):
        assert seen.wait(2) == [0, 0]


def test_without_a_connection_there_are_no_options(make_server: MakeServer) -> None:
    """Before, between and after connections there is no socket, nor for connections in memory."""
    server, address = make_server()
    client = ClientConn(address, registry=Registry(), reconnect=Reconnect(initial=1000.0))
    for act in (lambda: None, client.start, server.stop, client.close):
        act()
        if act == client.start:
            assert client.socket_option(SOL, socket.SO_TYPE) == socket.SOCK_STREAM
            continue
        wait_until(lambda: not client.connected)
        wait_until(lambda: client._core.transport is None or client._core.finished.is_set())
        with pytest.raises(ConnectionClosed):
            client.socket_option(SOL, socket.SO_TYPE)
    with memory_pair() as pair, pytest.raises(OSError, match="in memory has no socket"):
        pair.conn.socket_option(SOL, socket.SO_TYPE)


def test_options_during_a_close_use_the_right_socket(open_end: OpenEnd) -> None:
    """The call uses the connection's own socket or raises; never a reused descriptor."""
    for _ in range(30):
        end, others, kinds = open_end(), [], Seen()
        here = threading.Event()

        def ask(end: End = end, kinds: Seen = kinds, here: threading.Event = here) -> None:
            try:
                while True:
                    kinds.add(end.conn.socket_option(SOL, socket.SO_TYPE))
                    here.set()
            except ConnectionClosed:
                here.set()

        def close(end: End = end, others: list[Any] = others, here: Any = here) -> None:
            here.wait(PATIENCE)
            end.conn.abort()
            for _ in range(5):
                others.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            end.conn.wait_closed(PATIENCE)

        together(ask, close)
        for other in others:
            other.close()
        assert set(kinds.items) <= {socket.SOCK_STREAM}


# -- aborting


def aborted(sock: socket.socket) -> bool:
    """Read to the end, and return whether that was, or became, a reset."""
    try:
        while sock.recv(65536):
            pass
        while True:  # data sent after the end is answered by a reset
            sock.send(b"x")
    except (ConnectionResetError, BrokenPipeError):
        return True


def test_abort_discards_queued_messages(open_end: OpenEnd, log_lines: list[Any]) -> None:
    """This takes effect at once for a peer that does not read; it is counted, but not an error."""
    closed, errors = Seen(), Seen()
    end = open_end(
        on_close=lambda conn: closed.add(conn.close_reason),
        on_error=lambda conn, error: errors.add(error),
    )
    for _ in range(200):
        end.conn.write(Text("x" * 100_000))
    end.conn.abort()
    assert end.conn.closed
    assert end.conn.wait_closed(PATIENCE)
    assert closed.items == ["aborted by this side"] and errors.items == []
    assert end.conn._core.counts().unsent > 0
    assert aborted(end.peer)
    end.conn.abort()
    with pytest.raises(ConnectionClosed, match="aborted by this side"):
        end.conn.write(Text("late"))
    assert [record["message"] for record in log_lines if record["level"].no > 20] == []


def test_abort_does_not_wait_for_handlers(open_end: OpenEnd) -> None:
    """The peer sees the end at once; ``on_close`` is called when the handler has returned."""
    entered, leave, seen = threading.Event(), threading.Event(), Seen()
    registry = Registry()

    def hang_about(ctx: Any, conn: Any) -> None:
        entered.set()
        leave.wait(PATIENCE)
        seen.add(ctx.cancelled)

    registry.register(1, Text.deserialize, hang_about)
    end = open_end(registry=registry, on_close=lambda conn: seen.add("closed"))
    end.send(text("x"))
    assert entered.wait(PATIENCE)
    end.conn.abort()
    assert end.peer.recv(1) == b""
    leave.set()
    assert seen.wait(2) == [True, "closed"]


def test_abort_during_a_close(open_end: OpenEnd) -> None:
    """A close that waits for a peer that does not read ends at once, with its own reason."""
    end = open_end()
    for _ in range(200):
        end.conn.write(Text("x" * 100_000))
    closing = threading.Thread(target=end.conn.close, name="test-close")
    closing.start()
    wait_until(lambda: end.conn.closed)
    end.conn.abort()
    closing.join(PATIENCE)
    assert end.conn.wait_closed(PATIENCE) and aborted(end.peer)
    assert end.conn.close_reason == "closed by this side"


def test_abort_ends_a_client_for_good(make_server: MakeServer) -> None:
    """The client does not reconnect; one that is new or dialling is closed."""
    _, address = make_server()
    client = ClientConn(address, registry=Registry(), reconnect=True).start()
    client.abort()
    assert client.wait_closed(PATIENCE) and not client.wait_connected(0)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        gone = nobody.getsockname()
    dialling = ClientConn(gone, registry=Registry(), reconnect=Reconnect(initial=1000.0))
    dialling.start(keep_trying=True)
    dialling.abort()
    assert dialling.wait_closed(PATIENCE)
    fresh = ClientConn(address, registry=Registry())
    fresh.abort()
    with pytest.raises(ConnectionClosed):
        fresh.start()
    fresh.close()


def test_abort_in_a_signal_handler(make_server: MakeServer) -> None:
    """It may interrupt any use of the connection in the main thread."""
    server, address = make_server()
    server.handler(Text)(lambda ctx, conn: None)
    before = signal.getsignal(signal.SIGALRM)
    try:
        for delay in range(1, 30):
            client = ClientConn(address, registry=Registry(), queue_size=100_000).start()
            signal.signal(signal.SIGALRM, lambda *_, client=client: client.abort())
            signal.setitimer(signal.ITIMER_REAL, delay / 10_000)
            with pytest.raises(ConnectionClosed, match="aborted"):
                while True:
                    client.write(Text("x"))
                    client.socket_option(SOL, socket.SO_TYPE)
            assert client.wait_closed(PATIENCE)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_abort_of_a_connection_in_memory() -> None:
    """The peer sees the end, because no kernel could discard data."""
    with memory_pair(Server()) as pair:
        pair.conn.abort()
        assert pair.client.wait_closed(PATIENCE)
