"""What came with a message: the other fields of its frame."""

from __future__ import annotations

from typing import Any

__all__ = ["Arrival"]


class Arrival:
    """A decoded message together with the header of its frame.

    A decoder appends it to the batch in place of the message. Handlers get the message alone;
    ``ctx.header`` is the header.

    Args:
        message: what the registered ``deserialize`` has returned.
        header: the other fields of the frame, as attributes.
    """

    __slots__ = ("header", "message")

    def __init__(self, message: Any, header: Any) -> None:
        self.message = message
        self.header = header
