"""What every test gets: a check that it leaves no thread and no socket of tao's behind.

And what some ask for: the lines that tao logs.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import loguru
import pytest

from tao.server.server import Server
from tao.testing.pytest_plugin import open_sockets
from tao.wire.message import Registry
from tests.ends import End, MakeServer
from tests.support import wait_until

# pytest shows what a test prints; loguru's own way to stderr is of no use, and tests of the bridge
# to stdlib logging could not put it back.
loguru.logger.remove()

# A shell starts what it runs in the background with SIGINT ignored, and programs inherit that:
# those that the tests start would not end on Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline for an example: a machine under load is no failure. And nothing is written to disk.
hypothesis.settings.register_profile("tao", deadline=None, database=None)
hypothesis.settings.load_profile("tao")

# Threads of tests and libraries that are not tao's start with neither.
OURS = ("tao-", "test-")


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith(OURS)}


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Fail a test after which a thread or a socket of tao's is still there."""
    threads, sockets = _threads(), open_sockets()
    yield
    _eventually(lambda: _threads() <= threads)
    left = sorted(thread.name for thread in _threads() - threads)
    assert not left, f"threads left behind: {left}"
    _eventually(lambda: open_sockets() <= sockets)
    assert not open_sockets() - sockets, "sockets left behind"


@pytest.fixture
def log_lines() -> Iterator[list[Any]]:
    """Enable tao's log lines and collect their records: ``["message"]``, ``["level"].name``..."""
    records: list[Any] = []
    sink = loguru.logger.add(lambda message: records.append(message.record), level=0, format="")
    loguru.logger.enable("tao")
    yield records
    loguru.logger.disable("tao")
    loguru.logger.remove(sink)


def _eventually(condition: Callable[[], bool]) -> None:
    try:
        wait_until(condition, timeout=5)
    except AssertionError:
        pass  # the assertion that follows says what is left


@pytest.fixture(params=["server", "client"])
def open_end(request: pytest.FixtureRequest) -> Iterator[Callable[..., End]]:
    """A function that opens an `End`, once for each kind; what it opened is closed afterwards."""
    opened: list[End] = []

    def open_one(**options: Any) -> End:
        opened.append(End(request.param, **options))
        return opened[-1]

    yield open_one
    for end in opened:
        end.stop()


@pytest.fixture
def make_server() -> Iterator[MakeServer]:
    """A function that starts a server and returns it with its address; stopped afterwards."""
    servers: list[Server] = []

    def make(address: Any = ("127.0.0.1", 0), **options: Any) -> tuple[Server, Any]:
        options.setdefault("registry", Registry())
        servers.append(Server(**options))
        return servers[-1], servers[-1].start(address)

    yield make
    for server in servers:
        server.stop()
