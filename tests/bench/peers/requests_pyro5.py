"""Requests with Pyro5: its threaded daemon, marshal, and a proxy for each thread."""

from __future__ import annotations

import threading
from typing import Any

import Pyro5.api

from tests.bench.peers.wire import announce, arguments

Pyro5.api.config.SERIALIZER = "marshal"  # its fastest


@Pyro5.api.expose
class Echo:
    """The service."""

    def echo(self, value: bytes) -> bytes:
        """Return what was asked."""
        return value


class Asker:
    """Asks one server. Any thread may use it."""

    def __init__(self, port: int) -> None:
        self._uri = f"PYRO:echo@127.0.0.1:{port}"
        self._local = threading.local()

    @property
    def _proxy(self) -> Any:
        try:
            return self._local.proxy
        except AttributeError:
            self._local.proxy = Pyro5.api.Proxy(self._uri)
            return self._local.proxy

    def ask(self, value: bytes) -> None:
        """Ask once and wait for the reply."""
        self._proxy.echo(value)

    def ask_many(self, value: bytes, count: int) -> None:
        """Ask many times in one batch, which is its way of doing so."""
        self._proxy._pyroSerializer = "serpent"  # as marshal cannot encode a batch
        batch = Pyro5.api.BatchProxy(self._proxy)
        for _ in range(count):
            batch.echo(value)
        for _ in batch():
            pass


def main() -> None:
    """Serve until killed."""
    options = arguments(__doc__).parse_args()
    daemon = Pyro5.api.Daemon(host=options.host, port=options.port)
    daemon.register(Echo, "echo")
    announce(int(daemon.locationStr.rpartition(":")[2]))
    daemon.requestLoop()


if __name__ == "__main__":
    main()
