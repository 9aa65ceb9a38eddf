"""Rate limits, and warnings about exceeded limits that do not flood the log.

Limits are token buckets (the "leaky bucket" of ITU-T I.371, 1993): tokens arrive at a steady rate
and are kept up to a burst size, and each event takes one. So bursts pass as long as the average
stays within the rate.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tao.atomic import AtomicInt64, AtomicReference
from tao.runtime.log import logger

__all__ = ["FloodLog", "TokenBucket"]


class TokenBucket:
    """A token bucket.

    No method blocks. Each may be called from any thread, signal handler or finalizer.

    Args:
        rate: tokens per second.
        burst: capacity in tokens; the bucket starts full. None: the tokens of one second, but at
            least one.
        clock: returns the time in seconds; must never go back.

    Raises:
        ValueError: the rate is not positive, or the burst is less than one token.
    """

    __slots__ = ("_clock", "_level", "burst", "rate")

    def __init__(
        self,
        rate: float,
        burst: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not rate > 0:
            raise ValueError(f"rate must be positive, not {rate!r}")
        if burst is not None and not burst >= 1:
            raise ValueError(f"burst must be at least 1, not {burst!r}")
        self.rate: float = rate
        self.burst: float = max(1.0, rate) if burst is None else burst
        self._clock = clock
        # The number of tokens, below zero if some were lent, and the time of that count.
        self._level: AtomicReference[tuple[float, float]] = AtomicReference((self.burst, clock()))

    def take(self, most: int) -> int:
        """Take the whole tokens available, at most ``most``; return how many."""
        now = self._clock()

        def take(level: tuple[float, float]) -> tuple[float, float]:
            there, at = self._filled(level, now)
            return there - _whole(there, most), at

        before, _ = self._level.update(take)
        return _whole(self._filled(before, now)[0], most)

    def lend(self, count: float) -> float:
        """Take tokens, available or not; return the seconds until all would be available."""
        now = self._clock()

        def lend(level: tuple[float, float]) -> tuple[float, float]:
            there, at = self._filled(level, now)
            return there - count, at

        _, (there, _) = self._level.update(lend)
        return max(0.0, -there / self.rate)

    def wait_for(self, count: float = 1.0) -> float:
        """Return the seconds until ``count`` tokens, or a full bucket if less, are available."""
        there, _ = self._filled(self._level.get(), self._clock())
        return max(0.0, (min(count, self.burst) - there) / self.rate)

    def _filled(self, level: tuple[float, float], now: float) -> tuple[float, float]:
        """Return the level after adding the tokens that have arrived since."""
        there, at = level
        if now <= at:  # another thread has updated the level with a later time
            return level
        return min(self.burst, there + (now - at) * self.rate), now


def _whole(there: float, most: int) -> int:
    """Return how many whole tokens can be taken."""
    # Rounding may leave the level slightly below the exact value.
    return max(0, min(most, int(there + 1e-9)))


class FloodLog:
    """Logs warnings that a peer could trigger at any rate: at most one a second.

    May be called from any thread, signal handler or finalizer, and from a log sink.

    Args:
        burst: how many lines may be written at once after a quiet period.
        clock: returns the time in seconds; must never go back.
    """

    def __init__(self, burst: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._bucket = TokenBucket(1.0, burst, clock)
        self._left_out = AtomicInt64()

    def warn(self, log: Any, text: str, *args: object) -> None:
        """Log a warning, or count it as left out; the next line reports the count."""
        if not self._bucket.take(1):
            self._left_out.increment_and_get()
            return
        left_out = self._left_out.get_and_set(0)
        if left_out:
            text += "; {} more such lines were left out"
            args = (*args, left_out)
        log.warning(text, *args)

    def flush(self) -> None:
        """Log how many lines were left out since the last one. Called at the end."""
        left_out = self._left_out.get_and_set(0)
        if left_out:
            logger.warning("{} more lines about limits were left out at the end", left_out)
