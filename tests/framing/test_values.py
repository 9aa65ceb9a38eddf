"""Frames that are little more than a value: delimited, of constant size, length in front."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tao
from tao import framing as f
from tao.errors import BadData
from tao.wire.codec_checks import check_codec, checked_decoder, checked_encoder
from tests.framing.streams import check_cuts, decoded, in_pieces, outcome, registry_of

MIB = 1024 * 1024
KNOWN = registry_of(1)


def message(value: Any, number: Any = 1) -> tao.UnknownMessage:
    return tao.UnknownMessage(number, value)


def fixed(max_bytes: int = 3) -> f.Fixed:
    return f.Fixed(3)


CODECS: dict[str, tuple[Callable[..., Any], list[bytes], bytes]] = {
    "lines": (f.Lines, [b"one", b"", b"\rtwo"], b"one\n\n\rtwo\n"),
    "crlf": (partial(f.Delimited, b"\r\n"), [b"a\r", b"\nb", b""], b"a\r\r\n\nb\r\n\r\n"),
    "mllp": (
        partial(f.Delimited, b"\x1c\r", b"\x0b"),
        [b"MSH|", b""],
        bytes.fromhex("0b 4d 53 48 7c 1c 0d 0b 1c 0d"),
    ),
    "slip": (
        partial(f.Delimited, escape=f.SLIP),
        [b"a\xc0", b"\xdb"],
        bytes.fromhex("c0 61 db dc c0 c0 db dd c0"),
    ),
    "cobs": (partial(f.Delimited, escape=f.COBS), [b"a\0", b""], b"\2a\1\0\1\0"),
    "hdlc": (partial(f.Delimited, escape=f.HDLC), [b"\x7e", b"\x7d"], b"~}\x5e~~}\x5d~"),
    "jt808": (partial(f.Delimited, escape=f.JT808), [b"0~\x08}U"], b"~0}\x02\x08}\x01U~"),
    "dle": (
        partial(f.Delimited, escape=f.DLE),
        [b"\x10\x03", b"", b"\x10"],
        bytes.fromhex("10 02 10 10 03 10 03  10 02 10 03  10 02 10 10 10 03"),
    ),
    "fixed": (fixed, [b"abc", b"def"], b"abcdef"),
    "netstring": (f.Netstring, [b"hello", b"", b"0123456789"], b"5:hello,0:,10:0123456789,"),
    "varint": (f.Varint, [b"a", b"", bytes(300)], b"\1a\0\xac\2" + bytes(300)),
}
EACH = pytest.mark.parametrize("name", CODECS)


@EACH
def test_examples(name: str) -> None:
    """Each value encodes to the expected bytes and decodes from them, wherever they are cut."""
    make, values, stream = CODECS[name]
    codec = make()
    assert b"".join(codec.encode(message(value)) for value in values) == stream
    check_cuts(lambda: codec.decoder(KNOWN), stream, [(1, value) for value in values])
    check_codec(codec, KNOWN)
    assert type(checked_decoder(codec, KNOWN)) is type(codec.decoder(KNOWN))
    assert checked_encoder(codec) == codec.encode


@EACH
@given(values=st.lists(st.binary(max_size=40)), size=st.integers(1, 50))
def test_round_trips(name: str, values: list[bytes], size: int) -> None:
    """Whatever can be encoded decodes again, in any pieces."""
    make, frames, expected = CODECS[name][0](), [], []
    for value in values:
        try:
            frames.append(make.encode(message(value)))
        except BadData:
            continue
        expected.append((1, value))
    stream = b"".join(frames)
    assert decoded(make.decoder(KNOWN), *in_pieces(stream, size)) == expected


@EACH
@given(data=st.one_of(st.binary(), st.text("\0\1\2\3\x10\r\n\x0b\x1c0159:,~}").map(str.encode)))
def test_garbage(name: str, data: bytes) -> None:
    """Cuts change nothing but the moment at which the error is noticed."""
    codec = CODECS[name][0](max_bytes=20)
    whole, why = outcome(codec.decoder(KNOWN), [data])
    for size in (1, 3):
        pieces, reason = outcome(codec.decoder(KNOWN), in_pieces(data, size))
        assert pieces == whole and bool(reason) == bool(why)


@EACH
def test_the_bound_is_that_of_the_frame(name: str) -> None:
    """``max_bytes`` counts delimiters and escapes as well, in both directions."""
    make, values, _ = CODECS[name]
    if name == "fixed":
        return
    frame = make().encode(message(values[0]))
    assert decoded(make(max_bytes=len(frame)).decoder(KNOWN), frame) == [(1, values[0])]
    codec = make(max_bytes=len(frame) - 1)
    with pytest.raises(BadData, match=str(len(frame) - 1)):
        codec.encode(message(values[0]))
    for size in (1, len(frame)):
        if name not in ("slip", "hdlc", "jt808"):  # where one delimiter ends an empty frame
            with pytest.raises(BadData, match=str(len(frame) - 1)):
                decoded(codec.decoder(KNOWN), *in_pieces(frame, size))


@EACH
def test_large_values_take_linear_time(name: str) -> None:
    """A search in an incomplete frame continues where the one before it stopped."""
    codec = f.Fixed(8 * MIB) if name == "fixed" else CODECS[name][0](max_bytes=9 * MIB)
    stream = codec.encode(message(b"x" * (8 * MIB)))
    decoder, searched = codec.decoder(KNOWN), list[int]()
    locate = decoder.locate

    def note(*args: Any) -> Any:
        found = locate(*args)
        searched.append(decoder.progress.size or decoder.progress.searched)
        return found

    decoder.locate = note
    assert decoded(decoder, *in_pieces(stream, 1024)) == [(1, b"x" * (8 * MIB))]
    assert len(searched) <= len(stream) // 1024 + 2
    assert all(at >= 1024 * index for index, at in enumerate(searched[:-1], 1))


@pytest.mark.parametrize("stream", [b"a\n" * 10_000, b"10:0123456789," * 10_000])
def test_many_small_frames(stream: bytes) -> None:
    """All arrive in order, and an incomplete frame is kept."""
    codec: Any = f.Lines() if stream[:1] == b"a" else f.Netstring()
    assert len(decoded(codec.decoder(KNOWN), stream[:7777], stream[7777:])) == 10_000


@pytest.mark.parametrize(
    ("codec", "data", "text"),
    [
        (f.Delimited(b"\x1c\r", b"\x0b"), b"\x0ba\x1c\rMSH", r"does not begin with b'\\x0b'"),
        (f.Delimited(b"\x1c\r", b"\x0b"), b"\x0ba\x1c\rMSH\x1c\r", "does not begin with"),
        (f.Delimited(escape=f.DLE), b"\x10\2a\x10\3\x10\2\x10\2", "neither doubled nor part of"),
        (f.Delimited(escape=f.SLIP), b"\xc0a\xc0\xdb\1\xc0", "SLIP: an escape byte"),
        (f.Netstring(), b"1:a,x:", "begins with its length"),
        (f.Netstring(), b"1:a,01:a,", "begins with its length"),
        (f.Netstring(), b"1:a,-1:", "begins with its length"),
        (f.Netstring(), b"1:a,1:ab", "ends with a comma"),
        (f.Netstring(), b"1:a,123456789", "more than 1048576 bytes"),
        (f.Varint(), b"\1a\xff\xff\xff\xff\x01", "1048576"),
        (f.Varint(), b"\1a" + b"\x80" * 10, "more than 9 bytes"),
    ],
)
def test_invalid_streams(codec: Any, data: bytes, text: str) -> None:
    """The error says what is wrong; the message in front of it is delivered."""
    for pieces in ([data], in_pieces(data, 1)):
        decoder, batch = codec.decoder(KNOWN), list[Any]()
        with pytest.raises(BadData, match=text):
            for piece in pieces:
                decoder.feed(piece, batch)
        assert batch == [(1, b"a")]


def test_lines_of_both_kinds() -> None:
    """Both line ends are read, one is written, and blanks may be stripped."""
    codec = f.Lines(b"\r\n", strip=b" \t")
    assert codec.encode(message(b"one")) == b"one\r\n"
    batch = decoded(codec.decoder(KNOWN), b" one\t\r\ntwo \n\r\n")
    assert batch == [(1, b"one"), (1, b"two"), (1, b"")]


@pytest.mark.parametrize(
    ("codec", "value"),
    [
        (f.Lines(), b"a\nb"),
        (f.Lines(), b"a\r"),
        (f.Delimited(b"\x1c\r", b"\x0b"), b"a\x1c\r"),
        (f.Fixed(3), b"ab"),
        (f.Lines(), b"x" * MIB),
    ],
)
def test_values_that_have_no_frame(codec: Any, value: bytes) -> None:
    """``encode`` refuses them."""
    with pytest.raises(BadData):
        codec.encode(message(value))


def test_numbers() -> None:
    """All frames have the number of the codec, or a function finds it in the value."""
    codec = f.Lines(number="line")
    assert decoded(codec.decoder(registry_of("line")), b"a\n") == [("line", b"a")]
    for wrong in (lambda: codec.check_number(1), lambda: codec.encode(message(b"", 1))):
        with pytest.raises(ValueError, match=r"the frames of Lines\(\) have no number.*'line'.*1"):
            wrong()
    with pytest.raises(ValueError, match="have no number"):
        tao.Server(codec=f.Netstring()).registry.register(7, bytes)
    codec = f.Lines(number=lambda line: line.partition(b" ")[0])
    registry = registry_of(b"GET")
    registry.handler(tao.ANY)(lambda ctx, conn: None)
    for cuts in ([b"GET a\nPUT b\n"], in_pieces(b"GET a\nPUT b\n", 1)):
        (number, value), (other, unknown) = decoded(codec.decoder(registry), *cuts)
        assert (number, value, other, unknown.value) == (b"GET", b"GET a", b"PUT", b"PUT b")
    codec.check_number(b"GET")


def test_a_declared_frame_between_delimiters() -> None:
    """It has number, header and checksum; the checksum is over the unescaped bytes."""
    codec = f.Delimited(
        escape=f.SLIP,
        frame=f.Frame(
            f.Field("id", "u8", correlate=True),
            f.Field("type", "u8", number=True),
            f.Length("u8", covers="body"),
            f.Body(),
            f.Checksum("xor8", over="id..body"),
            max_bytes=100,
        ),
    )
    stream = codec.encode(message(b"\xc0", 7), {"id": 0xDB})
    xor = 0xDB ^ 7 ^ 1 ^ 0xC0
    assert stream == b"\xc0\xdb\xdd\7\1\xdb\xdc%c\xc0" % xor
    batches = [
        decoded(codec.decoder(registry_of(7)), *in_pieces(stream * 2, size)) for size in (1, 5, 99)
    ]
    for batch in batches:
        assert [(n, each.message, each.header.id) for n, each in batch] == [(7, b"\xc0", 0xDB)] * 2
    assert codec.reply_header(batches[0][0][1].header) == {"id": 0xDB}
    codec.check_number(7)
    for wrong in (b"\xc0\1\7\0\7\xc0", b"\xc0\1\7\0\6\0\xc0", b"\xc0\1\7\2\6\xc0"):
        with pytest.raises(BadData):
            codec.decoder(registry_of(7)).feed(wrong, [])


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: f.Delimited(), "end must be bytes, not None"),
        (lambda: f.Delimited("\n"), "end must be bytes, not '\\\\n'"),
        (lambda: f.Delimited(b""), "end cannot be empty"),
        (lambda: f.Delimited(b"\n", 2), "start must be bytes, not 2"),
        (lambda: f.Delimited(b"\n", escape=b"\\"), "escape must be a Stuffing such as SLIP"),
        (lambda: f.Delimited(b"\n", escape=f.DLE), "with DLE, end must begin with"),
        (lambda: f.Delimited(b"\n", strip=" "), "strip must be bytes"),
        (lambda: f.Delimited(b"\n", frame=f.Lines()), "frame must be a Frame"),
        (lambda: f.Delimited(b"\n", on_error="resync"), "needs a frame= with a Checksum"),
        (lambda: f.Delimited(b"\n", on_error="skip"), "on_error must be 'close' or 'resync'"),
        (lambda: f.Delimited(b"\n", max_bytes=0), "max_bytes must be at least 1"),
        (lambda: f.Lines(b"\r"), "a line ends with"),
        (lambda: f.Lines(number=1.5), "message_number must be an int, a str"),
        (lambda: f.Lines(number=lambda: 1), "cannot be called as number"),
        (lambda: f.Fixed(0), "max_bytes must be at least 1"),
    ],
)
def test_declarations_that_are_refused(make: Any, text: str) -> None:
    """The error names the argument."""
    with pytest.raises((TypeError, ValueError), match=text):
        make()


def test_connections() -> None:
    """A message goes each way over a real connection."""
    came: list[Any] = []
    done = threading.Event()
    codec = f.Delimited(escape=f.COBS)
    registry = tao.Registry()

    class Raw(tao.UnknownMessage):
        message_number = 1  # type: ignore[assignment]
        deserialize = classmethod(lambda cls, data: cls(1, data))  # type: ignore[assignment]

    with tao.Server(codec=codec, registry=registry) as server:
        server.handler(Raw)(lambda ctx, conn: conn.write(ctx.message))
        address = server.start(("127.0.0.1", 0))
        with tao.ClientConn(address, codec=codec, registry=tao.Registry()) as client:
            client.handler(Raw)(lambda ctx, conn: (came.append(ctx.message.value), done.set()))
            client.write(Raw(1, struct.pack("<III", 0, 1, 0)))
            assert done.wait(10) and came == [struct.pack("<III", 0, 1, 0)]


@pytest.mark.parametrize(
    ("codec", "value"),
    [
        (f.Delimited(b"\n\n"), b"x\n"),
        (f.Delimited(b"\r\n", b"\r"), b"\nx"),
        (f.Delimited(b"aa"), b"baa"),
        (f.Delimited(b"~", b"~"), b""),
        (f.Delimited(escape=f.SLIP), b""),
        (f.Delimited(b"\xdb\xdc", escape=f.SLIP), b"\xc0"),
    ],
)
def test_values_that_would_be_read_otherwise(codec: Any, value: bytes) -> None:
    """A value is refused if it is empty or its last bytes and the delimiter form an earlier end."""
    with pytest.raises(BadData, match=r"a message .*cannot"):
        codec.encode(message(value))


@given(
    st.binary(min_size=1, max_size=3),
    st.binary(max_size=3),
    st.lists(st.binary(max_size=6), max_size=4),
    st.integers(1, 9),
)
def test_any_delimiters(end: bytes, start: bytes, values: list[bytes], size: int) -> None:
    """Whatever can be encoded with any delimiters decodes again."""
    try:
        codec = f.Delimited(end, start)
    except ValueError:
        return
    frames, kept = [], []
    for value in values:
        try:
            frames.append(codec.encode(message(value)))
        except BadData:
            continue
        kept.append((1, value))
    assert decoded(codec.decoder(KNOWN), *in_pieces(b"".join(frames), size)) == kept


def checked(**options: Any) -> f.Delimited:
    """Return a codec whose frames have a checksum, so that it may skip invalid bytes."""
    return f.Delimited(
        frame=f.Frame(f.Length("u8", "body"), f.Body(), f.Checksum("xor8", "body"), max_bytes=30),
        on_error="resync",
        max_bytes=50,
        **options,
    )


@pytest.mark.parametrize("options", [{"escape": f.SLIP}, {"end": b"\3", "start": b"\2"}])
@given(pieces=st.lists(st.sampled_from([b"\2\3", b"\xc0", b"\xdb", b"\1", b"x", b"\2\0\0\3", b""])))
def test_what_is_skipped_does_not_depend_on_cuts(options: Any, pieces: list[bytes]) -> None:
    """Garbage, wrong escapes and wrong starts are skipped, and valid frames are delivered."""
    codec = checked(**options)
    good = codec.encode(message(b"goad"))
    stream = good.join([*pieces, codec.end])
    whole = outcome(codec.decoder(KNOWN), [stream + good])
    for size in (1, 3, 7):
        assert outcome(codec.decoder(KNOWN), in_pieces(stream + good, size)) == whole


def test_there_is_no_empty_heartbeat() -> None:
    """A protocol without heartbeats sends none, however its frames are delimited."""
    assert checked(end=b"\3").heartbeat(None) == f.Lines().heartbeat(None) == b""
