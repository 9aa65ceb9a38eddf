"""Presets: golden frames from public specifications, in any pieces, there and back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tao.errors import BadData
from tao.framing import presets
from tao.wire.codec_checks import checked_decoder, checked_encoder
from tests.framing.golden import FRAMES, Golden
from tests.framing.streams import decoded, in_pieces, outcome, registry_of
from tests.framing.test_frame import Raw

MIB = 1024 * 1024


#: One of each, with what its header needs when a message is written.
CODECS = {each.preset: each for each in FRAMES}
BY_NAME = pytest.mark.parametrize(
    "example", CODECS.values(), ids=[preset.__name__ for preset in CODECS]
)


def taken(codec: Any, *pieces: bytes, number: Any = 1) -> list[tuple[Any, bytes, dict[str, Any]]]:
    """Return the number, body and header of each message that a decoder finds in the pieces."""
    messages = []
    for key, each in decoded(codec.decoder(registry_of(number)), *pieces):
        body, header = (each.message, each.header) if codec.gives_headers else (each, None)
        messages.append((key, body, {} if header is None else header._asdict()))
    return messages


@pytest.mark.parametrize(
    "example", FRAMES, ids=lambda each: f"{each.preset.__name__}: {each.origin}"
)
def test_golden_frames(example: Golden) -> None:
    """Each frame decodes to the documented message, wherever it is cut, and encodes to itself."""
    codec, frame = example.preset(), example.frame
    for at in range(len(frame) + 1):
        pieces = (frame[:at], frame[at:], frame)
        for number, body, header in taken(codec, *pieces, number=example.number):
            assert (number, body) == (example.number, example.body)
            assert header.items() >= example.header.items()
    message = Raw(example.number, example.body)
    assert codec.encode(message, example.header) == frame
    assert "!" not in codec.explain(frame)


@BY_NAME
def test_they_need_no_check(example: Golden) -> None:
    """The results of their decoders and encoders are not checked again for each message."""
    codec = example.preset()
    assert type(checked_decoder(codec, registry_of())) is type(codec.decoder(registry_of()))
    assert checked_encoder(codec) == codec.encode


@BY_NAME
def test_byte_by_byte(example: Golden) -> None:
    """Three frames in a row can be fed one byte at a time."""
    codec, stream = example.preset(), example.frame * 3
    messages = taken(codec, *in_pieces(stream, 1), number=example.number)
    assert [body for _, body, _ in messages] == [example.body] * 3


@BY_NAME
@given(bodies=st.lists(st.binary(max_size=100), max_size=5), size=st.integers(1, 60))
def test_there_and_back(example: Golden, bodies: list[bytes], size: int) -> None:
    """A message decodes to what was encoded, with any body that the protocol allows."""
    codec = example.preset()
    # Which end a message of MLLP, and of STX and ETX.
    bodies = [body for body in bodies if not {0x1C, 0x03} & {*body}]
    stream = b"".join(codec.encode(Raw(example.number, body), example.header) for body in bodies)
    messages = taken(codec, *in_pieces(stream, size), number=example.number)
    assert [body for _, body, _ in messages] == bodies


@BY_NAME
@given(data=st.binary(max_size=80), at=st.integers(0, 20), size=st.integers(1, 30))
def test_garbage(example: Golden, data: bytes, at: int, size: int) -> None:
    """Cuts do not change whether it is rejected, and no other error is raised."""
    codec, registry = example.preset(), registry_of(example.number)
    stream = example.frame[:at] + data
    whole, cut = (
        outcome(codec.decoder(registry), pieces) for pieces in ([stream], in_pieces(stream, size))
    )
    assert len(whole[0]) == len(cut[0])
    assert bool(whole[1]) == bool(cut[1])
    codec.explain(stream)


LONG = [
    *(presets.fix, presets.mllp, presets.mqtt, presets.hsms, presets.amqp091, presets.opcua_tcp),
    presets.stx_etx,
]


@pytest.mark.parametrize("preset", LONG, ids=lambda preset: preset.__name__)
def test_long_frames_take_linear_time(preset: Any) -> None:
    """No byte of a frame in pieces of 1 KiB is inspected more than a few times."""
    codec, example = preset(max_bytes=9 * MIB), CODECS[preset]
    body = b"1" * (8 * MIB)
    frame = codec.encode(Raw(example.number, body), example.header)
    decoder, batch = codec.decoder(registry_of(example.number)), list[Any]()
    pieces = in_pieces(frame, 1024)
    for piece in pieces[:-1]:
        decoder.feed(piece, batch)
        progress = getattr(decoder, "_decoder", decoder).progress
        assert progress.size == len(frame) or progress.searched >= decoder.pending
    decoder.feed(pieces[-1], batch)
    assert len(batch) == 1


def test_variants_of_iso8583() -> None:
    """Each way to write its length and its message type works."""
    body = b"\x30\x20"
    for options, header, wire in (
        ({"length": "digits4"}, {}, b"00060200" + body),
        ({"length": "u16le"}, {}, b"\6\x000200" + body),
        ({"length": "u32", "counts_itself": True}, {}, b"\0\0\0\x0a0200" + body),
        ({"tpdu": True}, {"tpdu": b"`\0\1\0\0"}, b"\0\x0b`\0\1\0\x000200" + body),
    ):
        codec = presets.iso8583(**options)  # type: ignore[arg-type]
        assert codec.encode(Raw("0200", body), header) == wire
        assert taken(codec, wire, number="0200")[0][:2] == ("0200", body)
    assert presets.iso8583(mti="bcd").encode(Raw(200, body)) == b"\0\4\2\0" + body
    assert presets.iso8583().heartbeat(0) == b"\0\0"
    assert taken(presets.iso8583(), b"\0\0" * 3) == []


def test_heartbeats_and_replies() -> None:
    """Each preset knows the heartbeats and the replies of its protocol."""
    assert presets.mqtt(pings=True).heartbeat(0) == b"\xc0\0"
    assert presets.mqtt().heartbeat(0) == b""
    assert presets.soupbintcp(client=False).heartbeat(0) == b"\0\x01H"
    assert presets.amqp091().heartbeat(0).hex() == "08000000000000ce"
    for codec, number in (
        (presets.mqtt(), 13), (presets.soupbintcp(), "H"), (presets.amqp091(), 8)
    ):  # fmt: skip
        assert codec.is_heartbeat(number)  # type: ignore[attr-defined]
    codec = presets.hsms()
    for function, reply in ((13, False), (14, True)):
        batch = decoded(
            codec.decoder(registry_of((0, 1, function))),
            codec.encode(Raw((0, 1, function))),
        )
        assert codec.reply_when is not None
        assert codec.reply_when(batch[0][1].header, batch[0][0]) is reply


def test_the_preamble_of_amqp() -> None:
    """A decoder skips it, wherever it is cut; the codec gives it as it is sent."""
    codec = presets.amqp091()
    frame = bytes.fromhex("01000000000004000a0033ce")
    for stream in (codec.preamble + frame, frame):
        for size in (1, 3, 100):
            [(number, _, _)] = taken(codec, *in_pieces(stream, size))
            assert number == 1
    assert "5 bytes into the preamble" in outcome(codec.decoder(registry_of(1)), [b"AMQP\0"])[1]


def test_variants_of_stx_and_etx() -> None:
    """A check character may follow ETX, and may be any byte; DLE may precede both."""
    for options, body, wire in (
        ({"check": "lrc"}, b"abc", b"\2abc\3c"),
        ({"check": "lrc"}, b"", b"\2\3\3"),
        ({"transparent": True}, b"\x10\3", b"\x10\2\x10\x10\3\x10\3"),
    ):
        codec = presets.stx_etx(**options)  # type: ignore[arg-type]
        assert codec.encode(Raw(1, body)) == wire
        for size in (1, len(wire)):
            assert taken(codec, *in_pieces(wire * 2, size)) == [(1, body, {})] * 2
    with pytest.raises(ValueError, match="check must be 'lrc' or None, not 'crc'"):
        presets.stx_etx("crc")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there is no check"):
        presets.stx_etx("lrc", transparent=True)


def test_versions_of_jt808() -> None:
    """The version of 2019 has longer phone numbers; a long message is sent in parts."""
    codec = presets.jt808(2019)
    header = {"phone": 13812345678, "serial": 1, "split": 1, "total": 2, "part": 1}
    frame = codec.encode(Raw(0x704, b"~"), header)
    assert frame.hex() == "7e070460010100000000013812345678000100020001" + "7d02" + "2e" + "7e"
    [(number, body, came)] = taken(codec, frame, number=0x704)
    assert (number, body, came["phone"], came["part"]) == (0x704, b"~", 13812345678, 1)
    assert codec.reply_header(codec_header(codec, frame)) == {"serial": 1, "phone": 13812345678}
    with pytest.raises(ValueError, match="2013 or 2019"):
        presets.jt808(2011)  # type: ignore[arg-type]


def test_each_preset_has_a_golden_frame() -> None:
    """JSON lines have a test of their own instead."""
    assert {preset.__name__ for preset in CODECS} >= {*presets.__all__} - {"json_lines"}


def test_invalid_frames_of_jt808_can_be_skipped() -> None:
    """Decoding continues at the next delimiter, until too many bytes were skipped."""
    codec = presets.jt808(on_error="resync")
    frame = codec.encode(Raw(2, b"\x7e\x7d"), {"phone": 1, "serial": 1})
    broken = frame[:5] + b"?" + frame[6:]
    for size in (1, 7, 200):
        decoder = codec.decoder(registry_of(2))
        stream = frame + broken + b"noise" + frame + b"\x7e\x7d\x7e" + frame
        batch = decoded(decoder, *in_pieces(stream, size))
        assert [each.message for _, each in batch] == [b"\x7e\x7d"] * 3
        escapes = 2
        assert decoder.skipped == len(broken) - 2 - escapes + len(b"noise") + 1  # type: ignore[attr-defined]
    short = presets.jt808(on_error="resync", max_bytes=20).decoder(registry_of(2))
    assert "no valid frame within 320 bytes" in outcome(short, [b"~abc" * 200])[1]


def codec_header(codec: Any, frame: bytes) -> Any:
    """Return the header of a frame."""
    [(_, arrival)] = decoded(codec.decoder(registry_of(0x704)), frame)
    return arrival.header


class Json:
    """A message that is a dictionary."""

    def __init__(self, number: Any, body: Any) -> None:
        self.message_number, self.body = number, body

    def serialize(self) -> Any:
        return self.body


def test_json_lines() -> None:
    """One member is the number, an int or a str; any other value is refused."""
    codec = presets.json_lines()
    stream = codec.encode(Json("move", {"x": 1, "name": "\u00e9"})) + codec.encode(Json(7, {}))
    assert stream == '{"type":"move","x":1,"name":"\u00e9"}\n{"type":7}\n'.encode()
    for size in (1, 5, 100):
        batch = decoded(codec.decoder(registry_of("move", 7)), *in_pieces(stream, size))
        assert batch == [("move", {"x": 1, "name": "\u00e9"}), (7, {})]
    assert codec.encode(Json(1, b'{ "x": 2 }')) == b'{"type":1,"x":2}\n'
    for line in (b"[]", b"{}", b"1", b"", b'{"type":null}', b'{"type":[1]}', b'{"type":1,"x":NaN}',
                 b"\xff", b"[" * 100_000):  # fmt: skip
        with pytest.raises(BadData, match="no JSON object with 'type' in it"):
            codec.decoder(registry_of(1)).feed(b'{"type":1}\n' + line + b"\n", [])
    wrong: list[tuple[Any, type[Exception]]] = [
        *(({"type": 1}, BadData), ({"x": 1e999}, BadData), ({"x": "y" * 2**20}, BadData)),
        *(({"x": b""}, TypeError), (b"[]", TypeError), (b"{", BadData)),
    ]
    for body, error in wrong:
        with pytest.raises(error):
            codec.encode(Json(1, body))
    with pytest.raises(TypeError, match="must be an int or a str"):
        codec.check_number(b"move")
