"""Addresses: every form in which they are written, read and resolved the same way by both ends.

- A TCP address is ``(host, port)``, or the tuple of four that sockets give for IPv6. The host is a
  name or a literal; a link-local one carries its scope: ``("fe80::1%eth0", 80)``. An IPv4 peer of a
  dual-stack socket, which the kernel calls ``::ffff:192.0.2.1``, is ``192.0.2.1`` here, so that
  allow-lists and limits for each host see one peer under one name.
- The address of a Unix socket is a str: a path, or on Linux ``"\\0name"``, a name without a file.
  Users may write bytes or a ``pathlib.Path`` too.

`parse` checks what users write and brings it into one form. `resolve` turns that into what ``bind``
and ``connect`` take; only it may ask a name server, and so block. `address_text` is for people.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from itertools import zip_longest
from typing import Any, NamedTuple

from tao.safe_text import FORMATTING_ERRORS, printable, safe_repr, safe_str, unprintable

__all__ = [
    "Address",
    "Target",
    "address_text",
    "canonical",
    "check_path",
    "host_of",
    "is_abstract",
    "normalized",
    "normalized_host",
    "parse",
    "resolve",
    "resolve_literal",
    "unix_address",
]

#: An address from the user: host and port, an IPv6 socket address, or a Unix socket's address.
Address = (
    tuple[str, int]
    | tuple[str, int, int, int]
    | str
    | bytes
    | os.PathLike[str]
    | os.PathLike[bytes]
)

# How IPv4 addresses inside IPv6 begin (RFC 4291, 2.5.5.2), as the kernel writes them.
_MAPPED = "::ffff:"


class Target(NamedTuple):
    """One socket address.

    Attributes:
        family: of the socket, ``AF_INET``, ``AF_INET6`` or ``AF_UNIX``.
        address: as the socket's ``bind`` and ``connect`` take it.
    """

    family: int
    address: Any


# -- parsing addresses from users


def parse(address: Any, *, listening: bool = False) -> tuple[Any, ...] | str:
    """Check an address and return it in one form: a tuple that begins with host and port, or a str.

    Args:
        address: in any form that `Address` names.
        listening: whether it is for a server: then port 0 stands for any that is free, and an empty
            host for all addresses of this machine.

    Raises:
        TypeError, ValueError: it is no address; the text says what one is.
    """
    path = unix_address(address)
    if path is not None:
        return path
    if isinstance(address, (tuple, list)) and 2 <= len(address) <= 4:
        host, port, *rest = address
        if isinstance(host, (ipaddress.IPv4Address, ipaddress.IPv6Address)):
            host = str(host)
        if isinstance(host, str) and all(map(_is_integer, (port, *rest))):
            _check_port(port, listening)
            return (_checked_host(host, listening), port, *rest)
    raise TypeError(
        "an address is (host, port), the path of a Unix socket, or a socket, not "
        f"{safe_repr(address)}"
    )


def unix_address(address: Any) -> str | None:
    """Return the address of a Unix socket as a str; None if this is an address of another kind.

    Raises:
        ValueError: it is empty, has a NUL where none may be, or looks as if a host and a port were
            meant.
    """
    if not isinstance(address, (str, bytes, os.PathLike)):
        return None
    path = os.fsdecode(address)
    if not path.strip("\0"):
        raise ValueError("the address of a Unix socket must not be empty")
    if "\0" in path and not is_abstract(path):
        raise ValueError(f"the path of a Unix socket must not contain NUL: {path!r}")
    if not isinstance(address, os.PathLike):
        check_path(path)
    return path


def is_abstract(address: Any) -> bool:
    """Return whether this is a Unix socket's address without a file (Linux)."""
    return isinstance(address, str) and address.startswith("\0")


def check_path(path: str) -> None:
    """Raise a ``ValueError`` if a path looks as if a host and a port were meant."""
    if found := re.fullmatch(r"([^/\0]*):([0-9]{1,5})", path):
        host, port = found[1].strip("[]"), int(found[2])
        raise ValueError(
            f"{path!r} would be a Unix socket's path; write ({host!r}, {port}) for a host and a "
            f"port, or './{path}' for that path"
        )


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_port(port: int, listening: bool) -> None:
    if listening and not 0 <= port <= 65535:
        raise ValueError(f"a port is a number from 0 to 65535, not {port}")
    if not listening and not 0 < port <= 65535:
        raise ValueError(f"a port to connect to is a number from 1 to 65535, not {port}")


