"""Frames with a key: one that waits is replaced by the next with the same key."""

from __future__ import annotations

from typing import Any

__all__ = ["KeyedFrame", "ReplaceKey", "keyed"]

#: What `Connection.write` takes as ``replace``; a tuple is of such values.
ReplaceKey = str | int | bytes | tuple[Any, ...]


class KeyedFrame(bytes):
    """A frame with a key; made by `keyed`."""

    #: Compared in the turn of the send queue, so only of types whose comparison runs no code of
    #: the application.
    key: Any = None


def keyed(frame: bytes, key: object) -> KeyedFrame:
    """Return a frame with a key.

    Raises:
        TypeError: the key is not a str, an int, bytes or a tuple of these.
    """
    _check(key, key)
    made = KeyedFrame(frame)
    made.key = key
    return made


def _check(part: object, key: object) -> None:
    if type(part) is tuple:
        for each in part:
            _check(each, key)
    elif type(part) not in (str, int, bytes):
        raise TypeError(f"replace must be a str, an int, bytes or a tuple of these, not {key!r}")
