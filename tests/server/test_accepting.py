"""Accepting goes on, whatever fails: descriptors, memory, threads, log sinks, error handling."""

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
from tao.server.listener import Listener, listen
from tao.server.server import Server, server_core_of
from tests.ends import MakeServer, Seen, Text, text
from tests.injection import Interruption, opcodes, raise_in
from tests.support import PATIENCE, recv_exactly, wait_until


def asks(address: Any, value: str = "x") -> bool:
    """Connect, send a text, and tell whether it comes back."""
    try:
        with socket.create_connection(address, PATIENCE) as sock:
            sock.sendall(text(value))
            return recv_exactly(sock, len(text(value))) == text(value)
    except OSError:
        return False


@pytest.fixture
def echoing(make_server: MakeServer) -> tuple[Server, Any]:
    """A server that echoes, and its address."""
    server, address = make_server()

    @server.handler(Text)
    def answer(ctx: Context, conn: ServerConn) -> None:
        conn.write(ctx.message)

    return server, address


class Broken:
    """A listening socket that raises an error as often as wanted when it is accepted from."""

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
    """A log sink that raises, as on a full disk or for lack of memory; lines are noted."""
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
    """Whoever connects is served in the end, and the server tells the truth about itself."""
    server, address = echoing
    listener = server_core_of(server).listeners.all[0]
    listener._sock = Broken(listener._sock, error, times=3)  # type: ignore[assignment]
    assert asks(address) and not listener._sock.times
    assert asks(address) and server.running
    assert server.stop(PATIENCE).clean


