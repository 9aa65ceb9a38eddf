"""A ping-pong server with a monitor to open in a browser."""

from __future__ import annotations

import tao
from examples._shared import announce, arguments, plain_end
from examples.pingpong.messages import PingPongMessage

server = tao.Server()


@server.handler(PingPongMessage)
def reply(ctx: tao.Context[PingPongMessage], conn: tao.Connection) -> None:
    conn.write(PingPongMessage("pong"))


if __name__ == "__main__":
    parser = arguments(__doc__, port=12346)
    parser.add_argument(
        "--monitor", type=int, default=12345, help="port of the monitor (%(default)s)"
    )
    options = parser.parse_args()
    with plain_end(), tao.monitor_on(options.monitor) as monitor:
        print(f"figures at {monitor.url}/debug/vars", flush=True)
        address = (options.host, options.port)
        ready = announce("examples.pingpong.client")
        server.serve_forever(address, handle_signals=True, ready=ready)
        print("stopped")
