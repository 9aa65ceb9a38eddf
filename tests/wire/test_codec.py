"""Framing: the same messages for any pieces of the stream, and everything that is refused."""

from __future__ import annotations

import json
import ssl
import struct
import sys
from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tao.errors import BadData
from tao.wire.codec import Batch, Codec, Decoder, TypeLengthValueCodec
from tao.wire.message import HeartbeatMessage, Registry

INT32 = st.integers(-(2**31), 2**31 - 1)
MIB = 1024 * 1024


class Raw:
    """A message with a ``serialize()`` that returns the given object."""

    def __init__(self, value: Any, number: Any = 1) -> None:
        self.value: Any = value
        self.message_number: Any = number

    def serialize(self) -> Any:
        return self.value


def registry_of(*numbers: int) -> Registry:
    """Return a registry that decodes these numbers to bytes."""
    registry = Registry()
    for number in numbers:
        registry.register(number, bytes)
    return registry


def frame(number: int, value: bytes) -> bytes:
    """Encode a message, independently of the codec."""
    return struct.pack("<iI", number, len(value)) + value


def decoded(registry: Registry, *pieces: bytes, max_bytes: int = 8 * MIB) -> Batch:
    """Return everything that a decoder decodes from the pieces."""
    decoder, batch = TypeLengthValueCodec(max_bytes).decoder(registry), Batch()
    for piece in pieces:
        decoder.feed(piece, batch)
    return batch


# -- decoding


@given(st.lists(st.tuples(INT32, st.binary(max_size=40))), st.data())
def test_pieces_do_not_matter(messages: list[tuple[int, bytes]], data: st.DataObject) -> None:
    """A stream gives the same messages byte by byte, all at once, and in any other pieces."""
    known = {number for number, _ in messages if number % 3 and number}
    messages = [(number, bytes(8) if number == 0 else value) for number, value in messages]
    stream = b"".join(frame(number, value) for number, value in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]

    expected = [(n, v if n in known else None) for n, v in messages if n != 0]
    for how in ([stream], pieces, [bytes([byte]) for byte in stream]):
        batch = decoded(registry_of(*known), *how)
        assert [number for number, _ in batch] == [number for number, _ in messages]
        assert [entry for entry in batch if entry[0] != 0] == expected


def test_encoded_messages_are_decoded() -> None:
    """Number and value are preserved, including an empty value."""
    codec, registry = TypeLengthValueCodec(), registry_of(-3, 7)
    stream = codec.encode(Raw(b"", -3)) + codec.encode(Raw(b"seven", 7)) + codec.heartbeat(5)
    *batch, (zero, beat) = decoded(registry, stream)
    assert batch == [(-3, b""), (7, b"seven")]
    assert (zero, beat.timestamp) == (0, 5)


def memory_of(decoder: Any) -> int:
    """Return how many bytes of memory a decoder holds for an incomplete message."""
    return sys.getsizeof(decoder._header) + sys.getsizeof(decoder._value)


@pytest.mark.parametrize("size", [2 * MIB, 8 * MIB])
def test_a_large_message_in_small_pieces_is_not_copied_repeatedly(size: int) -> None:
    """The buffer grows by increasing steps, so the number of copied bytes is linear."""
    decoder, batch = TypeLengthValueCodec().decoder(registry_of(1)), Batch()
    stream = frame(1, bytes(size))
    decoder.feed(stream[:1024], batch)
    decoder.feed(stream[1024:2048], batch)
    buffer, room, moved = decoder._value, 0, 0
    for start in range(2048, len(stream), 1024):
        assert decoder._value is buffer
        decoder.feed(stream[start : start + 1024], batch)
        if buffer.__alloc__() != room:
            room = buffer.__alloc__()
            moved += len(buffer)
    assert moved < 12 * size  # it would be 4 096 times in 8 192 steps
    assert batch == [(1, bytes(size))]


def test_a_decoder_keeps_no_more_than_it_received() -> None:
    """No memory is allocated for an announced length, and complete messages leave none behind."""
    decoder, batch = TypeLengthValueCodec().decoder(registry_of(1)), Batch()
    decoder.feed(struct.pack("<iI", 1, 8 * MIB), batch)
    assert decoder.pending == 8 and memory_of(decoder) < 200
    decoder.feed(b"y", batch)
    decoder.feed(b"z", batch)
    assert decoder.pending == 10 and memory_of(decoder) < 200
    decoder = TypeLengthValueCodec().decoder(registry_of(1))
    decoder.feed(frame(1, b"x"), batch)
    assert (batch, decoder.pending) == ([(1, b"x")], 0)


