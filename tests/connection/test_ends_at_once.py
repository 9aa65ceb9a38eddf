"""The usual end of a connection with shared reading: the peer has closed, nothing is under way."""

from __future__ import annotations

import itertools
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest

from tao.connection.connection import Connection, core_of
from tao.errors import ConnectionClosed
from tao.server.server import server_core_of
from tao.wire.message import Registry
from tests.ends import MakeServer, Number, Seen, number
from tests.injection import opcodes
from tests.support import PATIENCE, recv_exactly, together, wait_until

# An end takes no more calls of Python functions, with those of the loop.
FEW = 95
STEP = 1 if os.environ.get("EACH_BYTECODE") else 13
MODULES = (
    "tao.connection.handling.shared_dispatcher",
    "tao.connection.lifecycle",
    "tao.connection.reports.statistics",
    "tao.connection.sending.admission",
    "tao.connection.sending.send_queue",
    "tao.connection.shared_reading.roles",
    "tao.connection.teardown",
    "tao.connection.timers",
    "tao.runtime.combining",
    "tao.server.connection",
)
LEADER = "tao-reader-servers-1"
_offsets = itertools.count()


def echoing(**options: Any) -> Registry:
    registry = Registry()
    registry.handler(Number, **options)(lambda ctx, conn: conn.write(ctx.message))
    return registry


def connected(address: Any) -> socket.socket:
    """Return a socket that has had its echo."""
    sock = socket.create_connection(address, PATIENCE)
    sock.sendall(number(1))
    assert recv_exactly(sock, len(number(1))) == number(1)
    return sock


def leave(sock: socket.socket) -> bytes:
    """End the direction from here, and return what comes until the end of the other one."""
    sock.shutdown(socket.SHUT_WR)
    return recv_exactly(sock, 1 << 20)


def the_conn(server: Any) -> Connection:
    (conn,) = server.connections
    return conn  # type: ignore[no-any-return]


def test_it_takes_few_calls(make_server: MakeServer) -> None:
    """... of Python functions, and none of the kernel's that only the close would need."""
    counts = {"calls": 0, "counting": 0}

    def count(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and threading.current_thread().name.startswith("tao-reader-"):
            counts["calls"] += counts["counting"]

    threading.setprofile(count)
    try:
        server, address = make_server(registry=echoing(), readers="shared")
    finally:
        threading.setprofile(None)
    connected(address).close()  # brings in what is made when first needed
    wait_until(lambda: not server.connection_count)
    socks = [connected(address) for _ in range(10)]
    counts["counting"] = 1
    for sock in socks:
        sock.close()
    wait_until(lambda: not server.connection_count)
    assert 0 < counts["calls"] <= FEW * len(socks)


def test_the_peer_gets_the_end_of_the_stream(make_server: MakeServer) -> None:
    """... and all figures and fields are those of any other end."""
    server, address = make_server(registry=echoing(), readers="shared")
    with connected(address) as sock:
        conn = the_conn(server)
        core, context, ended = core_of(conn), conn.context, Seen()
        context.after_cancel(lambda: ended.add(str(context.error)))
        conn.run_after(PATIENCE, print)
        assert leave(sock) == b""
        assert conn.wait_closed(PATIENCE)
    assert conn.close_reason == "peer closed" and ended.wait(1) == ["peer closed"]
    assert not core.lifecycle.status.on_close_owed and not core.lifecycle.open
    assert core.send_queue.fin_sent and not core.timers and not server.connection_count
    snapshot = server.snapshot()
    assert (snapshot.connections_total, snapshot.messages_out, snapshot.unsent) == (1, 1, 0)
    assert not server_core_of(server).statistics.living()


def test_what_is_under_way_goes_on(make_server: MakeServer) -> None:
    """A handler that runs when the peer has closed still answers, and is waited for."""
    entered, go, registry = Seen(), threading.Event(), Registry()

    @registry.handler(Number, dispatch="pool")
    def echo_late(ctx: Any, conn: Connection) -> None:
        entered.add(conn)
        assert go.wait(PATIENCE)
        conn.write(ctx.message)

    server, address = make_server(registry=registry, readers="shared")
    with socket.create_connection(address, PATIENCE) as sock:
        sock.sendall(number(3))
        (conn,) = entered.wait(1)
        sock.shutdown(socket.SHUT_WR)
        wait_until(lambda: conn.close_reason)
        go.set()
        assert recv_exactly(sock, 1 << 20) == number(3)
    wait_until(lambda: not server.connection_count)


def gone(server: Any) -> bool:
    """Whether nothing is left of a server's connections."""
    core = server_core_of(server)
    (loop,) = core.resources.readers.loops
    return not (server.connection_count or core.statistics.living() or len(loop.members) > 1)


@pytest.mark.interrupted
def test_it_goes_on_wherever_it_is_interrupted(make_server: MakeServer) -> None:
    """At each bytecode: the peer gets the end, and nothing is left of the connection."""
    for moment in opcodes(*MODULES, first=next(_offsets), step=STEP):
        with moment.raising(thread=LEADER):
            server, address = make_server(registry=echoing(), readers="shared")
            with socket.create_connection(address, PATIENCE) as sock, suppress(OSError):
                sock.sendall(number(1))
                recv_exactly(sock, len(number(1)))
                leave(sock)
            wait_until(lambda server=server: gone(server))
            assert server.snapshot().connections_total <= 1, moment
        server.stop()


def write(conn: Connection, sent: Seen) -> None:
    """Write, and note it if that was accepted."""
    conn.write(Number(2))
    sent.add(number(2))


def write_and_close(conn: Connection, sent: Seen) -> None:
    write(conn, sent)
    conn.close()


def abort(conn: Connection, sent: Seen) -> None:
    conn.abort()


def set_timer(conn: Connection, sent: Seen) -> None:
    conn.run_after(0.0, lambda due, conn: write(conn, sent))


@pytest.mark.interrupted
@pytest.mark.parametrize("use", [write, write_and_close, abort, set_timer])
def test_others_use_it_meanwhile(
    make_server: MakeServer, use: Callable[[Connection, Seen], None]
) -> None:
    """At each bytecode another thread may use it; what it writes is sent before the end."""
    for moment in opcodes(*MODULES, first=next(_offsets), step=STEP):
        conns, sent = Seen(), Seen()

        def use_if_open(conns: Seen = conns, sent: Seen = sent) -> None:
            if conns.items:
                with suppress(ConnectionClosed):
                    together(lambda: use(conns.items[0], sent))

        with moment.calling(use_if_open, thread=LEADER):
            server, address = make_server(registry=echoing(), readers="shared")
            with connected(address) as sock:
                conns.add(the_conn(server))
                received = b"" if use is abort else leave(sock)
            wait_until(lambda server=server: gone(server))
        assert use is abort or received == b"".join(sent.items), moment
        server.stop()
