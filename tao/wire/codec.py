"""Framing: from a stream of bytes to messages and back, without I/O.

A *codec* is stateless and shared by all connections. Its *decoder* belongs to one connection and
holds the bytes of an incomplete message. The reader feeds it the data that the socket returned,
from a single byte to a thousand messages. The decoder appends each completed message to a batch.

Strategy of the TLV decoder: a value that is complete in the data is sliced out of it, which copies
it once. The beginning of an incomplete message is kept and joined with the rest when that arrives.
If it arrives in more than two pieces, they are collected in a buffer that grows in place. So each
byte is copied a constant number of times, however small the pieces are.
"""

from __future__ import annotations

import struct
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

from tao.errors import BadData
from tao.safe_text import number_text, safe_repr, safe_str
from tao.wire.capabilities import SIZE as CAPABILITIES_SIZE
from tao.wire.envelope import ENVELOPE_SIZES
from tao.wire.message import HeartbeatMessage, Message, MessageNumber, Registry, unknown
from tao.wire.numbers import HEARTBEAT, OWN_NUMBERS, check_int32

__all__ = [
    "Batch",
    "Codec",
    "Decoder",
    "TypeLengthValueCodec",
    "not_deserialized",
    "serialized",
    "unintended",
]

#: Decoded messages in order of arrival, each with its number. The message of an unregistered
#: number is None, or an `UnknownMessage` if there is a handler of `ANY`. Of a codec that gives
#: headers, a message may be an `Arrival`.
Batch = list[tuple[Any, Any]]

_HEADER = struct.Struct("<iI")
_unpack, _HEADER_SIZE = _HEADER.unpack_from, _HEADER.size
# How TLS records begin: a ClientHello is of type 22, an alert of type 21, and both say version 3.x.
_TLS_RECORDS = tuple(bytes((kind, 3, minor)) for kind in (22, 21) for minor in range(4))
_SPEAKS_TLS = "the peer speaks TLS, but this side does not"


class Decoder(Protocol):
    """Decode the bytes of one connection into messages. Used by one thread at a time.

    A decoder may have an attribute ``pending``: the number of bytes that it holds of an incomplete
    message. Without it, the option ``frame_timeout`` has no effect. It may have an attribute
    ``max_bytes``: the longest message that it accepts. The option ``login_max_bytes`` lowers it for
    a while, and without it has no effect. It may also have a method ``end()``, called at the end of
    the stream, which raises as `feed` does if the stream must not end there.
    """

    def feed(self, data: bytes, batch: Batch) -> None:
        """Append to ``batch`` every message that ``data`` completes, as ``(number, message)``.

        Args:
            data: the next bytes of the stream, in a chunk of any size.
            batch: messages appended before an error are still handled.

        Raises:
            BadData: the stream is invalid; the connection is closed with this text as the reason.
                The text is logged, so it must not contain secrets. Any other exception closes the
                connection too, and is logged as an error in the decoder.
        """
        ...


class Codec(Protocol):
    """How messages look on the wire. Its methods may be called from any thread.

    A codec whose decoders append an ``Arrival`` in place of a message has an attribute
    ``gives_headers`` that is true. One whose ``encode`` takes a header as a second argument, a
    mapping of field names to values, has an attribute ``takes_headers`` that is true.
    """

    @abstractmethod
    def encode(self, message: Message) -> bytes:
        """Return the complete frame of ``message``; ``write()`` raises what this raises."""
        ...

    @abstractmethod
    def decoder(self, registry: Registry) -> Decoder:
        """Return a new decoder for one connection that decodes the messages of ``registry``."""
        ...

    def heartbeat(self, conn: Any) -> bytes:
        """Return the frame of a heartbeat, or ``b""`` if none is to be sent.

        It may depend on the connection, as where heartbeats are numbered like all messages. It is
        called on the timing wheel's thread, so it must not block. The same goes for a method whose
        argument is named ``nanoseconds``: that gets the time of sending, in nanoseconds since the
        Unix epoch, as tao's own framing needs it.

        Args:
            conn: the connection, a `ServerConn` or `ClientConn`.
        """
        return b""

    def is_heartbeat(self, number: MessageNumber) -> bool:
        """Return whether messages of this number only show that the peer is alive.

        Without a handler they are skipped: they do not count as unregistered, and are not passed to
        ``on_message`` or to a handler of `ANY`. A codec may have no such method.
        """
        return False

    def check_number(self, number: MessageNumber) -> None:
        """Raise ``TypeError`` or ``ValueError`` if no message can have this number.

        It is called when a message or a handler is declared on a server or client with this codec.
        A codec may have no such method.
        """
        return


