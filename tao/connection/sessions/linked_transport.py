"""A transport above others, one after another: what it knows of the one that it has at a time."""

from __future__ import annotations

from typing import Any

from tao.errors import ConnectionClosed
from tao.transport.stream import Transport

__all__ = ["LinkedTransport"]


class LinkedTransport(Transport):
    """Passes questions on to its link. The link may be replaced at any time, in one step.

    Args:
        link: the first.
    """

    __slots__ = ("_lasting", "_link")

    bare = False
    close_ends = False

    def __init__(self, link: Transport) -> None:
        # Does not call the base class, which needs a socket.
        self.answers = []
        self._link: Transport | None = link
        self._lasting: Transport = link  # the last one, which tells about the peer

    @property
    def connected(self) -> bool:
        """Whether there is a link now."""
        return self._link is not None

    @property
    def descriptor(self) -> int:
        link = self._link
        return -1 if link is None else link.descriptor

    @property
    def buffers(self) -> bool:  # type: ignore[override]
        return self._lasting.buffers

    @property
    def end_waits(self) -> bool:
        link = self._link
        return link is not None and link.end_waits

    def outlives(self, reason: str) -> bool:
        link = self._link
        if link is not None:
            link.abort()  # which the reading role notices
        return True

    def wait_free(self) -> None:
        link = self._link
        if link is not None:
            link.wait_free()

    def wait_hung_up(self, timeout: float | None) -> bool:
        link = self._link
        return link is None or link.wait_hung_up(timeout)

    def option(
        self, level: int, name: int, value: int | bytes | None, length: int
    ) -> int | bytes | None:
        link = self._link
        if link is None:
            raise ConnectionClosed("there is no link now")
        return link.option(level, name, value, length)

    @property
    def peer_is_near(self) -> bool:
        link = self._link
        return link is not None and link.peer_is_near

    @property
    def interrupted_here(self) -> bool:
        link = self._link
        return link is not None and link.interrupted_here

    def reset(self) -> None:
        link = self._link
        if link is not None:
            link.reset()

    @property
    def peer_certificate(self) -> dict[str, Any] | None:
        return self._lasting.peer_certificate

    @property
    def tls_version(self) -> str | None:
        return self._lasting.tls_version
