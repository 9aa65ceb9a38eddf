"""Warnings about mistakes in the program, reported at the line that made the client."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from tao.safe_text import number_text

__all__ = ["warn_unclosed", "warn_unheard"]

# The registry of shown warnings for the module warnings: one for each line of the program.
_shown: dict[Any, Any] = {}


def warn_unheard(made_at: tuple[str, int], number: Any) -> None:
    """Warn that messages are skipped because nothing handles them.

    It is a mistake in the program that the log might not show, so it is a Python warning, which is
    shown by default.

    Args:
        made_at: file and line of the program that made the client.
        number: the message number.
    """
    text = (
        f"a client made here has received message number {number_text(number)}, which its registry "
        "does not know; such messages are skipped. Register its class with a handler, or set "
        "on_message to silence this"
    )
    try:
        warnings.warn_explicit(text, RuntimeWarning, *made_at, registry=_shown)
    except RuntimeWarning as error:
        # The program turns warnings into errors, but this thread has no caller to raise it to. As
        # an error of the connection it would hide the real one.
        warnings.showwarning(error, RuntimeWarning, *made_at)


def warn_unclosed(client: Any, application: Any, made_at: tuple[str, int]) -> None:
    """Warn that a client was dropped without being closed.

    Args:
        client, application: the client and its application object.
        made_at: file and line of the program that made the client.
    """
    text = f"unclosed {client!r}: keep a reference to a client, and close it in the end"
    # In CPython 3.11 tracemalloc has no traceback for objects with a __dict__.
    source = application if sys.version_info[:2] == (3, 11) else client
    warnings.warn_explicit(text, ResourceWarning, *made_at, source=source)
