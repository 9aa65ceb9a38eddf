"""Names under which connections are found: those of groups, and identities."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Member", "check_group_name", "check_identity"]

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


def _check(what: str, name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a str, not {name!r}")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{what} must be valid text, not {name!r}") from None
    if not size:
        raise ValueError(f"{what} must not be empty")
    if size > _LONGEST:
        raise ValueError(f"{what} must have at most {_LONGEST} bytes of UTF-8, not {size}")
    return str.__str__(name)
