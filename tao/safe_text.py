"""Text of objects that are not tao's, whose ``__str__`` and ``__repr__`` may raise.

Errors are reported in texts that name an address, a callback, a message or another error. None of
these may keep the report from being made.
"""

from __future__ import annotations

__all__ = ["safe_format", "safe_repr", "safe_str"]


def safe_str(value: object) -> str:
    """Return ``str(value)``, or what stands for it if that raises."""
    try:
        return str(value)
    except Exception as error:
        return _unprintable(value, error)


def safe_repr(value: object) -> str:
    """Return ``repr(value)``, or what stands for it if that raises."""
    try:
        return repr(value)
    except Exception as error:
        return _unprintable(value, error)


def safe_format(text: str, *args: object) -> str:
    """Return ``text.format(*args)``; arguments that cannot be formatted are replaced."""
    try:
        return text.format(*args)
    except Exception:
        pass
    try:
        return text.format(*map(_Safe, args))
    except Exception:  # it is the text that is wrong
        return " ".join([text, *map(safe_repr, args)])


class _Safe:
    """Formats like the value it holds, and never raises."""

    __slots__ = ("_value",)

    def __init__(self, value: object) -> None:
        self._value = value

    def __format__(self, spec: str) -> str:
        try:
            return format(self._value, spec)
        except Exception:
            return safe_str(self._value)

    def __str__(self) -> str:
        return safe_str(self._value)

    def __repr__(self) -> str:
        return safe_repr(self._value)


def _unprintable(value: object, error: Exception) -> str:
    return f"<unprintable {type(value).__name__}: {type(error).__name__}>"
