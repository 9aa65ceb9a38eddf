"""Handling of SIGINT and SIGTERM during a call that was asked to handle them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

__all__ = ["SignalCatcher"]


class SignalCatcher:
    """Calls ``caught()`` on the first SIGINT or SIGTERM. Used by the main thread.

    In a child of ``os.fork`` the previous handlers apply.
    """

    def __init__(self, caught: Callable[[], object]) -> None:
        self._caught = caught
        # The previous handlers, stored before they are replaced: `restore` works at any moment.
        self._before: dict[int, Any] = {}
        self._process: int = os.getpid()

    def catch(self) -> None:
        """Install the handlers. Call `restore` afterwards, even if this is interrupted."""
        for name in ("SIGINT", "SIGTERM"):
            number = int(getattr(signal, name))
            self._before[number] = signal.getsignal(number)
            signal.signal(number, self._handle)

    def restore(self) -> None:
        """Restore the previous handlers. The first signal that is caught does this as well."""
        try:
            self._restore()
        except BaseException:  # for example Ctrl-C: its handler is restored already
            self._restore()
            raise

    def _restore(self) -> None:
        for number, handler in self._before.items():
            if handler is not None:  # None for a handler that was not set from Python
                signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        self.restore()
        if os.getpid() == self._process:
            self._caught()
        else:
            signal.raise_signal(number)
