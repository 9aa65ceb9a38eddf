"""Recent errors: counts by kind and the last reasons, bounded, without contents of messages."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from tao.connection.reports.recent_errors import Failures, reason_of
from tao.errors import BadData, ConnectFailed, ConnectionClosed, TaoError
from tao.wire.codec import TypeLengthValueCodec
from tao.wire.message import Registry

SECRET = "the combination of the safe"


def caught(function: Callable[[], Any]) -> BaseException:
    """Return the exception of a function, with its traceback."""
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def by_a_handler() -> None:
    raise ValueError(SECRET)


def by_a_handler_in_taos_words() -> None:
    raise TaoError(SECRET)


def by_a_decoder() -> None:
    raise BadData(SECRET) from caught(by_a_handler)


@pytest.mark.parametrize("function", [by_a_handler, by_a_handler_in_taos_words, by_a_decoder])
def test_texts_of_the_application_are_left_out(function: Callable[[], None]) -> None:
    """The location of the exception is shown instead."""
    reason = reason_of(caught(function))
    assert SECRET not in reason
    assert "test_recent_errors.py:" in reason and " in by_a_" in reason


def test_a_close_reason_that_quotes() -> None:
    """The text after the colon, which may be from a peer, is left out."""
    error = ConnectionClosed(f"3 messages could not be sent: protocol error: {SECRET}")
    assert reason_of(error) == "3 messages could not be sent"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ECONNRESET, SECRET), "connection reset by peer"),
        (FileNotFoundError(errno.ENOENT, "no such file", SECRET), "no such file or directory"),
        (TimeoutError("the peer took too long"), "the peer took too long"),
        (
            ConnectFailed("cannot connect to a port 1: refused"),
            "cannot connect to a port 1: refused",
        ),
        (
            caught(
                lambda: TypeLengthValueCodec(1).decoder(Registry()).feed(b"\7\0\0\0\2\0\0\0", [])
            ),
            "message 7 announces 2 bytes, the limit is 1",
        ),
        (KeyError(SECRET), ""),
    ],
)
def test_texts_of_tao_and_the_system_are_kept(error: BaseException, reason: str) -> None:
    """They contain nothing from a message."""
    assert reason_of(error) == reason


def test_the_number_of_kinds_is_limited() -> None:
    """There are at most 64 kinds; the last one counts all others."""
    failures = Failures()
    for number in range(100):
        failures.add(type(f"Error{number}", (Exception,), {})(), "", 1, "here")
    found = failures.kinds()
    assert len(found) == 64
    assert next(iter(found.items())) == ("other", 37)


def test_the_last_reasons_are_kept() -> None:
    """The last twenty reasons are kept, the latest first, each shortened."""
    failures = Failures()
    for number in range(50):
        failures.add(TaoError("x" * 1000), f"handling message {number}", number, "10.0.0.1:2")
    found = failures.last()
    assert [each.connection for each in found] == list(range(49, 29, -1))
    assert found[0].reason.startswith("handling message 49: xxx")
    assert len(found[0].reason) == 200
    assert (found[0].kind, found[0].peer) == ("TaoError", "10.0.0.1:2")
