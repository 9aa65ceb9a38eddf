"""Requests with gRPC, its synchronous interface: bytes as they are, a channel for all threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc

from tests.bench.peers.wire import announce, arguments

WORKERS = 20


class Asker:
    """Asks one server. Any thread may use it."""

    def __init__(self, port: int) -> None:
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self._echo = self._channel.unary_unary("/bench/echo")

    def ask(self, value: bytes) -> None:
        """Ask once and wait for the reply."""
        self._echo(value)

    def ask_many(self, value: bytes, count: int) -> None:
        """Ask many times at once, and wait for all replies."""
        for future in [self._echo.future(value) for _ in range(count)]:
            future.result()


def main() -> None:
    """Serve until killed."""
    options = arguments(__doc__).parse_args()
    server = grpc.server(ThreadPoolExecutor(WORKERS))
    echo = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("bench", {"echo": echo}),)
    )
    announce(server.add_insecure_port(f"{options.host}:{options.port}"))
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
