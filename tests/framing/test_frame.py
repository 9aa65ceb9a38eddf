"""Declared frames: encoding and decoding in any pieces, and everything that is refused."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tao
from tao import framing as f
from tao.errors import BadData
from tao.wire.arrival import Arrival
from tao.wire.codec import TypeLengthValueCodec
from tests.framing.streams import check_cuts, decoded, in_pieces, outcome, registry_of

MIB = 1024 * 1024


class Raw:
    """A message with a number and a body."""

    def __init__(self, number: Any, body: Any = b"") -> None:
        self.message_number: Any = number
        self.body: Any = body

    def serialize(self) -> Any:
        return self.body


def tlv(**options: Any) -> f.Frame:
    """Return the default codec's frame as a declaration."""
    return f.Frame(
        f.Field("type", "i32", number=True),
        f.Length("u32", covers="body"),
        f.Body(),
        **{"byte_order": "little", "max_bytes": 8 * MIB + 8, **options},
    )


def modbus() -> f.Frame:
    return f.Frame(
        f.Field("transaction", "u16", correlate=True),
        f.Field("protocol", "u16", const=0),
        f.Length("u16", covers="unit..body"),
        f.Field("unit", "u8", echo=True),
        f.Field("function", "u8", number=True),
        f.Body(),
        max_bytes=260,
    )


def gt06(**options: Any) -> f.Frame:
    return f.Frame(
        f.Magic(b"\x78\x78"),
        f.Length("u8", covers="type..crc"),
        f.Field("type", "u8", number=True),
        f.Body(),
        f.Field("serial", "u16", correlate=True),
        f.Checksum("crc16-x25", over="length..serial"),
        f.Tail(b"\r\n"),
        **{"max_bytes": 260, **options},
    )


def bodies(codec: f.Frame, stream: bytes, *numbers: Any) -> list[Any]:
    """Return the messages in a stream, as number and body, with the header if there is one."""
    batch = decoded(codec.decoder(registry_of(*numbers)), stream)
    return [
        (number, each.message, each.header) if isinstance(each, Arrival) else (number, each)
        for number, each in batch
    ]


# -- compared with the default codec


@given(st.lists(st.tuples(st.integers(-(2**31), 2**31 - 1), st.binary(max_size=40))))
def test_a_declared_tlv_is_the_default_codec(messages: list[tuple[int, bytes]]) -> None:
    """Bytes and messages are the same; unregistered numbers are skipped."""
    stream = b"".join(tlv().encode(Raw(*each)) for each in messages)
    default = TypeLengthValueCodec()
    assert stream == b"".join(default.encode(Raw(*each)) for each in messages)
    known = {number for number, _ in messages if number % 3 and number}
    expected = [(number, body if number in known else None) for number, body in messages if number]
    batch = decoded(tlv().decoder(registry_of(*known)), stream)
    assert [each for each in batch if each[0]] == expected


@pytest.mark.parametrize("body", [b"", b"x", b"y" * 4096])
def test_pieces_do_not_matter(body: bytes) -> None:
    """The result is the same for a whole stream, single bytes, and any cut in two."""
    stream = tlv().encode(Raw(7, body)) + tlv().encode(Raw(8, b"end"))
    if len(stream) < 100:
        expected = [(7, body), (8, b"end")]
        check_cuts(lambda: tlv().decoder(registry_of(7, 8)), stream, expected)
    assert decoded(tlv().decoder(registry_of(7)), *in_pieces(stream, 1000))[0] == (7, body)


def test_large_frames_take_linear_time() -> None:
    """In 8 192 pieces the head is read only a few times."""
    decoder, reads = tlv().decoder(registry_of(7)), []
    locate = decoder.locate
    decoder.locate = lambda *args: reads.append(1) or locate(*args)  # type: ignore[func-returns-value, method-assign, assignment]
    stream = tlv().encode(Raw(7, bytes(8 * MIB)))
    assert decoded(decoder, *in_pieces(stream, 1024)) == [(7, bytes(8 * MIB))]
    assert len(reads) < 5


# -- headers


