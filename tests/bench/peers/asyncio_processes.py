"""asyncio in several processes, each with a socket of its own at the same port (SO_REUSEPORT)."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import signal
import socket
import sys
from multiprocessing.synchronize import Barrier

from tests.bench.peers.asyncio_protocol import EchoProtocol
from tests.bench.peers.wire import BACKLOG, EchoMessage, announce, arguments, compute


class ComputingProtocol(EchoProtocol):
    """Computes for each message."""

    microseconds = 0.0

    def send(self, message: EchoMessage) -> None:
        """Compute, and write the reply."""
        compute(self.microseconds)
        super().send(message)


async def serve(host: str, port: int, ready: Barrier) -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_server(
        ComputingProtocol, host, port, backlog=BACKLOG, reuse_port=True
    )
    ready.wait()
    await server.serve_forever()


def run(host: str, port: int, microseconds: float, ready: Barrier) -> None:
    """Be one of the processes."""
    logging.disable()  # a line for each client that went away would cost the next measurement
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ComputingProtocol.microseconds = microseconds
    asyncio.run(serve(host, port, ready))


def main() -> None:
    """Start the processes, and end them when this one is ended."""
    parser = arguments(__doc__)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--microseconds", type=float, default=0.0, help="that the handler computes")
    options = parser.parse_args()
    with socket.socket() as sock:  # bound only: it has the port, and gets no connections
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((options.host, options.port))
        port = sock.getsockname()[1]
        fork = multiprocessing.get_context("fork")
        ready = fork.Barrier(options.processes + 1)
        words = (options.host, port, options.microseconds, ready)
        children = [fork.Process(target=run, args=words) for _ in range(options.processes)]
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        try:
            for child in children:
                child.start()
            ready.wait()
            announce(port)
            signal.pause()
        finally:
            for child in children:
                child.terminate()


if __name__ == "__main__":
    main()
