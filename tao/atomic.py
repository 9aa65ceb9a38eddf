"""Values that several threads may change concurrently.

Python has no atomic read-modify-write, with the GIL or without it: ``x += 1`` loses updates. A lock
would protect against other threads. But a signal handler or a finalizer that interrupts a change
and changes the same value would wait for that lock for ever.

So nothing here uses a lock. The states of a value form a chain, and each state is a list. A change
appends the next state to the last one, in one step of the interpreter. If several threads append to
one state, the first entry counts; the other threads retry from there. (Every object can be made
lock-free in this way; Maurice Herlihy, Wait-Free Synchronization, 1991.)

Guarantees: any method may be called from any thread, signal handler or finalizer, even during
another call. None blocks. If an exception is raised inside a call, between any two bytecodes, the
change has either been made completely or not at all.

The integers wrap around in two's complement, as in the Go original, so a counter shared with a Go
program overflows the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from operator import index, methodcaller
from typing import Any, Generic, TypeVar

__all__ = ["AtomicBoolean", "AtomicInt32", "AtomicInt64", "AtomicReference", "pop_and_call"]

K = TypeVar("K")
T = TypeVar("T")


class AtomicReference(Generic[T]):
    """A reference to an immutable value: each change replaces the value."""

    __slots__ = ("_state",)

    def __init__(self, value: T) -> None:
        # A state is a list: the value, then the next state, then states that were appended too
        # late and do not count. This is the last state, or one a few steps before it.
        self._state: list[Any] = [value]

    def get(self) -> T:
        """Return the value."""
        state = self._state
        while len(state) > 1:
            state = state[1]
        value: T = state[0]
        return value

    def update(self, change: Callable[..., T], *args: Any) -> tuple[T, T]:
        """Replace the value by ``change(value, *args)``; return the value before and after.

        ``change`` may be called several times, so it must have no side effects.
        """
        state = self._state
        while True:
            while len(state) > 1:
                state = state[1]
            before = state[0]
            after = change(before, *args)
            new: list[Any] = [after]
            state.append(new)
            if state[1] is new:
                self._state = new
                return before, after


class _AtomicInteger:
    """The base class of both integer widths."""

    __slots__ = ("_value",)
    _bits = 64

    def __init__(self, value: int = 0) -> None:
        self._value: AtomicReference[int] = AtomicReference(self._wrap(value))

    def _wrap(self, value: int) -> int:
        half = 1 << (self._bits - 1)
        return (index(value) + half) % (2 * half) - half

    def get(self) -> int:
        """Return the value."""
        return self._value.get()

    def set(self, value: int) -> None:
        """Replace the value."""
        self.get_and_set(value)

    def get_and_set(self, value: int) -> int:
        """Replace the value and return the previous one."""
        new = self._wrap(value)
        return self._value.update(lambda _: new)[0]

    def add_and_get(self, delta: int) -> int:
        """Add ``delta`` and return the sum."""
        return self._value.update(lambda before: self._wrap(before + delta))[1]

    def get_and_add(self, delta: int) -> int:
        """Add ``delta`` and return the previous value."""
        return self._value.update(lambda before: self._wrap(before + delta))[0]

    def increment_and_get(self) -> int:
        """Add one and return the sum."""
        return self.add_and_get(1)

    def get_and_increment(self) -> int:
        """Add one and return the previous value."""
        return self.get_and_add(1)

    def decrement_and_get(self) -> int:
        """Subtract one and return the difference."""
        return self.add_and_get(-1)

    def get_and_decrement(self) -> int:
        """Subtract one and return the previous value."""
        return self.get_and_add(-1)

    def compare_and_set(self, expected: int, value: int) -> bool:
        """Replace the value if it equals ``expected``; return whether it did."""
        old, new = self._wrap(expected), self._wrap(value)
        return self._value.update(lambda before: new if before == old else before)[0] == old

    def __int__(self) -> int:
        return self.get()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.get()})"


class AtomicInt64(_AtomicInteger):
    """A signed 64-bit integer."""

    __slots__ = ()


class AtomicInt32(_AtomicInteger):
    """A signed 32-bit integer."""

    __slots__ = ()
    _bits = 32


class AtomicBoolean:
    """A flag."""

    __slots__ = ("_value",)

    def __init__(self, value: bool = False) -> None:
        self._value: AtomicReference[bool] = AtomicReference(bool(value))

    def get(self) -> bool:
        """Return the flag."""
        return self._value.get()

    def set(self, value: bool) -> None:
        """Replace the flag."""
        self.get_and_set(value)

    def get_and_set(self, value: bool) -> bool:
        """Replace the flag and return the previous one."""
        new = bool(value)
        return self._value.update(lambda _: new)[0]

    def compare_and_set(self, expected: bool, value: bool) -> bool:
        """Replace the flag if it equals ``expected``; return whether it did."""
        old, new = bool(expected), bool(value)
        return self._value.update(lambda before: new if before is old else before)[0] is old

    def __bool__(self) -> bool:
        return self.get()

    def __repr__(self) -> str:
        return f"AtomicBoolean({self.get()})"


def pop_and_call(table: dict[K, Any], key: K, method: str, *args: object) -> None:
    """Remove the value stored under a key and call one of its methods; do nothing without a value.

    Removal and call are one step of the interpreter: only one of several threads makes the call,
    and an exception that is raised before it, between two bytecodes, leaves the entry in the dict.
    """
    entry = iter(partial(table.pop, key, None), None)
    # A C function that calls its first argument with its second.
    call: Callable[[Any, Any], Any] = partial.__call__
    reduce(call, entry, partial(methodcaller(method, *args)))
