"""Format foreign objects, whose ``__str__`` and ``__repr__`` may raise.

Error messages name addresses, callbacks, messages and other errors. A failure to format one of
these must not prevent the report.
"""

from __future__ import annotations

__all__ = ["safe_repr", "safe_str"]


def safe_str(value: object) -> str:
    """Return ``str(value)``, or a placeholder if that raises."""
    try:
        return str(value)
    except Exception as error:
        return _unprintable(value, error)


def safe_repr(value: object) -> str:
    """Return ``repr(value)``, or a placeholder if that raises."""
    try:
        return repr(value)
    except Exception as error:
        return _unprintable(value, error)


def _unprintable(value: object, error: Exception) -> str:
    return f"<unprintable {type(value).__name__}: {type(error).__name__}>"
