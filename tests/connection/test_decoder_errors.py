"""Exceptions of decoders: the log level depends on whether the peer or the code is at fault."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest

from tao.errors import BadData
from tao.testing import Clock
from tao.wire.codec import Batch, Codec
from tao.wire.message import Message, Registry
from tests.ends import End, Seen, Text, frame, text
from tests.support import PATIENCE, wait_until

OpenEnd = Callable[..., End]
SECRET = "the combination of the safe"


class Letters(Codec):
    """A codec with a message per letter. ``!`` is bad data; other letters raise exceptions."""

    def encode(self, message: Message) -> bytes:
        return message.serialize()

    def decoder(self, registry: Registry) -> LettersDecoder:
        return LettersDecoder()


class NeedsArguments(Exception):
    def __new__(cls, text: str, more: str) -> NeedsArguments:
        return super().__new__(cls, text, more)


class LettersDecoder:
    raises: dict[bytes, Callable[[], BaseException]] = {  # noqa: RUF012
        b"!": lambda: BadData(f"there is no {SECRET}"),
        b"1": lambda: IndexError(SECRET),
        b"2": lambda: struct.error(SECRET),
        b"3": lambda: UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, SECRET),
        b"4": lambda: NeedsArguments(SECRET, SECRET),
        b"5": lambda: MemoryError(SECRET),
        b"6": lambda: SystemExit(SECRET),
    }

    def __init__(self) -> None:
        self.pending = 0

    def feed(self, data: bytes, batch: Batch) -> None:
        for letter in struct.unpack(f"{len(data)}c", data):
            self.pending += 1
            if letter in self.raises:
                raise self.raises[letter]()
            batch.append((1, Text(letter.decode())))

    def end(self) -> None:
        if self.pending % 2:
            raise ArithmeticError(SECRET)


def lost(log_lines: list[Any]) -> list[Any]:
    """Return the log lines about lost connections."""
    return [each for each in log_lines if each["message"].startswith("connection lost")]


@pytest.mark.parametrize("letter", sorted(set(LettersDecoder.raises) - {b"!"}))
def test_a_bug_in_a_decoder_is_an_error(
    open_end: OpenEnd, log_lines: list[Any], letter: bytes
) -> None:
    """It is logged at ERROR with its traceback but without its text, which ``on_error`` gets."""
    errors = Seen()
    end = open_end(codec=Letters(), heartbeat=None, on_error=lambda conn, error: errors.add(error))
    end.send(b"ab" + letter)
    (error,) = errors.wait()
    raised = LettersDecoder.raises[letter]()
    assert type(error) is BadData and type(error.__cause__) is type(raised)
    wait_until(lambda: end.conn.close_reason is not None)  # on_error may still write
    assert end.conn.close_reason == f"protocol error: the decoder raised {type(raised).__name__}"
    wait_until(lambda: lost(log_lines))
    (line,) = lost(log_lines)
    assert (line["level"].name, line["message"]) == (
        "ERROR",
        f"connection lost: {end.conn.close_reason}",
    )
    kind, value, traceback = line["exception"]
    assert traceback.tb_next.tb_frame.f_code.co_name == "feed" and SECRET not in str(value)
    assert kind is type(raised) or str(value) == type(raised).__name__
    assert end.conn._core.counts().errors == 1


@pytest.mark.parametrize("error", [KeyError, TypeError, ValueError, AssertionError])
def test_a_bug_in_a_deserializer_is_an_error(
    open_end: OpenEnd, log_lines: list[Any], error: type[Exception]
) -> None:
    """It is logged in the same way; earlier messages are handled."""
    registry, seen = Registry(), Seen()
    registry.handler(Text)(lambda ctx, conn: seen.add(ctx.message.text))

    def deserialize(data: bytes) -> Any:
        raise error(SECRET)

    registry.register(5, deserialize)
    end = open_end(registry=registry)
    end.send(text("before") + frame(5))
    assert seen.wait() == ["before"]
    wait_until(lambda: lost(log_lines))
    (line,) = lost(log_lines)
    assert line["level"].name == "ERROR" and line["exception"].type is error
    wait_until(lambda: end.conn.close_reason is not None)  # which comes after the log
    assert end.conn.close_reason == (
        f"protocol error: message 5 could not be deserialized: {error.__name__}"
    )


def test_a_bug_at_the_end_of_the_stream_is_an_error(
    open_end: OpenEnd, log_lines: list[Any]
) -> None:
    """The ``end`` method of a decoder may raise as well."""
    end = open_end(codec=Letters(), heartbeat=None)
    end.send(b"abc")
    end.peer.shutdown(socket.SHUT_WR)
    wait_until(lambda: lost(log_lines))
    (line,) = lost(log_lines)
    assert line["level"].name == "ERROR" and line["exception"].type is ArithmeticError


def test_a_bug_is_reported_even_if_a_handler_has_closed(
    open_end: OpenEnd, log_lines: list[Any]
) -> None:
    """A close in the same batch does not hide the exception of the decoder."""
    registry = Registry()
    registry.handler(Text, dispatch="inline")(lambda ctx, conn: conn.close())
    end = open_end(registry=registry, codec=Letters(), heartbeat=None)
    end.send(b"a1")
    wait_until(lambda: lost(log_lines))
    assert end.conn.close_reason == "closed by this side"
    assert lost(log_lines)[0]["exception"].type is IndexError


@pytest.mark.parametrize(
    ("options", "data"),
    [
        ({"codec": Letters(), "heartbeat": None}, b"a!"),
        ({}, b"\1\0\0\0\xff\xff\xff\xff"),
        ({}, b"GET / HTTP/1.1\r\n\r\n"),
        ({}, b"\x16\3\1\2\0\1\0\1\xfc\3\3" + bytes(600)),
        ({}, frame(77)),
        ({}, text("hello")[:-1]),
        ({}, frame(6)),
        ({}, b""),
    ],
    ids=["BadData", "too long", "http", "tls", "unregistered", "cut", "refused", "nothing"],
)
def test_an_error_of_the_peer_is_not_logged_as_an_error(
    open_end: OpenEnd, log_lines: list[Any], options: dict[str, Any], data: bytes
) -> None:
    """It is logged at WARNING or below."""
    registry = Registry()
    registry.handler(Text)(lambda ctx, conn: None)

    def refuse(data: bytes) -> Any:
        raise BadData("no such move") from ValueError("whatever")

    registry.register(6, refuse)
    end = open_end(registry=registry, **options)
    end.send(data)
    end.peer.shutdown(socket.SHUT_WR)
    assert end.conn.wait_closed(PATIENCE)
    assert [each for each in log_lines if each["level"].no > 30] == []


def test_an_error_without_a_text_is_reported(open_end: OpenEnd, log_lines: list[Any]) -> None:
    """Even if the text of the exception raises, the cause is reported."""

    class Silent(BadData):
        def __str__(self) -> str:
            raise LookupError

    def deserialize(data: bytes) -> Any:
        raise Silent

    registry, errors = Registry(), Seen()
    registry.register(5, deserialize)
    end = open_end(registry=registry, on_error=lambda conn, error: errors.add(error))
    end.send(frame(5))
    assert isinstance(errors.wait()[0].__cause__, Silent)
    assert str(end.conn.close_reason).endswith("<unprintable Silent: LookupError>")
    assert lost(log_lines)[0]["level"].name == "INFO"


def test_frame_timeout_ends_with_bad_data(log_lines: list[Any]) -> None:
    """After bad data, the bytes that the decoder still holds do not trigger ``frame_timeout``."""
    errors = Seen()
    with Clock() as clock:
        end = End(
            "server",
            codec=Letters(),
            heartbeat=None,
            frame_timeout=5,
            on_error=lambda conn, error: errors.add(error),
        )
        end.send(b"a")
        wait_until(lambda: end.conn._core.timers._clocks)
        end.send(b"b!")
        errors.wait()
        clock.advance(20)
        assert not end.conn.wait_closed(0)  # its peer has not closed
        assert end.conn._core.counts().frame_timeouts == 0
        assert str(end.conn.close_reason).startswith("protocol error: there is no")
    end.stop()
    assert not [each for each in log_lines if "frame_timeout" in each["message"]]
