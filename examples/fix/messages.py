"""The messages of FIX that this example knows."""

from __future__ import annotations

from functools import partial

import tao
from tao import framing as f

PROTOCOL = f.presets.fix("FIX.4.4")
ADMINISTRATIVE = HEARTBEAT, TEST, RESEND, RESET, LOGOUT, LOGON = "0", "1", "2", "4", "5", "A"
ORDER, EXECUTION = "D", "8"


class Fix:
    """A message: its type and its fields, by tag."""

    def __init__(self, kind: str, fields: dict[int, object]) -> None:
        self.message_number: str = kind
        self.fields: dict[int, str] = {tag: str(value) for tag, value in fields.items()}

    def serialize(self) -> bytes:
        return "".join(f"{tag}={value}\x01" for tag, value in self.fields.items()).encode()

    @classmethod
    def deserialize(cls, kind: str, data: bytes) -> Fix:
        pairs = (field.partition("=") for field in data.decode().split("\x01") if field)
        return cls(kind, {int(tag): value for tag, _, value in pairs})


def register(registry: tao.Registry, handler: tao.Handler) -> None:
    """Have a handler get all messages of a session."""
    for kind in (*ADMINISTRATIVE, ORDER, EXECUTION):
        registry.register(kind, partial(Fix.deserialize, kind), handler)
