"""The one message between those who know each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class SecretMessage:
    """Any text, as UTF-8; TLS sees to it that nobody else reads it."""

    message_number: ClassVar[int] = 1
    text: str

    def serialize(self) -> bytes:
        return self.text.encode()

    @classmethod
    def deserialize(cls, data: bytes) -> SecretMessage:
        return cls(data.decode())
