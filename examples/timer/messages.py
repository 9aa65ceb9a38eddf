"""The one message of the time server."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import ClassVar

SECONDS = struct.Struct("<d")


@dataclass(frozen=True)
class TimeMessage:
    """A time; on the wire, seconds since the Unix epoch as a little-endian float64."""

    message_number: ClassVar[int] = 1
    time: datetime

    def serialize(self) -> bytes:
        return SECONDS.pack(self.time.timestamp())

    @classmethod
    def deserialize(cls, data: bytes) -> TimeMessage:
        (seconds,) = SECONDS.unpack(data)
        return cls(datetime.fromtimestamp(seconds, timezone.utc))
