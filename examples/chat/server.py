"""A chat server: every line is sent to all clients."""

from __future__ import annotations

import tao
from examples._shared import announce, arguments, plain_end
from examples.chat.messages import ChatMessage


def joined(conn: tao.Connection) -> None:
    print(f"client {conn.name} joined", flush=True)


def left(conn: tao.Connection) -> None:
    print(f"client {conn.name} left: {conn.close_reason}", flush=True)


# A client that does not keep up is disconnected, rather than missing lines unnoticed.
server = tao.Server(on_connect=joined, on_close=left, slow_consumer="close")


@server.handler(ChatMessage)
def pass_on(ctx: tao.Context[ChatMessage], conn: tao.Connection) -> None:
    server.broadcast(ctx.message)


if __name__ == "__main__":
    options = arguments(__doc__, port=12345).parse_args()
    with plain_end():
        address = (options.host, options.port)
        ready = announce("examples.chat.client")
        server.serve_forever(address, handle_signals=True, ready=ready)
        print("stopped")
