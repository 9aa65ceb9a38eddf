"""A Modbus TCP server with a hundred holding registers."""

from __future__ import annotations

import tao
from examples._shared import announce, arguments, plain_end
from examples.modbus.messages import (
    ILLEGAL_ADDRESS,
    ILLEGAL_FUNCTION,
    PROTOCOL,
    ReadRegisters,
    Refused,
    Registers,
    WriteRegister,
)

server = tao.Server(codec=PROTOCOL)
registers = [0] * 100


@server.handler(ReadRegisters)
def read(ctx: tao.Context[ReadRegisters], conn: tao.Connection) -> None:
    first, count = ctx.message.first, ctx.message.count
    values = registers[first : first + count]
    if count and len(values) == count:
        ctx.reply(Registers(2 * count, values))  # as the request's unit, with its transaction
    else:
        ctx.reply(Refused(ReadRegisters.message_number, ILLEGAL_ADDRESS))


@server.handler(WriteRegister)
def write(ctx: tao.Context[WriteRegister], conn: tao.Connection) -> None:
    try:
        registers[ctx.message.address] = ctx.message.value
    except IndexError:
        ctx.reply(Refused(WriteRegister.message_number, ILLEGAL_ADDRESS))
    else:
        ctx.reply(ctx.message)


@server.handler(tao.ANY)
def refuse(ctx: tao.Context[tao.UnknownMessage], conn: tao.Connection) -> None:
    function = ctx.message.number
    assert isinstance(function, int)
    ctx.reply(Refused(function, ILLEGAL_FUNCTION))


if __name__ == "__main__":
    options = arguments(__doc__, port=5020).parse_args()
    with plain_end():
        address = (options.host, options.port)
        server.serve_forever(address, handle_signals=True, ready=announce("examples.modbus.client"))
        print("stopped")
