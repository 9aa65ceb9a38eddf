"""Messages between the supervisor and its workers: JSON objects, each behind its length.

A `Channel` never blocks: what the kernel does not take waits here. One thread uses it.
"""

from __future__ import annotations

import json
import select
import socket
import struct
from typing import Any, Final

__all__ = ["Channel"]

_HEAD: Final = struct.Struct("!I")
# The longest message that is read: more than any page of a monitor, in bytes.
_LONGEST: Final = 256 * 1024 * 1024
_PIECE: Final = 256 * 1024


class Channel:
    """One end of a socket that joins two processes.

    Args:
        sock: connected; it becomes non-blocking, and belongs to the channel.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._received = bytearray()
        self._unsent = bytearray()
        #: Whether the other end is gone; never reset.
        self.ended: bool = False

    def fileno(self) -> int:
        """The descriptor to poll for `events`."""
        return self._sock.fileno()

    @property
    def events(self) -> int:
        """What to poll for."""
        return select.POLLIN | (select.POLLOUT if self._unsent else 0)

    def send(self, message: dict[str, Any]) -> None:
        """Send a message, or as much of it as the kernel takes now; see `flush`."""
        data = json.dumps(message, separators=(",", ":")).encode()
        self._unsent += _HEAD.pack(len(data)) + data
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the kernel takes it."""
        try:
            while self._unsent and not self.ended:
                del self._unsent[: self._sock.send(memoryview(self._unsent)[:_PIECE].tobytes())]
        except BlockingIOError:
            pass
        except OSError:
            self.ended = True

    def receive(self) -> list[dict[str, Any]]:
        """Return the messages that have arrived; see `ended`."""
        try:
            while not self.ended and (data := self._sock.recv(_PIECE)):
                self._received += data
            self.ended = True
        except BlockingIOError:
            pass
        except OSError:
            self.ended = True
        return self._parsed()

    def _parsed(self) -> list[dict[str, Any]]:
        found = []
        while len(self._received) >= _HEAD.size:
            (length,) = _HEAD.unpack_from(self._received)
            if length > _LONGEST:
                self.ended = True  # not from a channel
                break
            end = _HEAD.size + length
            if len(self._received) < end:
                break
            found.append(json.loads(bytes(self._received[_HEAD.size : end])))
            del self._received[:end]
        return found

    def close(self) -> None:
        """Close this end."""
        self.ended = True
        self._sock.close()
