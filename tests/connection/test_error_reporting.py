"""Log levels of errors depend on who caused them; ``on_error`` is called for all."""

from __future__ import annotations

import socket
import struct
import threading
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import loguru
import pytest

from tao.client.client import ClientConn
from tao.connection.connection import core_of
from tao.connection.handling.slow_handlers import SlowHandlerWatch
from tao.connection.options.definitions import ServerSettings
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
    """Yield tao's log lines with tracebacks, as a sink writes them."""
    lines: list[str] = []
    sink = loguru.logger.add(lines.append, level=0, format="{message}\n{exception}", catch=False)
    loguru.logger.enable("tao")
    yield lines
    loguru.logger.disable("tao")
    loguru.logger.remove(sink)


def levels(log_lines: list[Any], text: str) -> list[str]:
    """Return the levels of the lines that contain a text."""
    return [each["level"].name for each in log_lines if text in each["message"]]


def test_a_handler_that_writes_to_a_closed_connection(
    open_end: OpenEnd, log_lines: list[Any]
) -> None:
    """The peer can cause it with each message, so it is a warning at a limited rate."""
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


def test_undelivered_messages_are_a_warning(open_end: OpenEnd, log_lines: list[Any]) -> None:
    """The peer has closed without reading them."""
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


def test_a_heartbeat_of_a_connection(open_end: OpenEnd) -> None:
    """A codec that wants to know makes it for its connection, or has none to send."""

    class Numbering(TypeLengthValueCodec):
        def heartbeat(self, conn: Any) -> bytes:
            conn.state.beats = getattr(conn.state, "beats", -1) + 1
            return text(f"{conn.state.beats}") if conn.state.beats else b""

    end = open_end(codec=Numbering(), heartbeat=0.01)
    assert end.read_text() + end.read_text() == "12"


@pytest.mark.parametrize("error", [BadData("no beat"), ValueError(), SystemExit()])
def test_a_failing_heartbeat_is_reported(
    open_end: OpenEnd, log_lines: list[Any], error: BaseException
) -> None:
    """Any exception of the codec is reported, including tao's own; the next heartbeat is sent."""

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


def test_errors_of_timers_are_named(open_end: OpenEnd, log_lines: list[Any]) -> None:
    """The log line says timer instead of a message number."""
    errors = Seen()
    end = open_end(on_error=lambda conn, error: errors.add(error))
    end.conn.run_after(0, lambda due, conn: 1 / 0)
    errors.wait()
    assert levels(log_lines, "error in a timer's callback") == ["ERROR"]


def test_an_error_in_on_error_is_counted(open_end: OpenEnd, log_lines: list[Any]) -> None:
    """It is logged and counted, but not passed to ``on_error``."""
    registry = Registry()
    registry.handler(Text)(lambda ctx, conn: 1 / 0)
    end = open_end(registry=registry, on_error=lambda conn, error: [].pop())
    kinds = end.conn._core.statistics.failures.kinds
    end.send(text("x"))
    wait_until(lambda: kinds() == {"ZeroDivisionError": 1, "IndexError": 1})
    assert end.conn._core.counts().errors == 2
    wait_until(lambda: "on_error raised" in [each["message"] for each in log_lines])
    (line,) = [each for each in log_lines if each["message"] == "on_error raised"]
    assert line["level"].name == "ERROR" and line["exception"].type is IndexError


@pytest.mark.parametrize("what", ["on_connect", "on_close"])
def test_a_stop_iteration_is_reported(
    make_server: MakeServer, log_lines: list[Any], what: str
) -> None:
    """It is an error like any other, although it ends iterators silently."""
    errors = Seen()
    options: dict[str, Any] = {
        what: lambda conn: next(iter(())),
        "on_error": lambda conn, error: errors.add(str(error)),
    }
    for readers in ("own", "shared"):
        _, address = make_server(readers=readers, **options)
        socket.create_connection(address, PATIENCE).close()
    assert errors.wait(2) == ["it raised StopIteration"] * 2
    _, address = make_server()
    client = ClientConn(address, registry=Registry(), **options)
    if what == "on_connect":
        with pytest.raises(ConnectionClosed):
            client.start()
    else:
        client.start()
    client.close()
    assert errors.wait(3)[2] == "it raised StopIteration"
    assert levels(log_lines, f"error in {what}") == ["ERROR"] * 3


def test_an_oserror_with_unusual_arguments_is_reported(open_end: OpenEnd) -> None:
    """The arguments of an OSError may be of any type."""
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


