"""When a worker that has crashed is started again, and when that makes no sense any more."""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import Final

__all__ = ["Restarts"]

# The wait before the first start again, and the longest, in seconds.
_LEAST, _MOST = 0.1, 10.0
# How long a crash counts, in seconds.
_WINDOW: Final = 60.0


class Restarts:
    """Counts crashes.

    Args:
        most: so many in a minute are too many.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        # When workers have crashed, and in which slot; the latest last.
        self._crashes: deque[tuple[float, int]] = deque()

    def crashed(self, slot: int) -> float:
        """Note a crash; return how many seconds to wait before a worker is started there again.

        The wait doubles with each crash of the slot in the last minute.
        """
        now = monotonic()
        self._crashes.append((now, slot))
        while self._crashes[0][0] < now - _WINDOW:
            self._crashes.popleft()
        same = sum(each == slot for _, each in self._crashes)
        return min(_MOST, _LEAST * 2.0 ** (same - 1))

    @property
    def too_many(self) -> bool:
        """Whether to give up."""
        return len(self._crashes) >= self._most
