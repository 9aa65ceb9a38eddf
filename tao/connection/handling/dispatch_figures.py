"""What is known of a dispatcher, which any thread may read."""

from __future__ import annotations

from threading import RLock
from typing import Any

__all__ = ["DispatchFigures"]


class DispatchFigures:
    """How much waits at a dispatcher, and who runs what."""

    __slots__ = ("_inline", "_pending", "_relieved", "_turn")

    # Its owner has the turn, and owns the fields below. It is reentrant only so that the owner is
    # known. It is waited for by the connection's own threads alone.
    _turn: Any
    _inline: int  # the ident of the reading thread while it runs a batch
    _relieved: bool  # ... and the other thread has taken over the reading
    _pending: int  # messages in the inbox, and those being run by the handling thread

    @property
    def interrupted_here(self) -> bool:
        """Whether the calling thread has interrupted itself in the midst of its turn."""
        return bool(self._turn._is_owned())

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is being handled."""
        return not self._busy

    @property
    def pending(self) -> int:
        """How many messages wait or are being handled."""
        return self._pending + bool(self._inline)

    @property
    def occupies_reader(self) -> bool:
        """Whether the reading thread runs handlers, so that nothing is read meanwhile."""
        return bool(self._inline) and not self._relieved

    @property
    def _busy(self) -> bool:
        return self._inline != 0 or self._pending > 0

    def renew_turn(self) -> None:
        """In a child process: no thread has the turn."""
        self._turn = RLock()