def test_fields_of_a_header() -> None:
    """A handler gets the fields; a written message takes them from header, const, or a new id."""
    codec = modbus()
    stream = codec.encode(Raw(3, b"\0\x6b\0\3"), {"unit": 17, "transaction": 5})
    assert stream.hex(" ") == "00 05 00 00 00 06 11 03 00 6b 00 03"
    [(number, body, header)] = bodies(codec, stream, 3)
    assert (number, body) == (3, b"\0\x6b\0\3")
    assert (header.transaction, header.unit, header.function) == (5, 17, 3)
    assert codec.reply_header(header) == {"transaction": 5, "unit": 17}
    assert (codec.correlate, codec.echo, codec.gives_headers) == ("transaction", ("unit",), True)
    first, second = (codec.encode(Raw(3), {"unit": 1})[:2] for _ in range(2))
    assert first != second


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ({}, r"unit has no value: write\(message, header={'unit': ...}\), or declare a default"),
        ({"unit": 1, "protocol": 2}, "protocol is always 0, not 2"),
        ({"unit": 256}, "unit: .*255"),
        ({"unit": "one"}, "unit: required argument is not an integer"),
        ({"unt": 1}, "no field 'unt'; it has transaction, protocol, unit, function"),
        ({"unit": 1, "function": 4}, "function is the message number"),
    ],
)
def test_values_that_cannot_be_written(header: dict[str, Any], text: str) -> None:
    """The error names the field."""
    with pytest.raises(BadData, match=text):
        modbus().encode(Raw(3), header)


def test_invalid_messages() -> None:
    """The errors are those of the default codec, and one for a frame that would be too long."""
    with pytest.raises(TypeError, match="a message is an object with a message_number"):
        tlv().encode("text")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Raw.serialize\(\) must return bytes, not str"):
        tlv().encode(Raw(1, "text"))
    with pytest.raises(BadData, match="the frame of Raw has 261 bytes, the limit is 260"):
        modbus().encode(Raw(3, bytes(253)), {"unit": 1})
    with pytest.raises(BadData, match="type: "):
        tlv().encode(Raw(2**31))


# -- checksums, tails, errors


def test_a_frame_with_everything() -> None:
    """The login of a GT06 from its documentation: magic, serial, CRC, tail."""
    login = bytes.fromhex("78780d01012345678901234500018cdd0d0a")
    [(number, body, header)] = bodies(gt06(), login, 1)
    assert (number, body.hex(), header.serial) == (1, "0123456789012345", 1)
    assert gt06().encode(Raw(1, body), {"serial": 1}) == login
    registry = registry_of(1)
    expected = [(1, body)] * 2
    for at in range(2 * len(login)):
        batch = decoded(gt06().decoder(registry), (login * 2)[:at], (login * 2)[at:])
        assert [(number, each.message) for number, each in batch] == expected


@pytest.mark.parametrize(
    ("at", "value", "text"),
    [
        (0, 0x79, "magic is b'yx', not b'xx'"),
        (2, 4, "length is 4, which is too short for type..crc"),
        (9, 0xFF, "crc is 0x8cdd, not 0x[0-9a-f]+"),
        (17, 0, r"tail is b'\\r\\x00', not b'\\r\\n'"),
    ],
)
def test_invalid_frames(at: int, value: int, text: str) -> None:
    """They close the connection, and the reason names the part."""
    frame = bytearray.fromhex("78780d01012345678901234500018cdd0d0a")
    frame[at] = value
    decoder = gt06().decoder(registry_of(1))
    with pytest.raises(BadData, match=text):
        decoder.feed(bytes(frame), [])


def test_an_oversized_frame_is_rejected_at_once() -> None:
    """It is rejected by its header, before anything is stored."""
    decoder = modbus().decoder(registry_of(3))
    with pytest.raises(BadData, match="announces 65541 bytes, the limit is 260"):
        decoder.feed(struct.pack(">HHHBB", 1, 0, 0xFFFF, 1, 3), [])


