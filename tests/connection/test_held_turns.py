"""A signal handler that sleeps in the midst of a call keeps only its own connection waiting.

The call may have the turn of one of tao's objects, or a lock. So no thread that serves others, that
is the timing wheel's, those of shared reading, and the one that stops a server, may wait for it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from tao.client.client import ClientConn
from tao.connection.connection import Connection
from tao.errors import ConnectionClosed, RequestError, TaoError
from tao.runtime.timing_wheel import shared_wheel
from tao.server.server import Server
from tests.asking import echo, known
from tests.ends import Number
from tests.injection import opcodes
from tests.support import PATIENCE, wait_until
from tests.tls_pairs import CLIENT, SERVER

pytestmark = pytest.mark.interrupted

STEP = 1 if os.environ.get("EACH_BYTECODE") else 7
SHARED: dict[str, Any] = {"readers": "shared", "reader_threads": 1}


class Pair:
    """Two clients of a server; the clients are read by one thread, and so are the server's ends.

    Args:
        side: which of the two ends makes the call.
    """

    def __init__(self, side: str, *, tls: bool = False) -> None:
        self.server = Server(registry=known(), tls=SERVER if tls else None, **SHARED)
        self.server.handler(Number)(echo)
        address = self.server.start(("127.0.0.1", 0))
        ends: list[Connection] = []
        for _ in range(2):
            client = ClientConn(
                address,
                registry=known(),
                tls=CLIENT if tls else None,
                server_hostname="localhost" if tls else None,
                **SHARED,
            ).start()
            client.handler(Number)(echo)
            client.request(Number(0))
            ends.append(client)
        first, self.other = ends
        (conn,) = (
            each for each in self.server.connections if each.remote_address == first.local_address
        )
        conn.request(Number(0))
        self.caller, self.peer = (first, conn) if side == "client" else (conn, first)

    def check(self) -> None:
        """Check that timers fire, and that the other connection is served."""
        rung = threading.Event()
        shared_wheel.wheel.run_after(0, lambda due: rung.set())
        assert rung.wait(PATIENCE), "the timing wheel waits"
        assert self.other.request(Number(5), PATIENCE).value == 5

    def end(self) -> None:
        self.caller.abort()
        self.other.close()
        report = self.server.stop()
        assert report.finished
        assert self.caller.wait_closed(PATIENCE) and self.peer.wait_closed(PATIENCE)


Call = Callable[[Any, Server], object]


def ask(conn: Any, _: Server) -> None:
    """Make requests of which the first may be due in the midst of the second."""
    for _ in range(2):
        with suppress(RequestError):
            conn.request_async(Number(1), 0.001)


CALLS: dict[str, tuple[str, Call]] = {
    "write": ("connection.sending.send_queue", lambda conn, _: conn.write(Number(1))),
    "send": ("transport.tls_stream", lambda conn, _: conn.write(Number(1))),
    "request": ("connection.requests.making", ask),
    "close": ("connection.handling.shared_dispatcher", lambda conn, _: conn.close()),
    "finish": ("connection.handling.dispatcher", lambda conn, _: conn.close()),
    "option": ("transport.stream", lambda conn, _: conn.socket_option(6, 1)),
    "join": ("server.membership.group_index", lambda conn, _: conn.join("group")),
    "identify": ("server.membership.identities", lambda conn, _: conn.identify("name")),
    "listen": ("server.listening.shared_listener", lambda _, server: server.stop_listening()),
}
OF_SERVER = ["join", "identify", "listen"]


def talk(pair: Pair) -> None:
    for number in range(3):
        pair.peer.write(Number(number))


def abort(pair: Pair) -> None:
    pair.peer.abort()
    wait_until(lambda: pair.peer.closed)


def stop(pair: Pair) -> None:
    threading.Thread(target=pair.caller.close, name="test-close").start()


@pytest.mark.parametrize("meanwhile", [talk, abort, stop])
@pytest.mark.parametrize(
    ("name", "side"),
    [(name, side) for name in CALLS for side in ("server", "client")
     if side == "server" or name not in OF_SERVER],
)  # fmt: skip
def test_nobody_waits_for_a_call_that_is_interrupted(
    name: str, side: str, meanwhile: Callable[[Pair], None]
) -> None:
    """Whatever it does just then, timers fire, and other connections are served."""
    module, call = CALLS[name]
    for moment in opcodes(f"tao.{module}", step=STEP):
        pair = Pair(side, tls=name == "send")

        def strike(pair: Pair = pair) -> None:
            with suppress(ConnectionClosed):
                meanwhile(pair)
            pair.check()

        with moment.calling(strike), suppress(TaoError):
            call(pair.caller, pair.server)
        pair.end()
