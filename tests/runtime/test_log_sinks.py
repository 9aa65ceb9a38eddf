"""Sinks that raise, and arguments that cannot be formatted, do not affect tao."""

from __future__ import annotations

import errno
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import loguru
import pytest

from tao.client.client import ClientConn
from tao.connection.options.definitions import Reconnect
from tao.monitor.monitor import monitor_on
from tao.runtime.deadline import Deadline
from tao.runtime.log import log_to_stdlib, logger
from tao.runtime.threads import as_tao_thread, gather, spawn
from tao.runtime.timing_wheel import TimingWheel
from tao.runtime.worker_pool import WorkerPool
from tao.server.server import server_core_of
from tao.wire.message import Registry
from tests.ends import End, MakeServer, Seen, Text, frame, text
from tests.support import PATIENCE, ends, recv_exactly, wait_until

OpenEnd = Callable[..., End]

FAILURES = [OSError("disk full"), MemoryError(), SystemExit("the sink"), KeyboardInterrupt()]


class Unprintable:
    """Raises when it is formatted in any way."""

    def __str__(self) -> str:
        raise LookupError("no text")

    __repr__ = __str__


def say(line: str) -> None:
    """Log a line as a module of tao does."""
    code = "logger.warning(line)"
    exec(code, {"__name__": "tao.made_up", "logger": logger, "line": line})


class Sink:
    """Raises for each line, and counts them."""

    def __init__(self) -> None:
        self.error: BaseException = OSError("disk full")
        self.lines: list[str] = []

    def __call__(self, message: str) -> None:
        self.lines.append(message)
        raise self.error


@pytest.fixture
def sink() -> Iterator[Sink]:
    """A sink that raises, with an option of loguru that lets it."""
    sink = Sink()
    number = loguru.logger.add(sink, level=0, format="{name} {message}", catch=False)
    loguru.logger.enable("tao")
    yield sink
    loguru.logger.disable("tao")
    loguru.logger.remove(number)


# -- the logger


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_a_line_of_a_failing_sink_goes_to_stderr(
    sink: Sink, capsys: pytest.CaptureFixture[str], error: BaseException
) -> None:
    """In tao's threads this holds for any exception; the line's traceback is printed too."""
    sink.error = error

    def fail() -> None:
        try:
            raise ZeroDivisionError("why")
        except ZeroDivisionError:
            logger.exception("{} of {}", 1, 2)

    thread = spawn(fail, name="tao-fails")
    thread.start()
    thread.join(PATIENCE)
    assert len(sink.lines) == 1
    shown = capsys.readouterr().err
    assert f"({type(error).__name__}" in shown and "ERROR 1 of 2\n" in shown
    assert "in fail" in shown and "ZeroDivisionError: why" in shown


def test_ctrl_c_during_a_line_reaches_the_main_thread(sink: Sink) -> None:
    """It is raised even if the main thread runs code of tao."""
    sink.error = KeyboardInterrupt()
    with as_tao_thread(), pytest.raises(KeyboardInterrupt):
        logger.info("a line")


def test_a_timeout_exception_reaches_its_thread(sink: Sink) -> None:
    """In the application's threads, anything but an ``Exception`` is raised."""
    sink.error = SystemExit()
    caught = Seen()

    def run() -> None:
        try:
            logger.info("a line")
        except SystemExit as error:
            caught.add(error)

    assert ends(run)
    assert caught.items == [sink.error]


def test_an_argument_that_cannot_be_formatted_is_replaced(log_lines: list[Any]) -> None:
    """The line is logged with its bound values and its location."""
    logger.bind(connection=3).warning("{} and {!r} of {:.1f}", Unprintable(), Unprintable(), 2.0)
    (line,) = log_lines
    unprintable = "<unprintable Unprintable: LookupError>"
    assert line["message"] == f"{unprintable} and {unprintable} of 2.0"
    assert (line["level"].name, line["extra"]) == ("WARNING", {"connection": 3})


@pytest.mark.parametrize("error", [SystemExit, GeneratorExit, KeyboardInterrupt])
def test_an_argument_that_ends_threads_is_replaced(
    log_lines: list[Any], error: type[BaseException]
) -> None:
    """Whatever its text raises, the thread that logs it goes on."""

    class Deadly:
        def __str__(self) -> str:
            raise error

    goes_on = Seen()

    def run() -> None:
        logger.warning("{}", Deadly())
        goes_on.add(True)

    thread = spawn(run, name="test-logging")
    thread.start()
    thread.join()
    assert goes_on.items
    assert log_lines[0]["message"] == f"<unprintable Deadly: {error.__name__}>"


