"""Limits on connections: how many a server has, and how many each host has."""

from __future__ import annotations

import resource
from collections import Counter

from tao.runtime.log import logger

__all__ = ["Admission", "warn_of_few_descriptors"]


class Admission:
    """Counts connections under the host they were admitted for.

    The host is remembered by the connection's number, so it does not matter that the application
    may set ``remote_address``. Releasing twice, or what was never admitted, does nothing.

    Any thread may call any method, and an exception may interrupt it anywhere: there is no lock. A
    connection is added first, in one step, and then those that were there before it are counted.

    Args:
        most: how many connections there may be.
        most_per_host: how many one host may have; None: any number.
    """

    def __init__(self, most: int, most_per_host: int | None) -> None:
        self._most = most
        self._most_per_host = most_per_host
        # All, and the host of each that has one; each in the order in which they were added.
        self._all: dict[int, None] = {}
        self._host_of: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._all)

    @property
    def hosts(self) -> dict[str, int]:
        """How many connections there are of each host that has any."""
        return dict(Counter(list(self._host_of.values())))

    def admit(self, net_id: int, host: str | None) -> str:
        """Count a connection, or return why there can be none; an empty string if it is admitted.

        Args:
            net_id: the connection's number.
            host: the peer's; None if it is not known yet, see `move`.
        """
        self._all[net_id] = None
        if len(self._all) > self._most and _before(net_id, list(self._all)) >= self._most:
            refusal = f"max_connections is {self._most}"
        else:
            refusal = "" if host is None else self.move(net_id, host)
        if refusal:
            self.release(net_id)
        return refusal

    def readmit(self, net_id: int, host: str) -> None:
        """Count a connection again, which was admitted before, whatever the limits are."""
        self._all[net_id] = None
        self._host_of[net_id] = host

    def move(self, net_id: int, host: str) -> str:
        """Count an admitted connection under another host, or return why that cannot be."""
        if net_id not in self._all:
            return "the connection is over"
        self._host_of.pop(net_id, None)
        self._host_of[net_id] = host
        most = self._most_per_host
        if most is None or list(self._host_of.values()).count(host) <= most:
            return ""
        alike = [number for number, each in dict(self._host_of).items() if each == host]
        if _before(net_id, alike) < most:
            return ""
        self._host_of.pop(net_id, None)
        return f"max_connections_per_host is {most}"

    def release(self, net_id: int) -> None:
        """Forget a connection."""
        self._host_of.pop(net_id, None)
        self._all.pop(net_id, None)

    def clear(self) -> None:
        """Forget all."""
        self._host_of.clear()
        self._all.clear()


def _before(net_id: int, numbers: list[int]) -> int:
    """Return how many come before this one."""
    return numbers.index(net_id) if net_id in numbers else len(numbers)


def warn_of_few_descriptors(most: int) -> None:
    """Log a warning if this process may not have as many descriptors as connections."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < most:
        logger.warning(
            "max_connections is {}, but this process may open {} files only, and each connection "
            "is one; raise that limit with `ulimit -n {}`, or LimitNOFILE={} in a systemd unit",
            most, limit, most + 100, most + 100,
        )  # fmt: skip
