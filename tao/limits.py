"""Floods: how much a second is let through, and how to tell of the rest without flooding the log.

Limits are token buckets (ITU-T I.371, 1993, has them as "leaky bucket"): tokens come in at a steady
rate and are kept up to a burst, and each thing let through takes one. So what comes in bursts
passes as long as it keeps to the rate on the whole.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from tao.log import logger

__all__ = ["FloodLog", "TokenBucket"]


class TokenBucket:
    """So many tokens a second, of which a burst can be saved up. Any thread may call any method.

    Args:
        rate: how many tokens come in a second.
        burst: how many can be there at once, and are at the beginning; None: as many as come in one
            second, but at least one.
        clock: the time in seconds, which never goes back.

    Raises:
        ValueError: the rate is not positive, or the burst is less than one token.
    """

    __slots__ = ("_at", "_clock", "_lock", "_there", "burst", "rate")

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
        # Guards the two below.
        self._lock = threading.Lock()
        self._there: float = self.burst  # below zero: lent
        self._at: float = clock()

    def take(self, most: int) -> int:
        """Take as many whole tokens as there are, ``most`` at most, and return how many."""
        with self._lock:
            self._fill()
            # What is there may be a hair's breadth below what it should be by the clock.
            taken = max(0, min(most, int(self._there + 1e-9)))
            self._there -= taken
            return taken

    def lend(self, count: float) -> float:
        """Take tokens whether they are there or not; return how many seconds until all are."""
        with self._lock:
            self._fill()
            self._there -= count
            return max(0.0, -self._there / self.rate)

    def wait_for(self, count: float = 1.0) -> float:
        """Return in how many seconds so many tokens will be there, or the burst if that is less."""
        with self._lock:
            self._fill()
            return max(0.0, (min(count, self.burst) - self._there) / self.rate)

    def _fill(self) -> None:
        """Put in what has come since the last time. Needs _lock."""
        assert self._lock.locked()
        now = self._clock()
        self._there = min(self.burst, self._there + (now - self._at) * self.rate)
        self._at = now


class FloodLog:
    """Warnings that a peer could bring about any number of times: at most one a second is written.

    Any thread may call it.

    Args:
        burst: how many may come at once after a quiet time.
        clock: the time in seconds, which never goes back.
    """

    def __init__(self, burst: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._bucket = TokenBucket(1.0, burst, clock)
        # Guards the count.
        self._lock = threading.Lock()
        self._left_out: int = 0

    def warn(self, log: Any, text: str, *args: object) -> None:
        """Write a line to a logger, or count it as left out; the next tells how many there were."""
        with self._lock:
            if not self._bucket.take(1):
                self._left_out += 1
                return
            left_out, self._left_out = self._left_out, 0
        if left_out:
            text += "; {} more such lines were left out"
            args = (*args, left_out)
        log.warning(text, *args)

    def flush(self) -> None:
        """At the end, tell how many lines were left out since the last."""
        with self._lock:
            left_out, self._left_out = self._left_out, 0
        if left_out:
            logger.warning("{} more lines about limits were left out at the end", left_out)