class TypeLengthValueCodec(Codec):
    """The default codec: ``int32 type | uint32 length | value``, little-endian.

    Args:
        max_bytes: the longest value allowed, in bytes, for reading and for writing. A header that
            announces a longer value is rejected before the value is read.
    """

    def __init__(self, max_bytes: int = 8 * 1024 * 1024) -> None:
        if not isinstance(max_bytes, int) or isinstance(max_bytes, bool):
            raise TypeError(f"max_bytes must be an int, not {max_bytes!r}")
        if not 0 < max_bytes < 2**32:
            raise ValueError(f"max_bytes must be between 1 and 4294967295, not {max_bytes}")
        self.max_bytes: int = max_bytes

    def encode(self, message: Message) -> bytes:
        try:
            value = message.serialize()
        except (AttributeError, TypeError):
            _check_message(message)
            raise
        if type(value) is not bytes:
            value = _as_bytes(message, value)
        length = len(value)
        if length > self.max_bytes:
            raise BadData(
                f"{type(message).__name__} has {length} bytes, the limit is {self.max_bytes}"
            )
        try:
            return _HEADER.pack(message.message_number, length) + value
        except (struct.error, AttributeError):
            raise _why_not(message) from None

    def decoder(self, registry: Registry) -> TypeLengthValueDecoder:
        return TypeLengthValueDecoder(registry, self.max_bytes)

    def heartbeat(self, nanoseconds: int) -> bytes:
        return self.encode(HeartbeatMessage(nanoseconds))

    def is_heartbeat(self, number: MessageNumber) -> bool:
        return number == HEARTBEAT

    def check_number(self, number: MessageNumber) -> None:
        check_int32(number)

    def __repr__(self) -> str:
        return f"TypeLengthValueCodec(max_bytes={self.max_bytes})"


class TypeLengthValueDecoder:
    """The reading half of `TypeLengthValueCodec`."""

    __slots__ = ("_entries", "_header", "_missing", "_value", "max_bytes", "own")

    def __init__(self, registry: Registry, max_bytes: int) -> None:
        self._entries = registry.entries
        #: The longest value allowed, in bytes. Any thread may change it, for what is fed later.
        self.max_bytes: int = max_bytes
        self._header: bytes = b""  # of the incomplete message; may be incomplete itself
        self._value: bytes | bytearray = b""  # received so far; a bytearray from two pieces on
        self._missing: int = 0  # bytes of the value; 0: the header is incomplete, too
        #: Gets tao's own messages, and heartbeats of the size that tells capabilities, with the
        #: batch that they may add to. None: they are messages like any other.
        self.own: Callable[[int, bytes, Batch], object] | None = None

    @property
    def pending(self) -> int:
        """The number of bytes held of an incomplete message."""
        return len(self._header) + len(self._value)

    def feed(self, data: bytes, batch: Batch) -> None:
        size = len(data)
        if size >= _HEADER_SIZE and not self._header:
            number, length = _unpack(data)
            entry = self._entries.get(number)
            if entry is not None and length + _HEADER_SIZE == size and length <= self.max_bytes:
                deserialize = entry.deserialize  # is found faster when it is not called at once
                try:
                    batch.append((number, deserialize(data[_HEADER_SIZE:])))
                except Exception as error:
                    raise not_deserialized(number, error) from error
                return  # a message that comes alone, as so often
        self._feed(data, batch)

    def _feed(self, data: bytes, batch: Batch) -> None:
        start = 0  # offset of the current message
        if self._missing:
            if len(data) < self._missing:
                self._missing -= len(data)
                if not isinstance(self._value, bytearray):
                    self._value = bytearray(self._value)
                self._value += data
                return
            start = self._missing
            self._complete(data, batch)
        elif self._header:
            data = self._header + data
            self._header = b""
        end = len(data)
        header, most = _HEADER.size, self.max_bytes
        entries, unpack, append = self._entries, _HEADER.unpack_from, batch.append
        value = start + header
        while value <= end:
            number, length = unpack(data, start)
            if length > most and length > self._longest(number):
                raise self._too_long(number, length, data[start : start + 3])
            stop = value + length
            entry = entries.get(number)
            if entry is not None and stop <= end:
                deserialize = entry.deserialize  # is found faster when it is not called at once
                try:
                    append((number, deserialize(data[value:stop])))
                except Exception as error:
                    raise not_deserialized(number, error) from error
            elif entry is None and _is_client_hello(data[start:value]):
                raise BadData(_SPEAKS_TLS)
            elif stop <= end:
                self._take_unregistered(number, data[value:stop], batch)
            else:
                self._header = data[start:value]
                self._missing = stop - end
                self._value = data[value:]
                return
            start = stop
            value = start + header
        if start < end:
            self._header = data[start:]

    def _complete(self, data: bytes, batch: Batch) -> None:
        """Append the message whose remaining bytes are at the start of ``data``."""
        number, _ = _HEADER.unpack(self._header)
        value = b"".join((self._value, memoryview(data)[: self._missing]))
        self._header = self._value = b""
        self._missing = 0
        entry = self._entries.get(number)
        if entry is None:
            self._take_unregistered(number, value, batch)
            return
        try:
            batch.append((number, entry.deserialize(value)))
        except Exception as error:
            raise not_deserialized(number, error) from error

    def _take_unregistered(self, number: int, value: bytes, batch: Batch) -> None:
        own = self.own
        if number == HEARTBEAT:
            batch.append((number, HeartbeatMessage.deserialize(value)))
            if len(value) == CAPABILITIES_SIZE and own is not None:
                own(number, value, batch)
        elif number in OWN_NUMBERS and own is not None:
            own(number, value, batch)
        else:
            batch.append((number, unknown(self._entries, number, value)))

    def _longest(self, number: int) -> int:
        """Return how long a value may be; an envelope is longer than what it holds."""
        extra = 0 if self.own is None else ENVELOPE_SIZES.get(number, 0)
        return self.max_bytes + extra

    def end(self) -> None:
        """Reject a stream that ends within a message."""
        if self._header[:3] in _TLS_RECORDS:
            raise BadData(_SPEAKS_TLS)
        if self._header:
            raise BadData(f"the peer closed {self.pending} bytes into a message")

    def _too_long(self, number: int, length: int, beginning: bytes) -> BadData:
        if beginning in _TLS_RECORDS:
            return BadData(_SPEAKS_TLS)
        return BadData(f"message {number} announces {length} bytes, the limit is {self.max_bytes}")


