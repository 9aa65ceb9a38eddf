"""What two tao peers tell each other beside the application's messages, in tao's own framing.

Requests and replies travel in an envelope of four reserved message numbers. A fifth one tells the
peer to connect again, as this side is about to stop. Everything is little-endian; the value of the
message inside is last, so its size follows from that of the frame::

    REQUEST  -2147483648   id u64 | milliseconds u32 | number i32 | value
    REPLY    -2147483647   id u64 | number i32 | value
    ERROR    -2147483646   id u64 | size u16 | code, of that size, UTF-8 | text, UTF-8
    CANCEL   -2147483645   id u64
    LEAVE    -2147483644   nothing

``id`` is chosen by the asking side and repeated in what belongs to the request. ``milliseconds`` is
the time that the asking side still waits; 4294967295 means that it does not say. ``number`` and
``value`` are those of a message as it would be sent without an envelope.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from tao.errors import BadData

__all__ = [
    "CANCEL",
    "ENVELOPE_SIZES",
    "ERROR",
    "LEAVE",
    "LEAVE_FRAME",
    "NO_LIMIT",
    "REPLY",
    "REQUEST",
    "Inside",
    "cancel_frame",
    "error_frame",
    "read_cancel",
    "read_error",
    "read_reply",
    "read_request",
    "reply_frame",
    "request_frame",
]

REQUEST, REPLY, ERROR, CANCEL, LEAVE = range(-(2**31), -(2**31) + 5)

#: In place of the milliseconds: the asking side does not say how long it waits.
NO_LIMIT = 2**32 - 1

# The header of the frame, with the fixed part of the value.
_REQUEST_FRAME = struct.Struct("<iIQI")
_REPLY_FRAME = struct.Struct("<iIQ")
_ERROR_FRAME = struct.Struct("<iIQH")
# The fixed part of the value alone.
_REQUEST = struct.Struct("<QIi")
_REPLY = struct.Struct("<Qi")
_ERROR = struct.Struct("<QH")
_ID = struct.Struct("<Q")
# The sizes of a frame's header, and of the number in it.
_HEADER, _NUMBER = 8, 4
#: What tells the peer to leave.
LEAVE_FRAME = struct.pack("<iI", LEAVE, 0)
#: How many bytes the value of an envelope has more than the one inside.
ENVELOPE_SIZES = {REQUEST: _REQUEST.size, REPLY: _REPLY.size}
# Up to this size of a frame, copying its parts twice costs less than joining them.
_SMALL = 4096
# The longest code and text of an error, in bytes; what is longer is cut.
_CODE_MOST, _TEXT_MOST = 255, 1024


class Inside(NamedTuple):
    """What an envelope holds.

    Attributes:
        request_id: which request it is, or belongs to.
        milliseconds: how long the asking side still waits; `NO_LIMIT` if it does not say.
        number: the message number.
        value: the message's value.
    """

    request_id: int
    milliseconds: int
    number: int
    value: bytes


def request_frame(request_id: int, seconds: float | None, frame: bytes) -> bytes:
    """Return a request.

    Args:
        seconds: how long its sender waits; None: it does not say.
        frame: that of the message to be put inside.
    """
    milliseconds = NO_LIMIT
    if seconds is not None:
        milliseconds = int(seconds * 1000)
        if not 0 <= milliseconds < NO_LIMIT:
            milliseconds = 0 if milliseconds < 0 else NO_LIMIT - 1
    size = len(frame) - _HEADER + _REQUEST.size
    head = _REQUEST_FRAME.pack(REQUEST, size, request_id, milliseconds)
    return _enclose(head, frame)


def reply_frame(request_id: int, frame: bytes) -> bytes:
    """Return the reply to a request; ``frame`` is that of the message to be put inside."""
    size = len(frame) - _HEADER + _REPLY.size
    return _enclose(_REPLY_FRAME.pack(REPLY, size, request_id), frame)


def error_frame(request_id: int, code: str, text: str) -> bytes:
    """Return the refusal of a request. A code or a text that is too long is cut."""
    encoded = _cut(code, _CODE_MOST)
    rest = encoded + _cut(text, _TEXT_MOST)
    head = _ERROR_FRAME.pack(ERROR, _ERROR.size + len(rest), request_id, len(encoded))
    return head + rest


def cancel_frame(request_id: int) -> bytes:
    """Return what tells the peer that nobody waits for the reply to a request any more."""
    return _REPLY_FRAME.pack(CANCEL, _ID.size, request_id)


def read_request(value: bytes) -> Inside:
    """Read the value of a REQUEST.

    Raises:
        BadData: it is too short.
    """
    if len(value) < _REQUEST.size:
        raise BadData(f"a request of {len(value)} bytes is too short")
    request_id, milliseconds, number = _REQUEST.unpack_from(value)
    return Inside(request_id, milliseconds, number, value[_REQUEST.size :])


def read_reply(value: bytes) -> Inside:
    """Read the value of a REPLY.

    Raises:
        BadData: it is too short.
    """
    if len(value) < _REPLY.size:
        raise BadData(f"a reply of {len(value)} bytes is too short")
    request_id, number = _REPLY.unpack_from(value)
    return Inside(request_id, NO_LIMIT, number, value[_REPLY.size :])


def read_error(value: bytes) -> tuple[int, str, str]:
    """Read the value of an ERROR: id, code and text.

    Raises:
        BadData: it is too short.
    """
    if len(value) < _ERROR.size:
        raise BadData(f"an error reply of {len(value)} bytes is too short")
    request_id, size = _ERROR.unpack_from(value)
    end = _ERROR.size + size
    if len(value) < end:
        raise BadData(f"an error reply announces a code of {size} bytes, more than it has")
    code, text = value[_ERROR.size : end], value[end:]
    return request_id, code.decode("utf-8", "replace"), text.decode("utf-8", "replace")


def read_cancel(value: bytes) -> int:
    """Read the value of a CANCEL: the id.

    Raises:
        BadData: it is of the wrong size.
    """
    if len(value) != _ID.size:
        raise BadData(f"a cancellation has {_ID.size} bytes, not {len(value)}")
    request_id: int = _ID.unpack(value)[0]
    return request_id


def _enclose(head: bytes, frame: bytes) -> bytes:
    """Return a head, followed by number and value of a frame."""
    if len(frame) <= _SMALL:
        return head + frame[:_NUMBER] + frame[_HEADER:]
    return b"".join((head, frame[:_NUMBER], memoryview(frame)[_HEADER:]))


def _cut(text: str, most: int) -> bytes:
    """Return a text as UTF-8, no longer than so many bytes, and whole characters only."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= most:
        return encoded
    return encoded[:most].decode("utf-8", "ignore").encode()
