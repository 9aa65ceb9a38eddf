"""Bytes that come once a connection, before the first frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from tao.callables import checked_flag
from tao.errors import BadData
from tao.safe_text import safe_repr
from tao.wire.codec import Batch, Codec, Decoder
from tao.wire.codec_checks import checked_decoder, checks_itself, takes_time
from tao.wire.message import Message, Registry

__all__ = ["Preamble"]


class Preamble(Codec):
    """A codec whose stream may begin with certain bytes, which are skipped.

    The side that has to send them writes ``codec.preamble`` in its ``on_connect``, with
    ``conn.write_frame``.

    Args:
        preamble: the bytes.
        codec: of all that follows.
        required: whether a stream that does not begin with them is invalid. Not so by default, as
            often only one side sends them.
    """

    def __init__(self, preamble: bytes, codec: Any, required: bool = False) -> None:
        if not isinstance(preamble, bytes):
            raise TypeError(f"a preamble must be bytes, not {safe_repr(preamble)}")
        if not preamble:
            raise ValueError("a preamble cannot be empty")
        self.preamble: bytes = preamble
        self.codec: Any = codec
        self.required = checked_flag("required", required)
        # What `encode` returns is what that of the codec does, unless a subclass has its own.
        own = type(self).encode is not Preamble.encode
        self.checks_itself: bool = not own and checks_itself(codec, "encode")
        self.takes_headers: bool = getattr(codec, "takes_headers", False)
        self.gives_headers: bool = getattr(codec, "gives_headers", False)

    def encode(self, message: Message, header: Mapping[str, Any] | None = None) -> bytes:
        """Return the frame of a message; the preamble is not part of it."""
        frame: bytes = (
            self.codec.encode(message) if header is None else self.codec.encode(message, header)
        )
        return frame

    def decoder(self, registry: Registry) -> Decoder:
        return _PreambleDecoder(self, checked_decoder(self.codec, registry))

    def heartbeat(self, conn: Any) -> bytes:
        make = getattr(self.codec, "heartbeat", None)
        if make is None:
            return b""
        frame: bytes = make(0 if takes_time(make) else conn)  # 0: the time is not known
        return frame

    def is_heartbeat(self, number: Any) -> bool:
        """Return what the codec says of a message number."""
        check = getattr(self.codec, "is_heartbeat", None)
        return check is not None and bool(check(number))

    def check_number(self, number: Any) -> None:
        """Have the codec check a message number, if it can."""
        check = getattr(self.codec, "check_number", None)
        if check is not None:
            check(number)

    def __getattr__(self, name: str) -> Any:
        """Return what else the codec has."""
        if name == "codec":  # not there yet
            raise AttributeError(name)
        return getattr(self.codec, name)


class _PreambleDecoder:
    """Skips the preamble and leaves the rest to the codec's decoder."""

    checks_itself: ClassVar[bool] = True

    def __init__(self, codec: Preamble, decoder: Decoder) -> None:
        self._preamble: bytes = codec.preamble
        self._required: bool = codec.required
        self._decoder: Decoder = decoder
        self._head: bytes | None = b""  # what came of the preamble; None: it is over

    @property
    def pending(self) -> int:
        """The number of bytes held of something incomplete."""
        return getattr(self._decoder, "pending", 0) if self._head is None else len(self._head)

    @property
    def max_bytes(self) -> Any:
        """The longest message allowed, if the codec's decoder says so."""
        return getattr(self._decoder, "max_bytes", None)

    @max_bytes.setter
    def max_bytes(self, most: int) -> None:
        self._decoder.max_bytes = most  # type: ignore[attr-defined]

    def feed(self, data: bytes, batch: Batch) -> None:
        if self._head is not None:
            data = self._skip(self._head + data)
        if data:
            self._decoder.feed(data, batch)

    def _skip(self, head: bytes) -> bytes:
        """Return what follows the preamble, if that is known."""
        preamble = self._preamble
        if len(head) < len(preamble) and preamble.startswith(head):
            self._head = head
            return b""
        if head.startswith(preamble):
            head = head[len(preamble) :]
        elif self._required:
            raise BadData(
                f"the stream begins with {head[: len(preamble)]!r}, not with {preamble!r}"
            )
        self._head = None
        return head

    def end(self) -> None:
        """Reject a stream that ends within the preamble or within a frame."""
        if self._head:
            raise BadData(f"the peer closed {len(self._head)} bytes into the preamble")
        end = getattr(self._decoder, "end", None)
        if end is not None:
            end()
