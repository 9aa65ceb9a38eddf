"""Fixtures for all tests: a check for leaked threads and sockets, and collected log lines."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import loguru
import pytest

from tao.client import resuming
from tao.server.server import Server
from tao.server.sessions import resumption
from tao.testing.pytest_plugin import open_sockets
from tao.wire.message import Registry
from tests.ends import End, MakeServer
from tests.session_pairs import Both
from tests.support import PATIENCE, wait_until

# pytest captures what a test prints. loguru's own handler for stderr is of no use here, and tests
# of the bridge to stdlib logging could not restore it.
loguru.logger.remove()

# A shell starts background jobs with SIGINT ignored, and child processes inherit that: programs
# started by the tests would not end on Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline for an example, because machines may be under load. Nothing is written to disk.
hypothesis.settings.register_profile("tao", deadline=None, database=None)
hypothesis.settings.load_profile("tao")

# Threads of tests and of other libraries do not have these prefixes.
OURS = ("tao-", "test-")


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith(OURS)}


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Fail a test that leaves a tao thread or an open socket behind."""
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
        pass  # the following assertion reports what is left


@pytest.fixture(params=["server", "client", "server-shared", "client-shared"])
def open_end(request: pytest.FixtureRequest) -> Iterator[Callable[..., End]]:
    """A function that opens an `End` of each kind in turn; ends are closed afterwards."""
    opened: list[End] = []

    def open_one(**options: Any) -> End:
        opened.append(End(request.param, **options))
        return opened[-1]

    yield open_one
    for end in opened:
        end.stop()


@pytest.fixture
def make_server() -> Iterator[MakeServer]:
    """A function that starts a server and returns it and its address; stopped afterwards."""
    servers: list[Server] = []

    def make(address: Any = ("127.0.0.1", 0), **options: Any) -> tuple[Server, Any]:
        options.setdefault("registry", Registry())
        servers.append(Server(**options))
        return servers[-1], servers[-1].start(address)

    yield make
    for server in servers:
        server.stop()


@pytest.fixture
def no_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """A function after which no thread starts if its name begins with a prefix."""
    start = threading.Thread.start

    def forbid(prefix: str) -> None:
        def refuse(thread: threading.Thread) -> None:
            if thread.name.startswith(prefix):
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", refuse)

    yield forbid
    monkeypatch.undo()


@pytest.fixture
def switching() -> Iterator[None]:
    """Make threads switch a thousand times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have neither end take a peer for one without sessions that is only slow to speak."""
    monkeypatch.setattr(resumption, "_PATIENCE", PATIENCE)
    monkeypatch.setattr(resuming, "_PATIENCE", PATIENCE / 2)


@pytest.fixture
def open_both(patient: None) -> Iterator[Callable[..., Both]]:
    """A function that makes and starts `Both`."""
    opened: list[Both] = []

    def make(**options: Any) -> Both:
        opened.append(Both(**options))
        return opened[-1].start()

    yield make
    for each in opened:
        each.close()
