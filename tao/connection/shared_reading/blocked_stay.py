"""What a reading thread does for a connection whose handler blocks it."""

from __future__ import annotations

from threading import Thread

from tao.runtime.wakeup import Wakeup

__all__ = ["BlockedStay"]


class BlockedStay:
    """The stay of a reading thread in a handler that blocks it; it can be joined like a thread."""

    __slots__ = ("left", "thread")

    def __init__(self, thread: Thread) -> None:
        self.thread = thread
        self.left = Wakeup()

    @property
    def name(self) -> str:
        return self.thread.name

    @property
    def ident(self) -> int | None:
        return self.thread.ident

    def is_alive(self) -> bool:
        return not self.left.is_set()

    def join(self, timeout: float | None = None) -> None:
        self.left.wait(timeout)