@pytest.mark.parametrize("opened", [False, True])
def test_the_location_of_a_line_is_that_of_the_caller(log_lines: list[Any], opened: bool) -> None:
    """This holds for every method, and for replaced arguments."""
    code = "def f():\n    for write in writers: write('{}', thing)\nf()"
    one = logger.bind(a=1) if opened else logger.opt(exception=None)
    writers = [one.trace, one.debug, one.info, one.success, one.warning, one.error, one.critical]
    names = {"__name__": "tao.made_up", "writers": [*writers, one.exception]}
    for thing in (1, Unprintable()):
        exec(compile(code, "made_up.py", "exec"), {**names, "thing": thing})
    places = {(each["name"], each["function"], each["line"]) for each in log_lines}
    assert len(log_lines) == 16 and places == {("tao.made_up", "f", 2)}


@pytest.mark.parametrize("catch", [False, True])
def test_a_line_logged_within_a_sink_is_not_lost(
    capsys: pytest.CaptureFixture[str], catch: bool
) -> None:
    """loguru refuses it, for example from a finalizer, so it goes to stderr."""
    sink = loguru.logger.add(lambda _: logger.warning("from within"), catch=catch, format="")
    loguru.logger.enable("tao")
    try:
        loguru.logger.info("the application's own")
    finally:
        loguru.logger.disable("tao")
        loguru.logger.remove(sink)
    assert "from within" in capsys.readouterr().err


@pytest.mark.parametrize("stderr", [None, 5, logger])
def test_without_stderr_nothing_is_raised(
    sink: Sink, monkeypatch: pytest.MonkeyPatch, stderr: Any
) -> None:
    """stderr may be None, or a replacement that raises."""
    monkeypatch.setattr(sys, "stderr", stderr)
    logger.error("nobody hears of it")
    assert len(sink.lines) == 1


# -- the bridge


class Refuses(logging.Handler):
    """A handler of the standard library's logging that raises."""

    def emit(self, record: logging.LogRecord) -> None:
        raise SystemExit(record.getMessage())


