"""Accepting continues after any failure: of descriptors, memory, threads or log sinks."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import loguru
import pytest

from tao.runtime.context import Context
from tao.runtime.deadline import Deadline
from tao.runtime.leader_followers import Run
from tao.runtime.thread_start import StartableThread
from tao.server.connection import ServerConn
from tao.server.listening.binding import listen
from tao.server.listening.threaded_listener import ThreadedListener
from tao.server.server import Server, server_core_of
from tests.ends import MakeServer, Seen, Text, text
from tests.injection import Interruption, opcodes, raise_in
from tests.support import PATIENCE, recv_exactly, wait_until


def asks(address: Any, value: str = "x") -> bool:
    """Connect, send a text, and return whether it is echoed."""
    try:
        with socket.create_connection(address, PATIENCE) as sock:
            sock.sendall(text(value))
            return recv_exactly(sock, len(text(value))) == text(value)
    except OSError:
        return False


@pytest.fixture(params=["own", "shared"])
def readers(request: pytest.FixtureRequest) -> Any:
    """What reads and accepts connections."""
    return request.param


@pytest.fixture
def echoing(make_server: MakeServer, readers: Any) -> tuple[Server, Any]:
    """An echo server and its address."""
    server, address = make_server(readers=readers)

    @server.handler(Text)
    def answer(ctx: Context, conn: ServerConn) -> None:
        conn.write(ctx.message)

    return server, address


own_threads = pytest.mark.parametrize("readers", ["own"])


class Broken:
    """A listening socket that raises an error in its first calls of ``accept``."""

    def __init__(self, sock: socket.socket, error: BaseException, times: int) -> None:
        self._sock, self._error, self.times = sock, error, times

    def accept(self) -> Any:
        if self.times:
            self.times -= 1
            raise self._error
        return self._sock.accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


ERRORS = [
    *(OSError(number, os.strerror(number)) for number in (errno.EMFILE, errno.EPERM, errno.EIO)),
    *(MemoryError(), RuntimeError("can't start new thread"), SystemExit(), KeyboardInterrupt()),
]


@pytest.fixture
def raising_sink() -> Iterator[Seen]:
    """A log sink that records lines and then raises, as on a full disk or without memory."""
    lines = Seen()

    def sink(message: Any) -> None:
        lines.add(str(message))
        raise MemoryError

    number = loguru.logger.add(sink, catch=False, level=0, format="{message}")
    loguru.logger.enable("tao")
    yield lines
    loguru.logger.disable("tao")
    loguru.logger.remove(number)


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_accepting_survives_each_error_and_a_raising_sink(
    echoing: tuple[Server, Any], error: BaseException, raising_sink: Seen
) -> None:
    """All clients are served in the end, and the server's state and counts are correct."""
    server, address = echoing
    listener = server_core_of(server).listeners.all[0]
    listener._sock = Broken(listener._sock, error, times=3)  # type: ignore[assignment]
    assert asks(address) and not listener._sock.times
    assert asks(address) and server.running
    assert server.stop(PATIENCE).clean


