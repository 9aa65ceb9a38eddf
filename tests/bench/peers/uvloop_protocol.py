"""The asyncio Protocol on uvloop, the event loop that is written in C on libuv."""

from __future__ import annotations

import asyncio

import uvloop

from tests.bench.peers.asyncio_protocol import parse, serve


def main() -> None:
    """Read the command line and serve until killed."""
    options = parse(__doc__)
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(serve(options))


if __name__ == "__main__":
    main()
