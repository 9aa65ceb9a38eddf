"""Deadlines: one point in time shared by several consecutive waits."""

from __future__ import annotations

import math
import threading
import time

__all__ = ["Deadline", "is_finite"]


class Deadline:
    """One point in time that several waits share.

    Args:
        timeout: seconds from now, None for never.

    Raises:
        TypeError, ValueError: it is no number of seconds.
    """

    __slots__ = ("_at",)

    def __init__(self, timeout: float | None) -> None:
        self._at: float | None = None if timeout is None else _from_now(timeout)

    def remaining(self) -> float | None:
        """Return the seconds left, at least 0; None if there is no deadline.

        The result never exceeds the longest timeout that a lock or a join accepts.
        """
        if self._at is None:
            return None
        left = self._at - time.monotonic()
        if left < 0.0:
            return 0.0
        return left if left < threading.TIMEOUT_MAX else threading.TIMEOUT_MAX

    @property
    def expired(self) -> bool:
        return self._at is not None and time.monotonic() >= self._at

    def before(self, other: Deadline) -> bool:
        """Return whether this deadline is earlier than the other."""
        return self._at is not None and (other._at is None or self._at < other._at)

    def __repr__(self) -> str:
        return f"Deadline(remaining={self.remaining()})"


def is_finite(number: float) -> bool:
    """Return whether a number is a finite float, or an int that can be converted to one."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def _from_now(timeout: float) -> float:
    try:
        at = time.monotonic() + timeout
    except (TypeError, OverflowError) as error:
        wrong = TypeError if isinstance(error, TypeError) else ValueError
        raise wrong(f"a timeout must be a number of seconds, not {timeout!r}") from error
    if at != at:  # it would never come
        raise ValueError("a timeout must be a number of seconds, not nan")
    return at
