"""Many connections that end at once: their threads pass a turnstile, see ``runtime/turnstile.py``.

A thread that the application keeps waiting there would hold up the end of all other connections.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

import pytest

import tao
from tao.connection.connection import Connection, core_of
from tao.runtime.turnstile import departures
from tao.wire.message import Registry
from tests.asking import known
from tests.ends import MakeServer, Number, Seen, number
from tests.support import PATIENCE, recv_exactly, wait_until

CROWD = 100


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two are a crowd, and nobody goes on without a thread that does not leave the turnstile."""
    monkeypatch.setattr(departures, "few", 0)
    monkeypatch.setattr(departures, "moment", 1000.0)


def reset(sock: socket.socket) -> None:
    """Close a connection so that its other end sees an error."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.parametrize("leave", [socket.socket.close, reset])
def test_a_crowd_that_leaves_is_gone(
    make_server: MakeServer, leave: Callable[[socket.socket], None]
) -> None:
    """All connections end, each with its on_close, whether their peers close or reset them."""
    closed, registry = Seen(), Registry()
    registry.handler(Number)(lambda ctx, conn: conn.write(ctx.message))
    server, address = make_server(registry=registry, on_close=closed.add)
    peers = [socket.create_connection(address, PATIENCE) for _ in range(CROWD)]
    for peer in peers:
        peer.sendall(number(1))
        recv_exactly(peer, len(number(1)))
    for peer in peers:
        leave(peer)
    closed.wait(CROWD)
    wait_until(lambda: server.connection_count == 0)


def test_on_error_holds_up_only_its_own_connection(make_server: MakeServer) -> None:
    """While it blocks for one connection, that of another one that is reset is called, too."""
    errors, freed = Seen(), threading.Event()

    def on_error(conn: Connection, error: BaseException) -> None:
        errors.add(conn)
        freed.wait(3 * PATIENCE)

    heard, registry = Seen(), Registry()
    registry.handler(Number)(lambda ctx, conn: heard.add(conn))
    _, address = make_server(registry=registry, on_error=on_error)
    peers = [socket.create_connection(address, PATIENCE) for _ in range(2)]
    for count, peer in enumerate(peers, 1):
        peer.sendall(number(1))
        heard.wait(count)
        reset(peer)
        errors.wait(count)
    freed.set()


def test_a_callback_holds_up_only_its_own_connection(make_server: MakeServer) -> None:
    """While that of a failed request blocks, another client's request fails, too."""
    failed, freed, asked = Seen(), threading.Event(), Seen()
    server, address = make_server(registry=known())

    @server.handler(Number)
    def keep_waiting(ctx: Any, conn: Connection) -> None:
        ctx.defer()
        asked.add(conn)

    def block(future: object) -> None:
        failed.add(future)
        freed.wait(3 * PATIENCE)

    clients = [tao.connect(address, registry=known(), reconnect=False) for _ in range(2)]
    for count, client in enumerate(clients, 1):
        client.request_async(Number(1)).add_done_callback(block)
        asked.wait(count)[-1].abort()
        failed.wait(count)
    freed.set()
    for client in clients:
        client.close()


def test_one_that_is_half_closed_holds_up_no_other(make_server: MakeServer) -> None:
    """While this side may still send to one peer that has closed, other connections end."""
    closed, heard, registry = Seen(), Seen(), Registry()
    registry.handler(Number)(lambda ctx, conn: heard.add(conn))
    _, address = make_server(registry=registry, on_close=closed.add, half_close=True)
    half, whole = [socket.create_connection(address, PATIENCE) for _ in range(2)]
    half.sendall(number(1))
    half.shutdown(socket.SHUT_WR)
    conn = heard.wait()[0]
    wait_until(lambda: core_of(conn).peer_finished)
    reset(whole)
    closed.wait()
    conn.write(Number(2))
    with half:
        assert recv_exactly(half, len(number(2))) == number(2)
    conn.close()
    closed.wait(2)
