"""Whose fault an error is decides at which level it is logged; on_error hears of all of them."""

from __future__ import annotations

import socket
import struct
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import loguru
import pytest

from tao.client.client import ClientConn
from tao.connection.slow_handlers import OverdueWatch
from tao.errors import BadData, ConnectFailed, ConnectionClosed
from tao.runtime.timing_wheel import TimingWheel
from tao.wire.codec import TypeLengthValueCodec
from tao.wire.message import HEARTBEAT, Registry
from tests.ends import End, MakeServer, Seen, Text, text
from tests.support import PATIENCE, wait_until

OpenEnd = Callable[..., End]
RESET = struct.pack("ii", 1, 0)


@pytest.fixture
def log_text() -> Iterator[list[str]]:
    """tao's log lines as a sink writes them, tracebacks and all."""
    lines: list[str] = []
    sink = loguru.logger.add(lines.append, level=0, format="{message}\n{exception}", catch=False)
    loguru.logger.enable("tao")
    yield lines
    loguru.logger.disable("tao")
    loguru.logger.remove(sink)


def levels(log_lines: list[Any], text: str) -> list[str]:
    """The levels of the lines that contain a text."""
    return [each["level"].name for each in log_lines if text in each["message"]]


def test_a_handler_that_writes_to_who_has_gone(open_end: OpenEnd, log_lines: list[Any]) -> None:
    """The peer brings that about with each message: it is a warning, and not for each of them."""
    registry, errors, gone = Registry(), Seen(), threading.Event()

    @registry.handler(Text)
    def handle(ctx: Any, conn: Any) -> None:
        assert gone.wait(PATIENCE)
        conn.write(ctx.message)

    end = open_end(registry=registry, on_error=lambda conn, error: errors.add(error))
    end.send(text("x") * 20)
    end.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    end.peer.close()
    wait_until(lambda: end.conn.closed)
    gone.set()
    assert end.conn.wait_closed(PATIENCE)
    assert {type(error) for error in errors.wait(20)} <= {ConnectionClosed, ConnectionResetError}
    assert levels(log_lines, "error handling message 1") == ["WARNING"]
    assert not [each for each in log_lines if each["level"].no > 30]


def test_what_is_not_delivered_is_a_warning(open_end: OpenEnd, log_lines: list[Any]) -> None:
    """The peer has hung up without reading it."""
    errors = Seen()
    end = open_end(on_error=lambda conn, error: errors.add(str(error)))
    while not end.conn.send_queue_length:
        end.conn.write(Text("x" * 100_000))
    end.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    end.peer.close()
    assert end.conn.wait_closed(PATIENCE)
    assert levels(log_lines, "could not be sent") == ["WARNING"]
    assert any("could not be sent" in each for each in errors.items)
    assert not [each for each in log_lines if each["level"].no > 30]


@pytest.mark.parametrize("error", [BadData("no beat"), ValueError(), SystemExit()])
def test_a_heartbeat_that_fails_is_told(
    open_end: OpenEnd, log_lines: list[Any], error: BaseException
) -> None:
    """Whatever the codec raises, errors of tao's own included; the next one is sent."""

    class Failing(TypeLengthValueCodec):
        failed = False

        def heartbeat(self, nanoseconds: int) -> bytes:
            if self.failed:
                return super().heartbeat(nanoseconds)
            self.failed = True
            raise error

    errors = Seen()
    end = open_end(codec=Failing(), heartbeat=0.01, on_error=lambda conn, each: errors.add(each))
    assert end.read_frame()[0] == HEARTBEAT
    assert errors.wait() == [error]
    assert levels(log_lines, "error in the codec's heartbeat") == ["ERROR"]


