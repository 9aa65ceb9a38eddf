"""Values that several threads may change at once.

Python has no atomic read-modify-write, with the GIL or without it: ``x += 1`` loses updates. A lock
would help against other threads, but a signal handler or a finalizer that changes a value in the
midst of another change on the same thread would wait for that lock for ever.

So nothing here has a lock. The states of a value form a chain, and a change appends the next state
to the last: to a list, in one step of the interpreter, and of those appended to one state the first
counts. Whoever was not first tries again from there. (Every object can be made lock-free in that
way; Maurice Herlihy, Wait-Free Synchronization, 1991.)

Guarantees: any method may be called from any thread, a signal handler or a finalizer, in the midst
of any other. None waits. After an exception that was raised inside a call, between any two
bytecodes, the change is either made or not.

The integers wrap around in two's complement, as the Go original's do, so a counter shared with a Go
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
    """A reference to a value that itself never changes: each change puts another in its place."""

    __slots__ = ("_state",)

    def __init__(self, value: T) -> None:
        # A state is a list: the value, then the state that follows, then what came too late to be
        # that. This is the last state, or one a few steps before.
        self._state: list[Any] = [value]

    def get(self) -> T:
        """Return the value."""
        state = self._state
        while len(state) > 1:
            state = state[1]
        value: T = state[0]
        return value

    def update(self, change: Callable[[T], T]) -> tuple[T, T]:
        """Put ``change(value)`` in place of the value; return the value before and after.

        ``change`` may be called several times, and must do nothing but work the new value out.
        """
        state = self._state
        while True:
            while len(state) > 1:
                state = state[1]
            new: list[Any] = [change(state[0])]
            state.append(new)
            if state[1] is new:
                self._state = new
                return state[0], new[0]


class _AtomicInteger:
    """What both widths share."""

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
        """Replace the value and return the one before."""
        new = self._wrap(value)
        return self._value.update(lambda _: new)[0]

    def add_and_get(self, delta: int) -> int:
        """Add ``delta`` and return the sum."""
        return self._value.update(lambda before: self._wrap(before + delta))[1]

    def get_and_add(self, delta: int) -> int:
        """Add ``delta`` and return the value before."""
        return self._value.update(lambda before: self._wrap(before + delta))[0]

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
        """Replace the flag and return the one before."""
        new = bool(value)
        return self._value.update(lambda _: new)[0]

    def compare_and_set(self, expected: bool, value: bool) -> bool:
        """Replace the flag if it is ``expected``; tell whether it was."""
        old, new = bool(expected), bool(value)
        return self._value.update(lambda before: new if before is old else before)[0] is old

    def __bool__(self) -> bool:
        return self.get()

    def __repr__(self) -> str:
        return f"AtomicBoolean({self.get()})"


def pop_and_call(table: dict[K, Any], key: K, method: str, *args: object) -> None:
    """Call a method of what a dict has under a key, and remove that; or nothing, if it is gone.

    Both are one step of the interpreter: of several threads one makes the call, and an exception
    that is raised before it, between two bytecodes, leaves the entry in its place.
    """
    entry = iter(partial(table.pop, key, None), None)
    # A function of C's that calls its first argument with its second.
    call: Callable[[Any, Any], Any] = partial.__call__
    reduce(call, entry, partial(methodcaller(method, *args)))
