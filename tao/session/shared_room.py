"""The room that all sessions of a server share for what is not acknowledged.

Half of it belongs to whichever sessions need it. The other half is divided: a session that keeps
less than its equal share always has room. So clients that do not read, or do not come back, fill
the first half at most, and a slow client costs its own connection only.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Protocol

from tao.atomic import AtomicInt64

__all__ = ["SharedRoom", "Waiting"]

# How many bytes a session keeps at most before they are counted, as that would cost too much for
# each send; and how many such steps its equal share has at least.
_STEP, _PARTS = 64 * 1024, 16


class Waiting(Protocol):
    """What waits for room."""

    def go_on(self) -> None:
        """Try again; it does not wait. Any thread may call it, but none that sends."""


class SharedRoom:
    """Counts what the sessions keep, and wakes those that wait. Any thread may call any method.

    An exception between two steps of a session leaves the count too low by one piece at most:
    rather that than room that never comes back.

    Args:
        size: about how many bytes the sessions may keep together.
        sharing: the sessions; only their number matters.
    """

    __slots__ = ("_half", "_kept", "_sharing", "_waiting")

    def __init__(self, size: int, sharing: Sized) -> None:
        self._half: int = max(1, size // 2)
        self._sharing = sharing
        self._kept = AtomicInt64()
        # In the order in which they began to wait.
        self._waiting: dict[Waiting, None] = {}

    @property
    def step(self) -> int:
        """In steps of how many bytes a session counts what it keeps."""
        share = self._half // (len(self._sharing) or 1)
        return max(1, min(_STEP, share // _PARTS))

    @property
    def kept(self) -> int:
        """About how many bytes the sessions keep together."""
        return max(0, self._kept.get())

    def change(self, by: int) -> None:
        """Count bytes that a session keeps, or fewer."""
        self._kept.add_and_get(by)

    def has_room(self, kept: int) -> bool:
        """Whether a session may keep more than so many bytes."""
        return kept * (len(self._sharing) or 1) < self._half or self._kept.get() < self._half

    def wait(self, waiting: Waiting) -> None:
        """Have something told when there is room; it has to look once more after this."""
        self._waiting[waiting] = None

    def leave(self, waiting: Waiting) -> None:
        """Tell it no more."""
        self._waiting.pop(waiting, None)

    def make_way(self, *, everyone: bool = False) -> None:
        """Have those that wait try again as long as there is room. Not for a thread that sends.

        Args:
            everyone: whether all of them are to try, as their shares have grown.
        """
        if self._waiting:
            waiting = list(self._waiting)
            try:
                self._wake(waiting, everyone)
            except BaseException:
                self._wake(waiting, everyone)  # waking twice is harmless, a missed wake-up is not
                raise

    def _wake(self, waiting: list[Waiting], everyone: bool) -> None:
        for each in waiting:
            if not everyone and self._kept.get() >= self._half:
                return
            self._waiting.pop(each, None)
            each.go_on()
