"""A chat client: type lines; "bye" leaves."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator

import tao
from examples._shared import arguments, plain_end
from examples.chat.messages import ChatMessage

STDIN = 0


def main() -> None:
    options = arguments(__doc__, port=12345).parse_args()
    closed, closing = os.pipe()  # readable once its other end is closed

    client = tao.ClientConn((options.host, options.port), on_close=lambda conn: os.close(closing))

    @client.handler(ChatMessage)
    def show(ctx: tao.Context[ChatMessage], conn: tao.Connection) -> None:
        print(ctx.message.text.rstrip("\n"), flush=True)

    with client:
        print('connected; type something, "bye" leaves', flush=True)
        for line in typed(until=closed):
            if line == "bye":
                break
            client.write(ChatMessage(line + "\n"), timeout=10)
        if client.closed:
            sys.exit(f"the server is gone: {client.close_reason}")


def typed(until: int) -> Iterator[str]:
    """Yield typed lines until a descriptor becomes readable, which input() cannot do."""
    rest = b""
    while until not in select.select([STDIN, until], [], [])[0]:
        data = os.read(STDIN, 4096)
        *lines, rest = (rest + data).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)
        if not data:
            break


if __name__ == "__main__":
    with plain_end():
        main()
