"""Waiting for many sockets: what is reported, for how long, and how the wait is ended."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator

import pytest

from tao.transport.poller import READABLE, WRITABLE, EpollPoller, Poller, SelectorPoller
from tests.injection import opcodes
from tests.support import PATIENCE

KINDS = [SelectorPoller, *([EpollPoller] if hasattr(select, "epoll") else [])]


@pytest.fixture(params=KINDS)
def poller(request: pytest.FixtureRequest) -> Iterator[Poller]:
    made: Poller = request.param()
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def test_a_readable_socket_is_reported_until_it_is_read(
    poller: Poller, pair: tuple[socket.socket, socket.socket]
) -> None:
    """A descriptor is ready for as long as there is something to read, and then no longer."""
    one, other = pair
    poller.change(one.fileno(), 0, READABLE)
    assert poller.wait(0) == []
    other.send(b"xy")
    for _ in range(2):
        assert poller.wait(PATIENCE) == [(one.fileno(), READABLE)]
    one.recv(2)
    assert poller.wait(0) == []


def test_what_is_waited_for_can_change(
    poller: Poller, pair: tuple[socket.socket, socket.socket]
) -> None:
    """A change counts from the next wait on; what is not waited for is not reported."""
    one, other = pair
    other.send(b"x")
    poller.change(one.fileno(), 0, READABLE | WRITABLE)
    assert poller.wait(PATIENCE) == [(one.fileno(), READABLE | WRITABLE)]
    poller.change(one.fileno(), READABLE | WRITABLE, WRITABLE)
    assert poller.wait(PATIENCE) == [(one.fileno(), WRITABLE)]
    poller.change(one.fileno(), WRITABLE, 0)
    assert poller.wait(0) == []


def test_an_interrupted_change_can_be_repeated(
    poller: Poller, pair: tuple[socket.socket, socket.socket]
) -> None:
    """A change that is made twice, or undone twice, is no error."""
    one, _ = pair
    for _ in range(2):
        poller.change(one.fileno(), 0, WRITABLE)
        assert poller.wait(PATIENCE) == [(one.fileno(), WRITABLE)]
    for _ in range(2):
        poller.change(one.fileno(), WRITABLE, 0)
        assert poller.wait(0) == []


@pytest.mark.interrupted
def test_a_change_is_made_although_a_wait_was_interrupted(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """At any bytecode, where changes are noted for the thread that waits."""
    one, _ = pair
    for moment in opcodes("tao.transport.poller"):
        poller = SelectorPoller()
        poller.change(one.fileno(), 0, WRITABLE)
        with moment.raising():
            poller.wait(0)
        assert poller.wait(PATIENCE) == [(one.fileno(), WRITABLE)], moment
        poller.close()


def test_a_change_reaches_a_thread_that_waits(
    poller: Poller, pair: tuple[socket.socket, socket.socket]
) -> None:
    """What another thread wants waited for is waited for at once."""
    one, other = pair
    other.send(b"x")
    seen: list[tuple[int, int]] = []

    def wait() -> None:
        while not seen:
            seen.extend(poller.wait(PATIENCE))

    waiting = threading.Thread(target=wait, name="test-wait")
    waiting.start()
    poller.change(one.fileno(), 0, READABLE)
    waiting.join(PATIENCE)
    assert seen == [(one.fileno(), READABLE)]


def test_the_end_of_a_stream_is_reported(
    poller: Poller, pair: tuple[socket.socket, socket.socket]
) -> None:
    """A peer that has gone makes its socket ready to read."""
    one, other = pair
    poller.change(one.fileno(), 0, READABLE)
    other.close()
    ((descriptor, events),) = poller.wait(PATIENCE)
    assert descriptor == one.fileno() and events & READABLE
    assert one.recv(1) == b""


def test_waking_ends_one_wait(poller: Poller) -> None:
    """A wake before or during a wait ends it; several are as one."""
    poller.wake()
    poller.wake()
    assert poller.wait(PATIENCE) == []
    assert poller.wait(0) == []
