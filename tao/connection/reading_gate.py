"""Whether a connection is read at the moment, and if not, why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

__all__ = ["ReadingGate", "SharedGate"]


class ReadingGate:
    """The reasons why a connection is not read. An unread peer does not count as silent.

    Each reason is given and taken back by one part of the connection; any thread may look.
    """

    __slots__ = ("_reasons",)

    #: Whether the thread that reads may wait on behalf of this connection.
    may_wait: bool = True

    def __init__(self) -> None:
        # Changed in single steps. It is a dict, as an empty set takes three times the memory.
        self._reasons: dict[str, None] = {}

    def pause(self, reason: str) -> None:
        """Note that nothing is read, until `resume` is called with the same reason."""
        self._reasons[reason] = None

    def resume(self, reason: str) -> None:
        """Take a reason back."""
        self._reasons.pop(reason, None)

    def open(self) -> None:
        """Take all reasons back."""
        for reason in list(self._reasons):
            self.resume(reason)

    def lift(self, reason: str) -> bool:
        """Take a reason back, and tell nobody: the caller does. Return whether there is another."""
        self._reasons.pop(reason, None)
        return bool(self._reasons)

    def call_back(self, function: Callable[[], object]) -> None:
        """Have the reading thread call a function, where it may not wait."""

    @property
    def paused(self) -> bool:
        """Whether there is a reason."""
        return bool(self._reasons)


class Gated(Protocol):
    """What is told by a gate, of the roles of a connection. Any thread calls it."""

    def sync(self) -> None:
        """Note that the gate was opened or closed. It does not wait."""

    def call_back(self, function: Callable[[], object]) -> None:
        """Have the leader call a function, as a turn of the connection."""


class SharedGate(ReadingGate):
    """A reading gate that tells when it is opened or closed.

    Args:
        roles: of the connection.
    """

    __slots__ = ("_roles",)

    may_wait = False

    def __init__(self, roles: Gated) -> None:
        super().__init__()
        self._roles = roles

    def call_back(self, function: Callable[[], object]) -> None:
        """See `ReadingGate.call_back`."""
        self._roles.call_back(function)

    def pause(self, reason: str) -> None:
        """See `ReadingGate.pause`."""
        if reason not in self._reasons:
            self._reasons[reason] = None
            self._roles.sync()

    def resume(self, reason: str) -> None:
        """See `ReadingGate.resume`."""
        if reason in self._reasons:
            self._reasons.pop(reason, None)
            self._roles.sync()