def _checked_host(host: str, listening: bool) -> str:
    if host.startswith("[") and host.endswith("]"):  # as IPv6 addresses stand in URLs
        host = host[1:-1]
    if "\0" in host:
        raise ValueError(f"a host must not contain NUL: {host!r}")
    if not host and not listening:
        raise ValueError("the host to connect to must not be empty")
    checked: str = normalized_host(host)
    return checked


# -- resolving


def resolve(address: tuple[Any, ...] | str) -> list[Target]:
    """Return the targets of a parsed address, the best first, each once; blocks for a name.

    Raises:
        OSError: the name cannot be resolved.
    """
    found = resolve_literal(address)
    return _look_up(address, 0) if found is None else found


def resolve_literal(address: tuple[Any, ...] | str) -> list[Target] | None:
    """Do the same as `resolve`, but return None if a name server would have to be asked.

    Raises:
        OSError: the scope of an IPv6 address is no network interface.
    """
    if isinstance(address, str):
        return [Target(socket.AF_UNIX, address)]
    host, mark, scope = str(address[0]).partition("%")
    if mark and ":" in host:  # not left to the C library: glibc takes only some of them
        _, port, flow, *_ = (*address, 0)
        address = (host, port, flow, _scope_id(scope))
    try:
        return _look_up(address, socket.AI_NUMERICHOST)
    except socket.gaierror:
        return None


def _scope_id(scope: str) -> int:
    """Return the number of a network interface."""
    if scope.isascii() and scope.isdigit():
        return int(scope)
    try:
        return socket.if_nametoindex(scope)
    except (OSError, ValueError):
        why = f"there is no network interface {scope!r}"
        raise socket.gaierror(socket.EAI_NONAME, why) from None


def _look_up(address: Any, flags: int) -> list[Target]:
    host, port, *rest = address
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    except UnicodeError as error:  # it is no name at all, as IDNA sees it
        raise socket.gaierror(socket.EAI_NONAME, f"it is no host name: {error}") from error
    targets = [Target(family, _with_rest(place, rest)) for family, *_, place in found]
    return list(dict.fromkeys(targets))


def _with_rest(found: tuple[Any, ...], rest: list[int]) -> tuple[Any, ...]:
    """Give a resolved IPv6 address the flow and the scope that came with the address."""
    if len(found) != 4:
        return found
    return (*found[:2], *(a or b for a, b in zip_longest(rest, found[2:], fillvalue=0)))


# -- comparing and showing


def normalized(address: Any) -> Any:
    """Return an address from the kernel in the form that is used everywhere in tao."""
    if isinstance(address, bytes):
        return os.fsdecode(address)
    if isinstance(address, tuple) and address:
        host = normalized_host(address[0])
        if host != address[0]:
            return (host, *address[1:2])  # as IPv4 has it, without flow and scope
    return address


def normalized_host(host: Any) -> Any:
    """Return the IPv4 address of a host that is written as one inside IPv6, else the host."""
    if isinstance(host, str) and host[:7].lower() == _MAPPED:
        try:
            mapped = ipaddress.IPv6Address(host).ipv4_mapped
        except ValueError:
            return host
        return host if mapped is None else str(mapped)
    return host


def canonical(address: Any) -> Any:
    """Return what is equal for all ways to write one address; a name is not looked up."""
    try:
        parsed = parse(address, listening=True)
        return resolve_literal(parsed) or parsed
    except (TypeError, ValueError, OSError):
        return address  # of another family, or no address: equal to itself only


def host_of(address: Any) -> str:
    """Return the host of a peer's address, or an empty string if it has none (a Unix socket)."""
    return str(normalized_host(address[0])) if isinstance(address, tuple) and address else ""


def address_text(address: Any) -> str:
    """Write an address as people do, in printable characters. It never raises.

    An abstract Unix socket is written ``@name``, as ``ss`` and ``lsof`` do, and the scope of a
    link-local address by the name of its interface.
    """
    try:
        if isinstance(address, tuple) and len(address) >= 2:
            host, port = str(address[0]) + _scope_text(address), address[1]
            return printable(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        if isinstance(address, (bytes, os.PathLike)):
            address = os.fsdecode(address)
        text = safe_str(address or "-")
    except FORMATTING_ERRORS as error:  # of whatever an application has set as a peer's address
        return unprintable(address, error)
    return printable(f"@{text[1:]}" if text.startswith("\0") else text)


def _scope_text(address: tuple[Any, ...]) -> str:
    """Return ``%interface`` for the scope of an IPv6 address that has one."""
    if len(address) != 4 or not address[3] or "%" in address[0]:
        return ""
    try:
        return f"%{socket.if_indextoname(address[3])}"
    except OSError:
        return f"%{address[3]}"
