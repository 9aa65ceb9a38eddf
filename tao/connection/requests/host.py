"""What the requests of a connection ask of its core."""

from __future__ import annotations

from typing import Protocol

from tao.connection.lifecycle import Lifecycle
from tao.connection.sending.send_queue import SendQueue
from tao.connection.timers import TimerSet
from tao.runtime.timing_wheel import TimingWheel

__all__ = ["RequestsHost"]


class RequestsHost(Protocol):
    """What the requests of a connection ask of its core."""

    lifecycle: Lifecycle
    send_queue: SendQueue
    timers: TimerSet
    wheel: TimingWheel

    @property
    def must_not_wait_here(self) -> bool:
        """Whether what this thread waits for cannot come, as it interrupts a call of its own."""

    def drop(self, reason: str) -> None:
        """Do without the peer."""
