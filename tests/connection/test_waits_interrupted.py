"""Waiting for an end in the midst of a call that the end has to wait for.

A signal handler or a finalizer may wait for a connection or a server on whose call it has broken
in. While it waits, that call does not go on, and the connection cannot end: so it does not wait.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from tao.client.client import ClientConn
from tao.errors import TaoError
from tao.server.server import Server
from tests.asking import Peers, echo, known
from tests.ends import Number
from tests.injection import Moment, opcodes
from tests.support import PATIENCE, ends, wait_until

pytestmark = pytest.mark.interrupted

Call = Callable[[Peers], object]


def wait_for_client(peers: Peers) -> None:
    peers.client.abort()
    peers.client.wait_closed()


def close_client(peers: Peers) -> None:
    peers.client.close()


def wait_for_connection(peers: Peers) -> None:
    peers.conn.abort()
    peers.conn.wait_closed()


def stop_server(peers: Peers) -> None:
    peers.server.stop(1000)


def server_end(peers: Peers) -> Any:
    return peers.conn


OF_CLIENT: dict[str, tuple[str, Call]] = {
    "request": ("connection.requests.making", lambda peers: peers.client.request(Number(1))),
    "cancel": (
        "connection.requests.making",
        lambda peers: peers.client.request_async(Number(1)).cancel(),
    ),
    "submit": (
        "connection.sending.admission",
        lambda peers: peers.client.submit(Number(1)).withdraw(),
    ),
}
OF_SERVER: dict[str, tuple[str, Call]] = {
    "join": ("server.membership.group_index", lambda peers: server_end(peers).join("group")),
    "leave": ("server.membership.group_index", lambda peers: server_end(peers).leave("other")),
    "identify": ("server.membership.identities", lambda peers: server_end(peers).identify("name")),
    "write": ("connection.sending.send_queue", lambda peers: peers.conn.write(Number(1))),
    "broadcast": ("server.core", lambda peers: peers.server.broadcast(Number(1))),
}


@pytest.mark.parametrize("wait", [wait_for_client, close_client])
@pytest.mark.parametrize("name", OF_CLIENT)
def test_waiting_for_a_client(name: str, wait: Call) -> None:
    """In the midst of a call of its own, at whatever bytecode, that does not block."""
    interrupt(*OF_CLIENT[name], wait)


@pytest.mark.parametrize("wait", [wait_for_connection, stop_server])
@pytest.mark.parametrize("name", OF_SERVER)
def test_waiting_for_a_server(name: str, wait: Call) -> None:
    """Nor does waiting for a server or one of its connections."""
    interrupt(*OF_SERVER[name], wait)


def interrupt(module: str, call: Call, wait: Call) -> None:
    """Wait at each bytecode of a call; when that has gone on, everything is to end."""
    for moment in opcodes(f"tao.{module}", "tao.runtime.combining"):
        peers = Peers(server={"drain_timeout": 1000}, drain_timeout=1000)
        peers.server.handler(Number)(echo)
        server_end(peers).join("other")
        assert ends(lambda moment=moment, peers=peers: at(moment, peers, call, wait)), moment
        peers.close()
        assert peers.client.wait_closed(0) and peers.conn.wait_closed(0), moment


def at(moment: Moment, peers: Peers, call: Call, wait: Call) -> None:
    """Make a call, and wait in the midst of it."""
    with moment.calling(lambda: wait(peers)), suppress(Exception):
        call(peers)


def test_waiting_for_another_connection() -> None:
    """The thread that reads for both may be waiting for the call that was interrupted."""
    for moment in opcodes("tao.connection.sending.send_queue", "tao.runtime.combining"):
        server = Server(registry=known())
        address = server.start(("127.0.0.1", 0))
        one, other = (
            ClientConn(
                address, registry=known(), readers="shared", reader_threads=1, drain_timeout=1000
            ).start()
            for _ in range(2)
        )

        server.handler(Number)(echo)
        for client in (one, other):
            client.request(Number(0))

        def wait(one: ClientConn = one, other: ClientConn = other, server: Server = server) -> None:
            for conn in server.connections:
                conn.abort()
            wait_until(lambda: one.closed)
            other.close()
            other.wait_closed()

        def strike(moment: Moment = moment, one: ClientConn = one, wait: Any = wait) -> None:
            with moment.calling(wait), suppress(TaoError):
                one.write(Number(1))

        assert ends(strike), moment
        one.close()
        other.close()
        assert one.wait_closed(PATIENCE) and other.wait_closed(PATIENCE), moment
        server.stop()