def test_the_block_watch_continues_after_an_error(open_end: OpenEnd) -> None:
    """After an error such as a lack of memory, the next check takes place."""
    looks = Seen()

    class Watch(SlowHandlerWatch):
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
    """An exception, or a name, with a text that raises."""

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
def test_an_unprintable_error_is_reported(
    log_text: list[str], make_server: MakeServer, options: dict[str, Any]
) -> None:
    """It is reported wherever it is raised, even for a connection with an unprintable name."""
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


def test_a_dialling_function_may_raise_an_unprintable_error() -> None:
    """The error of ``start`` names the class."""
    client = ClientConn(fail, registry=Registry())
    with pytest.raises(ConnectFailed, match="Unprintable"):
        client.start()
    client.close()


@pytest.mark.parametrize("dispatch", ["inline", "pool"])
def test_the_context_of_an_error(open_end: OpenEnd, dispatch: str) -> None:
    """on_error gets it if it takes three arguments, for what a handler raises; else None."""
    told = Seen()

    def tell(conn: Any, error: BaseException, ctx: Any) -> None:
        told.add((type(error), ctx and (ctx.message.text, ctx.net_id == conn.net_id)))

    end = open_end(on_error=tell)
    end.registry.handler(Text, dispatch=dispatch)(lambda ctx, conn: 1 // 0)
    end.send(text("a"))
    assert told.wait() == [(ZeroDivisionError, ("a", True))]
    end.send(text("b") + text("c"))
    assert [about and about[0] for _, about in told.wait(3)] == ["a", "b", "c"]
    end.conn.run_after(0, lambda due, conn: 1 // 0)
    assert told.wait(4)[3] == (ZeroDivisionError, None)
    end.send(struct.pack("<iI", 1, 2**31))
    assert told.wait(5)[4] == (BadData, None)


@pytest.mark.parametrize(
    ("callback", "takes"),
    [
        (lambda conn, error: None, False),
        (lambda conn, error, ctx: None, True),
        (lambda conn, error, ctx=None: None, True),
        (lambda conn, error, ctx, more=None: None, True),
        (lambda *args: None, False),
        (print, False),
        (partial(lambda mine, conn, error, ctx: None, 1), True),
    ],
    ids=["two", "three", "three or two", "three or four", "any", "C", "partial"],
)
def test_who_gets_a_context(callback: Callable[..., object], takes: bool) -> None:
    """A callback that takes three arguments, but not one that takes whatever it is given."""
    settings = ServerSettings(on_error=callback)
    assert settings.on_error_takes_context is takes
    with pytest.raises(TypeError, match=r"on_error\(conn, error\)"):
        ServerSettings(on_error=lambda conn: None)


@pytest.mark.parametrize("dispatch", ["inline", "pool"])
@pytest.mark.parametrize("count", [1, 5])
def test_an_on_error_that_runs_beside_handlers_keeps_none_from_running(
    open_end: OpenEnd, dispatch: str, count: int
) -> None:
    """Of messages that come alone or together, while it blocks on a thread of its own."""
    registry, handled, errors = Registry(), Seen(), Seen()
    leave = threading.Event()
    registry.handler(Text, dispatch=dispatch)(lambda ctx, conn: handled.add(ctx.message.text))

    def block(conn: Any, error: Exception) -> None:
        errors.add(error)
        leave.wait(PATIENCE)

    end = open_end(registry=registry, on_error=block)
    report = partial(core_of(end.conn).report, ValueError("a test"), "a test")
    beside = threading.Thread(target=report)
    beside.start()
    try:
        errors.wait()
        end.send(text("hi") * count)
        handled.wait(count)
        assert len(errors.items) == 1 and not end.conn.closed
    finally:
        leave.set()
        beside.join()


@pytest.mark.parametrize("count", [1, 5])
def test_an_on_error_for_a_handler_sees_its_context_variables(
    open_end: OpenEnd, count: int
) -> None:
    """It is called in the midst of the handler's turn."""
    registry, seen = Registry(), Seen()
    name: ContextVar[str] = ContextVar("name", default="none")

    @registry.handler(Text, dispatch="inline")
    def fail(ctx: Any, conn: Any) -> None:
        name.set(ctx.message.text)
        raise ValueError("a test")

    end = open_end(registry=registry, on_error=lambda conn, error: seen.add(name.get()))
    end.send(text("hi") * count)
    assert seen.wait(count) == ["hi"] * count
