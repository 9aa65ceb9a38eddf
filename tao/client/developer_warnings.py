"""Warnings of mistakes in a program, shown at the line that made the client."""

from __future__ import annotations

import sys
import warnings
from typing import Any

__all__ = ["warn_unclosed", "warn_unheard"]

# Which warnings were shown, as the module warnings keeps that: once for each line of a program.
_shown: dict[Any, Any] = {}


def warn_unheard(made_at: tuple[str, int], number: int) -> None:
    """Warn that messages are skipped, where neither the log nor the application notices it.

    This is a mistake in the program, so it is a warning as Python has them; it is shown unless the
    program says otherwise.

    Args:
        made_at: file and line of the program that made the client.
        number: the message number.
    """
    text = (
        f"a client made here has received message number {number}, which its registry does not "
        "know; such messages are skipped. Register its class with a handler, or give on_message "
        "to silence this"
    )
    try:
        warnings.warn_explicit(text, RuntimeWarning, *made_at, registry=_shown)
    except RuntimeWarning as error:
        # The program wants warnings to be errors, but on this thread there is nobody to raise it
        # to. As an error of the connection's it would hide which error that really had.
        warnings.showwarning(error, RuntimeWarning, *made_at)


def warn_unclosed(client: Any, application: Any, made_at: tuple[str, int]) -> None:
    """Warn that a client was forgotten without being closed.

    Args:
        client, application: the client, and what it was given.
        made_at: file and line of the program that made the client.
    """
    text = f"unclosed {client!r}: keep a reference to a client, and close it in the end"
    # Of an object that has a dict, tracemalloc does not know in CPython 3.11 where it was made.
    source = application if sys.version_info[:2] == (3, 11) else client
    warnings.warn_explicit(text, ResourceWarning, *made_at, source=source)