def test_a_timers_error_is_called_one(open_end: OpenEnd, log_lines: list[Any]) -> None:
    """It stands where a message does, and has no number."""
    errors = Seen()
    end = open_end(on_error=lambda conn, error: errors.add(error))
    end.conn.run_after(0, lambda due, conn: 1 / 0)
    errors.wait()
    assert levels(log_lines, "error in a timer's callback") == ["ERROR"]


def test_an_error_of_on_error_counts(open_end: OpenEnd, log_lines: list[Any]) -> None:
    """Nobody hears of it but the log and the figures."""
    registry = Registry()
    registry.handler(Text)(lambda ctx, conn: 1 / 0)
    end = open_end(registry=registry, on_error=lambda conn, error: [].pop())
    end.send(text("x"))
    wait_until(lambda: end.conn._core.counts().errors == 2)
    (line,) = [each for each in log_lines if each["message"] == "on_error raised"]
    assert line["level"].name == "ERROR" and line["exception"].type is IndexError
    assert end.conn._core.tally.failures.kinds() == {"ZeroDivisionError": 1, "IndexError": 1}


def test_an_error_with_wrong_arguments_is_told(open_end: OpenEnd) -> None:
    """Whatever an application makes of an OSError."""
    registry, errors = Registry(), Seen()

    @registry.handler(Text)
    def handle(ctx: Any, conn: Any) -> None:
        conn.write(ctx.message)
        raise OSError("no number", "no text")

    end = open_end(registry=registry, on_error=lambda conn, error: errors.add(error))
    for _ in range(2):
        end.send(text("x"))
        assert end.read_text() == "x"
    assert [type(error) for error in errors.wait(2)] == [OSError] * 2


def test_looking_after_handlers_goes_on_after_an_error(open_end: OpenEnd) -> None:
    """For lack of memory, say: the next look comes all the same."""
    looks = Seen()

    class Watch(OverdueWatch):
        def _look_now(self) -> None:
            looks.add("now")
            raise MemoryError

    wheel = TimingWheel("test-wheel")
    try:
        watch, end = Watch(weakref.ref(wheel)), open_end(handler_warn_after=0.004)
        watch.add(end.conn._core.runner)
        looks.wait(3)
    finally:
        wheel.stop()


class Unprintable(Exception):
    """An error, or a name, that cannot be written."""

    def __str__(self) -> str:
        raise LookupError("no text")

    __repr__ = __str__


def fail(*args: Any) -> Any:
    raise Unprintable


@pytest.mark.parametrize(
    "options",
    [
        {"on_connect": fail},
        {
            "codec": type("Failing", (TypeLengthValueCodec,), {"heartbeat": fail})(),
            "heartbeat": 0.01,
        },
        {"on_message": fail},
        {"on_close": fail},
    ],
    ids=lambda options: next(iter(options)),
)
def test_an_error_that_cannot_be_written_is_told(
    log_text: list[str], make_server: MakeServer, options: dict[str, Any]
) -> None:
    """Whatever raises it, on a connection that cannot be named."""
    errors, registry = Seen(), Registry()
    registry.register(1, Text.deserialize)
    server, address = make_server(
        registry=registry, on_error=lambda conn, error: errors.add(error), **options
    )
    with socket.create_connection(address, PATIENCE) as sock:
        sock.sendall(text("x"))
        wait_until(lambda: server.connections or errors.items)
        for conn in server.connections:
            conn.name = Unprintable()  # type: ignore[assignment]
            conn.remote_address = Unprintable()
            assert "<unprintable Unprintable: LookupError>" in repr(conn)
            assert "on_close" in options or errors.wait()
    assert isinstance(errors.wait()[0], Unprintable)
    assert server.snapshot().error_kinds.get("Unprintable")
    assert server.stop().threads == []
    assert any("Unprintable" in line for line in log_text)


def test_a_function_that_connects_may_raise_it() -> None:
    """``start`` says what can be said."""
    client = ClientConn(fail, registry=Registry())
    with pytest.raises(ConnectFailed, match="Unprintable"):
        client.start()
    client.close()
