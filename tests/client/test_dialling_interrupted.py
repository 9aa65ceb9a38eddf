"""Interrupted dialling: an exception or a nested call at every bytecode."""

from __future__ import annotations

import gc
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tao.client.dialling import Dialler
from tao.client.endpoints import endpoints_of
from tao.connection.options.definitions import ClientSettings
from tao.errors import ConnectionClosed
from tao.runtime.helper_threads import Bell, HelperTask, HelperThreads
from tao.testing.pytest_plugin import open_sockets
from tests.injection import Interruption, opcodes
from tests.support import PATIENCE, wait_until

MODULES = ("tao.client.dialling", "tao.client.happy_eyeballs", "tao.runtime.helper_threads")

# The garbage collector closes a socket that has no owner yet when an exception arrives.
pytestmark = [
    pytest.mark.interrupted,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Run the garbage collector before leaks are counted."""
    yield
    gc.collect()


@pytest.fixture
def address() -> Iterator[tuple[str, int]]:
    """The address of a server that accepts and closes at once."""

    def accept() -> None:
        with suppress(OSError):
            while True:
                listener.accept()[0].close()

    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        acceptor = threading.Thread(target=accept, name="test-acceptor")
        acceptor.start()
        yield listener.getsockname()
        listener.shutdown(socket.SHUT_RDWR)
        acceptor.join()


def dialler_of(address: tuple[str, int], name: str = "localhost") -> Dialler:
    """Return a dialler that has to skip one server and to resolve a name."""
    endpoints = endpoints_of(["/nobody/listens/here", (name, address[1])])
    return Dialler(endpoints, ClientSettings(connect_timeout=PATIENCE))


@pytest.mark.parametrize("module", MODULES)
def test_an_exception_while_dialling(address: tuple[str, int], module: str) -> None:
    """The next attempt succeeds, and no connection attempt and no helper thread leaks."""
    before = open_sockets()
    for moment in opcodes(module, step=3):
        dialler = dialler_of(address)
        try:
            with moment.raising(Interruption):
                dialler.next().transport.close()
        except Interruption:
            pass
        dialler.next().transport.close()
        assert not dialler.dialling, moment
        wait_until(lambda: open_sockets() <= before or gc.collect() < 0)
    assert moment.number > 50


@pytest.mark.parametrize("module", MODULES)
def test_a_close_while_dialling(address: tuple[str, int], module: str) -> None:
    """A close in a signal handler ends the dialling unless it has succeeded; nothing blocks."""
    before = open_sockets()
    for moment in opcodes(module, step=3):
        dialler = dialler_of(address)
        with moment.calling(dialler.close):
            try:
                dialler.next().transport.close()
            except ConnectionClosed:
                assert moment.struck
        wait_until(lambda: open_sockets() <= before)
    assert moment.number > 50


def test_a_finalizer_that_dials(address: tuple[str, int]) -> None:
    """A finalizer may connect in the middle of dialling, even to the same name."""
    for moment in opcodes(*MODULES, step=7):
        other = dialler_of(address)
        with moment.calling(lambda other=other: other.next().transport.close()):  # type: ignore[misc]
            dialler_of(address).next().transport.close()


def test_an_exception_in_a_helper_thread() -> None:
    """An asynchronous exception fails the current task, and the thread pool recovers."""
    for moment in opcodes("tao.runtime.helper_threads"):
        helpers, bell = HelperThreads("test-helper", 1), Bell()
        task: HelperTask[int] = HelperTask(lambda: 1)
        task.join(bell)
        with moment.raising(SystemExit, thread="test-helper-1"):
            helpers.submit(task)
            wait_until(lambda helpers=helpers: not helpers.running)  # type: ignore[misc]
        assert next_one(helpers, bell) == 2, moment
    assert moment.number > 20


def next_one(helpers: HelperThreads, bell: Bell) -> int | None:
    """Return the result of one more task."""
    task: HelperTask[int] = HelperTask(lambda: 2)
    task.join(bell)
    helpers.submit(task)
    wait_until(lambda: task.done)
    return task.take(bell)
