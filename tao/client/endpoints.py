"""What a client may be told to connect to: addresses, sockets and functions, one or several."""

from __future__ import annotations

import os
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any

from tao.callables import check_callable
from tao.client.happy_eyeballs import Memory
from tao.connection.options import ClientSettings
from tao.transport.addresses import address_text, parse
from tao.transport.error_text import explain

__all__ = ["Place", "check_options", "places_of", "why_not_connected"]


class Place:
    """Somewhere that a client may connect to.

    Args:
        given: an address, parsed; a function that returns a connected socket; or such a socket.
    """

    def __init__(self, given: tuple[Any, ...] | str | Callable[[], Any] | socket.socket) -> None:
        self.address: tuple[Any, ...] | str | None = None
        self.function: Callable[[], Any] | None = None
        # Taken out in one step by who uses it, or closes it.
        self._sockets: deque[socket.socket] = deque()
        #: The name that a certificate must have, if nothing else is said.
        self.host: str | None = None
        self.memory = Memory()
        if isinstance(given, socket.socket):
            self._sockets.append(given)
            self.name = "the socket given"
        elif isinstance(given, str):
            self.address, self.name = given, address_text(given)
        elif isinstance(given, tuple):
            self.address, self.name = given, f"{given[0]} port {given[1]}"
            # A certificate knows nothing of scopes.
            self.host = given[0].partition("%")[0] if ":" in given[0] else given[0]
        else:
            called = getattr(given, "__qualname__", None) or type(given).__qualname__
            self.function, self.name = given, f"what {called}() returns"

    @property
    def once(self) -> bool:
        """Whether only one connection can be made of it."""
        return self.address is None and self.function is None

    def take_socket(self) -> socket.socket | None:
        """Return the socket that was given, the caller's from now on; None if it is gone."""
        try:
            return self._sockets.pop()
        except IndexError:
            return None

    def __str__(self) -> str:
        return address_text(self.address) if self.address is not None else self.name


def places_of(given: Any) -> list[Place]:
    """Read what a client may be told to connect to: one place, or a list of several.

    Raises:
        TypeError, ValueError: it is no place; the text says what one is.
    """
    if not isinstance(given, (list, tuple)) or _is_one_address(given):
        return [_place(given)]
    if not given:
        raise ValueError("there is no address to connect to in an empty list")
    for each in given:
        if isinstance(each, str) and "/" not in each and "\0" not in each:
            raise ValueError(
                f"{each!r} in a list would be a Unix socket's path; write (host, port), or "
                f"'./{each}' for that path"
            )
    return [_place(each) for each in given]


def check_options(places: list[Place], options: ClientSettings) -> None:
    """Raise a ``ValueError`` if an option does not fit what is to be connected to."""
    if options.source_address is not None and all(place.address is None for place in places):
        raise ValueError("source_address: what makes the socket chooses where it comes from")
    if options.tls is None or options.server_hostname or not options.tls.check_hostname:
        return
    for place in places:
        if place.host is None:
            raise ValueError(
                f"server_hostname is needed with tls, as {place.name} has no host name"
            )


def _is_one_address(given: list[Any] | tuple[Any, ...]) -> bool:
    """Tell whether a sequence is one address, and not several."""
    if isinstance(given, tuple) and given and isinstance(given[0], str):
        return True
    return len(given) > 1 and not isinstance(given[0], (list, tuple)) and isinstance(given[1], int)


def _place(given: Any) -> Place:
    if isinstance(given, socket.socket):
        why = why_not_connected(given)
        if why:
            raise ValueError(f"a socket to connect by must be connected: {why}")
        return Place(given)
    if callable(given) and not isinstance(given, (str, bytes, os.PathLike)):
        check_callable("address", given)
        return Place(given)
    return Place(parse(given))


def why_not_connected(sock: Any) -> str:
    """Say why something is no connected stream socket; an empty string if it is one."""
    if not isinstance(sock, socket.socket):
        return f"it is no socket, but {type(sock).__name__}"
    if isinstance(sock, ssl.SSLSocket):
        return "it speaks TLS already; leave that to the option tls"
    if sock.type != socket.SOCK_STREAM:
        return "it is no stream socket"
    try:
        sock.getpeername()
    except OSError as error:
        return explain(error)
    return ""
