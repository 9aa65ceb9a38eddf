"""Twisted: a Protocol on its reactor (epoll on Linux), which gathers the writes of a turn."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet import reactor as installed_reactor
from twisted.internet.protocol import Factory, Protocol

from tests.bench.peers.wire import (
    BACKLOG,
    HANDLERS,
    EchoMessage,
    Framer,
    announce,
    arguments,
    encode,
)

reactor = cast(Any, installed_reactor)


class EchoProtocol(Protocol):
    """One client."""

    transport: Any  # an ITCPTransport

    def __init__(self) -> None:
        self.framer = Framer()

    def connectionMade(self) -> None:
        """Send small replies at once."""
        self.transport.setTcpNoDelay(True)

    def dataReceived(self, data: bytes) -> None:
        """Handle every message that is whole now."""
        handlers = HANDLERS
        for message in self.framer.feed(data):
            handlers[message.message_number](self, message)

    def send(self, message: EchoMessage) -> None:
        """Write one reply; the reactor sends all of a turn together."""
        self.transport.write(encode(message))


def main() -> None:
    """Serve until killed."""
    options = arguments(__doc__).parse_args()
    factory = Factory.forProtocol(EchoProtocol)
    factory.noisy = False
    port = reactor.listenTCP(options.port, factory, backlog=BACKLOG, interface=options.host)
    announce(port.getHost().port)
    reactor.run()


if __name__ == "__main__":
    main()
