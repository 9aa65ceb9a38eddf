"""Stuffings: how a value that may contain any bytes is kept free of the bytes that end a frame."""

from __future__ import annotations

from abc import abstractmethod
from typing import Final

from tao.errors import BadData

__all__ = ["COBS", "DLE", "HDLC", "JT808", "SLIP", "Cobs", "Pairs", "Stuffing", "Xor"]


class Stuffing:
    """Escapes values, for the ``escape`` of `Delimited`; a subclass defines the two methods.

    Attributes:
        name: for messages.
        start, end: the bytes around an escaped value.
        doubled: the byte that is doubled within a value and begins ``end``; b"" if ``end`` never
            occurs in an escaped value.
    """

    name: str
    start: bytes
    end: bytes
    doubled: bytes = b""

    @abstractmethod
    def escape(self, value: bytes) -> bytes:
        """Return a value as it is written between ``start`` and ``end``."""

    @abstractmethod
    def unescape(self, data: bytes) -> bytes:
        """Return the value.

        Raises:
            BadData: the data is none that `escape` returns.
        """

    def __repr__(self) -> str:
        return self.name


class Pairs(Stuffing):
    """Stuffing that writes some bytes as pairs, of which the first is the escape byte.

    Args:
        name: for messages.
        escape: the escape byte.
        pairs: the second byte of the pair of each escaped byte, that of ``escape`` included.
        end: ends a frame; it must be escaped.
        start: begins one.
    """

    def __init__(
        self, name: str, escape: bytes, pairs: dict[bytes, bytes], end: bytes, start: bytes
    ) -> None:
        self.name = name
        self._escape: bytes = escape
        # That of the escape byte first: when escaping, it must not escape what others have added.
        own = {escape: escape + pairs[escape]}
        self._pairs: dict[bytes, bytes] = own | {byte: escape + pairs[byte] for byte in pairs}
        self.start, self.end = start, end

    def escape(self, value: bytes) -> bytes:
        for byte, pair in self._pairs.items():
            value = value.replace(byte, pair)
        return value

    def unescape(self, data: bytes) -> bytes:
        if self._escape not in data:
            return data
        if data.count(self._escape) != sum(map(data.count, self._pairs.values())):
            raise BadData(f"{self.name}: an escape byte is followed by a wrong one")
        for byte, pair in reversed(self._pairs.items()):
            data = data.replace(pair, byte)
        return data


class Xor(Stuffing):
    """HDLC's byte stuffing (RFC 1662, 4.2): an escape byte, then the byte with bit 5 inverted.

    Args:
        name: for messages.
        escape: the escape byte.
        end: begins and ends a frame.
    """

    _BIT = 0x20

    def __init__(self, name: str, escape: bytes, end: bytes) -> None:
        self.name = name
        self._escape: bytes = escape
        self.start = self.end = end
        self._pairs: list[tuple[bytes, bytes]] = [
            (byte, escape + bytes([byte[0] ^ self._BIT])) for byte in (escape, end)
        ]

    def escape(self, value: bytes) -> bytes:
        for byte, pair in self._pairs:
            value = value.replace(byte, pair)
        return value

    def unescape(self, data: bytes) -> bytes:
        first, *rest = data.split(self._escape)
        if not rest:
            return data
        pieces = [first]
        for piece in rest:
            if not piece:
                raise BadData(f"{self.name}: an escape byte is followed by the end or another")
            pieces += bytes([piece[0] ^ self._BIT]), piece[1:]
        return b"".join(pieces)


class Cobs(Stuffing):
    """Consistent overhead byte stuffing (Cheshire and Baker, IEEE/ACM ToN 7(2), 1999).

    A value of up to 254 bytes takes one byte more, and contains no zero, which ends a frame.
    """

    name = "COBS"
    start = b""
    end = b"\0"
    _MOST = 254  # bytes without a zero in one block

    def escape(self, value: bytes) -> bytes:
        pieces: list[bytes] = []
        most, groups = self._MOST, value.split(b"\0")
        for index, group in enumerate(groups, 1):
            for at in range(0, max(len(group), 1), most):
                block = group[at : at + most]
                pieces += bytes([len(block) + 1]), block
            if len(block) == most and index < len(groups):
                pieces.append(b"\1")  # a whole block stands for no zero
        return b"".join(pieces)

    def unescape(self, data: bytes) -> bytes:
        pieces: list[bytes] = []
        at, size = 0, len(data)
        while at < size:
            code = data[at]
            block = data[at + 1 : at + code]
            if len(block) != code - 1 or not code:
                raise BadData("COBS: a block is longer than the frame")
            pieces.append(block)
            at += code
            if code <= self._MOST and at < size:
                pieces.append(b"\0")
        return b"".join(pieces)


class _Doubled(Stuffing):
    """Transparent mode of BSC and many devices: DLE STX, the value with each DLE twice, DLE ETX."""

    name = "DLE"
    start = b"\x10\x02"
    end = b"\x10\x03"
    doubled = b"\x10"

    def escape(self, value: bytes) -> bytes:
        return value.replace(b"\x10", b"\x10\x10")

    def unescape(self, data: bytes) -> bytes:
        if data.count(b"\x10") != 2 * data.count(b"\x10\x10"):
            raise BadData("DLE: a single DLE within a value")
        return data.replace(b"\x10\x10", b"\x10")


#: RFC 1055, with an END at both ends.
SLIP: Final = Pairs(
    "SLIP", b"\xdb", {b"\xc0": b"\xdc", b"\xdb": b"\xdd"}, end=b"\xc0", start=b"\xc0"
)
#: Of JT/T 808 (Chinese vehicle terminals): 7E becomes 7D 02, 7D becomes 7D 01.
JT808: Final = Pairs(
    "JT/T 808", b"\x7d", {b"\x7e": b"\x02", b"\x7d": b"\x01"}, end=b"\x7e", start=b"\x7e"
)
#: Of asynchronous HDLC and PPP (RFC 1662): 7E becomes 7D 5E, 7D becomes 7D 5D.
HDLC: Final = Xor("HDLC", b"\x7d", end=b"\x7e")
#: Zero ends a frame, and there is little overhead.
COBS: Final = Cobs()
#: DLE STX ... DLE ETX, with each DLE within doubled.
DLE: Final = _Doubled()
