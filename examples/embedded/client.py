"""A client of the workshop: sends an order and prints notices until the result arrives."""

from __future__ import annotations

import queue
import sys

import tao
from examples._shared import arguments, plain_end
from examples.embedded.messages import Notice, Order

notices: queue.SimpleQueue[str | None] = queue.SimpleQueue()


def main() -> None:
    parser = arguments(__doc__, port=12345)
    parser.add_argument("numbers", nargs="*", type=int, default=[1071, 462], help="two integers")
    options = parser.parse_args()
    if len(options.numbers) != 2:
        parser.error("two numbers are needed")

    client = tao.ClientConn((options.host, options.port), on_close=lambda conn: notices.put(None))

    @client.handler(Notice)
    def keep(ctx: tao.Context[Notice], conn: tao.Connection) -> None:
        notices.put(ctx.message.text)

    with client:
        client.write(Order(*options.numbers))
        for text in iter(notices.get, None):
            print(text)
            if text.startswith("the result"):
                return
        sys.exit(f"the server is gone: {client.close_reason}")


if __name__ == "__main__":
    with plain_end():
        main()
