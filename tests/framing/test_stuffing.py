"""Stuffings: published examples, round trips, and what is no escaped value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tao import framing as f
from tao.errors import BadData

ALL = [f.SLIP, f.COBS, f.HDLC, f.JT808, f.DLE]
#: Bytes that mean something to one of them, and others.
TRICKY = st.lists(st.sampled_from(b"\0\1\2\3\x10\x7d\x7e\x5d\x5e\xc0\xdb\xdc\xdd\x20\xff")).map(
    bytes
)
RISING = bytes(range(1, 256))


@pytest.mark.parametrize(
    ("stuffing", "value", "escaped"),
    [
        (f.SLIP, "c0 db 01", "db dc db dd 01"),  # RFC 1055
        (f.HDLC, "7e 7d 20", "7d 5e 7d 5d 20"),  # RFC 1662, 4.2
        (f.JT808, "30 7e 08 7d 55", "30 7d 02 08 7d 01 55"),  # JT/T 808-2013, 4.4.2
        (f.DLE, "10 03 41 10", "10 10 03 41 10 10"),
        (f.COBS, "", "01"),  # and those of Wikipedia's article
        (f.COBS, "00", "01 01"),
        (f.COBS, "00 00", "01 01 01"),
        (f.COBS, "00 11 00", "01 02 11 01"),
        (f.COBS, "11 22 00 33", "03 11 22 02 33"),
        (f.COBS, "11 22 33 44", "05 11 22 33 44"),
        (f.COBS, "11 00 00 00", "02 11 01 01 01"),
        (f.COBS, RISING[:254].hex(), "ff" + RISING[:254].hex()),
        (f.COBS, "00" + RISING[:254].hex(), "01 ff" + RISING[:254].hex()),
        (f.COBS, RISING.hex(), "ff" + RISING[:254].hex() + "02 ff"),
        (f.COBS, RISING[1:].hex() + "00", "ff" + RISING[1:].hex() + "01 01"),
        (f.COBS, RISING[2:].hex() + "00 01", "fe" + RISING[2:].hex() + "02 01"),
    ],
)
def test_published_examples(stuffing: f.Stuffing, value: str, escaped: str) -> None:
    """Each value has the escaped form that its specification shows."""
    assert stuffing.escape(bytes.fromhex(value)).hex(" ") == bytes.fromhex(escaped).hex(" ")
    assert stuffing.unescape(bytes.fromhex(escaped)) == bytes.fromhex(value)


@pytest.mark.parametrize("stuffing", ALL)
@given(value=st.one_of(TRICKY, st.binary(min_size=250, max_size=600)))
def test_round_trips(stuffing: f.Stuffing, value: bytes) -> None:
    """Any value comes back, and its escaped form contains no delimiter."""
    escaped = stuffing.escape(value)
    assert stuffing.unescape(escaped) == value
    assert stuffing.doubled or stuffing.end not in escaped


@pytest.mark.parametrize("stuffing", ALL)
@given(data=TRICKY)
def test_garbage(stuffing: f.Stuffing, data: bytes) -> None:
    """Bytes are refused, or decode to a value that comes back when it is escaped again."""
    try:
        value = stuffing.unescape(data)
    except BadData as error:
        assert str(error).startswith(f"{stuffing}: ")
        return
    again = stuffing.unescape(stuffing.escape(value))
    assert again == value
    if stuffing not in (f.HDLC, f.COBS) and stuffing.end not in data:
        assert stuffing.escape(value) == data


def test_hdlc_may_escape_any_byte() -> None:
    """It may escape control characters, for example, if the peer asked for that."""
    assert f.HDLC.unescape(bytes.fromhex("7d 31 41 7d 5d")) == b"\x11A\x7d"


@pytest.mark.parametrize(
    ("stuffing", "data"),
    [
        (f.SLIP, "db 01"),
        (f.SLIP, "01 db"),
        (f.SLIP, "db db dc"),
        (f.JT808, "7d 03"),
        (f.HDLC, "41 7d"),
        (f.HDLC, "7d 7d 5e"),
        (f.COBS, "03 11"),
        (f.COBS, "02 11 05"),
        (f.COBS, "00 11"),
        (f.DLE, "10 41"),
    ],
)
def test_what_is_no_escaped_value(stuffing: f.Stuffing, data: str) -> None:
    """The error names the stuffing."""
    with pytest.raises(BadData, match=f"{stuffing}: "):
        stuffing.unescape(bytes.fromhex(data))
