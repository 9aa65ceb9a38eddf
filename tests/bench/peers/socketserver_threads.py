"""The standard library's threaded server: one thread per connection, blocking reads and writes."""

from __future__ import annotations

import socket
import socketserver
import time

from tests.bench.peers.wire import (
    BACKLOG,
    DECODERS,
    HANDLERS,
    HEADER,
    RECEIVE_SIZE,
    EchoMessage,
    announce,
    arguments,
    encode,
)


class EchoHandler(socketserver.StreamRequestHandler):
    """Serve one connection; ``rfile`` is buffered, ``wfile`` sends at once."""

    rbufsize = RECEIVE_SIZE
    disable_nagle_algorithm = True
    sleep_seconds = 0.0

    def handle(self) -> None:
        """Answer message after message until the peer closes."""
        read, unpack = self.rfile.read, HEADER.unpack
        while len(header := read(8)) == 8:
            number, length = unpack(header)
            message = DECODERS[number](read(length))
            if self.sleep_seconds:
                time.sleep(self.sleep_seconds)
            HANDLERS[number](self, message)

    def send(self, message: EchoMessage) -> None:
        """Send one reply."""
        self.wfile.write(encode(message))


class Server(socketserver.ThreadingTCPServer):
    """The threaded server with a backlog that fits the load."""

    request_queue_size = BACKLOG
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: a load generator resets its connections when it ends."""


def main() -> None:
    """Serve until killed."""
    parser = arguments(__doc__)
    parser.add_argument("--sleep-ms", type=float, default=0.0)
    options = parser.parse_args()
    EchoHandler.sleep_seconds = options.sleep_ms / 1000
    with Server((options.host, options.port), EchoHandler) as server:
        assert isinstance(server.socket, socket.socket)
        announce(server.server_address[1])
        server.serve_forever()


if __name__ == "__main__":
    main()
