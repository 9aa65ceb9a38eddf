"""The base class of decoders: the same messages for any pieces, and everything it refuses."""

from __future__ import annotations

import struct
from typing import Any

import pytest

import tao
from tao import framing as f
from tao.errors import BadData
from tao.framing.decoder import Found
from tao.wire.codec_checks import check_codec, checked_decoder
from tests.framing.streams import check_cuts, decoded, in_pieces, registry_of

MIB = 1024 * 1024
SIZED, LINE = 1, 2
KNOWN = registry_of(SIZED, LINE)


class Mixed(f.FrameDecoder):
    """A frame is a line, or a ``$``, a u32 and that many bytes. Empty lines are skipped."""

    looks = 0

    def frame(self, data: memoryview, start: int) -> Found | None:
        self.looks += 1
        if data[start] == ord("$"):
            if len(data) < start + 5:
                return None
            end = start + 5 + struct.unpack_from(">I", data, start + 1)[0]
            if end > len(data):
                self.need(start, end - start)
                return None
            return end, SIZED, data[start + 5 : end]
        end = self.find(data, start, b"\r\n")
        if end < 0:
            return None
        return end + 2, LINE if end > start else None, data[start:end]


class MixedCodec(tao.Codec):
    kind: Any = Mixed

    def encode(self, message: Any) -> bytes:
        return b"%b\r\n" % message.serialize()

    def decoder(self, registry: tao.Registry) -> Any:
        return self.kind(registry)


def sized(value: bytes) -> bytes:
    return b"$" + struct.pack(">I", len(value)) + value


def test_pieces_do_not_matter() -> None:
    """The stream can be cut at any point without changing a message."""
    stream = b"one\r\n" + sized(b"\r\n") + b"\r\n\r\n" + sized(b"") + b"a\rb\n\r\n" + sized(b"end")
    expected = [(LINE, b"one"), (SIZED, b"\r\n"), (SIZED, b""), (LINE, b"a\rb\n")]
    check_cuts(lambda: Mixed(KNOWN), stream, [*expected, (SIZED, b"end")])


def test_values_are_separate_bytes_objects() -> None:
    """This also holds for values collected in a buffer; an unregistered number has no message."""
    decoder = Mixed(registry_of(SIZED))
    batch = decoded(decoder, b"$", b"\0\0", b"\0", b"\4", b"abc", b"dno\r\n$\0\0\0\0")
    assert batch == [(SIZED, b"abcd"), (LINE, None), (SIZED, b"")]
    assert type(batch[0][1]) is bytes


@pytest.mark.parametrize("stream", [sized(bytes(8 * MIB - 5)), bytes(8 * MIB - 2) + b"\r\n"])
def test_a_long_frame_in_small_pieces_takes_linear_time(stream: bytes) -> None:
    """The buffer grows in place, and no byte is searched repeatedly."""
    decoder, batch = Mixed(KNOWN), list[Any]()
    pieces = in_pieces(stream, 1024)
    for piece in pieces[:3]:
        decoder.feed(piece, batch)
    buffer = decoder._held
    for piece in pieces[3:-1]:
        decoder.feed(piece, batch)
        assert decoder._held is buffer and decoder.progress.searched in (0, len(buffer))
    decoder.feed(pieces[-1], batch)
    assert decoder.looks == (2 if stream[0] else len(pieces))
    assert len(batch) == 1 and decoder.pending == 0


def test_progress_belongs_to_one_frame() -> None:
    """The size and the search position of a frame are not used for the next one."""
    decoder, batch = Mixed(KNOWN), list[Any]()
    for piece in (b"a long line", b" ends\r\nb", b"\r", b"\n", sized(b"x" * 90)[:20], b"x" * 75):
        decoder.feed(piece, batch)
    decoder.feed(b"\r\n", batch)
    assert [value for _, value in batch] == [b"a long line ends", b"b", b"x" * 90]


