"""tao in several processes: a supervisor and its workers, with a handler that may compute."""

from __future__ import annotations

import io
import json
import os
import socket
import sys
from contextlib import redirect_stdout

import tao
from tests.bench.peers.wire import BACKLOG, EchoMessage, announce, arguments, compute

# What the workers, which are new interpreters, are told of the command line.
_TOLD = "TAO_BENCH"
readers, microseconds = json.loads(os.environ.get(_TOLD, '["own", 0]'))

server = tao.Server(registry=tao.Registry(), heartbeat=None, readers=readers)


@server.handler(EchoMessage)
def echo(ctx: tao.Context, conn: tao.Connection) -> None:
    """Compute, and send the message back."""
    compute(microseconds)
    conn.write(ctx.message)


class _Announcement(io.StringIO):
    """Gets what the supervisor prints, and announces the port when all workers serve."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port

    def write(self, text: str) -> int:
        """Take a part of a line."""
        if " listens at " in text:
            with redirect_stdout(sys.__stdout__):
                announce(self._port)
        return len(text)


def main() -> int:
    """Serve until killed."""
    parser = arguments(__doc__)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--microseconds", type=float, default=0.0, help="that the handler computes")
    parser.add_argument("--readers", choices=("own", "shared"), default="own")
    options = parser.parse_args()
    os.environ[_TOLD] = json.dumps([options.readers, options.microseconds])
    listening = socket.create_server((options.host, options.port), backlog=BACKLOG)
    target = "tests.bench.peers.tao_processes:server"
    with redirect_stdout(_Announcement(listening.getsockname()[1])):
        return tao.serve(target, processes=options.processes, address=listening)


if __name__ == "__main__":
    sys.exit(main())
