"""Codecs whose frames are a value and little else: of constant size, or with its length in front.

Their base takes care of what they have in common. Frames have no message number, so they have that
of the codec, or one that a function finds in the value.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

from tao.callables import check_callable
from tao.errors import BadData
from tao.framing.decoder import FrameDecoder, check_max_bytes
from tao.framing.explain import count, hex_lines
from tao.safe_text import number_text, safe_repr
from tao.wire.codec import Batch, Codec, not_deserialized, serialized
from tao.wire.message import Message, MessageNumber, Registry, unknown
from tao.wire.numbers import check_number

__all__ = [
    "MAX_BYTES",
    "Fixed",
    "Located",
    "Netstring",
    "NumberOf",
    "ValueCodec",
    "ValueDecoder",
    "Varint",
    "checked_bytes",
]

#: A message number, or what finds it in a value.
NumberOf = MessageNumber | Callable[[bytes], MessageNumber]

#: The end and the value of a frame.
Located = tuple[int, bytes | None]

#: The default of ``max_bytes``.
MAX_BYTES = 1024 * 1024


class ValueCodec(Codec):
    """The base of codecs whose frames are a value and little else.

    Args:
        number: the number of all messages; or a function that takes a value and returns its number.
        max_bytes: the longest frame allowed, in bytes, with all that is around the value.
    """

    #: That the results of `encode` need no check. Not so for a subclass with its own.
    checks_itself: ClassVar[bool] = True

    def __init__(self, number: NumberOf, max_bytes: int) -> None:
        if callable(number):
            check_callable("number", number, "value")
        else:
            check_number(number)
        self.number: NumberOf = number
        self.max_bytes: int = check_max_bytes(max_bytes)

    @abstractmethod
    def enclose(self, value: bytes) -> bytes:
        """Return the frame of a value.

        Raises:
            BadData: it has none.
        """

    def encode(self, message: Message) -> bytes:
        value = serialized(message)
        if not callable(self.number) and message.message_number != self.number:
            raise BadData(self._no_numbers(message.message_number))
        return self.bounded(self.enclose(value))

    def bounded(self, frame: bytes) -> bytes:
        """Return a frame that is not too long."""
        if len(frame) > self.max_bytes:
            raise BadData(f"a frame of {len(frame)} bytes, the limit is {self.max_bytes}")
        return frame

    def explain(self, data: bytes) -> str:
        """Return an annotated dump of a frame: its bytes, and those of its value."""
        return "\n".join(self._dump(bytes(data)))

    def _dump(self, data: bytes) -> Iterator[str]:
        locate: Any = self.decoder(Registry())
        end, value = 0, None
        try:
            while value is None and end < len(data):
                found = locate.locate(data, end)
                if found is None:
                    raise BadData("incomplete")
                end, value = found
        except BadData as error:
            yield from hex_lines(end, data[end:], f"! {error}")
            return
        yield from hex_lines(0, data[:end], f"frame          {count(end)}")
        yield from self.value_lines(value or b"")
        if end < len(data):
            yield from hex_lines(end, data[end:], "! more than the frame")

    def value_lines(self, value: bytes) -> Iterator[str]:
        """Yield the lines of the dump that are about the value."""
        yield from hex_lines(0, value, f"value          {count(len(value))}")

    def check_number(self, number: MessageNumber) -> None:
        """Refuse a number that no frame has."""
        if not callable(self.number) and number != self.number:
            raise ValueError(self._no_numbers(number))

    def _no_numbers(self, number: MessageNumber) -> str:
        return (
            f"the frames of {self!r} have no number: message_number must be "
            f"{number_text(self.number)}, or what number= of the codec says, not "
            f"{number_text(number)}"
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class ValueDecoder(FrameDecoder):
    """The base of their decoders; a subclass defines `locate`.

    Args:
        registry: the messages.
        codec: the codec.
    """

    checks_itself: ClassVar[bool] = True

    def __init__(self, registry: Registry, codec: ValueCodec) -> None:
        super().__init__(registry, codec.max_bytes)
        self._number = codec.number

    @abstractmethod
    def locate(self, data: bytes | memoryview, start: int) -> Located | None:
        """Return the end and the value of the frame at ``start``; None if it is incomplete.

        A value of None: these bytes are no message.
        """

    def decode(self, data: bytes, batch: Batch) -> int:
        return self._decode_values(data, 0, len(data), batch)

    def decode_frames(self, view: memoryview, start: int, stop: int, batch: Batch) -> int:
        """Append the messages of all complete frames that begin before ``stop``."""
        return self._decode_values(view, start, stop, batch)

    def _decode_values(self, data: bytes | memoryview, start: int, stop: int, batch: Batch) -> int:
        values: list[bytes] = []
        try:
            while start < stop:
                found = self.locate(data, start)
                if found is None:
                    break
                end, value = found
                if end - start > self.max_bytes:
                    raise self.too_long()
                if value is not None:
                    values.append(value)
                start = end
        finally:
            self.deliver(values, batch)  # also those before an invalid frame
        return start

    def deliver(self, values: Sequence[bytes], batch: Batch) -> None:
        """Append the messages of values."""
        number, entries, append = self._number, self.entries, batch.append
        if callable(number):
            for value in values:
                self.deliver_one(number(value), value, batch)
            return
        entry = entries.get(number)
        if entry is None:
            batch += [(number, unknown(entries, number, value)) for value in values]
            return
        deserialize = entry.deserialize
        try:
            for value in values:
                append((number, deserialize(value)))
        except Exception as error:
            raise not_deserialized(number, error) from error

    def deliver_one(self, number: Any, value: Any, batch: Batch) -> None:
        """Append the message of a value."""
        entry = self.entries.get(number)
        if entry is None:
            batch.append((number, unknown(self.entries, number, value)))
            return
        try:
            batch.append((number, entry.deserialize(value)))
        except Exception as error:
            raise not_deserialized(number, error) from error


class Fixed(ValueCodec):
    """Frames of constant size, without anything else.

    Args:
        size: of a frame, in bytes.
        number: see `ValueCodec`.
    """

    def __init__(self, size: int, *, number: NumberOf = 1) -> None:
        super().__init__(number, size)

    def enclose(self, value: bytes) -> bytes:
        if len(value) != self.max_bytes:
            raise BadData(f"a message of {len(value)} bytes, not {self.max_bytes}")
        return value

    def decoder(self, registry: Registry) -> ValueDecoder:
        return _FixedDecoder(registry, self)

    def __repr__(self) -> str:
        return f"Fixed({self.max_bytes})"


class _FixedDecoder(ValueDecoder):
    def locate(self, data: bytes | memoryview, start: int) -> Located | None:
        end = start + self.max_bytes
        if end > len(data):
            self.need(start, self.max_bytes)
            return None
        return end, bytes(data[start:end])


class Netstring(ValueCodec):
    """Netstrings, as in ``5:hello,`` (D. J. Bernstein, 1997): a decimal length in front.

    Args:
        number, max_bytes: see `ValueCodec`.
    """

    def __init__(self, *, number: NumberOf = 1, max_bytes: int = MAX_BYTES) -> None:
        super().__init__(number, max_bytes)

    def enclose(self, value: bytes) -> bytes:
        return b"%d:%b," % (len(value), value)

    def decoder(self, registry: Registry) -> ValueDecoder:
        return _NetstringDecoder(registry, self)


class _NetstringDecoder(ValueDecoder):
    def __init__(self, registry: Registry, codec: Netstring) -> None:
        super().__init__(registry, codec)
        self._digits: int = len(str(self.max_bytes))

    def locate(self, data: bytes | memoryview, start: int) -> Located | None:
        head = bytes(data[start : start + self._digits + 1])
        digits, colon, _ = head.partition(b":")
        if not digits.isdigit() or (digits[:1] == b"0" and digits != b"0"):
            raise BadData("a netstring begins with its length and a colon")
        if not colon:
            if len(head) > self._digits:
                raise self.too_long()
            return None
        begin = start + len(digits) + 1
        end = begin + int(digits) + 1
        if end > len(data):
            self.need(start, end - start)
            return None
        if data[end - 1] != 0x2C:
            raise BadData("a netstring ends with a comma")
        return end, bytes(data[begin : end - 1])


class Varint(ValueCodec):
    """A length of 7 bits a byte in front (LEB128), as protobuf's delimited messages have it.

    Args:
        number, max_bytes: see `ValueCodec`.
    """

    def __init__(self, *, number: NumberOf = 1, max_bytes: int = MAX_BYTES) -> None:
        super().__init__(number, max_bytes)

    def enclose(self, value: bytes) -> bytes:
        length = len(value)
        head = bytearray()
        while length > 0x7F:
            head.append(length & 0x7F | 0x80)
            length >>= 7
        head.append(length)
        return bytes(head) + value

    def decoder(self, registry: Registry) -> ValueDecoder:
        return _VarintDecoder(registry, self)


class _VarintDecoder(ValueDecoder):
    def locate(self, data: bytes | memoryview, start: int) -> Located | None:
        length, at, shift = data[start], start + 1, 7
        if length > 0x7F:
            length &= 0x7F
            while True:
                if at == len(data):
                    return None
                byte = data[at]
                length |= (byte & 0x7F) << shift
                at, shift = at + 1, shift + 7
                if length > self.max_bytes:
                    raise self.too_long()
                if byte <= 0x7F:
                    break
                if shift > 63:
                    raise BadData("a length of more than 9 bytes")
        end = at + length
        if end > len(data):
            self.need(start, end - start)
            return None
        return end, bytes(data[at:end])


def checked_bytes(name: str, value: object) -> bytes:
    """Return an argument that must be bytes.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(value, bytes):
        raise TypeError(f"{name} must be bytes, not {safe_repr(value)}")
    return value
