"""Floods: how much a second is let through, and how to tell of the rest without flooding the log.

Limits are token buckets (ITU-T I.371, 1993, has them as "leaky bucket"): tokens come in at a steady
rate and are kept up to a burst, and each thing let through takes one. So what comes in bursts
passes as long as it keeps to the rate on the whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tao.atomic import AtomicInt64, AtomicReference
from tao.runtime.log import logger

__all__ = ["FloodLog", "TokenBucket"]


class TokenBucket:
    """So many tokens a second, of which a burst can be saved up.

    No method waits. Any may be called from any thread, a signal handler or a finalizer.

    Args:
        rate: how many tokens come in a second.
        burst: how many can be there at once, and are at the beginning; None: as many as come in one
            second, but at least one.
        clock: the time in seconds, which never goes back.

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
        # How many tokens were there, below zero if lent, and at which time.
        self._level: AtomicReference[tuple[float, float]] = AtomicReference((self.burst, clock()))

    def take(self, most: int) -> int:
        """Take as many whole tokens as there are, ``most`` at most, and return how many."""
        now = self._clock()

        def take(level: tuple[float, float]) -> tuple[float, float]:
            there, at = self._filled(level, now)
            return there - _whole(there, most), at

        before, _ = self._level.update(take)
        return _whole(self._filled(before, now)[0], most)

    def lend(self, count: float) -> float:
        """Take tokens whether they are there or not; return how many seconds until all are."""
        now = self._clock()

        def lend(level: tuple[float, float]) -> tuple[float, float]:
            there, at = self._filled(level, now)
            return there - count, at

        _, (there, _) = self._level.update(lend)
        return max(0.0, -there / self.rate)

    def wait_for(self, count: float = 1.0) -> float:
        """Return in how many seconds so many tokens will be there, or the burst if that is less."""
        there, _ = self._filled(self._level.get(), self._clock())
        return max(0.0, (min(count, self.burst) - there) / self.rate)

    def _filled(self, level: tuple[float, float], now: float) -> tuple[float, float]:
        """Return a level with what has come in since."""
        there, at = level
        if now <= at:  # another thread, which looked at the clock later, was faster
            return level
        return min(self.burst, there + (now - at) * self.rate), now


def _whole(there: float, most: int) -> int:
    """Return how many of these tokens can be taken."""
    # What is there may be a hair's breadth below what it should be by the clock.
    return max(0, min(most, int(there + 1e-9)))


class FloodLog:
    """Warnings that a peer could bring about any number of times: at most one a second is written.

    Any thread, signal handler or finalizer may call it, also a sink of the log in which a line is
    being written.

    Args:
        burst: how many may come at once after a quiet time.
        clock: the time in seconds, which never goes back.
    """

    def __init__(self, burst: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._bucket = TokenBucket(1.0, burst, clock)
        self._left_out = AtomicInt64()

    def warn(self, log: Any, text: str, *args: object) -> None:
        """Write a line to a logger, or count it as left out; the next tells how many there were."""
        if not self._bucket.take(1):
            self._left_out.increment_and_get()
            return
        left_out = self._left_out.get_and_set(0)
        if left_out:
            text += "; {} more such lines were left out"
            args = (*args, left_out)
        log.warning(text, *args)

    def flush(self) -> None:
        """At the end, tell how many lines were left out since the last."""
        left_out = self._left_out.get_and_set(0)
        if left_out:
            logger.warning("{} more lines about limits were left out at the end", left_out)