def test_a_stream_that_ends_within_a_frame() -> None:
    """It is an error, both in the head and in the body."""
    for size in (1, 7, 9):
        decoder = modbus().decoder(registry_of(3))
        decoder.feed(modbus().encode(Raw(3, b"abc"), {"unit": 1})[:size], [])
        with pytest.raises(BadData, match=f"closed {size} bytes into a frame"):
            decoder.end()


@given(st.binary(max_size=200), st.integers(1, 50))
def test_garbage_gives_the_same_result_in_any_pieces(data: bytes, size: int) -> None:
    """The messages and the rejection are the same for the whole stream and for pieces."""
    for codec in (modbus(), gt06(), gt06(on_error="resync"), tlv(max_bytes=100)):
        results = [
            outcome(codec.decoder(registry_of(1, 3)), pieces)
            for pieces in ([data], in_pieces(data, size))
        ]
        assert len(results[0][0]) == len(results[1][0])
        assert bool(results[0][1]) == bool(results[1][1])


# -- resynchronisation


def test_resynchronising() -> None:
    """Invalid bytes are skipped up to the next magic, and counted, in any pieces."""
    login = bytes.fromhex("78780d01012345678901234500018cdd0d0a")
    broken = login[:5] + b"\xff" + login[6:]
    stream = b"noise " + broken + login + b"z" + login + broken[:9] + login
    for size in (len(stream), 1, 7, 20):
        decoder = gt06(on_error="resync").decoder(registry_of(1))
        batch = decoded(decoder, *in_pieces(stream, size))
        assert len(batch) == 3
        assert decoder.skipped == len(stream) - 3 * len(login)


def test_resynchronising_is_limited() -> None:
    """A peer that sends nothing valid is disconnected."""
    decoder = gt06(on_error="resync", resync_bytes=100).decoder(registry_of(1))
    decoder.feed(bytes(90), [])
    with pytest.raises(BadData, match="no valid frame within 100 bytes"):
        decoder.feed(bytes(90), [])


# -- the declaration language


def test_bits_and_optional_fields() -> None:
    """Some bits hold a length, and some fields are present only if another bit is set."""
    codec = f.Frame(
        f.Field("id", "u16", number=True),
        f.Bits("u16", f.Field("split", 1, default=0), f.Field("kind", 5), f.Length(10, "body")),
        f.Field("total", "u16", when="split"),
        f.Field("part", "u8", when="split", default=1),
        f.Body(),
        max_bytes=1100,
    )
    plain = codec.encode(Raw(1, b"abc"), {"kind": 9})
    parted = codec.encode(Raw(1, b"abc"), {"kind": 9, "split": 1, "total": 258})
    assert (plain.hex(), parted.hex()) == ("00012403616263", "0001a403010201616263")
    headers = [header[3:] for _, _, header in bodies(codec, plain + parted, 1)]
    assert headers == [(3, None, None), (3, 258, 1)]
    with pytest.raises(BadData, match="total has no value"):
        codec.encode(Raw(1), {"kind": 1, "split": 1})
    with pytest.raises(BadData, match="total is there only if split is not zero"):
        codec.encode(Raw(1), {"kind": 1, "total": 2})
    with pytest.raises(BadData, match="kind must be between 0 and 31, not 32"):
        codec.encode(Raw(1), {"kind": 32})
    with pytest.raises(BadData, match="length must be between 0 and 1023, not 1024"):
        codec.encode(Raw(1, bytes(1024)), {"kind": 1})


@pytest.mark.parametrize(
    ("kind", "size", "wire"),
    [
        ("u8", 200, b"\xc8"),
        ("u24", 5, b"\0\0\5"),
        ("u16le", 5, b"\5\0"),
        ("u64", 5, bytes(7) + b"\5"),
        ("digits4", 123, b"0123"),
        ("hex2", 200, b"C8"),
        ("bcd2", 1234, b"\x12\x34"),
        ("varint", 127, b"\x7f"),
        ("varint4", 300, b"\xac\x02"),
    ],
)
def test_kinds_of_lengths(kind: str, size: int, wire: bytes) -> None:
    """Each is written correctly and read again, also byte by byte."""
    codec = f.Frame(f.Length(kind, covers="body"), f.Body(), max_bytes=2000)
    stream = codec.encode(Raw(1, bytes(size)))
    assert stream == wire + bytes(size)
    assert decoded(codec.decoder(registry_of(1)), *in_pieces(stream, 1)) == [(1, bytes(size))]


