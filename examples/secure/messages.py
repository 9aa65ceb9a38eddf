"""The one message of the example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class SecretMessage:
    """Any text, as UTF-8; encrypted by TLS."""

    message_number: ClassVar[int] = 1
    text: str

    def serialize(self) -> bytes:
        return self.text.encode()

    @classmethod
    def deserialize(cls, data: bytes) -> SecretMessage:
        return cls(data.decode())
