"""Closing: how long a peer that stays connected is waited for, and why that loses no data."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import pytest

import tao.connection.shutdown
from tao.connection.shutdown import _LINGER
from tao.server.server import Server
from tao.transport.stream import Transport
from tao.wire.message import Registry
from tests.ends import End, MakeServer, Text, text
from tests.support import PATIENCE, ends, recv_exactly, wait_until

OpenEnd = Callable[..., End]

needs_linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="other systems need a moment"
)


@needs_linux
@pytest.mark.parametrize("kind", ["127.0.0.1", "::1"])
def test_a_reset_after_the_end_loses_nothing(kind: str) -> None:
    """After a FIN a socket still returns earlier data, which `ShutdownClock` relies on."""
    family = socket.AF_INET6 if ":" in kind else socket.AF_INET
    with socket.create_server((kind, 0), family=family) as listener:
        peer = socket.create_connection(listener.getsockname()[:2], PATIENCE)
        sock, _ = listener.accept()
    transport = Transport(sock)
    assert transport.peer_is_near
    sock.sendall(bytes(50_000))
    transport.shutdown_write()
    wait_until(lambda: not transport.unacknowledged())
    transport.close()
    with peer:
        with pytest.raises(BrokenPipeError):
            while True:
                peer.send(b"a heartbeat")  # the first is answered by a reset
        assert recv_exactly(peer, 10**6) == bytes(50_000)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have remote peers be waited for longer than any test waits."""
    monkeypatch.setattr(tao.connection.shutdown, "_LINGER", 2 * PATIENCE)


@needs_linux
@pytest.mark.usefixtures("patient")
def test_silent_peers_do_not_delay_a_stop(make_server: MakeServer) -> None:
    """They have received everything, so the stop waits for them no longer."""
    server, address = make_server(drain_timeout=2 * PATIENCE)
    socks = [socket.create_connection(address) for _ in range(20)]
    wait_until(lambda: server.connection_count == 20)
    server.broadcast(Text("bye"))
    assert ends(server.stop) and server.stop().clean
    for sock in socks:
        with sock:
            assert recv_exactly(sock, 100) == text("bye")


@needs_linux
@pytest.mark.usefixtures("patient")
def test_a_peer_at_a_unix_socket_does_not_delay_a_stop(tmp_path: Path) -> None:
    """It need not have read, because its kernel buffer has the data already."""
    with Server(registry=Registry(), drain_timeout=2 * PATIENCE) as server:
        address = server.start(str(tmp_path / "socket"))
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(address)
            wait_until(lambda: server.connection_count)
            server.broadcast(Text("bye"))
            assert ends(server.stop) and server.stop().clean
            assert recv_exactly(sock, 100) == text("bye")


def test_a_peer_that_keeps_sending_is_given_a_second(open_end: OpenEnd) -> None:
    """It may be about to read the data and to close."""
    end = open_end(drain_timeout=PATIENCE)
    wait_until(lambda: end.conn._core.lifecycle.open)
    started = monotonic()
    closing = threading.Thread(target=end.conn.close, name="test-close")
    closing.start()
    while not end.conn._core.finished.wait(0.01) and monotonic() - started < PATIENCE:
        try:
            end.send(text("still here"))
        except OSError:
            break
    assert monotonic() - started >= 0.9 * _LINGER
    closing.join()


def test_a_remote_peer_is_given_a_second(
    open_end: OpenEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its system may discard received data when a reset arrives."""
    monkeypatch.setattr(Transport, "peer_is_near", False)
    end = open_end(drain_timeout=PATIENCE)
    wait_until(lambda: end.conn._core.lifecycle.open)
    started = monotonic()
    end.conn.close()
    assert end.read_to_end() == b""
    assert end.conn.wait_closed(PATIENCE)
    assert monotonic() - started >= 0.9 * _LINGER
