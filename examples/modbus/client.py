"""A Modbus TCP client: sets a register if told to, and prints the registers."""

from __future__ import annotations

import sys
from typing import Any

import tao
from examples._shared import arguments, plain_end
from examples.modbus.messages import (
    PROTOCOL,
    ReadRegisters,
    Refused,
    WriteRegister,
    register_replies,
)


def main() -> None:
    parser = arguments(__doc__, port=5020)
    parser.add_argument("--unit", type=int, default=1, help="the device (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first register (%(default)s)")
    parser.add_argument("--count", type=int, default=10, help="how many (%(default)s)")
    parser.add_argument("--set", type=int, metavar="VALUE", help="set the first one before")
    options = parser.parse_args()

    # Many devices answer one request at a time.
    client = tao.ClientConn((options.host, options.port), codec=PROTOCOL, max_in_flight=1)
    register_replies(client.registry)

    def ask(message: Any) -> Any:
        reply = client.request(message, timeout=5, header={"unit": options.unit})
        if isinstance(reply, Refused):
            sys.exit(f"the server refuses: exception {reply.code}")
        return reply

    with client:
        if options.set is not None:
            ask(WriteRegister(options.first, options.set))
        print(*ask(ReadRegisters(options.first, options.count)).values)


if __name__ == "__main__":
    with plain_end():
        main()
