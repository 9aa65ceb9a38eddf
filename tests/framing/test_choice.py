"""Several kinds of frames in one stream, and preambles."""

from __future__ import annotations

from typing import Any

import pytest

from tao import framing as f
from tao.errors import BadData
from tests.framing.streams import check_cuts, decoded, outcome, registry_of
from tests.framing.test_frame import Raw, gt06, tlv


def sized(magic: bytes, kind: str, **options: Any) -> f.Frame:
    return f.Frame(f.Magic(magic), f.Length(kind, "body"), f.Body(), max_bytes=1000, **options)


def test_frames_are_distinguished_by_their_first_bytes() -> None:
    """Each message is written in the first frame that can hold it, or in the named one."""
    codec = f.Choice(sized(b"#", "u8"), sized(b"$=", "u16"))
    stream = codec.encode(Raw(1, b"abc")) + codec.encode(Raw(1, bytes(300)))
    stream += codec.encode(Raw(1, b""), {"magic": b"$="})
    assert stream.startswith(b"#\3abc$=\x01\x2c\0")
    expected = [(1, b"abc"), (1, bytes(300)), (1, b"")]
    check_cuts(lambda: codec.decoder(registry_of(1)), stream, expected)
    with pytest.raises(BadData, match="magic cannot be b'x'"):
        codec.encode(Raw(1), {"magic": b"x"})
    with pytest.raises(BadData, match="length: "):
        codec.encode(Raw(1, bytes(1000)))
    assert "a frame begins with b'#' or b'$='" in outcome(codec.decoder(registry_of(1)), [b"$x"])[1]
    assert "$=" in repr(codec.explain(stream[5:9])) and "'#'" in codec.explain(b"#\0")


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        ((), "needs frames to choose from"),
        ((tlv(),), "has no Magic to choose it by"),
        (("x",), "made of frames, not 'x'"),
        ((gt06(on_error="resync"),), "which cannot resynchronise"),
        ((sized(b"##", "u8"), sized(b"#", "u8")), "two frames of a Choice begin with b'#'"),
    ],
)
def test_frames_that_cannot_be_distinguished(frames: Any, text: str) -> None:
    """They are refused when the choice is created."""
    with pytest.raises((TypeError, ValueError), match=text):
        f.Choice(*frames)


def test_a_required_preamble() -> None:
    """It comes once, in any pieces; a stream without it is invalid."""
    codec = f.Preamble(b"HELLO", sized(b"#", "u8"), required=True)
    assert codec.encode(Raw(1, b"a")) == b"#\1a"
    check_cuts(lambda: codec.decoder(registry_of(1)), b"HELLO#\1a#\0", [(1, b"a"), (1, b"")])
    text = "begins with b'HELP#', not with b'HELLO'"
    assert text in outcome(codec.decoder(registry_of(1)), [b"HELP#"])[1]
    for wrong, error in ((b"", ValueError), ("x", TypeError)):
        with pytest.raises(error, match="a preamble"):
            f.Preamble(wrong, codec)  # type: ignore[arg-type]


def test_a_preamble_before_any_codec() -> None:
    """The combination has the codec's attributes, and takes a header if the codec does."""
    codec = f.Preamble(b"HELLO", gt06())
    assert (codec.correlate, codec.gives_headers, codec.heartbeat(0)) == ("serial", True, b"")
    frame = codec.encode(Raw(1, b"x"), {"serial": 7})
    [(number, arrival)] = decoded(codec.decoder(registry_of(1)), frame)
    assert (number, arrival.message, arrival.header.serial) == (1, b"x", 7)
