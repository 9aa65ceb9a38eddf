"""The context that a handler gets: of a message, or of what came with it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from tao.runtime.context import ANSWER, HEADER, Context, RequestContext
from tao.wire.arrival import Arrival

__all__ = ["ArrivalContext", "context_of"]


class ArrivalContext(RequestContext):
    """The context of a message whose frame has more fields."""

    __slots__ = ("_header",)

    def __init__(self, parent: Context, arrival: Arrival) -> None:
        super().__init__(parent, arrival.message)
        self._header = arrival.header

    def value(self, key: Hashable) -> Any:
        if key is ANSWER:
            responder = super().value(key)
            return None if responder is None else responder.answer_to(self._header)
        return self._header if key is HEADER else super().value(key)


def context_of(parent: Context, message: Any) -> RequestContext:
    """Return the context of a decoded message, or of an `Arrival`."""
    if message.__class__ is Arrival:
        return ArrivalContext(parent, message)
    return RequestContext(parent, message)
