"""A time server: prints the time every second and sends it to each client."""

from __future__ import annotations

from datetime import datetime

import tao
from examples._shared import announce, arguments, plain_end
from examples.timer.messages import TimeMessage

server = tao.Server()


def show(due: datetime) -> None:
    print(f"{due:%H:%M:%S.%f} UTC", flush=True)


def send(due: datetime, conn: tao.Connection) -> None:
    conn.write(TimeMessage(due))


# On every connection, later ones included.
server.schedule(1.0, send)

if __name__ == "__main__":
    options = arguments(__doc__, port=12345).parse_args()
    wheel = tao.TimingWheel()
    with plain_end():
        wheel.run_every(1.0, show)
        address = (options.host, options.port)
        server.serve_forever(address, handle_signals=True, ready=announce("examples.timer.client"))
        print("stopped")
    wheel.stop()
