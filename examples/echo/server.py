"""An echo server: returns each message to its sender."""

from __future__ import annotations

import tao
from examples._shared import announce, arguments, plain_end
from examples.echo.messages import EchoMessage

server = tao.Server()


@server.handler(EchoMessage)
def echo(ctx: tao.Context[EchoMessage], conn: tao.Connection) -> None:
    conn.write(ctx.message)


if __name__ == "__main__":
    options = arguments(__doc__, port=12345).parse_args()
    with plain_end():
        address = (options.host, options.port)
        server.serve_forever(address, handle_signals=True, ready=announce("examples.echo.client"))
        print("stopped")
