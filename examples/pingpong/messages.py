"""The one message of ping-pong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class PingPongMessage:
    """ "ping" or "pong", as UTF-8 on the wire."""

    message_number: ClassVar[int] = 1
    text: str

    def serialize(self) -> bytes:
        return self.text.encode()

    @classmethod
    def deserialize(cls, data: bytes) -> PingPongMessage:
        return cls(data.decode())
