"""Deadlines: one point in time shared by several consecutive waits."""

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
        """Return the seconds left, at least 0; None if there is no deadline.

        The result never exceeds the longest timeout that a lock or a join accepts.
        """
        if self._at is None:
            return None
        return min(max(0.0, self._at - time.monotonic()), threading.TIMEOUT_MAX)

    @property
    def expired(self) -> bool:
        return self._at is not None and time.monotonic() >= self._at

    def before(self, other: Deadline) -> bool:
        """Return whether this deadline is earlier than the other."""
        return self._at is not None and (other._at is None or self._at < other._at)

    def __repr__(self) -> str:
        return f"Deadline(remaining={self.remaining()})"
