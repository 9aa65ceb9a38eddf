"""Bytes that were sent and are not acknowledged, by their position in the stream.

One thread at a time may use it. An exception may be raised between any two bytecodes: the end moves
in one step, with the bytes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from operator import itemgetter

__all__ = ["Retained"]

# Pieces up to the first size are joined up to the second, so that the memory of a million short
# messages is that of their bytes. Larger ones are kept as they are, without a copy.
_SMALL, _CHUNK = 1024, 16 * 1024
_position_of = itemgetter(0)


class Retained:
    """The bytes from `start` to `end`.

    Args:
        position: of both at first.
    """

    __slots__ = ("_chunks", "start")

    def __init__(self, position: int = 0) -> None:
        # Each with its position. The last one may grow if it is a bytearray; there is always one.
        self._chunks: deque[tuple[int, bytes | bytearray]] = deque([(position, b"")])
        self.start: int = position  #: of the first byte that is needed

    @property
    def end(self) -> int:
        """The position after the last byte."""
        position, data = self._chunks[-1]
        return position + len(data)

    def append(self, data: bytes | memoryview) -> int:
        """Add bytes at the end; return their position."""
        position, last = self._chunks[-1]
        end, size = position + len(last), len(data)
        if size > _SMALL:
            self._chunks.append((end, bytes(data)))
        elif type(last) is bytearray and end - position + size <= _CHUNK:
            last += data
        else:
            self._chunks.append((end, bytearray(data)))
        return end

    def shorten(self, count: int) -> None:
        """Remove so many bytes at the end, of those that were appended last."""
        position, last = self._chunks[-1]
        if type(last) is bytearray:
            del last[len(last) - count :]
        else:
            self._chunks[-1] = position, last[: len(last) - count]

    def drop(self, position: int) -> None:
        """Forget what precedes a position."""
        if position <= self.start:
            return
        self.start = position
        chunks = self._chunks
        while len(chunks) > 1 and chunks[1][0] <= position:
            chunks.popleft()
        if chunks[-1][1] and position == self.end:
            chunks.append((position, b""))
            chunks.popleft()

    def piece(self, position: int) -> bytes | memoryview:
        """Return some bytes from a position on, none at the end."""
        index = bisect_right(self._chunks, position, key=_position_of) - 1
        start, data = self._chunks[index]
        rest = memoryview(data)[position - start :]
        return bytes(rest) if type(data) is bytearray else rest  # which a view keeps from growing

    def bytes_between(self, start: int, end: int) -> bytes:
        """Return the bytes from one position to another."""
        pieces = []
        while start < end:
            piece = bytes(self.piece(start)[: end - start])
            pieces.append(piece)
            start += len(piece)
        return b"".join(pieces)
