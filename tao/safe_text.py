"""Text of objects that are not tao's, whose ``__str__`` and ``__repr__`` may raise.

Errors are reported in texts that name an address, a callback, a message or another error. None of
these may keep the report from being made.
"""

from __future__ import annotations

__all__ = ["safe_repr", "safe_str"]


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


def _unprintable(value: object, error: Exception) -> str:
    return f"<unprintable {type(value).__name__}: {type(error).__name__}>"