def test_a_length_that_ends_with_a_byte() -> None:
    """A netstring is any number of decimal digits, a colon, the body, and a comma."""
    codec = f.Frame(
        f.Length("digits", covers="body", end=b":"), f.Body(), f.Tail(b","), max_bytes=99
    )
    assert codec.encode(Raw(1, b"hello world!")) == b"12:hello world!,"
    expected = [(1, b"hello world!"), (1, b"")]
    check_cuts(lambda: codec.decoder(registry_of(1)), b"12:hello world!,0:,", expected)
    assert "is not made of digits" in outcome(codec.decoder(registry_of(1)), [b"-1:,"])[1]
    assert "more than 20 bytes" in outcome(codec.decoder(registry_of(1)), [b"1" * 30])[1]


def test_units_and_a_length_that_includes_itself() -> None:
    """It counts four-byte units including itself; other sizes cannot be written."""
    codec = f.Frame(f.Length("u16", covers="length..body", unit=4), f.Body(), max_bytes=100)
    assert codec.encode(Raw(1, b"sixbyt")) == b"\0\2sixbyt"
    assert bodies(codec, b"\0\2sixbyt", 1) == [(1, b"sixbyt")]
    with pytest.raises(BadData, match="must be a multiple of 4 bytes, not 5"):
        codec.encode(Raw(1, b"abc"))
    assert "too short" in outcome(codec.decoder(registry_of(1)), [b"\0\0"])[1]


def test_zero_is_a_keepalive() -> None:
    """It reaches no handler, and is sent as a heartbeat."""
    codec = f.Frame(
        f.Length("u16", covers="kind..body", zero_is_keepalive=True),
        f.Field("kind", "u8", number=True),
        f.Body(),
        max_bytes=100,
    )
    assert codec.heartbeat(0) == b"\0\0"
    check_cuts(
        lambda: codec.decoder(registry_of(5)), b"\0\0\0\2\5a\0\0\0\1\5", [(5, b"a"), (5, b"")]
    )


def test_a_heartbeat_for_a_connection() -> None:
    """A function makes it, of what it knows of the connection."""

    def beat(conn: Any) -> bytes:
        return bytes((1, 9, conn.number))

    codec = f.Frame(
        f.Length("u8", covers="body"),
        f.Field("kind", "u8", number=True),
        f.Body(),
        max_bytes=9,
        heartbeat=beat,
    )
    conn = SimpleNamespace(number=7)
    assert codec.heartbeat(conn) == b"\1\x09\7"
    assert f.Preamble(b"hello", codec).heartbeat(conn) == codec.heartbeat(conn)


def test_zero_is_a_keepalive_without_anything_else() -> None:
    """It is none that a handler gets, also where only the body would follow."""
    codec = f.Frame(f.Length("u8", "body", zero_is_keepalive=True), f.Body(), max_bytes=9)
    assert codec.heartbeat(0) == b"\0"
    check_cuts(lambda: codec.decoder(registry_of(1)), b"\0\1a\0", [(1, b"a")])
    with pytest.raises(BadData, match="the body is empty, but a length of zero is a keep-alive"):
        codec.encode(Raw(1))


def test_numbers_of_several_fields() -> None:
    """They form a tuple, as stream and function in SECS."""
    codec = f.Frame(
        f.Field("stream", "u8"),
        f.Field("function", "u8"),
        f.Length("u8", covers="body"),
        f.Body(),
        numbers=("stream", "function"),
        max_bytes=20,
    )
    assert codec.encode(Raw((1, 13), b"x")) == b"\x01\x0d\x01x"
    with pytest.raises(TypeError, match="message_number must be a tuple of 2, not 5"):
        codec.encode(Raw(5))


