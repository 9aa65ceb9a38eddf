"""asyncio's low-level interface: a Protocol that writes each reply to its transport.

``--gather`` joins the replies of one ``data_received`` and writes them at once instead.
``--broadcast`` sends each message to every connection.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from typing import ClassVar, cast

from tests.bench.peers.wire import (
    BACKLOG,
    HANDLERS,
    EchoMessage,
    Framer,
    announce,
    arguments,
    encode,
    server_tls,
)


class EchoProtocol(asyncio.Protocol):
    """One client; asyncio and uvloop set TCP_NODELAY by themselves."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.framer = Framer()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Handle every message that is whole now."""
        handlers = HANDLERS
        for message in self.framer.feed(data):
            handlers[message.message_number](self, message)

    def send(self, message: EchoMessage) -> None:
        """Write one reply."""
        self.transport.write(encode(message))


class GatheringProtocol(EchoProtocol):
    """The same, with one write for all the replies of one ``data_received``."""

    def __init__(self) -> None:
        super().__init__()
        self.replies: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        """Handle every message that is whole now, then write what was answered."""
        super().data_received(data)
        if self.replies:
            self.transport.write(b"".join(self.replies))
            self.replies.clear()

    def send(self, message: EchoMessage) -> None:
        """Keep one reply for the write that follows."""
        self.replies.append(encode(message))


class BroadcastingProtocol(EchoProtocol):
    """Every message goes to all connections; it is encoded once."""

    transports: ClassVar[set[asyncio.Transport]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Join the others."""
        super().connection_made(transport)
        self.transports.add(self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave the others."""
        self.transports.discard(self.transport)

    def send(self, message: EchoMessage) -> None:
        """Write the message to everyone."""
        frame = encode(message)
        for transport in self.transports:
            transport.write(frame)


async def serve(options: argparse.Namespace) -> None:
    """Serve until killed."""
    logging.disable()  # a line for each client that went away would cost the next measurement
    protocol: type[EchoProtocol] = EchoProtocol
    if options.gather:
        protocol = GatheringProtocol
    if options.broadcast:
        protocol = BroadcastingProtocol
    server = await asyncio.get_running_loop().create_server(
        protocol, options.host, options.port, backlog=BACKLOG, ssl=server_tls(options.tls)
    )
    announce(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def parse(description: str | None) -> argparse.Namespace:
    """Read the command line, which the uvloop peer shares."""
    parser = arguments(description)
    parser.add_argument("--gather", action="store_true")
    parser.add_argument("--broadcast", action="store_true")
    parser.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"))
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(serve(parse(__doc__)))