def test_an_error_with_everything_around_it_broken(
    echoing: tuple[Server, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log, the count and even the words for the error raise; connections are served after."""
    server, address = echoing
    listener, broken = server_core_of(server).listeners.all[0], Seen()

    def fail(*args: Any) -> Any:
        broken.add(None)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("tao.server.listener.explain", fail)
        patch.setattr("tao.runtime.leader_followers.logger", None)
        patch.setattr("tao.runtime.leader_followers._PAUSE", 0.001)
        patch.setattr(listener, "_failed", fail)
        patch.setattr(listener._turns, "provide", fail)
        with socket.create_connection(address, PATIENCE) as sock:
            assert sock.recv(1) == b""
        broken.wait(2)
    assert asks(address) and server.running


def test_one_connection_that_cannot_be_made_delays_no_other(
    echoing: tuple[Server, Any], monkeypatch: pytest.MonkeyPatch, log_lines: list[Any]
) -> None:
    """Only what the next would meet too is waited for."""
    server, address = echoing
    failures = [ValueError("no"), OSError(errno.ENOTCONN, "gone"), OSError(errno.EINVAL, "gone")]

    def connect(*args: Any) -> Any:
        if failures:
            raise failures.pop(0)
        monkeypatch.undo()
        return server_core_of(server).listeners.all[0].local_address(*args)

    monkeypatch.setattr(server_core_of(server).listeners.all[0], "_back_off", None)
    monkeypatch.setattr("tao.server.accepting.set_kernel_clocks", connect)
    assert [asks(address) for _ in range(3)] == [False] * 3
    monkeypatch.undo()
    assert asks(address)
    assert (server.snapshot().accept_errors, len(server_core_of(server).acceptor.admission)) == (
        1,
        1,
    )
    told = [each["level"].name for each in log_lines if "could not be made" in each["message"]]
    assert told == ["ERROR", "DEBUG", "DEBUG"]


# -- threads that do not come up


def test_a_thread_that_dies_at_its_birth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its start fails instead of waiting for it for ever; if it was only slow, it does nothing."""
    ran = Seen()
    thread = StartableThread(ran.add, (1,), "test-still-born", ran.add)
    slow = StartableThread(ran.add, (2,), "test-slow", ran.add)
    monkeypatch.setattr("tao.runtime.thread_start._PATIENCE", 0.01)
    go = threading.Event()
    bootstrap = slow._bootstrap  # type: ignore[attr-defined]
    monkeypatch.setattr(thread, "_bootstrap", lambda: None, raising=False)
    monkeypatch.setattr(
        slow, "_bootstrap", lambda: go.wait(PATIENCE) and bootstrap(), raising=False
    )
    for each in (thread, slow):
        with pytest.raises(RuntimeError, match="did not come up"):
            each.start()
    go.set()
    slow._started.wait(PATIENCE)  # type: ignore[attr-defined]
    slow.join(PATIENCE)
    assert ran.items == []
    assert not {thread, slow} & set(threading.enumerate())


def test_a_listener_survives_a_thread_that_dies_at_its_birth(
    echoing: tuple[Server, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection that it was for is closed, and the next is served."""
    _, address = echoing
    monkeypatch.setattr("tao.runtime.leader_followers._BIRTH", 0.01)
    with monkeypatch.context() as patch:
        patch.setattr(
            "tao.runtime.leader_followers.LeaderFollowers._take_turns", lambda turns, follows: None
        )
        assert not asks(address)
    assert asks(address)


# -- at any place


class Door:
    """A listener that says a word to whoever connects, and hangs up."""

    def __init__(self) -> None:
        self.listener = Listener(
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
    "tao.server.listener",
    "tao.runtime.threads",
    "tao.runtime.thread_start",
    "tao.runtime.wakeup",
)


# A socket that was interrupted before anybody had it is closed as garbage, and a thread that was
# before it ran anything of tao's ends by itself.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_exception_at_each_bytecode_of_accepting(monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs one connection at most, also while a thread is started, or the listener stops."""
    monkeypatch.setattr("tao.runtime.leader_followers._BIRTH", 0.05)
    monkeypatch.setattr("tao.runtime.leader_followers._PAUSE", 0)
    monkeypatch.setattr("tao.runtime.leader_followers._PATIENCE", 0.05)
    for moment in opcodes(*MODULES):
        door = Door()
        try:
            with moment.raising(thread=(name := door.listener._turns._name)):
                door.listener.start()
                answers = [door.asks(), door.asks()]
                alive = door.listener.accepting
                door.listener.stop()
                ended = door.listener.closed.wait(PATIENCE)
        except RuntimeError:  # the first thread has died
            assert door.listener.closed.is_set(), (moment, name)
            continue
        assert b"word" in answers and alive and ended and not door.lost, moment
        assert door.listener.join(Deadline(PATIENCE)) == [], moment


ADMITTING = (
    "tao.server.accepting",
    "tao.server.admission",
    "tao.server.connection",
    "tao.server.schedules",
)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_exception_at_each_bytecode_of_admitting(make_server: MakeServer) -> None:
    """It costs one connection, which ends and keeps no place; the next is served."""
    for moment in opcodes(*ADMITTING):
        listening = socket.create_server(("127.0.0.1", 0))
        address = listening.getsockname()
        with moment.raising(thread=f"tao-acceptor-{address[1]}"):
            server, _ = make_server(listening)
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


def test_exceptions_set_by_other_threads(echoing: tuple[Server, Any]) -> None:
    """As libraries for timeouts do: whoever waits for a connection is hit, others are served."""
    server, address = echoing
    for _ in range(20):
        wait_until(lambda: asks(address))
        wait_until(lambda: not server_core_of(server).acceptor.admission)
        for thread in server_core_of(server).listeners.all[0]._turns._all.copy():
            raise_in(thread, Interruption)
    wait_until(lambda: asks(address))
    assert server.running


# -- sockets that somebody else closes


def test_a_listening_socket_that_is_shut_down(
    make_server: MakeServer, log_lines: list[Any]
) -> None:
    """It is said once, the server does not say that it runs, and serve_forever returns."""
    server, _ = make_server(listening := socket.create_server(("127.0.0.1", 0)))
    serving = threading.Thread(target=server.serve_forever, name="test-serving")
    serving.start()
    wait_until(lambda: server_core_of(server).doorbells)
    listening.shutdown(socket.SHUT_RDWR)
    serving.join(PATIENCE)
    assert not serving.is_alive() and not server.running
    gone = [each for each in log_lines if "the socket is gone" in each["message"]]
    assert [each["level"].name for each in gone] == ["ERROR"]


def test_one_of_two_listening_sockets_is_gone(make_server: MakeServer) -> None:
    """The other goes on, and so the server runs."""
    server, _ = make_server(listening := socket.create_server(("127.0.0.1", 0)))
    other = server.start(("127.0.0.1", 0))
    server.handler(Text)(lambda ctx, conn: conn.write(ctx.message))
    listening.shutdown(socket.SHUT_RDWR)
    assert server_core_of(server).listeners.all[0].closed.wait(PATIENCE)
    assert server.running and asks(other) and server.snapshot().state == "running"


def test_a_socket_handed_in_may_be_closed(make_server: MakeServer) -> None:
    """The server has a descriptor of its own, and closes both in the end."""
    server, address = make_server(one := socket.create_server(("127.0.0.1", 0)))
    server.handler(Text)(lambda ctx, conn: conn.write(ctx.message))
    one.close()
    assert asks(address) and asks(address)
    server.start(other := socket.create_server(("127.0.0.1", 0)))
    assert server.stop().clean and other.fileno() < 0


def test_a_number_that_is_something_elses_by_now(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a program closes all descriptors, and opens others: it is noticed, and left alone."""
    monkeypatch.setattr("tao.server.listener._LOOK", 0.01)
    server, _ = make_server()
    number = server_core_of(server).listeners.all[0]._sock.fileno()
    with open(os.devnull) as other:
        os.dup2(other.fileno(), number)
        assert server_core_of(server).listeners.all[0].closed.wait(PATIENCE)
        os.fstat(number)
        os.close(number)
    assert (server.running, server.snapshot().state) == (False, "failed")
    assert server.stop().clean
