"""Programs of `test_sessions_survive.py`: ``python -m tests.session_programs NAME ...``.

They print what happens to them, a line each.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import tao
from tao.connection.connection import core_of
from tests.ends import Number, Seen
from tests.session_pairs import established, values
from tests.support import wait_until


def tell(*what: object) -> None:
    print(*what, flush=True)


def server() -> None:
    """A server that tells what it handles, and writes the numbers that are typed."""
    it = tao.Server(sessions=tao.Sessions())
    it.handler(Number)(lambda ctx, conn: tell("handled", ctx.message.value))
    tell("port", it.start(("127.0.0.1", 0))[1])
    sys.stdin.read()


def client(port: str) -> None:
    """A client that tells what it handles."""
    it = tao.ClientConn(("127.0.0.1", int(port)), session="required", reconnect=True)
    it.handler(Number)(lambda ctx, conn: tell("handled", ctx.message.value))
    it.start()
    tell("connected")
    sys.stdin.read()


def fork(readers: str, when: str) -> None:
    """Both ends, and a child of that process, before which a link may have been lost."""
    at_server, at_client = Seen(), Seen()
    it = tao.Server(sessions=tao.Sessions(), readers=readers)
    it.handler(Number)(lambda ctx, conn: at_server.add(ctx.message.value))
    address = it.start(("127.0.0.1", 0))
    registry = tao.Registry()
    registry.handler(Number)(lambda ctx, conn: at_client.add(ctx.message.value))
    mine: Any = tao.ClientConn(
        address,
        registry=registry,
        session="required",
        reconnect=tao.Reconnect(initial=0.01),
        readers=readers,
        on_session_lost=lambda conn, lost: tell("lost", values(lost)),
    )
    mine.start()
    wait_until(lambda: it.connections and all(map(established, [mine, it.connections[0]])))
    conn: Any = it.connections[0]
    if when == "lost":
        core_of(mine).transport.outlives("the program says so")
    child = os.fork()
    if not child:
        for end in (mine, conn):
            try:
                end.write(Number(9))
            except tao.ConnectionClosed:
                tell("closed")
        os._exit(0)
    os.waitpid(child, 0)
    mine.write(Number(1))
    conn.write(Number(2))
    core_of(mine).transport.outlives("the program says so")
    mine.write(Number(3))
    conn.write(Number(4))
    tell(at_server.wait(2), at_client.wait(2))
    mine.close()
    it.stop()


if __name__ == "__main__":
    {"server": server, "client": client, "fork": fork}[sys.argv[1]](*sys.argv[2:])
