"""Message numbers: what identifies a message on the wire.

tao's own framing has int32 numbers. In other protocols it is a function code, a verb, the bytes of
a type field, or several fields together: an int, a str, bytes, or a tuple of these.
"""

from __future__ import annotations

from typing import Any, Final

from tao.safe_text import safe_repr

__all__ = [
    "ANY_NUMBER",
    "HEARTBEAT",
    "OWN_NUMBERS",
    "AnyNumber",
    "MessageNumber",
    "check_int32",
    "check_number",
]

#: What may identify a message. A tuple consists of the other kinds, and is not empty.
MessageNumber = int | str | bytes | tuple[int | str | bytes, ...]

#: The number of the heartbeat message, in tao's own framing.
HEARTBEAT = 0

#: What tao itself uses, in its own framing; see ``envelope.py``.
OWN_NUMBERS = range(-(2**31), -(2**31) + 16)

_MIN_INT32, _MAX_INT32 = -(2**31), 2**31 - 1


class AnyNumber:
    """The type of `ANY_NUMBER`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "ANY"


#: Stands for all numbers that are not registered.
ANY_NUMBER: Final = AnyNumber()


def check_number(number: Any) -> None:
    """Raise ``TypeError`` unless ``number`` is a message number."""
    parts = number if isinstance(number, tuple) and number else (number,)
    if not all(isinstance(each, (int, str, bytes)) and type(each) is not bool for each in parts):
        raise TypeError(
            "message_number must be an int, a str, bytes or a tuple of these, not "
            f"{safe_repr(number)}"
        )


def check_int32(number: Any) -> None:
    """Check a message number of tao's own framing.

    Raises:
        TypeError: it is no int.
        ValueError: it is out of range, or one of tao's own.
    """
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(
            f"with tao's own framing, message_number must be an int, not {safe_repr(number)}"
        )
    if not _MIN_INT32 <= number <= _MAX_INT32:
        raise ValueError(f"message_number {number} does not fit an int32")
    if number in OWN_NUMBERS:
        raise ValueError(
            f"message_number {number} is one of tao's own, which are {OWN_NUMBERS[0]} to "
            f"{OWN_NUMBERS[-1]}"
        )