@pytest.mark.parametrize("size", [0, 1, 7, 4096])
def test_a_message_in_three_pieces(size: int) -> None:
    """The cuts may be within the header, after it or within the value."""
    stream = frame(1, bytes(i % 251 for i in range(size)))
    expected = decoded(registry_of(1), stream + frame(2, b""))
    assert len(expected) == 2
    points = [*range(12), size // 2, size + 6, size + 7, size + 8]
    for first in points:
        for second in points:
            parts = stream[:first], stream[first:second], stream[max(first, second) :]
            assert decoded(registry_of(1), *parts, frame(2, b"")) == expected


def test_an_oversized_value_fails_on_its_header() -> None:
    """The value need not arrive; complete messages before it are in the batch."""
    decoder, batch = TypeLengthValueCodec(max_bytes=10).decoder(registry_of(1, 2)), Batch()
    stream = frame(1, bytes(10)) + frame(2, bytes(11))
    decoder.feed(stream[: 18 + 7], batch)
    assert batch == [(1, bytes(10))]
    with pytest.raises(BadData, match="message 2 announces 11 bytes, the limit is 10"):
        decoder.feed(stream[18 + 7 : 18 + 8], batch)
    assert batch == [(1, bytes(10))]


def test_an_unregistered_number_is_skipped() -> None:
    """The message is None without its value, and the next one is decoded normally."""
    stream = frame(-9, b"what is this") + frame(1, b"known")
    assert decoded(registry_of(1), stream) == [(-9, None), (1, b"known")]
    assert decoded(registry_of(1), stream[:15], stream[15:]) == [(-9, None), (1, b"known")]


def test_a_number_registered_later_is_known_from_then_on() -> None:
    """A decoder sees numbers that are registered during its use."""
    registry, batch = Registry(), Batch()
    decoder = TypeLengthValueCodec().decoder(registry)
    decoder.feed(frame(1, b"early"), batch)
    registry.register(1, bytes)
    decoder.feed(frame(1, b"late"), batch)
    assert batch == [(1, None), (1, b"late")]


def test_decoders_are_independent() -> None:
    """Two connections that alternately receive pieces get their own messages."""
    codec, registry = TypeLengthValueCodec(), registry_of(1)
    one, other = codec.decoder(registry), codec.decoder(registry)
    first, second = Batch(), Batch()
    for byte_of_one, byte_of_other in zip(frame(1, b"one"), frame(1, b"two"), strict=True):
        one.feed(bytes([byte_of_one]), first)
        other.feed(bytes([byte_of_other]), second)
    assert (first, second) == ([(1, b"one")], [(1, b"two")])


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (KeyError("x"), "message 2 could not be deserialized: KeyError"),
        (BadData("no such move"), "message 2 could not be deserialized: no such move"),
    ],
)
def test_a_deserializer_that_raises_is_bad_data(error: Exception, text: str) -> None:
    """The exception is its cause; the messages before it stay in the batch."""

    def refuse(data: bytes) -> None:
        raise error

    registry, batch = registry_of(1), Batch()
    registry.register(2, refuse)
    with pytest.raises(BadData) as caught:
        TypeLengthValueCodec().decoder(registry).feed(frame(1, b"a") + frame(2, b"b"), batch)
    assert (str(caught.value), caught.value.__cause__) == (text, error)
    assert batch == [(1, b"a")]