@pytest.mark.parametrize(
    ("codec", "good", "bad", "text"),
    [
        (tlv(), -1, 2**31, "message_number 2147483648: type: "),
        (modbus(), 255, "3", "message_number '3': function: "),
        (f.Frame(f.Body(1), number="x", max_bytes=9), "x", 1, "have the number 'x', so none has 1"),
    ],
)
def test_numbers_that_no_message_can_have(codec: f.Frame, good: Any, bad: Any, text: str) -> None:
    """They are refused where a message is declared; the error names the field."""
    server = tao.Server(codec=codec)
    server.registry.register(good, bytes)
    with pytest.raises(ValueError, match=text):
        server.registry.register(bad, bytes)


def test_a_body_up_to_its_tail() -> None:
    """Without a length, the body extends to the tail; a checksum may follow."""
    codec = f.Frame(
        f.Magic(b"\x02"), f.Body(), f.Tail(b"\x03"), f.Checksum("xor8", "body..tail"), max_bytes=20
    )
    assert codec.encode(Raw(1, b"AB")) == b"\x02AB\x03\x00"
    check_cuts(
        lambda: codec.decoder(registry_of(1)), b"\x02AB\x03\x00\x02\x03\x03", [(1, b"AB"), (1, b"")]
    )
    with pytest.raises(BadData, match="contains b'\\\\x03', which would end the frame"):
        codec.encode(Raw(1, b"A\x03"))
    with pytest.raises(BadData, match="would end the frame"):
        f.Frame(f.Body(), f.Tail(b"\n\n"), max_bytes=20).encode(Raw(1, b"A\n"))


def df1(**options: Any) -> f.Frame:
    """DF1 of Allen-Bradley: DLE STX, the data with each DLE doubled, DLE ETX, a check character."""
    return f.Frame(
        f.Magic(b"\x10\x02"),
        f.Body(escape=f.DLE),
        f.Tail(b"\x10\x03"),
        f.Checksum(lambda data: -sum(data) & 0xFF, over="body", kind="u8", **options),
        max_bytes=50,
    )


def test_a_body_with_escapes() -> None:
    """The examples of the DF1 manual: the check is over the data before they were escaped."""
    codec = df1()
    plain = bytes.fromhex("1002 08 09 06 00 02 04 03 1003 e0")
    with_dle = bytes.fromhex("1002 08 09 06 00 1010 04 03 1003 d2")
    expected = [(1, plain[2:-3]), (1, bytes.fromhex("08090600100403"))]
    check_cuts(lambda: codec.decoder(registry_of(1)), plain + with_dle, expected)
    assert [codec.encode(Raw(1, body)) for _, body in expected] == [plain, with_dle]
    assert "! crc should be 0xd2" in codec.explain(with_dle[:-1] + b"\0")
    assert "neither doubled" in outcome(codec.decoder(registry_of(1)), [b"\x10\x02a\x10b\0"])[1]


def test_a_checksum_over_what_is_escaped() -> None:
    """Some protocols calculate it last."""
    codec = df1(escaped=True)
    frame = codec.encode(Raw(1, b"\x01\x10"))
    assert frame == bytes.fromhex("1002 01 1010 1003 df")
    assert bodies(codec, frame, 1) == [(1, b"\x01\x10")]
    assert "!" not in codec.explain(frame)


def test_a_body_that_is_the_rest() -> None:
    """Between delimiters, where no length is needed; elsewhere it is refused."""
    inner = f.Frame(
        f.Field("kind", "u8", number=True),
        f.Body(rest=True),
        f.Checksum("crc16-modbus", over="kind..body"),
        byte_order="little",
        max_bytes=20,
    )
    codec = f.Delimited(escape=f.SLIP, frame=inner)
    stream = codec.encode(Raw(7, b"\xc0")) + codec.encode(Raw(7))
    check_cuts(lambda: codec.decoder(registry_of(7)), stream, [(7, b"\xc0"), (7, b"")])
    assert "too few for a frame" in outcome(codec.decoder(registry_of(7)), [b"\xc0\7\0\xc0"])[1]
    assert "!" not in inner.explain(inner.encode(Raw(7, b"abc")))
    with pytest.raises(ValueError, match="give the frame to Delimited"):
        tao.Server(codec=inner)


