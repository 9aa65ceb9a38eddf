"""How two tao peers find each other, without disturbing other peers.

The value of a heartbeat is a time of 8 bytes. The decoders of the Go original and of older tao
peers ignore what follows it. So capabilities travel as a heartbeat of exactly 32 bytes,
little-endian::

    time i64 | magic 93 54 41 4F 0D 0A 1A FF | version u8 = 1 | kind u8 | 0 u16 |
    capabilities u32 | nonce u64

``kind`` is 1 in what asks and 2 in the answer, which repeats the nonce of the question. Any other
value is a plain heartbeat. So is a question that comes back: some peers echo heartbeats.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

__all__ = [
    "ANSWER",
    "ASK",
    "LEAVES",
    "OFFERS_SESSIONS",
    "REQUESTS",
    "SESSIONS",
    "SIZE",
    "Capabilities",
    "capability_frame",
    "read",
]

#: The kinds.
ASK, ANSWER = 1, 2
#: The capability to answer requests in envelopes, see ``envelope.py``.
REQUESTS = 1
#: The capability to have sessions, see ``tao/session``.
SESSIONS = 2
#: The capability to leave when told so: to finish what is under way, and to connect again.
LEAVES = 4
#: The server has sessions, for clients that ask in time: `SESSIONS` says that this one did.
OFFERS_SESSIONS = 8
#: How many bytes the value has.
SIZE = 32

_MAGIC = b"\x93TAO\r\n\x1a\xff"
_VERSION = 1
_FRAME = struct.Struct("<iIq8sBBHIQ")
_VALUE = struct.Struct("<q8sBBHIQ")


class Capabilities(NamedTuple):
    """What such a heartbeat says.

    Attributes:
        kind: `ASK` or `ANSWER`.
        capabilities: of the sender: the sum of those that it has.
        nonce: chosen by the side that asks.
    """

    kind: int
    capabilities: int
    nonce: int


def capability_frame(nanoseconds: int, kind: int, capabilities: int, nonce: int) -> bytes:
    """Return the frame of a heartbeat that tells capabilities.

    Args:
        nanoseconds: the time of sending, in nanoseconds since the Unix epoch.
    """
    return _FRAME.pack(0, _VALUE.size, nanoseconds, _MAGIC, _VERSION, kind, 0, capabilities, nonce)


def read(value: bytes) -> Capabilities | None:
    """Read the value of a heartbeat; None if it is a plain one."""
    if len(value) != SIZE:
        return None
    _, magic, version, kind, zero, capabilities, nonce = _VALUE.unpack(value)
    if magic != _MAGIC or version != _VERSION or kind not in (ASK, ANSWER) or zero:
        return None
    return Capabilities(kind, capabilities, nonce)
