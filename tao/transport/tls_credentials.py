"""The TLS context of a listening address, which can be replaced while the server runs."""

from __future__ import annotations

import ssl

__all__ = ["Credentials"]


class Credentials:
    """The TLS context of the connections accepted next; None: plain TCP.

    It is read once for each connection and replaced as a whole, each in one step, so it needs no
    lock.
    """

    __slots__ = ("context",)

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self.context: ssl.SSLContext | None = context