def _is_client_hello(header: bytes) -> bool:
    """Return whether a TLV header is really the beginning of a short TLS ClientHello.

    A longer ClientHello exceeds ``max_bytes`` when it is read as a header. A short one is a record
    that is filled by a handshake message of type 1 under 256 bytes (RFC 8446, 4 and 5.1).
    """
    return header[:3] in _TLS_RECORDS and header[5:] == b"\1\0\0" and header[3:5] < b"\1\4"


def unintended(text: str, cause: BaseException) -> BadData:
    """Return the error for a connection with a decoder that has failed with ``cause``.

    Args:
        text: why the connection is closed. It should name only the class of the cause, whose
            message may quote the peer's bytes.
    """
    error = BadData(text)
    error.__cause__ = cause
    error.unintended = True
    return error


def not_deserialized(number: object, error: BaseException) -> BadData:
    """Return the error for a value whose deserializer has raised ``error``."""
    what = f"message {number_text(number)} could not be deserialized: "
    if isinstance(error, BadData):
        return BadData(what + safe_str(error))
    return unintended(what + type(error).__name__, error)


def serialized(message: Any) -> bytes:
    """Return ``message.serialize()``.

    Raises:
        TypeError: this is no message; the text says what one has.
        Exception: what ``serialize()`` raises.
    """
    try:
        value = message.serialize()
        message.message_number  # noqa: B018
    except (AttributeError, TypeError):
        _check_message(message)
        raise
    return value if type(value) is bytes else _as_bytes(message, value)


def _check_message(message: Any) -> None:
    """Raise a ``TypeError`` with the requirements on a message, unless this is a message."""
    if isinstance(message, type):
        wrong = f"the class {message.__name__} itself"
    elif not hasattr(message, "serialize"):
        wrong = type(message).__name__
    else:
        return
    raise TypeError(
        f"a message is an object with a message_number and a serialize(), not {wrong}"
    ) from None


def _as_bytes(message: Any, value: Any) -> bytes:
    # Other types with a length are refused: the length of an array counts items, not bytes.
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise TypeError(
            f"{type(message).__name__}.serialize() must return bytes, not {type(value).__name__}"
        )
    return bytes(value)


def _why_not(message: Any) -> Exception:
    """Return the error for a message number that cannot be packed into a header."""
    name = type(message).__name__
    number = getattr(message, "message_number", None)
    if not isinstance(number, int):
        return TypeError(f"{name}.message_number must be an int, not {safe_repr(number)}")
    return BadData(f"{name}: message_number {number} does not fit an int32")
