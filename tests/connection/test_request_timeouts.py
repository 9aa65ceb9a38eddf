"""The clock that gives up the requests of one connection, whose callers do not wait themselves."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from tao.connection.connection import core_of
from tao.errors import RequestTimeout
from tao.testing import Clock
from tests.asking import Peers, in_thread
from tests.ends import Number
from tests.injection import Interruption, opcodes
from tests.support import PATIENCE, wait_until

Asked = tuple[Clock, Peers]


@pytest.fixture
def asked() -> Iterator[Asked]:
    """A clock, and peers of which the server never answers."""
    with Clock() as clock, Peers(heartbeat=None, server={"heartbeat": None}) as peers:
        peers.server.handler(Number)(lambda ctx, conn: ctx.defer())
        yield clock, peers


def ask(peers: Peers, timeout: float | None, number: int = 0) -> Future[Any]:
    """Ask, and return when the request is in flight."""
    requests = core_of(peers.client).exchange.requests
    before = requests.in_flight
    future = peers.client.request_async(Number(number), timeout)
    wait_until(lambda: requests.in_flight > before)
    return future


def test_each_times_out_at_its_own_time(asked: Asked) -> None:
    """Also one that is due before those that were asked earlier."""
    clock, peers = asked
    futures = [ask(peers, seconds) for seconds in (30, 10, 20, None, 10)]
    for elapsed, left in ((9.5, 5), (0.5, 3), (9.5, 3), (0.5, 2), (10, 1), (1000, 1)):
        clock.advance(elapsed)
        assert sum(not future.done() for future in futures) == left
    assert not futures[3].done()
    for future in futures:
        if future.done():
            assert isinstance(future.exception(), RequestTimeout)


def test_many_need_one_timer(asked: Asked) -> None:
    """However many are asked, and answered, the wheel has one timer for all of a connection."""
    clock, peers = asked
    ask(peers, 30)
    pending = clock.size
    futures = [ask(peers, 30 + number) for number in range(50)]
    assert clock.size == pending
    for future in futures:
        assert future.cancel()
    clock.advance(30)
    assert not clock.size  # as nothing is asked any more


def test_a_thread_that_waits_follows_the_clock(asked: Asked) -> None:
    """A caller of ``request`` is told by the same timer, while a test advances the clock."""
    clock, peers = asked
    result = in_thread(lambda: peers.client.request(Number(1), timeout=60))
    wait_until(lambda: core_of(peers.client).exchange.requests.in_flight)
    clock.advance(60)
    with pytest.raises(RequestTimeout):
        result()


def test_one_that_waits_for_the_peer_times_out() -> None:
    """While the client is between two connections, it is not sent any more, either."""
    with Peers(reconnect=True) as peers:
        peers.server.stop()
        wait_until(lambda: not peers.client.connected)
        future = peers.client.request_async(Number(1), timeout=0.05)
        error = future.exception(PATIENCE)
        assert isinstance(error, RequestTimeout)
        assert not error.sent


def test_a_callback_that_raises_keeps_no_other_waiting(asked: Asked) -> None:
    """The next ones are given up all the same, though a moment later."""
    clock, peers = asked
    first, second = ask(peers, 1), ask(peers, 1)

    def fail(_: Future[Any]) -> None:
        raise Interruption

    first.add_done_callback(fail)
    clock.advance(1)
    assert first.done()
    wait_until(second.done)


@pytest.mark.interrupted
def test_the_clock_survives_interruptions(asked: Asked) -> None:
    """At each bytecode of the giving up: all that is due is given up in the end."""
    clock, peers = asked
    for moment in opcodes("tao.connection.requests.making"):
        futures = [ask(peers, 1, number) for number in range(2)]
        last = ask(peers, 5)
        with moment.raising():
            clock.advance(1)
        clock.advance(2)  # after an interruption, the wheel calls again after the same delay
        assert all(future.done() for future in futures), moment.place
        assert not last.done(), moment.place
        clock.advance(4)
        assert last.done(), moment.place