def test_a_checksum_in_the_header() -> None:
    """It may precede the parts that it covers, and a function may calculate it."""
    codec = f.Frame(
        f.Length("u8", covers="body"),
        f.Checksum(lambda data: sum(data) & 0xFF ^ 0xFF, over="body", kind="hex2", name="check"),
        f.Body(),
        max_bytes=20,
    )
    assert codec.encode(Raw(1, b"\1\2")) == b"\x02FC\1\2"
    assert bodies(codec, b"\x02FC\1\2", 1) == [(1, b"\1\2")]
    assert "check is 0xfd, not 0xfc" in outcome(codec.decoder(registry_of(1)), [b"\x02FD\1\2"])[1]


def test_a_body_of_constant_size() -> None:
    """It needs no length."""
    codec = f.Frame(f.Field("kind", "text2", number=True), f.Body(3), max_bytes=5)
    assert codec.encode(Raw("ab", b"xyz")) == b"abxyz"
    with pytest.raises(BadData, match="the body has 2 bytes, not 3"):
        codec.encode(Raw("ab", b"xy"))


# -- refused declarations

LENGTH, BODY = f.Length("u8", "body"), f.Body()
MORE = f.Length("u8", "body", name="more")


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ((LENGTH,), r"a frame needs a Body\(\)"),
        ((BODY,), "nothing says where Body 'body' ends"),
        ((f.Body, LENGTH), r"write Body\(...\)"),
        ((LENGTH, "body"), "made of parts such as Field, not 'body'"),
        ((LENGTH, MORE, BODY), "a frame has one Length; there is also Length 'more'"),
        ((LENGTH, LENGTH, BODY), "two parts of the name 'length'"),
        ((f.Length("u8", "bdy"), BODY), "covers 'bdy', but there is no 'bdy' of length, body"),
        ((f.Length("u8", "body..length"), BODY), "'body' comes after 'length'"),
        ((f.Field("a", "u8"), f.Length("u8", "a"), BODY), "says nothing about the body"),
        ((f.Length("u8", "body"), f.Body(5)), "is constant, so Length 'length' has no use"),
        ((BODY, LENGTH), "Length 'length' must come before the body"),
        ((LENGTH, BODY, f.Field("a", "varint")), "Field 'a' comes after the body"),
        ((f.Length("varint", "length..body"), BODY), "cannot cover itself"),
        ((f.Length("f32", "body"), BODY), "Length 'length' must be an integer, not a f32"),
        ((f.Length("u9", "body"), BODY), "Length 'length': there is no kind 'u9'"),
        ((f.Length("digits", "body"), BODY), "say what ends it: end=b','"),
        ((LENGTH, BODY, f.Checksum("crc8", "body..crc")), "would cover itself"),
        ((LENGTH, f.Body(rest=True)), "says where Body 'body' ends, so that is not the rest"),
        ((LENGTH, f.Body(escape=f.DLE)), "Body 'body' is escaped, so it must extend to a Tail"),
        ((f.Body(escape=f.SLIP), f.Tail(b"x")), r"free of b'\\xc0', but Tail 'tail' is b'x'"),
        ((LENGTH, BODY, f.Checksum("crc32", "body", kind="u16")), "which does not fit a u16"),
        ((f.Length("u8", "body", end=b","), BODY), r"Length 'length': a u8 needs no end=b','"),
        ((f.Length("digits2", "body", end=b","), BODY), r"a digits2 needs no end=b','"),
        ((LENGTH, BODY, f.Checksum("crc8", "bod")), "Checksum 'crc' covers 'bod'"),
        ((LENGTH, f.Field("a", "u8", when="b"), BODY), "depends on 'b', which is no earlier field"),
        ((f.Bits("u8", f.Field("a", 3), f.Length(6, "body")), BODY), "have 9 bits of 8"),
        ((f.Field("a", 3), LENGTH, BODY), "a number of bits is a kind in Bits only"),
        ((f.Field("a", "u8", const=300), LENGTH, BODY), "Field 'a': a: .*255"),
        ((f.Field("a", "text3", default="ab"), LENGTH, BODY), "Field 'a': a has 2 bytes, not 3"),
        ((f.Field("a", "u8", number=True), f.Field("b", "u8", number=True), LENGTH, BODY),
         r"two fields are declared number=True: 'a' and 'b'; .* write numbers=\('a', 'b'\)"),
        ((f.Field("a", "text2", correlate=True), LENGTH, BODY), "must be an integer to correlate"),
        ((f.Magic(bytes(99)), LENGTH, BODY), "max_bytes is 99, but a frame has 100"),
    ],
)  # fmt: skip
def test_declarations_that_contradict_themselves(parts: Any, text: str) -> None:
    """Each is refused when it is created, with an error that names the part."""
    with pytest.raises((TypeError, ValueError), match=text):
        f.Frame(*parts, max_bytes=99)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_bytes": 0}, "max_bytes must be at least 1"),
        ({"max_bytes": "9"}, "max_bytes must be an int"),
        ({"byte_order": "middle"}, "byte_order must be 'big' or 'little', not 'middle'"),
        ({"on_error": "resync"}, "'resync' needs a Magic to search for, not Field 'type'"),
        ({"resync_bytes": 5}, "resync_bytes= needs on_error='resync'"),
        ({"number": None}, "message_number must be an int, a str, bytes or a tuple"),
        ({"numbers": "length"}, "numbers= must be a tuple of names, not 'length'"),
        ({"heartbeat": 5}, "heartbeat must be callable, not 5"),
        ({"heartbeat": lambda: b""}, "heartbeat"),
        ({"reply_when": lambda header: True}, "reply_when"),
        ({"on_error": "ignore"}, "on_error must be 'close' or 'resync', not 'ignore'"),
        ({"numbers": ("length",)}, "'type' is the number, and numbers= names others"),
    ],
)
def test_options_of_a_frame_that_are_refused(options: dict[str, Any], text: str) -> None:
    """They are refused like the declaration."""
    with pytest.raises((TypeError, ValueError), match=text):
        tlv(**options)


