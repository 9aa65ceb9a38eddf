"""Copies of containers that other threads may change meanwhile.

``list(x)``, ``dict(x)``, ``set(x)`` and ``[*x]`` copy in one step of the interpreter, and so does
``list(x.values())``. Other ways do not. Up to CPython 3.11 the garbage collector may run whenever
an object is made, and a finalizer lets other threads run. If they change a list while ``x.copy()``
or ``x[:]``, in 3.10 also ``tuple(x)``, makes room for the copy, the process crashes, because freed
memory is read. ``list(x.items())`` makes an object for each item and raises an error if the
dictionary has changed meanwhile; ``dict(x).items()`` does not. And weak containers are iterated by
Python code, in many steps.
"""

from __future__ import annotations

from typing import Any, TypeVar
from weakref import WeakKeyDictionary

__all__ = ["keys_of"]

_KeyT = TypeVar("_KeyT")


def keys_of(weak: WeakKeyDictionary[_KeyT, Any]) -> list[_KeyT]:
    """Return the keys that live. Any thread may call it, whatever others add or let go of."""
    keys = (each() for each in weak.keyrefs())
    return [key for key in keys if key is not None]
