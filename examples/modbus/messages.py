"""The messages of Modbus that this example knows: reading and writing of holding registers."""

from __future__ import annotations

from functools import partial

import tao
from tao import framing as f

#: What the frames look like; the messages below are what is in them.
PROTOCOL = f.presets.modbus_tcp()

ILLEGAL_FUNCTION, ILLEGAL_ADDRESS = 1, 2


class ReadRegisters(tao.StructMessage, number=3, byte_order="big"):
    """A request for the values of consecutive registers."""

    first: f.u16
    count: f.u16


class Registers(tao.StructMessage, number=3, byte_order="big"):
    """The reply to it; the size is that of all values, in bytes."""

    size: f.u8
    values: list[f.u16]


class WriteRegister(tao.StructMessage, number=6, byte_order="big"):
    """A request to set one register, and the reply to it, which is the same."""

    address: f.u16
    value: f.u16


class Refused:
    """The reply to a request that cannot be fulfilled; its number tells which function it was."""

    def __init__(self, function: int, code: int) -> None:
        self.message_number: int = function | 0x80
        self.code: int = code

    def serialize(self) -> bytes:
        return bytes((self.code,))

    @classmethod
    def deserialize(cls, function: int, data: bytes) -> Refused:
        return cls(function, data[0] if data else 0)


def register_replies(registry: tao.Registry) -> None:
    """Declare what a client may get."""
    for message in (Registers, WriteRegister):
        number = message.message_number
        registry.register(number, message.deserialize)
        registry.register(number | 0x80, partial(Refused.deserialize, number))
