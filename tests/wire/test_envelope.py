"""The envelope of requests and replies, byte by byte."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tao.errors import BadData
from tao.wire import envelope
from tests.ends import frame

IDS = st.integers(0, 2**64 - 1)


def test_a_request_is_laid_out_as_documented() -> None:
    """Id, remaining time, number and value, little-endian."""
    made = envelope.request_frame(0x0102, 1.5, frame(7, b"hi"))
    assert made == frame(-(2**31), b"\2\1" + bytes(6) + b"\xdc\5\0\0" + b"\7\0\0\0" + b"hi")


def test_a_reply_is_laid_out_as_documented() -> None:
    """Id, number and value."""
    made = envelope.reply_frame(3, frame(-2, b"hi"))
    assert made == frame(-(2**31) + 1, b"\3" + bytes(7) + b"\xfe\xff\xff\xff" + b"hi")


def test_an_error_is_laid_out_as_documented() -> None:
    """Id, size of the code, code and text."""
    made = envelope.error_frame(3, "busy", "é")
    assert made == frame(-(2**31) + 2, b"\3" + bytes(7) + b"\4\0" + b"busy" + b"\xc3\xa9")


def test_a_cancellation_is_laid_out_as_documented() -> None:
    """Just the id."""
    assert envelope.cancel_frame(3) == frame(-(2**31) + 3, b"\3" + bytes(7))


@given(IDS, st.integers(-(2**31), 2**31 - 1), st.binary(max_size=40))
def test_what_is_enclosed_is_found_again(request_id: int, number: int, value: bytes) -> None:
    """In a request and in a reply."""
    inner = frame(number, value)
    request = envelope.read_request(envelope.request_frame(request_id, None, inner)[8:])
    assert request == (request_id, envelope.NO_LIMIT, number, value)
    reply = envelope.read_reply(envelope.reply_frame(request_id, inner)[8:])
    assert reply == (request_id, envelope.NO_LIMIT, number, value)


@given(IDS, st.text(max_size=400), st.text(max_size=2000))
def test_a_long_error_is_cut(request_id: int, code: str, text: str) -> None:
    """At whole characters; a short one is as it was."""
    made = envelope.read_error(envelope.error_frame(request_id, code, text)[8:])
    assert made[0] == request_id
    assert code.encode("utf-8", "replace").startswith(made[1].encode())
    assert len(made[1].encode()) > 250 or made[1] == code.encode("utf-8", "replace").decode()
    assert len(made[2].encode()) <= 1024


@pytest.mark.parametrize(("seconds", "milliseconds"), [(0, 0), (-1, 0), (1e9, 2**32 - 2)])
def test_the_remaining_time_has_its_bounds(seconds: float, milliseconds: int) -> None:
    """What is over is zero, and what is very long is not taken for no limit."""
    made = envelope.request_frame(1, seconds, frame(7))
    assert envelope.read_request(made[8:]).milliseconds == milliseconds


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (envelope.read_request, bytes(15)),
        (envelope.read_reply, bytes(11)),
        (envelope.read_error, bytes(9)),
        (envelope.read_error, bytes(8) + b"\5\0four"),
        (envelope.read_cancel, bytes(7)),
        (envelope.read_cancel, bytes(9)),
    ],
)
def test_what_is_cut_short_is_bad_data(read: Callable[[bytes], Any], value: bytes) -> None:
    """The text says what it should have been."""
    with pytest.raises(BadData, match=r"request|reply|cancellation"):
        read(value)
