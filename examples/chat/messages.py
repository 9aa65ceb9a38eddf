"""The one message of the chat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import tao


@dataclass(frozen=True)
class ChatMessage:
    """A line of text, as UTF-8 on the wire."""

    message_number: ClassVar[int] = 1
    text: str

    def serialize(self) -> bytes:
        return self.text.encode()

    @classmethod
    def deserialize(cls, data: bytes) -> ChatMessage:
        try:
            return cls(data.decode())
        except UnicodeDecodeError as error:
            raise tao.BadData(f"not UTF-8: {error}") from error
