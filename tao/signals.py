"""SIGINT and SIGTERM, for the one call of tao's that was asked to handle them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

__all__ = ["catch_signals"]


def catch_signals(caught: Callable[[], object]) -> Callable[[], None]:
    """Have the first SIGINT or SIGTERM call ``caught()``, in the main thread, which has to ask.

    In a child of ``os.fork`` they act as they did before.

    Returns:
        what has signals act again as they did before; the first one that is caught does so too.
    """
    before: dict[int, Any] = {}
    here = os.getpid()

    def restore() -> None:
        for number, handler in before.items():
            if handler is not None:  # as it is for one that was not set from Python
                signal.signal(number, handler)

    def handle(number: int, frame: object) -> None:
        restore()
        if os.getpid() == here:
            caught()
        else:
            signal.raise_signal(number)

    for name in ("SIGINT", "SIGTERM"):
        number = int(getattr(signal, name))
        before[number] = signal.getsignal(number)
        signal.signal(number, handle)
    return restore
