"""Who is let in: how many connections a server has, and how many of each host."""

from __future__ import annotations

import threading

__all__ = ["Admission"]


class Admission:
    """Counts connections under the host they were admitted for. Any thread may call any method.

    What is counted is remembered by the connection's number, whatever the application may do to its
    ``remote_address``. Releasing twice, or what was never admitted, does nothing.

    Args:
        most: how many connections there may be.
        most_per_host: how many of one host; None: any number.
    """

    def __init__(self, most: int, most_per_host: int | None) -> None:
        self._most = most
        self._most_per_host = most_per_host
        # Makes a check and what follows it one step. Reentrant, as a finalizer may run in between.
        self._lock = threading.RLock()
        # The host of each connection, and the connections of each host.
        self._host_of: dict[int, str] = {}
        self._of_host: dict[str, set[int]] = {}

    def __len__(self) -> int:
        return len(self._host_of)

    @property
    def hosts(self) -> dict[str, int]:
        """How many connections there are of each host that has any."""
        with self._lock:
            return {host: len(numbers) for host, numbers in self._of_host.items()}

    def admit(self, net_id: int, host: str | None) -> str:
        """Count a connection, or return why there can be none; an empty string if it is admitted.

        Args:
            net_id: the connection's number.
            host: the peer's; None if it is not known yet, see `move`.
        """
        with self._lock:
            if len(self._host_of) >= self._most:
                return f"max_connections is {self._most}"
            if host is not None and self._is_full(host):
                return f"max_connections_per_host is {self._most_per_host}"
            self._host_of[net_id] = ""
            if host is not None:
                self._count(net_id, host)
        return ""

    def move(self, net_id: int, host: str) -> str:
        """Count an admitted connection under another host, or return why that cannot be."""
        with self._lock:
            if net_id not in self._host_of:
                return "the connection is over"
            if self._is_full(host):
                return f"max_connections_per_host is {self._most_per_host}"
            self._discount(net_id)
            self._count(net_id, host)
        return ""

    def release(self, net_id: int) -> None:
        """Forget a connection."""
        with self._lock:
            self._discount(net_id)
            self._host_of.pop(net_id, None)

    def clear(self) -> None:
        """Forget all."""
        self._host_of.clear()
        self._of_host.clear()

    def _is_full(self, host: str) -> bool:
        most = self._most_per_host
        return most is not None and len(self._of_host.get(host, ())) >= most

    # Both can be repeated: an error in the midst, for lack of memory, leaves nothing counted for
    # ever. Both need _lock.

    def _count(self, net_id: int, host: str) -> None:
        self._host_of[net_id] = host
        self._of_host.setdefault(host, set()).add(net_id)

    def _discount(self, net_id: int) -> None:
        host = self._host_of.get(net_id, "")
        numbers = self._of_host.get(host)
        if numbers is not None:
            numbers.discard(net_id)
            if not numbers:
                del self._of_host[host]