def test_resynchronising_needs_a_checksum() -> None:
    """Without a checksum, any bytes could be a frame."""
    with pytest.raises(ValueError, match="'resync' needs a Checksum"):
        f.Frame(f.Magic(b"x"), LENGTH, BODY, max_bytes=9, on_error="resync")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: f.Field("a b", "u8"), "'a b' cannot be the name of a Field"),
        (lambda: f.Field("class", "u8"), "'class' cannot be the name of a Field"),
        (lambda: f.Field("a", "u8", const=1, number=True), "cannot be const and number at once"),
        (lambda: f.Field("a", "u8", const=1, default=2), "it needs no default"),
        (lambda: f.Magic(b""), "Magic 'magic' is empty"),
        (lambda: f.Magic("x"), "Magic 'magic' must be bytes, not 'x'"),  # type: ignore[arg-type]
        (lambda: f.Length("u8", "body", unit=0), "the unit of Length 'length' must be 1"),
        (lambda: f.Bits("u8"), "Bits 'bits' has no fields"),
        (lambda: f.Bits("u8", f.Field("a", "u8")), "kind of Field 'a' must be a number of bits"),
        (lambda: f.Body(-1), "the size of Body 'body' must be a number of bytes"),
        (lambda: f.Body(4, rest=True), "Body 'body' is the rest, so it has no size"),
        (lambda: f.Body(escape="x"), "the escape of Body 'body' must be a Stuffing"),  # type: ignore[arg-type]
        (lambda: f.Checksum("crc99", "body"), "there is no checksum 'crc99'"),
        (lambda: f.Checksum(sum, "body"), "is a function; say its kind as well"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_parts_that_are_refused(make: Any, text: str) -> None:
    """They are refused when they are created."""
    with pytest.raises((TypeError, ValueError), match=text):
        make()
