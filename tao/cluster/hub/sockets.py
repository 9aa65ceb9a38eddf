"""The sockets that join this process with the hub of its supervisor: given, and then taken once."""

from __future__ import annotations

import socket

__all__ = ["give_hub_socket", "take_hub_socket"]

# By the core of the server that is served. Changed in single steps.
_given: dict[object, socket.socket] = {}


def give_hub_socket(server: object, sock: socket.socket) -> None:
    """Have a server, which is not started yet, be joined by this socket."""
    _given[server] = sock


def take_hub_socket(server: object) -> socket.socket | None:
    """Return the socket of a server, once; None: it is under no supervisor."""
    return _given.pop(server, None)
