"""Format objects of the application: ``__str__`` and ``__repr__`` may raise.

Error messages name addresses, callbacks, messages and other errors. A failure to format one of
these must not prevent the report.
"""

from __future__ import annotations

__all__ = [
    "FORMATTING_ERRORS",
    "number_text",
    "number_value",
    "printable",
    "safe_repr",
    "safe_str",
    "unprintable",
]

#: What the application's code may raise. Not KeyboardInterrupt: that is for the main thread.
FORMATTING_ERRORS = (Exception, SystemExit, GeneratorExit)

# How much of a message number is shown, in characters: a peer may send one of any length.
_LONGEST_NUMBER = 100


def safe_str(value: object) -> str:
    """Return ``str(value)``, or a placeholder if that raises."""
    try:
        return str.__str__(str(value))  # not of a subclass of str, whose methods may raise as well
    except FORMATTING_ERRORS as error:
        return unprintable(value, error)


def safe_repr(value: object) -> str:
    """Return ``repr(value)``, or a placeholder if that raises."""
    try:
        return str.__str__(repr(value))
    except FORMATTING_ERRORS as error:
        return unprintable(value, error)


def number_text(number: object) -> str:
    """Return a message number as it is shown in logs and figures.

    Numbers of different kinds look different, as ``7``, ``'7'`` and ``b'7'`` do.
    """
    if isinstance(number, int):
        return safe_repr(int(number))  # not the name that an enumeration gives it
    if isinstance(number, (str, bytes)):
        number = number[: _LONGEST_NUMBER + 1]  # before it is formatted
    text = safe_repr(number)
    return text if len(text) <= _LONGEST_NUMBER else f"{text[:_LONGEST_NUMBER]}..."


def number_value(number: object) -> int | str:
    """Return a message number as JSON shows it: an int as it is, others as `number_text`."""
    return number if isinstance(number, int) else number_text(number)


def printable(text: str) -> str:
    """Return ``text`` as one line, with characters escaped that are not printable."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def unprintable(value: object, error: BaseException) -> str:
    """Return a placeholder for what has raised an error when it was formatted."""
    try:
        return f"<unprintable {type(value).__name__}: {type(error).__name__}>"
    except FORMATTING_ERRORS:  # even its class has no name
        return "<unprintable object>"