@pytest.mark.parametrize("short", [False, True])
def test_a_tls_client_is_recognized(short: bool) -> None:
    """The bytes of a TLS client, read as a header, lead to an error that names TLS."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    if short:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")
    client = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read()
    assert (len(hello) < 256) is short
    with pytest.raises(BadData, match="the peer speaks TLS, but this side does not"):
        decoded(registry_of(1), hello)


def test_a_message_that_looks_like_a_client_hello() -> None:
    """If its number is registered, it is a message."""
    header = b"\x16\x03\x01\0\xc8\1\0\0"
    number, length = struct.unpack("<iI", header)
    assert decoded(registry_of(number), header + bytes(length)) == [(number, bytes(length))]


def test_a_tls_alert_is_recognized() -> None:
    """It is shorter than a header, so it is recognized at the end of the stream."""
    decoder, batch = TypeLengthValueCodec().decoder(registry_of(1)), Batch()
    decoder.feed(b"\x15\x03\x01\0\x02\x02\x46", batch)
    with pytest.raises(BadData, match="the peer speaks TLS, but this side does not"):
        decoder.end()


def test_a_stream_must_end_between_messages() -> None:
    """Anywhere else, the end is an error with the number of bytes."""
    whole = frame(1, b"abc")
    for cut in range(len(whole) + 1):
        decoder, batch = TypeLengthValueCodec().decoder(registry_of(1)), Batch()
        decoder.feed(whole[:cut], batch)
        if cut in (0, len(whole)):
            decoder.end()
            continue
        with pytest.raises(BadData, match=f"the peer closed {cut} bytes into a message"):
            decoder.end()


# -- encoding


def test_the_frame_is_as_specified() -> None:
    """Number and length are little-endian, and precede the value."""
    codec = TypeLengthValueCodec()
    assert codec.encode(Raw(b"hi")) == bytes.fromhex("01 00 00 00 02 00 00 00 68 69")
    assert codec.encode(Raw(b"", -2)) == bytes.fromhex("fe ff ff ff 00 00 00 00")
    assert codec.heartbeat(1) == bytes.fromhex("00 00 00 00 08 00 00 00 01") + bytes(7)
    assert codec.heartbeat(9) == codec.encode(HeartbeatMessage(9))


@pytest.mark.parametrize("value", [bytearray(b"abcd"), memoryview(array("H", b"abcd"))])
def test_other_bytes_types(value: Any) -> None:
    """A bytearray or memoryview counts in bytes, whatever its items are."""
    assert TypeLengthValueCodec().encode(Raw(value)) == frame(1, b"abcd")


@pytest.mark.parametrize("value", ["hi", None, 5, [1], array("I", [1])])
def test_a_serializer_must_return_bytes(value: Any) -> None:
    """Other types are a TypeError that names class and type, even if they have a length."""
    kind = type(value).__name__
    with pytest.raises(TypeError, match=rf"Raw\.serialize\(\) must return bytes, not {kind}"):
        TypeLengthValueCodec().encode(Raw(value))


@pytest.mark.parametrize("kind", [LookupError, AttributeError, TypeError])
def test_exceptions_of_a_serializer_are_not_changed(kind: type[Exception]) -> None:
    """The caller of ``encode`` gets the original exception."""

    class Broken(Raw):
        def serialize(self) -> bytes:
            raise kind("no text")

    with pytest.raises(kind, match="no text"):
        TypeLengthValueCodec().encode(Broken(b""))


@pytest.mark.parametrize(
    ("thing", "name"), [("hello", "str"), (b"hello", "bytes"), (Raw, "the class Raw itself")]
)
def test_objects_that_are_not_messages(thing: Any, name: str) -> None:
    """Examples are a string, and a class instead of its instance."""
    text = rf"a message is an object with a message_number and a serialize\(\), not {name}"
    with pytest.raises(TypeError, match=text):
        TypeLengthValueCodec().encode(thing)


@pytest.mark.parametrize(
    ("number", "error", "text"),
    [
        ("1", TypeError, "Raw.message_number must be an int, not '1'"),
        (None, TypeError, "Raw.message_number must be an int, not None"),
        (2**31, BadData, "Raw: message_number 2147483648 does not fit an int32"),
        (-(2**31) - 1, BadData, "Raw: message_number -2147483649 does not fit an int32"),
    ],
)
def test_a_number_must_be_an_int32(number: Any, error: Any, text: str) -> None:
    """Other numbers are refused by name before anything is sent."""
    with pytest.raises(error, match=text):
        TypeLengthValueCodec().encode(Raw(b"", number))


def test_a_message_must_have_a_number() -> None:
    """The error for a message without a number names its class."""
    message = Raw(b"")
    del message.message_number
    with pytest.raises(TypeError, match=r"Raw\.message_number must be an int, not None"):
        TypeLengthValueCodec().encode(message)


def test_the_limit_also_applies_to_writing() -> None:
    """A message of the maximum size is accepted, one byte more is not."""
    codec = TypeLengthValueCodec(max_bytes=3)
    assert codec.encode(Raw(b"abc")) == frame(1, b"abc")
    with pytest.raises(BadData, match="Raw has 4 bytes, the limit is 3"):
        codec.encode(Raw(b"abcd"))


@pytest.mark.parametrize(
    ("wrong", "error"),
    [(0, ValueError), (-1, ValueError), (2**32, ValueError), (1.5, TypeError), (True, TypeError)],
)
def test_the_limit_is_checked(wrong: Any, error: type[Exception]) -> None:
    """It must be a positive number of bytes that fits the header."""
    with pytest.raises(error, match=f"max_bytes must be .*not {wrong}"):
        TypeLengthValueCodec(wrong)


def test_the_codec_shows_its_limit() -> None:
    """The default is 8 MiB."""
    assert repr(TypeLengthValueCodec()) == "TypeLengthValueCodec(max_bytes=8388608)"


# -- another codec


class JsonLinesCodec(Codec):
    """Newline-delimited JSON: ``[number, text]`` per line."""

    def encode(self, message: Any) -> bytes:
        return json.dumps([message.message_number, message.serialize().decode()]).encode() + b"\n"

    def decoder(self, registry: Registry) -> Decoder:
        return JsonLinesDecoder(registry)


class JsonLinesDecoder:
    """Keeps the bytes after the last newline."""

    def __init__(self, registry: Registry) -> None:
        self.registry: Registry = registry
        self.rest: bytes = b""

    def feed(self, data: bytes, batch: Batch) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        for number, text in map(json.loads, lines):
            batch.append((number, self.registry.lookup(number).deserialize(text.encode())))


def test_another_codec_needs_two_methods() -> None:
    """Newline-delimited JSON takes twenty lines; by default it has no heartbeat."""
    codec, batch = JsonLinesCodec(), Batch()
    decoder = codec.decoder(registry_of(1))
    stream = codec.encode(Raw(b"one")) + codec.encode(Raw("zwei\n€".encode()))
    for byte in stream:
        decoder.feed(bytes([byte]), batch)
    assert batch == [(1, b"one"), (1, "zwei\n€".encode())]
    assert codec.heartbeat(1) == b""
