"""Frames that end with certain bytes: lines, and values between delimiters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from tao.errors import BadData
from tao.framing.frame import Frame
from tao.framing.resync import Resync, resync_budget, wants_resync
from tao.framing.stuffing import Stuffing
from tao.framing.values import MAX_BYTES, Located, NumberOf, ValueCodec, ValueDecoder, checked_bytes
from tao.safe_text import safe_repr
from tao.wire.codec import Batch
from tao.wire.message import Message, Registry

__all__ = ["Delimited", "DelimitedDecoder", "Lines"]


class Delimited(ValueCodec):
    """Frames that end with certain bytes, and may begin with others.

    What is between two frames must be nothing. If ``start`` and ``end`` are the same byte, one may
    be shared by two frames, and empty frames are skipped.

    Args:
        end: the bytes that end a frame; None: those of ``escape``.
        start: the bytes that begin one; None: those of ``escape``, or none.
        escape: how values are kept free of ``end``: `SLIP`, `COBS`, `HDLC`, `JT808`, `DLE`, or a
            `Stuffing` of your own. Without it, a message that contains ``end`` is refused.
        strip: bytes that are removed from both ends of a value, as ``bytes.strip`` does.
        frame: a declared frame that a value consists of. (Its checksum covers what is not escaped.)
            Otherwise a value is the body of a message.
        number: see `ValueCodec`; with ``frame``, the number is that of the frame.
        max_bytes: the longest frame allowed, in bytes, delimiters and escape bytes counted.
        on_error, resync_bytes: as for `Frame`; here the next frame begins after the next delimiter.

    Raises:
        TypeError, ValueError: an argument is wrong; the text names it.
    """

    checks_itself: ClassVar[bool] = True

    def __init__(
        self,
        end: bytes | None = None,
        start: bytes | None = None,
        escape: Stuffing | None = None,
        strip: bytes = b"",
        *,
        frame: Frame | None = None,
        number: NumberOf = 1,
        max_bytes: int = MAX_BYTES,
        on_error: Literal["close", "resync"] = "close",
        resync_bytes: int | None = None,
    ) -> None:
        super().__init__(number, max_bytes)
        if escape is not None and not isinstance(escape, Stuffing):
            raise TypeError(f"escape must be a Stuffing such as SLIP, not {safe_repr(escape)}")
        if frame is not None and not isinstance(frame, Frame):
            raise TypeError(f"frame must be a Frame, not {safe_repr(frame)}")
        if frame is not None and frame.resyncs:
            raise ValueError("a frame between delimiters leaves on_error= to these")
        self.end: bytes = checked_bytes("end", escape and escape.end if end is None else end)
        self.start: bytes = checked_bytes(
            "start", (escape.start if escape else b"") if start is None else start
        )
        if not self.end:
            raise ValueError("end cannot be empty")
        if self.start != self.end and self.end in self.start:
            raise ValueError(f"start cannot contain end, as {self.start!r} does")
        if escape is not None and escape.doubled and not self.end.startswith(escape.doubled):
            raise ValueError(f"with {escape}, end must begin with {escape.doubled!r}, not {end!r}")
        self.escape: Stuffing | None = escape
        self.strip: bytes = checked_bytes("strip", strip)
        self.frame: Frame | None = frame
        self.budget: int | None = self._find_budget(on_error, resync_bytes, frame)
        self.takes_headers: bool = frame is not None
        self.gives_headers: bool = frame is not None and frame.gives_headers
        self.correlate: str | None = None if frame is None else frame.correlate
        self.greatest_id: int = 0 if frame is None else frame.greatest_id
        self.echo: tuple[str, ...] = () if frame is None else frame.echo
        self.header_fields: tuple[str, ...] = () if frame is None else frame.header_fields
        self.reply_when = None if frame is None else frame.reply_when

    def _find_budget(
        self, on_error: str, resync_bytes: int | None, frame: Frame | None
    ) -> int | None:
        """Return how many bytes may be invalid; None: an error closes the connection."""
        budget = resync_budget(on_error, resync_bytes, self.max_bytes)
        if not wants_resync(on_error):
            return None
        if frame is None or not frame.has_checksum:
            raise ValueError(
                "on_error='resync' needs a frame= with a Checksum: without one, any bytes may look "
                "like a frame"
            )
        if self.escape is not None and self.escape.doubled:
            raise ValueError(f"on_error='resync' is not possible with {self.escape}")
        return budget

    def encode(self, message: Message, header: Mapping[str, Any] | None = None) -> bytes:
        """Return the frame of a message, see `Frame.encode`."""
        if self.frame is None:
            return super().encode(message)
        return self.bounded(self.enclose(self.frame.encode(message, header)))

    def enclose(self, value: bytes) -> bytes:
        if self.escape is not None:
            value = self.escape.escape(value)
        opened, shared = self.start + value, self.start == self.end
        frame = opened + self.end
        if shared and not value:
            raise BadData(f"a message between two {self.end!r} cannot be empty")
        doubled = self.escape is not None and self.escape.doubled
        if not doubled and frame.find(self.end, len(self.end) if shared else 0) != len(opened):
            raise BadData(f"a message cannot contain {self.end!r}, which ends a frame")
        return frame

    def disclose(self, data: bytes) -> bytes:
        """Return the value of what was between the delimiters."""
        value = data if self.escape is None else self.escape.unescape(data)
        return value.strip(self.strip) if self.strip else value

    def decoder(self, registry: Registry) -> ValueDecoder:
        if self.escape is not None and self.escape.doubled:
            return _DoublingDecoder(registry, self)
        return DelimitedDecoder(registry, self)

    def heartbeat(self, conn: Any) -> bytes:
        frame = b"" if self.frame is None else self.frame.heartbeat(conn)
        return self.enclose(frame) if frame else b""

    def is_heartbeat(self, number: Any) -> bool:
        return self.frame is not None and self.frame.is_heartbeat(number)

    def check_number(self, number: Any) -> None:
        if self.frame is None:
            super().check_number(number)
        else:
            self.frame.check_number(number)

    def reply_header(self, header: Any) -> dict[str, Any]:
        """Return what a reply takes over from its request, see `Frame.reply_header`."""
        return {} if self.frame is None else self.frame.reply_header(header)

    def value_lines(self, value: bytes) -> Iterator[str]:
        """Yield the lines of the dump that are about the value."""
        if self.frame is None:
            yield from super().value_lines(value)
        else:
            yield from self.frame.explain(value).splitlines()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.end!r})"


class Lines(Delimited):
    r"""Lines that end with ``\n`` or ``\r\n``.

    Args:
        end: what is written: ``b"\n"`` or ``b"\r\n"``. Both are read.
        strip: bytes that are removed from both ends of a line.
        number, max_bytes: see `ValueCodec`.
    """

    def __init__(
        self,
        end: bytes = b"\n",
        strip: bytes = b"",
        *,
        number: NumberOf = 1,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        if end not in (b"\n", b"\r\n"):
            raise ValueError(f"a line ends with b'\\n' or b'\\r\\n', not {safe_repr(end)}")
        super().__init__(b"\n", strip=strip, number=number, max_bytes=max_bytes)
        self._written: bytes = end

    def enclose(self, value: bytes) -> bytes:
        if b"\n" in value or value[-1:] == b"\r":
            raise BadData("a line cannot contain a line feed, or end with a carriage return")
        return value + self._written

    def disclose(self, data: bytes) -> bytes:
        return super().disclose(data[:-1] if data[-1:] == b"\r" else data)

    def __repr__(self) -> str:
        return "Lines()"


class DelimitedDecoder(ValueDecoder):
    """Decodes frames in which their end does not occur: `bytes.split` does most of the work."""

    checks_itself: ClassVar[bool] = True

    def __init__(self, registry: Registry, codec: Delimited) -> None:
        super().__init__(registry, codec)
        self._codec = codec
        self._start, self._end = codec.start, codec.end
        self._shared: bool = codec.start == codec.end
        self._room: int = self.max_bytes - len(codec.end)
        self._inner = None if codec.frame is None else codec.frame.inner_decoder(registry)
        self._resync = None if codec.budget is None else Resync(codec.end, codec.budget)
        # Whether a value is simply what is in front of its end.
        self._plain: bool = not (
            codec.start or codec.escape or codec.strip or isinstance(codec, Lines)
        )

    def decode(self, data: bytes, batch: Batch) -> int:
        *pieces, rest = data.split(self._end)
        if self._plain and max(map(len, pieces), default=0) <= self._room:
            self.deliver(pieces, batch)
        else:
            self._take(pieces, batch)
        self._check_start(rest)
        return len(data) - len(rest)

    def locate(self, data: bytes | memoryview, start: int) -> Located | None:
        view = memoryview(data)
        self._check_start(bytes(view[start : start + len(self._start)]))
        at = self.find(view, start, self._end)
        if at < 0:
            return None
        return at + len(self._end), self._value_or_none(bytes(view[start:at]))

    @property
    def skipped(self) -> int:
        """How many bytes of invalid frames were skipped, escape bytes not counted."""
        return 0 if self._resync is None else self._resync.skipped

    def deliver(self, values: Sequence[bytes], batch: Batch) -> None:
        if self._inner is None:
            super().deliver(values, batch)
            return
        for value in values:
            try:
                located = self._inner.whole(value)
            except BadData as error:
                self._invalid(len(value), error)
                continue
            if self._resync is not None:
                self._resync.good()
            self._inner.append(batch, memoryview(value), located)

    def _take(self, pieces: list[bytes], batch: Batch) -> None:
        """Append the messages of what was in front of each end."""
        values: list[bytes] = []
        try:
            for piece in pieces:
                value = self._value_or_none(piece)
                if value is not None:
                    values.append(value)
        finally:
            self.deliver(values, batch)

    def _invalid(self, size: int, error: BadData) -> None:
        """Skip an invalid frame, or raise."""
        if self._resync is None:
            raise error
        self._resync.spend(size, error)

    def _value_or_none(self, piece: bytes) -> bytes | None:
        """Return the value of what was in front of an end; None if there is none."""
        if len(piece) > self._room:
            raise self.too_long()
        if self._shared and not piece:
            return None
        try:
            return self._value(piece)
        except BadData as error:
            self._invalid(len(piece), error)
            return None

    def _value(self, piece: bytes) -> bytes:
        if self._start and not self._shared:
            if not piece.startswith(self._start):
                raise self._wrong_start()
            piece = piece[len(self._start) :]
        return self._codec.disclose(piece)

    def _check_start(self, rest: bytes) -> None:
        """Raise unless an incomplete frame begins as it must."""
        size = len(self._start)
        if self._shared or self._resync is not None:
            return  # it is skipped with its end, if at all
        if rest[:size] != self._start[: len(rest)]:
            raise self._wrong_start()

    def _wrong_start(self) -> BadData:
        return BadData(f"a frame does not begin with {self._start!r}")


class _DoublingDecoder(DelimitedDecoder):
    """Decodes frames in which the first byte of their end occurs, but twice."""

    checks_itself: ClassVar[bool] = True

    def decode(self, data: bytes, batch: Batch) -> int:
        return ValueDecoder.decode(self, data, batch)

    def locate(self, data: bytes | memoryview, start: int) -> Located | None:
        view = memoryview(data)
        self._check_start(bytes(view[start : start + len(self._start)]))
        at = self.find_single(view, start, self._end, len(self._start))
        if at < 0:
            return None
        return at + len(self._end), self._value(bytes(view[start:at]))
