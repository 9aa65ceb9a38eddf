"""Requests with rpyc: its threaded server, and a connection for each thread."""

from __future__ import annotations

import threading
from typing import Any

import rpyc
from rpyc.utils.server import ThreadedServer

from tests.bench.peers.wire import announce, arguments


class Echo(rpyc.Service):  # type: ignore[misc]
    """The service."""

    def exposed_echo(self, value: bytes) -> bytes:
        """Return what was asked."""
        return value


class Asker:
    """Asks one server. Any thread may use it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._local = threading.local()

    def _root(self) -> Any:
        try:
            return self._local.conn.root
        except AttributeError:
            self._local.conn = rpyc.connect("127.0.0.1", self._port)
            self._local.later = rpyc.async_(self._local.conn.root.echo)
            return self._local.conn.root

    def ask(self, value: bytes) -> None:
        """Ask once and wait for the reply."""
        self._root().echo(value)

    def ask_many(self, value: bytes, count: int) -> None:
        """Ask many times at once, and wait for all replies."""
        self._root()
        for result in [self._local.later(value) for _ in range(count)]:
            result.wait()


def main() -> None:
    """Serve until killed."""
    options = arguments(__doc__).parse_args()
    server = ThreadedServer(Echo, hostname=options.host, port=options.port)
    announce(server.port)
    server.start()


if __name__ == "__main__":
    main()
