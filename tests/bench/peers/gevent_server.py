"""gevent: a greenlet per connection, blocking style on a libev loop."""

from __future__ import annotations

import socket

from gevent.server import StreamServer
from gevent.socket import socket as GeventSocket

from tests.bench.peers.wire import (
    BACKLOG,
    HANDLERS,
    RECEIVE_SIZE,
    EchoMessage,
    Framer,
    announce,
    arguments,
    encode,
)


class Connection:
    """One client."""

    def __init__(self, client: GeventSocket) -> None:
        self.client = client
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, message: EchoMessage) -> None:
        """Send one reply."""
        self.client.sendall(encode(message))

    def serve(self) -> None:
        """Answer until the peer closes."""
        receive, feed, handlers = self.client.recv, Framer().feed, HANDLERS
        try:
            while data := receive(RECEIVE_SIZE):
                for message in feed(data):
                    handlers[message.message_number](self, message)
        except ConnectionError:
            pass


def accepted(client: GeventSocket, _address: object) -> None:
    """Serve one accepted connection."""
    Connection(client).serve()


def main() -> None:
    """Serve until killed."""
    options = arguments(__doc__).parse_args()
    server = StreamServer((options.host, options.port), accepted, backlog=BACKLOG)
    server.start()
    announce(int(server.address[1]))
    server.serve_forever()


if __name__ == "__main__":
    main()
