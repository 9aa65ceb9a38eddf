"""The listening sockets of a supervisor, which its workers inherit.

The supervisor never accepts. It holds the sockets open, so that connections which wait in the
backlog outlive every worker.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from tao.server.listening.binding import Bound, listen
from tao.transport.addresses import normalized

__all__ = ["ListeningSockets"]


class ListeningSockets:
    """Listening sockets at several addresses: the same for all workers, or one for each.

    Args:
        addresses: where to listen, or sockets that are bound.
        backlog: how many connections may wait, on each socket.
        workers: how many workers there are, if each has a socket of its own at each host and port;
            None: they share all sockets.

    Raises:
        OSError: listening failed; the text names the address.
        TypeError, ValueError: it is no address, or a socket that cannot accept connections.
    """

    def __init__(
        self, addresses: Sequence[Any | socket.socket], backlog: int, workers: int | None
    ) -> None:
        self._bound: list[list[Bound]] = []
        try:
            for address in addresses:
                self._bound.append([])
                several = isinstance(address, tuple) and workers is not None
                for _ in range(workers or 1 if several else 1):
                    bound = listen(address, backlog, reuse_port=several)
                    self._bound[-1].append(bound)
                    address = normalized(bound.sock.getsockname())  # port 0 is a number by now
        except BaseException:
            self.close()
            raise

    @property
    def addresses(self) -> list[Any]:
        """The addresses that are bound."""
        return [normalized(each[0].sock.getsockname()) for each in self._bound]

    def descriptors(self, slot: int) -> list[int]:
        """Return the descriptors for a worker of a slot, which counts from 1."""
        return [each[(slot - 1) % len(each)].sock.fileno() for each in self._bound]

    def close(self) -> None:
        """Listen no more, as far as this process is concerned."""
        for each in self._bound:
            for bound in each:
                bound.close()
