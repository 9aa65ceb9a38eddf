"""``python -m tests.bench.disturber KIND --port N --seconds S``: a peer that behaves badly.

It speaks to this machine only. It prints ``BEGUN`` once it is connected and ends by itself when its
time is over, or in order on SIGTERM; then it prints what it did, as one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import signal
import socket
import struct
import time
from collections.abc import Callable

HOST = "127.0.0.1"
PATIENCE = 0.1  # seconds that a call may block, and so the delay after the end of the time
BLOCK = 64 * 1024
SMALL = 4096  # the receive buffer of a peer that does not read, so that it is full soon
TYPE_ECHO, TYPE_UNKNOWN = 1, 77


class Disturber:
    """Misbehaves on one connection after another until the time is over."""

    def __init__(self, port: int, seconds: float) -> None:
        self._port = port
        self._began = time.monotonic()
        self._end = self._began + seconds
        self._connections = self._sent = 0

    @property
    def over(self) -> bool:
        """Whether it is time to end."""
        return time.monotonic() >= self._end

    def stop(self, *_: object) -> None:
        """End now."""
        self._end = 0.0

    def run(self, behave: Callable[[Disturber, socket.socket], None]) -> None:
        """Connect and misbehave, and again whenever the server has closed."""
        while not self.over:
            # A misbehaving peer is refused, disconnected, reset, or blocked until the timeout.
            with contextlib.suppress(OSError), self._connect() as sock:
                behave(self, sock)

    def _connect(self) -> socket.socket:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        sock.settimeout(PATIENCE)
        try:
            sock.connect((HOST, self._port))
        except OSError:
            sock.close()
            raise
        self._connections += 1
        if self._connections == 1:
            print("BEGUN", flush=True)
        return sock

    def send(self, sock: socket.socket, data: bytes) -> None:
        """Send what the server takes of it."""
        with contextlib.suppress(TimeoutError):
            self._sent += sock.send(data)

    def doings(self) -> dict[str, float]:
        """Return the rates of what it did, per second."""
        seconds = time.monotonic() - self._began
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "disturber_connections": self._connections / seconds,
            "disturber_mb": self._sent / seconds / 1e6,
            "disturber_cpu": (used.ru_utime + used.ru_stime) / seconds,
        }


def _messages(number: int, size: int) -> bytes:
    """Return messages that are about as long as a block together."""
    message = struct.pack("<iI", number, size) + bytes(size)
    return message * (BLOCK // len(message))


def silent(disturber: Disturber, sock: socket.socket) -> None:
    """Neither send nor read: for a server that sends by itself."""
    while not disturber.over:
        time.sleep(PATIENCE)


def deaf(disturber: Disturber, sock: socket.socket) -> None:
    """Send requests at full speed and read no reply."""
    requests = _messages(TYPE_ECHO, 64)
    while not disturber.over:
        disturber.send(sock, requests)


def unknown(disturber: Disturber, sock: socket.socket) -> None:
    """Send empty messages of an unregistered number at full speed."""
    messages = _messages(TYPE_UNKNOWN, 0)
    while not disturber.over:
        disturber.send(sock, messages)


def garbage(disturber: Disturber, sock: socket.socket) -> None:
    """Send data that no server accepts, beginning with a message of 4 GiB, and disconnect."""
    disturber.send(sock, b"\xff" * BLOCK)


KINDS = {"silent": silent, "deaf": deaf, "unknown": unknown, "garbage": garbage}


def main() -> None:
    """Misbehave, and print how much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    disturber = Disturber(options.port, options.seconds)
    signal.signal(signal.SIGTERM, disturber.stop)
    disturber.run(KINDS[options.kind])
    print(json.dumps(disturber.doings()))


if __name__ == "__main__":
    main()
