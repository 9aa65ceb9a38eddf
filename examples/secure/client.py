"""A client that authenticates itself and the server (mutual TLS)."""

from __future__ import annotations

import queue
import sys
from pathlib import Path

import tao
from examples._shared import arguments, plain_end
from examples.secure import certificates
from examples.secure.messages import SecretMessage

replies: queue.SimpleQueue[str | None] = queue.SimpleQueue()


def main() -> None:
    parser = arguments(__doc__, port=12345)
    parser.add_argument("--certs", type=Path, default=certificates.DIRECTORY, help="a directory")
    parser.add_argument("--name", default="alice", help="alice or bob (%(default)s)")
    options = parser.parse_args()

    client = tao.ClientConn(
        (options.host, options.port),
        tls=certificates.of_client(options.certs, options.name),
        on_close=lambda conn: replies.put(None),
    )

    @client.handler(SecretMessage)
    def keep(ctx: tao.Context[SecretMessage], conn: tao.Connection) -> None:
        replies.put(ctx.message.text)

    with client:
        client.write(SecretMessage("hello"))
        reply = replies.get()
        if reply is None:
            sys.exit(f"the server is gone: {client.close_reason}")
        print(reply)


if __name__ == "__main__":
    with plain_end():
        main()
