"""The systemd protocol for services: inherited sockets, and state notifications."""

from __future__ import annotations

import os
import socket
import time
from typing import Final

__all__ = ["notify", "sockets_of_systemd"]

# The first descriptor that is handed over, see sd_listen_fds(3).
_FIRST: Final = 3


def sockets_of_systemd() -> list[socket.socket]:
    """Return the sockets that systemd has opened for this process, see sd_listen_fds(3), or none.

    They are handed over once: a second call returns none, and neither do child processes get any.
    """
    names = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
    pid, count, _ = (os.environ.pop(name, "") for name in names)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    sockets = [socket.socket(fileno=_FIRST + number) for number in range(int(count))]
    for sock in sockets:
        sock.set_inheritable(False)
    return sockets


def notify(state: str) -> None:
    """Tell systemd the state of this service, see sd_notify(3); without systemd do nothing.

    Args:
        state: ``"READY"``, ``"RELOADING"`` or ``"STOPPING"``.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    text = f"{state}=1\nMAINPID={os.getpid()}"
    if state == "RELOADING":
        text += f"\nMONOTONIC_USEC={time.monotonic_ns() // 1000}"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(text.encode(), address.replace("@", "\0", 1))
    except OSError:
        pass  # systemd is not available any more; notifications are optional
