"""Whether a connection is read at the moment, and if not, why."""

from __future__ import annotations

__all__ = ["ReadingGate"]


class ReadingGate:
    """The reasons for which a connection is not read. A peer is not silent if nobody listens.

    Each reason is given and taken back by one part of the connection; any thread may look.
    """

    __slots__ = ("_reasons",)

    def __init__(self) -> None:
        self._reasons: set[str] = set()  # adding and discarding are single steps

    def pause(self, reason: str) -> None:
        """Note that nothing is read, until `resume` is called with the same reason."""
        self._reasons.add(reason)

    def resume(self, reason: str) -> None:
        """Take a reason back."""
        self._reasons.discard(reason)

    @property
    def paused(self) -> bool:
        """Whether there is a reason."""
        return bool(self._reasons)
