"""asyncio's high-level interface: a coroutine per connection on StreamReader and StreamWriter."""

from __future__ import annotations

import asyncio
import logging

from tests.bench.peers.wire import (
    BACKLOG,
    DECODERS,
    HANDLERS,
    HEADER,
    EchoMessage,
    announce,
    arguments,
    encode,
)

READ_LIMIT = 1 << 20  # bytes buffered before reading pauses; the default of 64 KiB suits no 1 MiB


class Connection:
    """One client; asyncio sets TCP_NODELAY by itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, message: EchoMessage) -> None:
        """Send one reply."""
        self.writer.write(encode(message))

    async def serve(self) -> None:
        """Answer message after message until the peer closes."""
        read, drain, unpack = self.reader.readexactly, self.writer.drain, HEADER.unpack
        try:
            while True:
                number, length = unpack(await read(8))
                HANDLERS[number](self, DECODERS[number](await read(length)))
                await drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.writer.close()


async def serve(host: str, port: int) -> None:
    """Serve until killed."""
    logging.disable()  # a line for each client that went away would cost the next measurement

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Connection(reader, writer).serve()

    server = await asyncio.start_server(accepted, host, port, backlog=BACKLOG, limit=READ_LIMIT)
    announce(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def main() -> None:
    """Read the command line and serve."""
    options = arguments(__doc__).parse_args()
    asyncio.run(serve(options.host, options.port))


if __name__ == "__main__":
    main()
