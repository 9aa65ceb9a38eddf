"""HL7 version 2 in MLLP: the whole message is the body of a frame."""

from __future__ import annotations

import hl7

import tao


class HL7:
    """An HL7 message, parsed."""

    message_number = 1

    def __init__(self, content: hl7.Message) -> None:
        self.content: hl7.Message = content

    def serialize(self) -> bytes:
        text: str = str(self.content)
        return text.encode()

    @classmethod
    def deserialize(cls, data: bytes) -> HL7:
        try:
            return cls(hl7.parse(data.decode()))
        except (ValueError, hl7.HL7Exception) as error:
            raise tao.BadData(f"not an HL7 message: {type(error).__name__}") from error
