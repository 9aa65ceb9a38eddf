"""Deadlines: one point in time that several waits in a row share."""

from __future__ import annotations

import threading
import time

__all__ = ["Deadline"]


class Deadline:
    """One point in time that several waits share.

    Args:
        timeout: seconds from now, None for never.
    """

    __slots__ = ("_at",)

    def __init__(self, timeout: float | None) -> None:
        self._at: float | None = None if timeout is None else time.monotonic() + timeout

    def remaining(self) -> float | None:
        """Return the seconds left, never negative; None for a deadline that never comes.

        It is never more than a lock or a join takes as its timeout, whatever was asked for.
        """
        if self._at is None:
            return None
        return min(max(0.0, self._at - time.monotonic()), threading.TIMEOUT_MAX)

    @property
    def expired(self) -> bool:
        return self._at is not None and time.monotonic() >= self._at

    def before(self, other: Deadline) -> bool:
        """Tell whether this comes before the other."""
        return self._at is not None and (other._at is None or self._at < other._at)

    def __repr__(self) -> str:
        return f"Deadline(remaining={self.remaining()})"