@own_threads
def test_an_error_while_error_handling_fails(
    echoing: tuple[Server, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if logging, counting and formatting the error raise, later connections are served."""
    server, address = echoing
    listener, broken = server_core_of(server).listeners.all[0], Seen()

    def fail(*args: Any) -> Any:
        broken.add(None)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("tao.server.listening.listener.explain", fail)
        patch.setattr("tao.runtime.leader_followers.logger", None)
        patch.setattr("tao.runtime.leader_followers._PAUSE", 0.001)
        patch.setattr(listener, "_failed", fail)
        patch.setattr(listener._accepting, "provide", fail)
        with socket.create_connection(address, PATIENCE) as sock:
            assert sock.recv(1) == b""
        broken.wait(2)
    assert asks(address) and server.running


def test_an_error_of_one_connection_delays_no_other(
    echoing: tuple[Server, Any], monkeypatch: pytest.MonkeyPatch, log_lines: list[Any]
) -> None:
    """The listener waits only after errors that the next connection would meet too."""
    server, address = echoing
    failures = [ValueError("no"), OSError(errno.ENOTCONN, "gone"), OSError(errno.EINVAL, "gone")]

    def connect(*args: Any) -> Any:
        if failures:
            raise failures.pop(0)
        monkeypatch.undo()
        return server_core_of(server).listeners.all[0].local_address(*args)

    monkeypatch.setattr(server_core_of(server).listeners.all[0], "_back_off", None)
    monkeypatch.setattr("tao.server.listening.accepting.set_kernel_clocks", connect)
    assert [asks(address) for _ in range(3)] == [False] * 3
    monkeypatch.undo()
    assert asks(address)
    assert server.snapshot().accept_errors == 1
    wait_until(lambda: not len(server_core_of(server).acceptor.admission))
    told = [each["level"].name for each in log_lines if "could not be set up" in each["message"]]
    assert told == ["ERROR", "DEBUG", "DEBUG"]


# -- threads that do not start


def test_a_thread_that_fails_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its start raises instead of waiting forever; a thread that was only slow does nothing."""
    ran = Seen()
    thread = StartableThread(ran.add, (1,), "test-still-born", ran.add)
    slow = StartableThread(ran.add, (2,), "test-slow", ran.add)
    monkeypatch.setattr("tao.runtime.thread_start._PATIENCE", 0.01)
    go = threading.Event()
    bootstrap = slow._bootstrap  # type: ignore[attr-defined]
    monkeypatch.setattr(thread, "_bootstrap", lambda: None, raising=False)
    ended = threading.Event()

    def begin_late() -> None:
        go.wait(PATIENCE)
        bootstrap()
        ended.set()

    monkeypatch.setattr(slow, "_bootstrap", begin_late, raising=False)
    for each in (thread, slow):
        with pytest.raises(RuntimeError, match="did not come up"):
            each.start()
    go.set()
    assert ended.wait(PATIENCE)
    assert ran.items == []
    assert not {thread, slow} & set(threading.enumerate())


@own_threads
def test_a_listener_survives_a_thread_that_fails_to_start(
    echoing: tuple[Server, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection for that thread is closed, and the next one is served."""
    _, address = echoing
    with monkeypatch.context() as patch:
        patch.setattr("tao.runtime.leader_followers._BIRTH", 0.01)
        patch.setattr(
            "tao.runtime.leader_followers.LeaderFollowers._take_turns", lambda turns, follows: None
        )
        assert not asks(address)
    assert asks(address)


# -- at any bytecode


class Door:
    """A listener that sends a word to each connection and closes it."""

    def __init__(self) -> None:
        self.listener = ThreadedListener(
            listen(("127.0.0.1", 0), 8), self._admit, lambda: None, on_lost=self._lost
        )
        self.lost = False

    def _lost(self) -> None:
        self.lost = True

    def _admit(self, sock: socket.socket, address: Any, found: list[Run]) -> None:
        found.append(Run(lambda: self._serve(sock), "test-serving", lambda error: sock.close()))

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            sock.sendall(b"word")

    def asks(self) -> bytes:
        try:
            with socket.create_connection(self.listener.address, PATIENCE) as sock:
                return recv_exactly(sock, 4)
        except ConnectionError:
            return b""


MODULES = (
    "tao.runtime.leader_followers",
    "tao.server.listening.listener",
    "tao.runtime.threads",
    "tao.runtime.thread_start",
    "tao.runtime.wakeup",
)


# An interrupted socket without an owner is closed by the garbage collector. A thread that was
# interrupted before it ran any code of tao ends by itself.
@pytest.mark.interrupted
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_exception_at_each_bytecode_of_accepting(monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails one connection at most, also while a thread starts or the listener ends."""
    monkeypatch.setattr("tao.runtime.leader_followers._BIRTH", 0.05)
    monkeypatch.setattr("tao.runtime.leader_followers._PAUSE", 0)
    monkeypatch.setattr("tao.runtime.leader_followers._PATIENCE", 0.05)
    for moment in opcodes(*MODULES):
        door = Door()
        try:
            with moment.raising(thread=(name := door.listener._accepting._name)):
                door.listener.start()
                answers = [door.asks(), door.asks()]
                alive = door.listener.accepting
                door.listener.stop()
                ended = door.listener.closed.wait(PATIENCE)
        except RuntimeError:  # the first thread has ended
            assert door.listener.closed.is_set(), (moment, name)
            continue
        assert b"word" in answers and alive and ended and not door.lost, moment
        assert door.listener.join(Deadline(PATIENCE)) == [], moment


ADMITTING = (
    "tao.server.listening.accepting",
    "tao.server.listening.admission",
    "tao.server.connection",
    "tao.server.schedules",
)


@pytest.mark.interrupted
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_exception_at_each_bytecode_of_admitting(make_server: MakeServer, readers: Any) -> None:
    """It fails one connection, which is closed and not counted; the next one is served."""
    shared = readers == "shared"
    modules = (*ADMITTING, "tao.server.listening.shared_listener") if shared else ADMITTING
    for moment in opcodes(*modules):
        listening = socket.create_server(("127.0.0.1", 0))
        address = listening.getsockname()
        name = "tao-reader-servers-1" if shared else f"tao-acceptor-{address[1]}"
        with moment.raising(thread=name):
            server, _ = make_server(listening, readers=readers)
            server.handler(Text)(lambda ctx, conn: conn.write(ctx.message))
            answers = [asks(address), asks(address)]
        assert True in answers and server.running, moment
        wait_until(
            lambda server=server: (
                not (
                    server_core_of(server).acceptor.admission
                    or server_core_of(server).acceptor.connections
                )
            )
        )
        assert server.stop().clean, moment


@own_threads
def test_exceptions_set_by_other_threads(echoing: tuple[Server, Any]) -> None:
    """An asynchronous exception may hit a waiting thread; further connections are served."""
    server, address = echoing
    for _ in range(20):
        wait_until(lambda: asks(address))
        wait_until(lambda: not server_core_of(server).acceptor.admission)
        for thread in server_core_of(server).listeners.all[0]._accepting._all.copy():
            raise_in(thread, Interruption)
    wait_until(lambda: asks(address))
    assert server.running


# -- sockets closed by other code


def test_a_listening_socket_that_is_shut_down(
    make_server: MakeServer, log_lines: list[Any], readers: Any
) -> None:
    """It is logged once, the state is correct, and ``serve_forever`` returns."""
    server, _ = make_server(listening := socket.create_server(("127.0.0.1", 0)), readers=readers)
    serving = threading.Thread(target=server.serve_forever, name="test-serving")
    serving.start()
    wait_until(lambda: server_core_of(server).doorbells)
    listening.shutdown(socket.SHUT_RDWR)
    serving.join(PATIENCE)
    assert not serving.is_alive() and not server.running
    gone = [each for each in log_lines if "the socket is gone" in each["message"]]
    assert [each["level"].name for each in gone] == ["ERROR"]


def test_one_of_two_listening_sockets_is_lost(make_server: MakeServer, readers: Any) -> None:
    """The server continues with the other one."""
    server, _ = make_server(listening := socket.create_server(("127.0.0.1", 0)), readers=readers)
    other = server.start(("127.0.0.1", 0))
    server.handler(Text)(lambda ctx, conn: conn.write(ctx.message))
    listening.shutdown(socket.SHUT_RDWR)
    assert server_core_of(server).listeners.all[0].closed.wait(PATIENCE)
    assert server.running and asks(other) and server.snapshot().state == "running"


def test_a_passed_socket_may_be_closed(make_server: MakeServer, readers: Any) -> None:
    """The server uses a duplicate of the descriptor, and closes both at the end."""
    server, address = make_server(one := socket.create_server(("127.0.0.1", 0)), readers=readers)
    server.handler(Text)(lambda ctx, conn: conn.write(ctx.message))
    one.close()
    assert asks(address) and asks(address)
    server.start(other := socket.create_server(("127.0.0.1", 0)))
    assert server.stop().clean and other.fileno() < 0


def test_a_descriptor_that_was_reused(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch, readers: Any
) -> None:
    """If a program closes all descriptors and opens others, the server does not touch those."""
    monkeypatch.setattr("tao.server.listening.listener._LOOK", 0.01)
    server, _ = make_server(readers=readers)
    number = server_core_of(server).listeners.all[0]._sock.fileno()
    with open(os.devnull) as other:
        os.dup2(other.fileno(), number)
        assert server_core_of(server).listeners.all[0].closed.wait(PATIENCE)
        os.fstat(number)
        os.close(number)
    assert (server.running, server.snapshot().state) == (False, "failed")
    assert server.stop().clean
