"""The orders that the workshop takes and the notices that it sends."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

TWO_NUMBERS = struct.Struct("<qq")


@dataclass(frozen=True)
class Order:
    """A request for the greatest common divisor of two numbers."""

    message_number: ClassVar[int] = 1
    first: int
    second: int

    def serialize(self) -> bytes:
        return TWO_NUMBERS.pack(self.first, self.second)

    @classmethod
    def deserialize(cls, data: bytes) -> Order:
        return cls(*TWO_NUMBERS.unpack(data))


@dataclass(frozen=True)
class Notice:
    """A text, as UTF-8 on the wire."""

    message_number: ClassVar[int] = 2
    text: str

    def serialize(self) -> bytes:
        return self.text.encode()

    @classmethod
    def deserialize(cls, data: bytes) -> Notice:
        return cls(data.decode())
