"""Names under which connections are found: those of groups, and identities."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from tao.safe_text import safe_repr

__all__ = [
    "Member",
    "addresses_of",
    "check_address",
    "check_group_name",
    "check_identity",
]

# The longest name, in bytes of UTF-8.
_LONGEST = 255


class Member(Protocol):
    """What an index of names asks of a connection."""

    @property
    def net_id(self) -> int:
        """Its number."""

    @property
    def closed(self) -> bool:
        """Whether it is closed or closing; never reset."""


def check_group_name(name: object) -> str:
    """Return the name of a group as a plain str.

    Raises:
        TypeError: it is not a str.
        ValueError: it is empty, longer than 255 bytes of UTF-8, or no valid text.
    """
    return _check("the name of a group", name)


def check_identity(identity: object) -> str:
    """Do the same for the identity of a peer."""
    return _check("an identity", identity)


def check_address(address: object) -> int | str:
    """Return what may name a connection.

    Raises:
        TypeError: it is no number of a connection, and no ``address_id``.
    """
    # Plain ones: they are compared in the midst of a broadcast.
    if issubclass(type(address), int):
        return int.__int__(address)  # type: ignore[arg-type]
    if issubclass(type(address), str):
        return str.__str__(address)
    what = safe_repr(address)
    raise TypeError(f"a connection has a net_id (int) or an address_id (str), not {what}")


def addresses_of(conns: Iterable[Any]) -> list[int | str]:
    """Return the numbers of connections; what names one already is kept.

    Raises:
        TypeError: there is something that can be no connection, or a text in place of a list.
    """
    if isinstance(conns, str):
        raise TypeError(f"exclude must be a list of connections, not {safe_repr(conns)}")
    return [check_address(getattr(conn, "net_id", conn)) for conn in conns]


def _check(what: str, name: object) -> str:
    if not issubclass(type(name), str):
        raise TypeError(f"{what} must be a str, not {safe_repr(name)}")
    name = str.__str__(name)  # first, as a subclass may do anything
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{what} must be valid text, not {name!r}") from None
    if not size:
        raise ValueError(f"{what} must not be empty")
    if size > _LONGEST:
        raise ValueError(f"{what} must have at most {_LONGEST} bytes of UTF-8, not {size}")
    return name
