"""Values of classes that break what they can, as an application may have them by mistake."""

from __future__ import annotations

from typing import Any

__all__ = ["Touchy", "Wicked"]


def _fail(*_: Any, **__: Any) -> Any:
    raise RuntimeError("not to be used")


class Wicked(str):
    """A text that raises whatever is done with it."""

    __slots__ = ()
    __eq__ = __ne__ = __lt__ = __hash__ = __len__ = __bool__ = __iter__ = __contains__ = _fail
    __str__ = __repr__ = __format__ = __add__ = __mod__ = __getitem__ = _fail
    encode = strip = split = partition = rpartition = isascii = startswith = _fail


class Touchy(int):
    """A number that is like each other one, until it raises when it is compared.

    What is set to ``error`` is raised by all of them.
    """

    __slots__ = ()
    error: BaseException | None = None

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        if Touchy.error is not None:
            raise Touchy.error
        return int(self) == int(other)  # type: ignore[call-overload, no-any-return]

    def __ne__(self, other: object) -> bool:
        return not self == other
