"""Requests with tao: the server, and a client that all threads share."""

from __future__ import annotations

import contextlib
import threading

import tao
from tests.bench.peers.wire import EchoMessage, announce, arguments


class Asker:
    """Asks one server. Any thread may use it."""

    def __init__(self, port: int) -> None:
        registry = tao.Registry()
        registry.register(EchoMessage.message_number, EchoMessage.deserialize)
        self._client = tao.connect(("127.0.0.1", port), registry=registry)

    def ask(self, value: bytes) -> None:
        """Ask once and wait for the reply."""
        self._client.request(EchoMessage(value))

    def ask_many(self, value: bytes, count: int) -> None:
        """Ask many times at once, and wait for all replies."""
        message = EchoMessage(value)
        for future in [self._client.request_async(message) for _ in range(count)]:
            future.result()


def main() -> None:
    """Serve until killed."""
    options = arguments(__doc__).parse_args()
    server = tao.Server(registry=tao.Registry(), heartbeat=None)
    server.handler(EchoMessage)(lambda ctx, conn: ctx.reply(ctx.message))
    announce(server.start((options.host, options.port))[1])
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    server.stop(timeout=5)


if __name__ == "__main__":
    main()
