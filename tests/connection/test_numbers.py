"""Message numbers that are not int32, the number 0, and unregistered numbers."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

import pytest

import tao
from tao import framing as f
from tao.framing.decoder import Found
from tao.wire.codec import Batch
from tests.ends import End, Seen, frame
from tests.support import wait_until

OpenEnd = Callable[..., End]
KINDS: list[Any] = [0, 2**40, "GET", b"\x07", ("a", 1)]


class Verbs(f.FrameDecoder):
    """A line with a Python literal, which is the number, a tab, and a value."""

    def frame(self, data: memoryview, start: int) -> Found | None:
        end = self.find(data, start, b"\n")
        if end < 0:
            return None
        number, _, value = bytes(data[start:end]).partition(b"\t")
        return end + 1, ast.literal_eval(number.decode()), value


class Verbal(tao.Codec):
    """A codec without int32 numbers; the verb ``PING`` is its heartbeat."""

    def encode(self, message: tao.Message) -> bytes:
        return b"%a\t%b\n" % (message.message_number, message.serialize())

    def decoder(self, registry: tao.Registry) -> Verbs:
        return Verbs(registry, 1000)

    def is_heartbeat(self, number: Any) -> bool:
        return bool(number == "PING")


class OldVerbal(tao.Codec):
    """A codec with a decoder that does not keep the values of unregistered numbers."""

    encode = Verbal.encode

    def decoder(self, registry: tao.Registry) -> Any:
        verbs = Verbs(registry)

        class Decoder:
            def feed(self, data: bytes, batch: Batch) -> None:
                verbs.feed(data, batch)
                batch[:] = [(n, None if n not in registry else m) for n, m in batch]

        return Decoder()


def of_number(number: Any) -> Any:
    """Return a message class with this number, which is constructed from bytes."""
    return type("Message", (bytes,), {"message_number": number, "deserialize": bytes})


@pytest.mark.parametrize("number", KINDS)
def test_numbers_of_all_kinds(open_end: OpenEnd, number: Any) -> None:
    """They find their handler; statistics, errors and the log show them."""
    registry, seen, errors = tao.Registry(), Seen(), Seen()
    end = open_end(
        registry=registry, codec=Verbal(), heartbeat=None, on_error=lambda c, e: errors.add(str(e))
    )

    @registry.handler(of_number(number))
    def handle(ctx: Any, conn: Any) -> None:
        seen.add(ctx.message)
        if ctx.message == b"again":
            conn.write(tao.UnknownMessage(number, b"back"))
        raise ValueError("handled")

    end.send(b"%a\tonce\n%a\tagain\n" % (number, number))
    assert seen.wait(2) == [b"once", b"again"]
    line = b"%a\tback\n" % (number,)
    assert end.read(len(line)) == line and errors.wait(2) == ["handled"] * 2
    wait_until(lambda: end.conn._core.counts().handled == 2)
    assert list(end.conn._core.statistics.snapshot().latency) == [repr(number)]


def test_unregistered_numbers_are_shortened_in_the_log(
    open_end: OpenEnd, log_lines: list[Any]
) -> None:
    """Each is logged once, whatever its length."""
    seen = Seen()
    end = open_end(codec=Verbal(), heartbeat=None)
    end.registry.handler(of_number("last"))(lambda ctx, conn: seen.add(None))
    end.send(b"%a\t\n" % ("x" * 500) * 2 + b"b'POST'\t\n'last'\t\n")
    seen.wait()
    told = [line["message"] for line in log_lines if line["level"].name == "WARNING"]
    assert len(told) == 2 and len(told[0]) < 200
    assert told[1] == "message number b'POST' is not registered; such messages are skipped"
    assert end.conn._core.error_reports.undefined == 3


def test_a_handler_of_any_gets_unregistered_messages(open_end: OpenEnd) -> None:
    """It gets number and value, in order, but neither heartbeats nor messages with a handler."""
    seen = Seen()
    end = open_end(heartbeat=None)

    @end.registry.handler(tao.ANY)
    def unknown(ctx: tao.Context[tao.UnknownMessage], conn: tao.Connection) -> None:
        conn.write(tao.UnknownMessage(-ctx.message.number, ctx.message.value))  # type: ignore[operator]

    end.registry.register(1, bytes, lambda ctx, conn: seen.add(ctx.message))
    end.registry.register(2, bytes)
    end.send(frame(3, b"three") + frame(0) + frame(1, b"one") + frame(2) + frame(4, b"fo") + b"u")
    end.send(frame(5)[:5])
    assert end.read_frame() == (-3, b"three") and end.read_frame() == (-4, b"fo")
    assert seen.wait() == [b"one"] and end.conn._core.error_reports.undefined == 0


@pytest.mark.parametrize("codec", [Verbal(), OldVerbal()])
def test_a_handler_of_any_with_other_codecs(open_end: OpenEnd, codec: Any) -> None:
    """It gets the number even if the decoder has not kept the value."""
    seen = Seen()
    end = open_end(codec=codec, heartbeat=None)
    end.registry.handler(tao.ANY)(lambda ctx, conn: seen.add(ctx.message))
    end.send(b"'PUT'\tx\n0\ty\n")
    numbers, values = zip(*[(each.number, each.value) for each in seen.wait(2)], strict=True)
    assert numbers == ("PUT", 0)
    assert values == ((b"x", b"y") if type(codec) is Verbal else (None, None))


def test_the_codec_defines_the_heartbeat(open_end: OpenEnd) -> None:
    """It reaches only its own handler, which is optional; 0 is a normal number."""
    seen = Seen()
    end = open_end(
        codec=Verbal(), heartbeat=None, on_message=lambda message, conn: seen.add(message)
    )
    end.registry.register("GET", bytes)
    end.registry.register(0, bytes)
    end.send(b"'PING'\t\n'GET'\t1\n")
    end.send(b"0\t2\n")
    assert seen.wait(2) == [b"1", b"2"]
    assert end.conn._core.error_reports.undefined == 0
    end.registry.register("PING", bytes, lambda ctx, conn: seen.add(b"ping"))
    end.send(b"'PING'\t\n")
    assert seen.wait(3)[-1] == b"ping"


def test_zero_is_the_heartbeat_of_the_default_codec_only(open_end: OpenEnd) -> None:
    """With the default codec it is always registered, and a handler gets the time."""
    seen = Seen()
    end = open_end(heartbeat=None, on_message=lambda message, conn: seen.add(message))
    end.registry.register(1, bytes)
    end.send(frame(0, bytes(8)) + frame(1, b"one"))
    assert seen.wait() == [b"one"] and end.conn._core.error_reports.undefined == 0
    end.registry.handler(tao.HeartbeatMessage)(lambda ctx, conn: seen.add(ctx.message.timestamp))
    end.send(frame(0, b"\7" + bytes(7)))
    assert seen.wait(2) == [b"one", 7]
    other = open_end(codec=Verbal(), heartbeat=None, on_message=lambda message, conn: None)
    other.registry.register(1, bytes, lambda ctx, conn: seen.add(ctx.message))
    other.send(b"0\t\n1\tend\n")
    assert seen.wait(3)[-1] == b"end" and other.conn._core.error_reports.undefined == 1


def test_numbers_that_the_codec_does_not_support(open_end: OpenEnd) -> None:
    """Declaring them raises, before or after the end is created; another codec accepts them."""
    own = tao.Registry()
    own.register("GET", bytes)
    with pytest.raises(TypeError, match="message_number must be an int, not 'GET'"):
        tao.Server(registry=own)
    with pytest.raises(TypeError, match="message_number must be an int, not 'GET'"):
        tao.ClientConn(("127.0.0.1", 1), registry=own)
    end = open_end()
    owner: Any = end.server or end.conn
    with pytest.raises(TypeError, match="message_number must be an int, not 'GET'"):
        owner.handler(of_number("GET"))
    with pytest.raises(ValueError, match="does not fit an int32"):
        end.registry.register(2**31, bytes)
    open_end(codec=Verbal()).registry.handler(of_number("GET"))
    open_end(codec=Verbal(), registry=own)
