"""Annotated dumps of frames."""

from __future__ import annotations

import pytest

from tao import framing as f
from tests.framing.test_frame import gt06, modbus

LOGIN = bytes.fromhex("78780d01012345678901234500018cdd0d0a")


def test_a_dump_names_everything() -> None:
    """It has offset, bytes, name and value of each part."""
    dump = modbus().explain(bytes.fromhex("0005 0000 0006 11 03 006b 0003"))
    assert [" ".join(line.split()) for line in dump.splitlines()] == [
        "0 00 05 transaction 5",
        "2 00 00 protocol 0",
        "4 00 06 length 6, 6 bytes of unit..body",
        "6 11 unit 17",
        "7 03 function 3, the message number",
        "8 00 6b 00 03 body 4 bytes",
    ]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (LOGIN[:2], "! incomplete: length is missing"),
        (LOGIN[:9], "! incomplete: 3 bytes of the body are missing"),
        (LOGIN[:-4], "! incomplete: crc is missing"),
        (b"yy" + LOGIN[2:], "! must be b'xx'"),
        (LOGIN[:-4] + b"\0\0\r\n", "! crc should be 0x8cdd"),
        (LOGIN + b"abc", "61 62 63                             ! more than the frame"),
        (LOGIN[:2] + b"\1" + LOGIN[3:], "! length is 1, which is too short for type..crc"),
    ],
)
def test_a_dump_of_an_invalid_frame(data: bytes, text: str) -> None:
    """It says what is wrong, and shows the readable parts."""
    dump = gt06().explain(data)
    assert text in dump
    assert dump.startswith("     0  7")


def test_bits_and_long_bodies() -> None:
    """Each field of bits has a line; a long body is shortened."""
    codec = f.Frame(
        f.Bits("u16", f.Field("kind", 4, number=True), f.Length(12, "body")),
        f.Body(),
        max_bytes=5000,
    )
    lines = codec.explain(b"\x51\x00" + bytes(256)).splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["0", "51", "00", "bits"],
        ["kind", "5,", "the", "message", "number"],
        ["length", "256,", "256", "bytes", "of", "body"],
    ]
    assert lines[-1].strip() == "... 208 bytes more"
