"""Formatting what an application hands in, whatever its code raises."""

from __future__ import annotations

from typing import Any

import pytest

from tao.safe_text import safe_repr, safe_str


class Raises:
    """An object that cannot be formatted."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __str__(self) -> str:
        raise self._error

    __repr__ = __str__


class Nameless(type):
    """The class of classes without a name."""

    def __getattribute__(cls, name: str) -> Any:
        raise AttributeError(name)


class Worst(metaclass=Nameless):
    """An object that cannot be formatted, of a class that cannot be named."""

    def __str__(self) -> str:
        raise ValueError

    __repr__ = __str__


@pytest.mark.parametrize("error", [ValueError, SystemExit, GeneratorExit, RecursionError])
def test_what_formatting_raises(error: type[BaseException]) -> None:
    """There is a placeholder instead, which names the class and the error."""
    placeholder = f"<unprintable Raises: {error.__name__}>"
    assert safe_str(Raises(error())) == safe_repr(Raises(error())) == placeholder


class Own(str):
    """A str whose methods raise."""

    __slots__ = ()

    def __str__(self) -> str:
        return self

    __repr__ = __str__

    def __getitem__(self, index: Any) -> str:
        raise ValueError

    isprintable = lower = __format__ = __getitem__


def test_a_subclass_of_str() -> None:
    """The text is a plain str, so that its methods cannot raise."""
    for text in (safe_str(Own("x")), safe_repr(Own("x"))):
        assert type(text) is str and text[:1] == "x"


def test_a_class_without_a_name() -> None:
    """Even that has a placeholder."""
    assert safe_str(Worst()) == safe_repr(Worst()) == "<unprintable object>"


def test_ctrl_c_is_not_swallowed() -> None:
    """It is for the main thread."""
    with pytest.raises(KeyboardInterrupt):
        safe_str(Raises(KeyboardInterrupt()))
