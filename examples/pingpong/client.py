"""A ping-pong client: answers each pong with a ping and prints the time taken."""

from __future__ import annotations

import queue
import sys
import time

import tao
from examples._shared import arguments, plain_end
from examples.pingpong.messages import PingPongMessage

pongs: queue.SimpleQueue[str | None] = queue.SimpleQueue()


def main() -> None:
    parser = arguments(__doc__, port=12346)
    parser.add_argument("--count", type=int, default=10_000, help="number of pings (%(default)s)")
    options = parser.parse_args()

    client = tao.ClientConn((options.host, options.port), on_close=lambda conn: pongs.put(None))

    @client.handler(PingPongMessage)
    def receive(ctx: tao.Context[PingPongMessage], conn: tao.Connection) -> None:
        pongs.put(ctx.message.text)

    with client:
        start = time.perf_counter()
        for _ in range(options.count):
            client.write(PingPongMessage("ping"))
            if pongs.get() is None:
                sys.exit(f"the server is gone: {client.close_reason}")
        seconds = time.perf_counter() - start
        print(f"{options.count} times ping and pong in {seconds:.3f} s")


if __name__ == "__main__":
    with plain_end():
        main()
