"""Fixtures for pytest, available as soon as tao is installed; see ``servers.py`` for their types.

pytest imports this module at every start, so only the fixtures import the rest of tao. Test runs
that do not use them start faster, and coverage measurement begins before tao is imported.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from tao.server.server import Server, ServerOptions
    from tao.testing import ClientFactory, Clock, RecordingClient, ServerFactory

__all__ = ["tao_client", "tao_clock", "tao_no_leaks", "tao_server"]

# How long threads may take to end, and sockets to be closed, in seconds.
_PATIENCE = 10.0


@pytest.fixture
def _tao_opened() -> Iterator[ExitStack]:
    """The stack of objects opened by the fixtures below; closed in reverse order."""
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def tao_server(_tao_opened: ExitStack) -> ServerFactory:
    """A function that starts a server on a free port of 127.0.0.1 and returns it.

    ``tao_server(workers=2)`` makes a server from options; ``tao_server(server)`` starts an existing
    one. It is stopped after the test, which fails if the shutdown is not clean, unless
    ``clean=False`` is given.
    """
    from tao.testing import running, serving

    def start(
        server: Server | None = None, *, clean: bool = True, **options: Unpack[ServerOptions]
    ) -> Server:
        if server is None:
            return _tao_opened.enter_context(serving(clean=clean, **options))
        if options:
            raise TypeError(f"an existing server cannot be given options: {options}")
        _tao_opened.enter_context(running(server, clean=clean))
        return server

    return start


@pytest.fixture
def tao_client(_tao_opened: ExitStack) -> ClientFactory:
    """A function that connects a `RecordingClient` and takes the same arguments.

    ``tao_client(server)``, or ``tao_client(address, messages=[ChatMessage])``. The client is closed
    after the test, before a server that was started earlier is stopped.
    """
    from tao.testing import RecordingClient

    def connect(*args: Any, **options: Any) -> RecordingClient:
        return _tao_opened.enter_context(RecordingClient(*args, **options))

    return connect


@pytest.fixture
def tao_clock() -> Iterator[Clock]:
    """A `Clock`, active for servers started and clients made in the test."""
    from tao.testing import Clock

    with Clock() as clock:
        yield clock


@pytest.fixture
def tao_no_leaks(_tao_opened: ExitStack) -> Iterator[None]:
    """Fail the test if it leaves a tao thread or a socket behind.

    The fixtures of tao are closed before the check. To include other fixtures, set this one up
    first: ``pytestmark = pytest.mark.usefixtures("tao_no_leaks")``. Sockets are checked on Linux
    only.
    """
    threads, sockets = tao_threads(), open_sockets()
    yield
    _tao_opened.close()
    left = _left(tao_threads, threads)
    assert not left, f"threads left behind: {sorted(thread.name for thread in left)}"
    left = _left(open_sockets, sockets)
    assert not left, f"sockets left behind: {sorted(left)}"


def tao_threads() -> set[threading.Thread]:
    """Return the running threads of tao."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("tao-")}


def open_sockets() -> set[str]:
    """Return the open sockets of the process, by their inode numbers."""
    found = set()
    for entry in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue  # the descriptor of the listing itself
        if target.startswith("socket:"):
            found.add(target)
    return found


def _left(look: Callable[[], set[Any]], before: set[Any]) -> set[Any]:
    """Return what is new compared to ``before``; wait a while for it to disappear."""
    # Threads and sockets may need a moment to end, and no event reports it, so poll.
    never, looks = threading.Event(), int(_PATIENCE / 0.01)
    while (left := look() - before) and looks:
        never.wait(0.01)
        looks -= 1
    return left
