"""Endpoints that a client may connect to: addresses, sockets and functions, one or several."""

from __future__ import annotations

import os
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any

from tao.callables import check_callable
from tao.client.happy_eyeballs import Memory
from tao.connection.options.definitions import ClientSettings
from tao.transport.addresses import address_text, parse
from tao.transport.error_text import explain

__all__ = ["Endpoint", "check_options", "endpoints_of", "why_not_connected"]


class Endpoint:
    """An endpoint that a client may connect to.

    Args:
        given: a parsed address; a function that returns a connected socket; or a connected socket.
    """

    def __init__(self, given: tuple[Any, ...] | str | Callable[[], Any] | socket.socket) -> None:
        self.address: tuple[Any, ...] | str | None = None
        self.function: Callable[[], Any] | None = None
        # The thread that uses or closes the socket removes it, in one step.
        self._sockets: deque[socket.socket] = deque()
        #: The name that a certificate must have, unless the option server_hostname is given.
        self.host: str | None = None
        self.memory = Memory()
        if isinstance(given, socket.socket):
            self._sockets.append(given)
            self.name = "the socket given"
        elif isinstance(given, str):
            self.address, self.name = given, address_text(given)
        elif isinstance(given, tuple):
            self.address, self.name = given, f"{given[0]} port {given[1]}"
            # Certificates do not contain scopes.
            self.host = given[0].partition("%")[0] if ":" in given[0] else given[0]
        else:
            called = getattr(given, "__qualname__", None) or type(given).__qualname__
            self.function, self.name = given, f"what {called}() returns"

    @property
    def once(self) -> bool:
        """Whether it gives only one connection."""
        return self.address is None and self.function is None

    def take_socket(self) -> socket.socket | None:
        """Return the given socket, for the caller to own; None if it was taken before."""
        try:
            return self._sockets.pop()
        except IndexError:
            return None

    def __str__(self) -> str:
        return address_text(self.address) if self.address is not None else self.name


def endpoints_of(given: Any) -> list[Endpoint]:
    """Parse what a client is to connect to: one endpoint, or a list of several.

    Raises:
        TypeError, ValueError: it is invalid; the text says what is expected.
    """
    if not isinstance(given, (list, tuple)) or _is_one_address(given):
        return [_endpoint(given)]
    if not given:
        raise ValueError("the list of addresses to connect to must not be empty")
    for each in given:
        if isinstance(each, str) and "/" not in each and "\0" not in each:
            raise ValueError(
                f"{each!r} in a list would be a Unix socket's path; write (host, port), or "
                f"'./{each}' for that path"
            )
    return [_endpoint(each) for each in given]


def check_options(endpoints: list[Endpoint], options: ClientSettings) -> None:
    """Raise a ``ValueError`` if an option does not fit the endpoints."""
    if options.source_address is not None and all(
        endpoint.address is None for endpoint in endpoints
    ):
        raise ValueError("source_address: what makes the socket chooses where it comes from")
    if options.tls is None or options.server_hostname or not options.tls.check_hostname:
        return
    for endpoint in endpoints:
        if endpoint.host is None:
            raise ValueError(
                f"server_hostname is needed with tls, as {endpoint.name} has no host name"
            )


def _is_one_address(given: list[Any] | tuple[Any, ...]) -> bool:
    """Return whether a sequence is one address, not several."""
    if isinstance(given, tuple) and given and isinstance(given[0], str):
        return True
    return len(given) > 1 and not isinstance(given[0], (list, tuple)) and isinstance(given[1], int)


def _endpoint(given: Any) -> Endpoint:
    if isinstance(given, socket.socket):
        why = why_not_connected(given)
        if why:
            raise ValueError(f"a socket to connect by must be connected: {why}")
        return Endpoint(given)
    if callable(given) and not isinstance(given, (str, bytes, os.PathLike)):
        check_callable("address", given)
        return Endpoint(given)
    return Endpoint(parse(given))


def why_not_connected(sock: Any) -> str:
    """Return why an object is not a connected stream socket; an empty string if it is one."""
    if not isinstance(sock, socket.socket):
        return f"it is not a socket, but {type(sock).__name__}"
    if isinstance(sock, ssl.SSLSocket):
        return "it speaks TLS already; leave that to the option tls"
    if sock.type != socket.SOCK_STREAM:
        return "it is not a stream socket"
    try:
        sock.getpeername()
    except OSError as error:
        return explain(error)
    return ""