def test_a_failing_logging_handler_ends_no_thread(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """This holds for errors and for other exceptions."""
    handler, bridge, went_on = Refuses(), log_to_stdlib(), Seen()
    logging.getLogger("tao").addHandler(handler)
    try:
        thread = spawn(lambda: went_on.add(say("refused")), name="tao-logs")
        thread.start()
        assert went_on.wait() == [None]
        thread.join(PATIENCE)
    finally:
        logging.getLogger("tao").removeHandler(handler)
        loguru.logger.remove(bridge)
        loguru.logger.disable("tao")
    assert "WARNING refused" in capsys.readouterr().err


def test_a_finalizer_may_log_while_a_logging_handler_is_locked() -> None:
    """Its thread holds the handler's lock, which a thread that forwards a line waits for."""
    bridge, waits, held = log_to_stdlib(), threading.Event(), threading.RLock()

    class Locking(logging.Handler):
        def createLock(self) -> None:
            self.lock = held

        def filter(self, record: logging.LogRecord) -> bool:
            if record.getMessage() == "another thread":
                waits.set()
            return True

        def emit(self, record: logging.LogRecord) -> None: ...

    locking = Locking()
    logging.getLogger("tao").addHandler(locking)

    def finalize() -> None:
        with held:
            other = threading.Thread(target=say, args=("another thread",), daemon=True)
            other.start()
            assert waits.wait(PATIENCE)
            say("the finalizer")
        other.join(PATIENCE)

    try:
        assert ends(finalize)
    finally:
        logging.getLogger("tao").removeHandler(locking)
        loguru.logger.remove(bridge)
        loguru.logger.disable("tao")


# -- every component that logs


def test_a_listener_continues(sink: Sink, make_server: MakeServer) -> None:
    """Accepting fails once, the line cannot be logged, and the next connection is served."""
    failed = Seen()
    server, address = make_server()
    server.registry.handler(Text)(lambda ctx, conn: conn.write(ctx.message))
    listener = server_core_of(server).listeners.all[0]
    admit = listener._admit

    def fail_once(*accepted: Any) -> Any:
        listener._admit = admit
        failed.add(1)
        raise OSError(errno.EMFILE, "too many open files")

    listener._admit = fail_once
    socket.create_connection(address, PATIENCE).close()
    failed.wait()
    with socket.create_connection(address, PATIENCE) as sock:
        sock.sendall(text("hello"))
        assert recv_exactly(sock, 13) == text("hello")
    assert any("failed, retrying in" in line for line in sink.lines)
    assert server.stop().clean


def test_a_connection_continues(sink: Sink, open_end: OpenEnd) -> None:
    """Handlers and ``on_error`` raise, numbers are unregistered, and messages are still handled."""
    registry = Registry()

    @registry.handler(Text)
    def handle(ctx: Any, conn: Any) -> None:
        conn.write(ctx.message)
        raise ValueError(Unprintable())

    end = open_end(registry=registry, on_error=lambda conn, error: 1 / 0)
    for _ in range(3):
        end.send(b"\7\0\0\0\0\0\0\0" + text("hello"))
        assert end.read_text() == "hello"
    wait_until(lambda: len(sink.lines) >= 7)


def test_a_client_reconnects(sink: Sink) -> None:
    """Neither the loss nor failed attempts can be logged."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        again = Reconnect(initial=0.001, maximum=0.01)
        with ClientConn(listener.getsockname(), reconnect=again, heartbeat=None) as client:
            for _ in range(2):
                listener.accept()[0].close()
            wait_until(lambda: client.reconnects)
    assert sink.lines


def test_the_wheel_continues(sink: Sink) -> None:
    """A callback raises, and so does its ``repr`` when that is logged."""
    wheel, seen = TimingWheel("tao-test-wheel"), Seen()

    class Fails(Unprintable):
        def __call__(self, due: Any) -> None:
            seen.add(due)
            raise ValueError

    wheel.run_every(0.001, Fails())
    seen.wait(3)
    wheel.stop(PATIENCE)
    assert "unprintable Fails" in sink.lines[0]


def test_workers_continue(sink: Sink) -> None:
    """The initializer raises in each of them."""
    pool = WorkerPool(1, lambda: 1 / 0)  # type: ignore[arg-type]
    assert pool.run(threading.get_ident) != threading.get_ident()
    assert pool.stop(PATIENCE) == [] and len(sink.lines) == 1


def test_a_stop_continues(sink: Sink, make_server: MakeServer) -> None:
    """It is clean, and all threads are joined, even if logging its last line fails."""
    server, _ = make_server()
    sink.error = SystemExit()
    assert server.stop().clean and not server.running
    release = threading.Event()
    thread = spawn(release.wait, name="tao-late")
    thread.start()
    sink.error = OSError()
    assert gather([thread], Deadline(0)) == [thread]
    release.set()
    thread.join(PATIENCE)


def test_the_monitor_continues(sink: Sink) -> None:
    """Each request is logged, at TRACE."""
    with monitor_on(0) as monitor:
        for _ in range(2):
            with socket.create_connection(monitor.address, PATIENCE) as sock:
                sock.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
                assert recv_exactly(sock, 12).startswith(b"HTTP/1.")
    assert len(sink.lines) >= 2


@pytest.mark.parametrize("call", ["write", "broadcast", "close", "schedule", "stop", "snapshot"])
def test_a_sink_may_call_tao(make_server: MakeServer, call: str) -> None:
    """A sink can call any method on any thread, without a deadlock."""
    server, address = make_server(drain_timeout=1)
    calls: dict[str, Callable[[Any], object]] = {
        "write": lambda conn: conn.write(Text("logged")),
        "broadcast": lambda conn: server.broadcast(Text("logged")),
        "close": lambda conn: conn.close(),
        "schedule": lambda conn: server.schedule(60, lambda due, conn: None),
        "stop": lambda conn: server.stop(0.1),
        "snapshot": lambda conn: (server.snapshot(), repr(conn), conn._core.counts()),
    }
    called = Seen()

    def sink(message: str) -> None:
        for conn in server.connections:
            calls[call](conn)
        called.add(message)

    @server.handler(Text)
    def handle(ctx: Any, conn: Any) -> None:
        conn.run_after(0, lambda due, conn: 1 / 0)
        raise ValueError

    number = loguru.logger.add(sink, level=0, format="{message}", catch=False)
    loguru.logger.enable("tao")
    try:
        with socket.create_connection(address, PATIENCE) as sock:
            sock.sendall(text("hello") + frame(77) + b"\1\0\0\0\xff\xff\xff\xff")
            called.wait()
        assert ends(lambda: server.stop(5))
    finally:
        loguru.logger.disable("tao")
        loguru.logger.remove(number)
