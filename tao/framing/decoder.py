"""The base of all decoders in this package, also for formats that cannot be declared.

A subclass says where one frame ends; the base does the rest: the loop over all frames of a chunk,
the bytes of an incomplete frame, the bound, the look-up of the message number, and the errors.

Strategy: frames that are complete in a chunk are decoded from it in place. The beginning of an
incomplete frame is kept; from its third piece on it grows in place, in a bytearray. Looking at it
again after every piece would take quadratic time, so an incomplete frame may say what it waits for:
`FrameDecoder.need` names the size, until which it is not looked at again, and a search by
`FrameDecoder.find` continues where it stopped.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

from tao.callables import check_callable
from tao.errors import BadData
from tao.safe_text import safe_repr
from tao.wire.codec import Batch, not_deserialized, unintended
from tao.wire.message import Registry, unknown

__all__ = ["Found", "FrameDecoder", "Progress", "check_max_bytes"]

#: A frame: the offset of its end, its message number, and its value.
Found = tuple[int, Any, Any]

_MAX_BYTES = 8 * 1024 * 1024


class Progress:
    """How far an incomplete frame was looked at. Used by one decoder, or by nested ones.

    Attributes:
        start: the offset of the frame.
        size: how many bytes it needs at least; 0: unknown.
        needle, skip, searched: what was searched from which offset in the frame, and up to where.
    """

    __slots__ = ("needle", "searched", "size", "skip", "start")

    def __init__(self) -> None:
        self.start: int = 0
        self.size: int = 0
        self.needle: bytes = b""
        self.skip: int = 0
        self.searched: int = 0

    def settle(self, end: int) -> None:
        """Forget all but the progress of the frame at ``end``, whose offset is 0 from now on."""
        if self.start != end:
            self.size, self.needle = 0, b""
        self.start = 0


class FrameDecoder:
    """Decode a protocol of which you say where a frame ends; for `Codec.decoder` to return.

    A subclass defines `frame`. It may keep what it has parsed of an incomplete frame in attributes
    of its own, as offsets from the frame's start: the next call is for the same frame.

    Args:
        registry: the messages; `Codec.decoder` is given it.
        max_bytes: the longest frame allowed, in bytes, all that belongs to it counted.

    Raises:
        TypeError: an argument is of the wrong type, or there is no `frame`.
        ValueError: ``max_bytes`` is out of range.
    """

    #: That the results need no check. Not so for a subclass with a loop of its own.
    checks_itself: ClassVar[bool] = True

    def __init__(self, registry: Registry, max_bytes: int = _MAX_BYTES) -> None:
        if not isinstance(registry, Registry):
            raise TypeError(
                f"{type(self).__name__} needs the registry that decoder() is given, not "
                f"{safe_repr(registry)}"
            )
        kind = type(self)
        loop = kind.decode_frames is not FrameDecoder.decode_frames  # one of its own
        if kind.frame is FrameDecoder.frame and not loop:
            raise TypeError(f"{kind.__name__} must define frame(data, start)")
        check_callable(f"{kind.__name__}.frame", self.frame, "data", "start")
        self.max_bytes: int = check_max_bytes(max_bytes)
        self.entries = registry.entries
        self.progress: Progress = Progress()
        self._held: bytes | bytearray = b""  # the incomplete frame; a bytearray from two pieces on

    # -- for subclasses

    def frame(self, data: memoryview, start: int) -> Found | None:
        """Find the frame that begins at ``start``.

        Args:
            data: bytes received, to be used during the call only.
            start: an offset in ``data``, smaller than its length.

        Returns:
            None if the frame is incomplete. Otherwise the offset of its end, its message number,
            and its value, which is given to the registered ``deserialize``; a memoryview is made
            ``bytes``. A number of None: these bytes are no message, and are skipped.

        Raises:
            BadData: the frame is invalid; the connection is closed with this text as the reason.
        """
        raise NotImplementedError

    def need(self, start: int, size: int) -> None:
        """Say how long an incomplete frame is at least, before returning None.

        The frame is not looked at again until so many bytes are there, and one that announces too
        much is rejected at once.

        Args:
            start: the offset of the frame.
            size: the number of bytes from there.

        Raises:
            BadData: ``size`` is above ``max_bytes``.
        """
        if size > self.max_bytes:
            raise BadData(f"a frame announces {size} bytes, the limit is {self.max_bytes}")
        progress = self.progress
        if progress.start != start:
            progress.start, progress.needle = start, b""
        progress.size = size

    def find(self, data: memoryview, start: int, needle: bytes, skip: int = 0) -> int:
        """Return the offset in ``data`` of the first ``needle`` in a frame, or -1.

        If it is not found, and the same is searched again when more has arrived, the search
        continues where it stopped.

        Args:
            data, start: the arguments of `frame`.
            needle: what to search.
            skip: where to begin, as an offset in the frame.
        """
        source = cast(bytes, data.obj)
        begin = start + skip
        progress = self.progress
        if start == 0 and progress.needle == needle and progress.skip == skip:
            begin = max(begin, progress.searched - len(needle) + 1)
        found = source.find(needle, begin)
        if found < 0:
            progress.start, progress.size = start, 0
            progress.needle, progress.skip, progress.searched = needle, skip, len(source) - start
        return found

    def find_single(self, data: memoryview, start: int, needle: bytes, skip: int = 0) -> int:
        """Return the offset of the first ``needle`` whose first byte is not doubled, or -1.

        As `find`, for frames in which the first byte of their end is doubled wherever it occurs.

        Raises:
            BadData: that byte occurs, but neither doubled nor with the rest of ``needle``.
        """
        source = cast(bytes, data.obj)
        first, at, progress = needle[:1], start + skip, self.progress
        if start == 0 and progress.needle == first and progress.skip == skip:
            at = max(at, progress.searched)
        while True:
            at = source.find(first, at)
            if at < 0 or at + len(needle) > len(source):
                progress.start, progress.size, progress.needle = start, 0, first
                progress.skip, progress.searched = skip, (len(source) if at < 0 else at) - start
                return -1
            if source.startswith(needle, at):
                return at
            if not source.startswith(first, at + 1):
                raise BadData(f"{first!r} is neither doubled nor part of {needle!r}")
            at += 2

    def decode(self, data: bytes, batch: Batch) -> int:
        """Append the messages of all complete frames, and return the offset of what is left.

        A subclass may define it, in addition to `frame`, to decode many small frames faster.
        """
        return self.decode_frames(memoryview(data), 0, len(data), batch)

    def decode_frames(self, view: memoryview, start: int, stop: int, batch: Batch) -> int:
        """Append the messages of the complete frames from ``start`` on that begin before ``stop``.

        Returns the offset of what is left. A subclass may define it, if its messages are more than
        what ``deserialize`` returns.
        """
        frame, entries, append, most = self.frame, self.entries, batch.append, self.max_bytes
        size = len(view)
        while start < stop:
            found = frame(view, start)
            if found is None:
                break
            try:
                end, number, value = found
                entry = entries.get(number)
                good = start < end <= size
            except (TypeError, ValueError):
                good = False
            if not good:
                raise self._wrong(found, start, size)
            if end - start > most:
                raise self.too_long()
            if type(value) is memoryview:
                value = bytes(value)
            if entry is not None:
                try:
                    append((number, entry.deserialize(value)))
                except Exception as error:
                    raise not_deserialized(number, error) from error
            elif number is not None:
                append((number, unknown(entries, number, value)))
            start = end
        return start

    # -- for the connection

    @property
    def pending(self) -> int:
        """The number of bytes held of an incomplete frame."""
        try:
            return len(self._held)
        except AttributeError:
            raise TypeError(
                f"{type(self).__name__}.__init__() must call super().__init__(registry)"
            ) from None

    def feed(self, data: bytes, batch: Batch) -> None:
        """Append the messages that ``data`` completes, see `Decoder.feed`."""
        held = self._held
        if held:
            self._held = b""
            if len(held) > len(data):
                data = self._complete(self._grown(held, data), batch)
                if not data:
                    return
            else:  # copying what is held costs no more than what has come
                data = b"".join((held, data))
        end = 0 if len(data) < self.progress.size else self.decode(data, batch)
        self.progress.settle(end)
        if end < len(data):
            self._hold(data[end:])

    def end(self) -> None:
        """Reject a stream that ends within a frame."""
        if self._held:
            raise BadData(f"the peer closed {self.pending} bytes into a frame")

    # -- inside

    def _complete(self, held: bytearray, batch: Batch) -> bytes:
        """Decode the frame that is held, and return what follows it; b"" if it is incomplete."""
        if len(held) >= self.progress.size:
            with memoryview(held) as view:
                end = self.decode_frames(view, 0, 1, batch)
                self.progress.settle(end)
                if end:
                    return bytes(view[end:])
        self._hold(held)
        return b""

    def _grown(self, held: bytes | bytearray, data: bytes) -> bytearray:
        """Return what is held and the next piece, if possible without copying the former."""
        if isinstance(held, bytes):
            held = bytearray(held)
        try:
            held += data
        except BufferError:  # a view of it is still in use
            held = bytearray(b"".join((held, data)))
        return held

    def _hold(self, rest: bytes | bytearray) -> None:
        if len(rest) > self.max_bytes:
            raise self.too_long()
        self._held = rest

    def too_long(self) -> BadData:
        """Return the error for a frame that is longer than allowed."""
        return BadData(f"a frame of more than {self.max_bytes} bytes, which is the limit")

    def _wrong(self, found: Any, start: int, size: int) -> BadData:
        """Return the error for a result of `frame` that is none."""
        text = (
            f"{type(self).__name__}.frame() must return None or (end, number, value), with an end "
            f"above {start}, up to {size}, and a hashable number"
        )
        return unintended(text, TypeError(f"{text}, not {safe_repr(found)}"))


def check_max_bytes(max_bytes: int) -> int:
    """Return a bound if it is one.

    Raises:
        TypeError, ValueError: it is no positive int.
    """
    if not isinstance(max_bytes, int) or isinstance(max_bytes, bool):
        raise TypeError(f"max_bytes must be an int, not {safe_repr(max_bytes)}")
    if max_bytes < 1:
        raise ValueError(f"max_bytes must be at least 1, not {max_bytes}")
    return max_bytes
