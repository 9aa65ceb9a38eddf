"""Integers and booleans that several threads may change at once.

Python has no atomic read-modify-write, with the GIL or without it: ``x += 1`` loses updates. Each
value here has a lock of its own. The integers wrap around in two's complement, as the Go
original's do, so a counter shared with a Go program overflows the same way.
"""

from __future__ import annotations

import threading
from operator import index

__all__ = ["AtomicBoolean", "AtomicInt32", "AtomicInt64"]


class _AtomicInteger:
    """What both widths share; every method may be called from any thread."""

    __slots__ = ("_lock", "_value")
    _bits = 64

    def __init__(self, value: int = 0) -> None:
        # Guards _value.
        self._lock = threading.Lock()
        self._value: int = self._wrap(value)

    def _wrap(self, value: int) -> int:
        half = 1 << (self._bits - 1)
        return (index(value) + half) % (2 * half) - half

    def get(self) -> int:
        """Return the value."""
        return self._value

    def set(self, value: int) -> None:
        """Replace the value."""
        with self._lock:
            self._value = self._wrap(value)

    def get_and_set(self, value: int) -> int:
        """Replace the value and return the one before."""
        with self._lock:
            before, self._value = self._value, self._wrap(value)
            return before

    def add_and_get(self, delta: int) -> int:
        """Add ``delta`` and return the sum."""
        with self._lock:
            self._value = self._wrap(self._value + delta)
            return self._value

    def get_and_add(self, delta: int) -> int:
        """Add ``delta`` and return the value before."""
        with self._lock:
            before = self._value
            self._value = self._wrap(before + delta)
            return before

    def increment_and_get(self) -> int:
        """Add one and return the sum."""
        return self.add_and_get(1)

    def get_and_increment(self) -> int:
        """Add one and return the value before."""
        return self.get_and_add(1)

    def decrement_and_get(self) -> int:
        """Subtract one and return the difference."""
        return self.add_and_get(-1)

    def get_and_decrement(self) -> int:
        """Subtract one and return the value before."""
        return self.get_and_add(-1)

    def compare_and_set(self, expected: int, value: int) -> bool:
        """Replace the value if it is ``expected``; tell whether it was."""
        with self._lock:
            if self._value != self._wrap(expected):
                return False
            self._value = self._wrap(value)
            return True

    def __int__(self) -> int:
        return self._value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._value})"


class AtomicInt64(_AtomicInteger):
    """A signed 64-bit integer."""

    __slots__ = ()


class AtomicInt32(_AtomicInteger):
    """A signed 32-bit integer."""

    __slots__ = ()
    _bits = 32


class AtomicBoolean:
    """A flag; every method may be called from any thread."""

    __slots__ = ("_lock", "_value")

    def __init__(self, value: bool = False) -> None:
        # Guards _value.
        self._lock = threading.Lock()
        self._value: bool = bool(value)

    def get(self) -> bool:
        """Return the flag."""
        return self._value

    def set(self, value: bool) -> None:
        """Replace the flag."""
        with self._lock:
            self._value = bool(value)

    def get_and_set(self, value: bool) -> bool:
        """Replace the flag and return the one before."""
        with self._lock:
            before, self._value = self._value, bool(value)
            return before

    def compare_and_set(self, expected: bool, value: bool) -> bool:
        """Replace the flag if it is ``expected``; tell whether it was."""
        with self._lock:
            if self._value != bool(expected):
                return False
            self._value = bool(value)
            return True

    def __bool__(self) -> bool:
        return self._value

    def __repr__(self) -> str:
        return f"AtomicBoolean({self._value})"
