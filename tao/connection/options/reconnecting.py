"""How a client connects again: the waits between its attempts."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from tao.connection.options.fields import check_each, count, number, option
from tao.safe_text import safe_repr

__all__ = ["Reconnect"]


@dataclass(frozen=True, kw_only=True)
class Reconnect:
    """How to connect again: exponential back-off, capped, with jitter.

    The n-th attempt in a row waits ``initial * factor ** (n - 1)`` seconds, at most ``maximum``, of
    which a share of up to ``jitter`` is taken off at random, so that a thousand clients of a server
    that restarts do not all come back in the same instant. (Marc Brooker, "Exponential Backoff and
    Jitter", 2015, compares the ways.)
    """

    initial: float = number(0.1, "seconds", """The wait before the first attempt.""")
    maximum: float = number(30.0, "seconds", """The longest wait before any attempt.""")
    factor: float = number(2.0, "", """How many times longer each wait is than the last one.""")
    jitter: float = option(0.5, """Which share of each wait is random, from 0 to 1.""")
    attempts: int | None = count(
        None,
        "attempts",
        """How many attempts in a row may fail before the client closes. An attempt has succeeded
        once the connection was of use: it brought a message whose number the client knows,
        heartbeats apart, or lasted for 10 seconds and for longer than ``maximum``. With
        ``ready="manual"`` it has to become ready for that. None: any number.""",
    )

    def __post_init__(self) -> None:
        check_each(self)
        if self.factor < 1:
            raise ValueError(f"factor must be at least 1, not {safe_repr(self.factor)}")
        if not isinstance(self.jitter, (int, float)) or not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter must be between 0 and 1, not {safe_repr(self.jitter)}")

    def delay_before(self, attempt: int) -> float | None:
        """Return how many seconds to wait before an attempt, 0 for the first; None: no more."""
        if self.attempts is not None and attempt > self.attempts:
            return None
        return self.delay(attempt) if attempt else 0.0

    def delay(self, attempt: int) -> float:
        """Return how many seconds to wait before an attempt, the first being 1."""
        # A large exponent would overflow long after the maximum is reached.
        steps = min(attempt - 1, 1000 if self.factor == 1 else math.log(1e9, self.factor))
        wait = min(self.maximum, self.initial * self.factor**steps)
        return wait * (1 - self.jitter * random.random())
