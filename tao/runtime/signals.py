"""SIGINT and SIGTERM, for the one call of tao's that was asked to handle them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

__all__ = ["SignalCatcher"]


class SignalCatcher:
    """Has the first SIGINT or SIGTERM call ``caught()``. Used by the main thread.

    In a child of ``os.fork`` they act as they did before.
    """

    def __init__(self, caught: Callable[[], object]) -> None:
        self._caught = caught
        # What they did before. Noted before it is replaced, so `restore` may come at any moment.
        self._before: dict[int, Any] = {}
        self._process: int = os.getpid()

    def catch(self) -> None:
        """Begin; `restore` is to be called in any case, also if this is interrupted."""
        for name in ("SIGINT", "SIGTERM"):
            number = int(getattr(signal, name))
            self._before[number] = signal.getsignal(number)
            signal.signal(number, self._handle)

    def restore(self) -> None:
        """Have them act again as before; the first one that is caught does so too."""
        try:
            self._restore()
        except BaseException:  # Ctrl-C, say, which acts as before again already
            self._restore()
            raise

    def _restore(self) -> None:
        for number, handler in self._before.items():
            if handler is not None:  # as it is for one that was not set from Python
                signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        self.restore()
        if os.getpid() == self._process:
            self._caught()
        else:
            signal.raise_signal(number)
