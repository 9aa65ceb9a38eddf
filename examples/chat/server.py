"""A chat server: what one says, all hear."""

from __future__ import annotations

import tao
from examples._shared import announce, arguments, plain_end
from examples.chat.messages import ChatMessage


def came(conn: tao.Connection) -> None:
    print(f"client {conn.name} came", flush=True)


def left(conn: tao.Connection) -> None:
    print(f"client {conn.name} left: {conn.close_reason}", flush=True)


# Who does not keep up with what the others say is dropped, so that nobody has to wait for him.
server = tao.Server(on_connect=came, on_close=left, slow_consumer="close")


@server.handler(ChatMessage)
def pass_on(ctx: tao.Context[ChatMessage], conn: tao.Connection) -> None:
    server.broadcast(ctx.message)


if __name__ == "__main__":
    options = arguments(__doc__, port=12345).parse_args()
    with plain_end():
        address = (options.host, options.port)
        ready = announce("examples.chat.client")
        server.serve_forever(address, handle_signals=True, ready=ready)
        print("stopped, all has been said")
