"""A client of the time server: prints each time that it receives."""

from __future__ import annotations

import queue
import sys
from datetime import datetime

import tao
from examples._shared import arguments, plain_end
from examples.timer.messages import TimeMessage

times: queue.SimpleQueue[datetime | None] = queue.SimpleQueue()


def main() -> None:
    parser = arguments(__doc__, port=12345)
    parser.add_argument(
        "--count",
        type=int,
        default=0,
        help="number of times to print, 0 for no limit (%(default)s)",
    )
    options = parser.parse_args()

    client = tao.ClientConn((options.host, options.port), on_close=lambda conn: times.put(None))

    @client.handler(TimeMessage)
    def keep(ctx: tao.Context[TimeMessage], conn: tao.Connection) -> None:
        times.put(ctx.message.time)

    with client:
        for number, time in enumerate(iter(times.get, None), 1):
            print(f"{time.astimezone():%H:%M:%S}", flush=True)
            if number == options.count:
                return
        sys.exit(f"the server is gone: {client.close_reason}")


if __name__ == "__main__":
    with plain_end():
        main()