@pytest.mark.parametrize("piece", [1, 5, 1000])
@pytest.mark.parametrize(
    "stream", [b"12345678901", b"12345678901\r\n", sized(bytes(6)), sized(b"1" * 99)]
)
def test_the_limit_covers_the_whole_frame(stream: bytes, piece: int) -> None:
    """A longer frame is refused as soon as its length is known."""
    decoder = Mixed(KNOWN, max_bytes=10)
    assert decoded(Mixed(KNOWN, max_bytes=10), b"12345678\r\n", sized(b"abcde"))
    with pytest.raises(BadData, match="10"):
        decoded(decoder, *in_pieces(stream, piece))
    assert decoder.pending == 0


def test_a_stream_must_end_between_frames() -> None:
    """An incomplete frame at the end is an error with its size."""
    decoder = Mixed(KNOWN)
    decoder.feed(b"one\r\ntwo", [])
    with pytest.raises(BadData, match="3 bytes into a frame"):
        decoder.end()


def test_a_view_that_is_still_in_use() -> None:
    """The bytes are copied, and the view keeps the old ones."""
    views: list[memoryview] = []

    class Keeps(Mixed):
        def frame(self, data: memoryview, start: int) -> Found | None:
            views.append(data[start:])
            return super().frame(data, start)

    assert decoded(Keeps(KNOWN), *in_pieces(b"one\r\ntwo\r\n", 1)) == [
        (LINE, b"one"),
        (LINE, b"two"),
    ]
    assert views[2] == b"one"


def test_an_error_of_a_deserializer_closes_the_connection() -> None:
    """Earlier messages are handled; `BadData` is the peer's fault, anything else this side's."""
    registry, batch = registry_of(LINE), list[Any]()
    registry.register(SIZED, lambda data: 1 // len(data))
    with pytest.raises(BadData, match=r"message 1 .*ZeroDivisionError") as caught:
        Mixed(registry).feed(b"one\r\n" + sized(b"") + b"two\r\n", batch)
    assert batch == [(LINE, b"one")] and caught.value.unintended


@pytest.mark.parametrize(
    "result", [7, "abc", (1, 2), (0, 1, b""), (99, 1, b""), ("1", 1, b""), (1, [], b"")]
)
def test_a_wrong_result_names_the_method(result: Any) -> None:
    """The mistake is reported as an error of this side, with the expected result."""

    class Wrong(Mixed):
        def frame(self, data: memoryview, start: int) -> Found | None:
            return result

    with pytest.raises(BadData, match=r"Wrong\.frame\(\) must return None or") as caught:
        Wrong(KNOWN).feed(b"12345", [])
    assert caught.value.unintended and "not " + repr(result) in str(caught.value.__cause__)


class Nameless(f.FrameDecoder):
    """A decoder without a `frame`."""


class OfOneArgument(f.FrameDecoder):
    def frame(self, data: memoryview) -> Found | None:  # type: ignore[override]
        return None


class Unprepared(Mixed):
    def __init__(self, registry: tao.Registry) -> None:
        self.registry = registry


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Nameless, r"Nameless must define frame\(data, start\)"),
        (OfOneArgument, r"cannot be called as OfOneArgument.frame\(data, start\)"),
        (Unprepared, r"Unprepared.__init__\(\) must call super"),
        (lambda registry: Mixed(registry.entries), "needs the registry that decoder"),
        (lambda registry: Mixed(registry, "8"), "max_bytes must be an int"),
    ],
)
def test_an_invalid_decoder_class_is_refused(kind: Any, text: str) -> None:
    """The error when a server or client is created names what is missing."""
    codec = MixedCodec()
    check_codec(codec, KNOWN)
    codec.kind = kind
    with pytest.raises(TypeError, match=text):
        check_codec(codec, KNOWN)


def test_results_are_checked_once() -> None:
    """Results of the base class need no further check, unless a subclass has its own loop."""

    class OwnFeed(Mixed):
        def feed(self, data: bytes, batch: Any) -> None:
            batch.append(data)

    class OwnLoop(Mixed):
        def decode(self, data: bytes, batch: Any) -> int:
            batch.append(data)
            return len(data)

    codec = MixedCodec()
    assert type(checked_decoder(codec, KNOWN)) is Mixed
    for codec.kind in (OwnFeed, OwnLoop):
        with pytest.raises(BadData, match="must append tuples"):
            checked_decoder(codec, KNOWN).feed(b"x", [])
