"""An echo client: sends a text several times and prints the replies."""

from __future__ import annotations

import queue
import sys

import tao
from examples._shared import arguments, plain_end
from examples.echo.messages import EchoMessage

replies: queue.SimpleQueue[str | None] = queue.SimpleQueue()


def main() -> None:
    parser = arguments(__doc__, port=12345)
    parser.add_argument("--count", type=int, default=10, help="number of messages (%(default)s)")
    parser.add_argument("text", nargs="?", default="hello, world", help="the text to send")
    options = parser.parse_args()

    client = tao.ClientConn((options.host, options.port), on_close=lambda conn: replies.put(None))

    @client.handler(EchoMessage)
    def keep(ctx: tao.Context[EchoMessage], conn: tao.Connection) -> None:
        replies.put(ctx.message.text)

    with client:
        for _ in range(options.count):
            client.write(EchoMessage(options.text), timeout=10)
        for _ in range(options.count):
            reply = replies.get()
            if reply is None:
                sys.exit(f"the server is gone: {client.close_reason}")
            print(reply)


if __name__ == "__main__":
    with plain_end():
        main()
