"""The signals of a supervisor: each only sets a flag and wakes the loop, which polls this."""

from __future__ import annotations

import os
import signal
import socket
from types import FrameType
from typing import Any

__all__ = ["SignalFlags"]


class SignalFlags:
    """Handles SIGINT, SIGTERM, SIGHUP and SIGCHLD in a ``with`` block of the main thread.

    SIGHUP asks for a reload; but when the terminal of the process is closed, which sends it too, it
    asks for a stop.
    """

    def __init__(self) -> None:
        self._near, self._far = socket.socketpair()
        self._near.setblocking(False)
        self._far.setblocking(False)
        #: How many signals have asked for a stop.
        self.stops: int = 0
        self._reload: bool = False
        self._had_terminal: bool = _has_terminal()
        self._before: dict[int, Any] = {}
        self._descriptor_before: int = -1

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self._near.fileno()

    def ring(self) -> None:
        """Wake the loop. Any thread may call this."""
        try:
            self._far.send(b"x")
        except OSError:
            pass  # it is awake, or over

    def clear(self) -> None:
        """Note that the loop is awake."""
        try:
            while self._near.recv(4096):
                pass
        except BlockingIOError:
            pass

    def take_reload(self) -> bool:
        """Whether a reload was asked for since the last call."""
        wanted, self._reload = self._reload, False
        return wanted

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP and _has_terminal() == self._had_terminal:
            self._reload = True
        elif number != signal.SIGCHLD:
            self.stops += 1

    def __enter__(self) -> SignalFlags:
        self._descriptor_before = signal.set_wakeup_fd(
            self._far.fileno(), warn_on_full_buffer=False
        )
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._descriptor_before)
        self._near.close()
        self._far.close()


def _has_terminal() -> bool:
    """Whether this process has a terminal that could send it signals."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
