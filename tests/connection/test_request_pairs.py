"""Requests and whatever may meet their replies: each has one outcome, and the next one works."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest

import tao
from tao.connection.connection import core_of
from tao.errors import ConnectionLost, RequestCancelled, RequestError, RequestTimeout, WouldBlock
from tao.testing.fault_proxy import FaultProxy
from tests.asking import Peers, echo, known
from tests.connection.test_pairs import seeds
from tests.ends import MakeServer, Number, Seen
from tests.support import PATIENCE, together, wait_until

READERS = pytest.mark.parametrize("readers", ["own", "shared"])
AT_ONCE = tao.Reconnect(initial=0.001, maximum=0.005)


def quiet(conn: Any) -> bool:
    """Whether nothing of any request is left, on either table of a connection."""
    exchange = core_of(conn).exchange
    requests = exchange.requests
    return not (requests.in_flight or requests.waiting or exchange.responder.asked)


def opened(readers: Any, **options: Any) -> Peers:
    both = Peers(readers=readers, server={"readers": readers}, **options)
    both.server.handler(Number)(echo)
    assert both.client.request(Number(0)).value == 0
    return both


@READERS
@pytest.mark.parametrize("seed", seeds(5))
def test_a_reply_and_a_timeout(readers: Any, seed: int) -> None:
    """Whichever is first; a reply that comes too late harms no later request."""
    chance = random.Random(seed)
    with opened(readers) as peers:
        for i in range(40):
            try:
                assert peers.client.request(Number(i), chance.random() * 0.0005).value == i
            except RequestTimeout:
                pass
        assert peers.client.request(Number(-1)).value == -1
        wait_until(lambda: quiet(peers.client) and quiet(peers.conn))


@READERS
@pytest.mark.parametrize("seed", seeds(5))
def test_a_reply_and_a_cancellation(readers: Any, seed: int) -> None:
    """A future is cancelled, or has its result; never both, nor neither."""
    with opened(readers) as peers:
        for i in range(40):
            future = peers.client.request_async(Number(i))
            _, cancelled = together(lambda: None, future.cancel)
            if cancelled:
                assert future.cancelled()
                with pytest.raises(RequestCancelled):
                    future.result()
            else:
                assert future.result(PATIENCE).value == i
        wait_until(lambda: quiet(peers.client) and quiet(peers.conn))


@READERS
@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("seed", seeds(6))
def test_requests_and_close(readers: Any, side: str, seed: int) -> None:
    """All end, those of threads and of futures; what comes later fails at once, unsent."""
    with opened(readers) as peers:
        conn: Any = peers.client
        futures = [conn.request_async(Number(i)) for i in range(20)]

        def ask() -> None:
            with pytest.raises(ConnectionLost) as caught:
                while True:
                    assert conn.request(Number(5), PATIENCE).value == 5
            assert isinstance(caught.value.sent, bool)

        close = peers.client.close if side == "client" else peers.conn.close
        together(ask, ask, close)
        for future in futures:
            error = future.exception(PATIENCE)
            assert error is None or isinstance(error, ConnectionLost)
        with pytest.raises(ConnectionLost) as caught:
            conn.request(Number(1))
        assert not caught.value.sent


@READERS
@pytest.mark.parametrize("seed", seeds(5))
def test_a_deferred_reply_and_close(readers: Any, seed: int) -> None:
    """It is sent or raises; the asking side gets it or learns of the end."""
    with opened(readers) as peers:
        deferred = Seen()
        peers.client.handler(Number)(lambda ctx, conn: ctx.defer() or deferred.add(ctx))
        future = peers.conn.request_async(Number(7))
        [context] = deferred.wait()

        def reply() -> None:
            try:
                context.reply(Number(8))
            except tao.ConnectionClosed:
                pass

        together(reply, peers.client.close)
        error = future.exception(PATIENCE)
        assert future.result().value == 8 if error is None else isinstance(error, ConnectionLost)


@READERS
@pytest.mark.parametrize("seed", seeds(1))
def test_thousands_and_everything_at_once(make_server: MakeServer, readers: Any, seed: int) -> None:
    """Requests, futures, cancellations, timeouts and lost connections: none is executed twice."""
    server, address = make_server(registry=known(), workers=4, readers=readers)
    executed = Seen()

    @server.handler(Number)
    def execute(ctx: Any, conn: Any) -> None:
        executed.add(ctx.message.value)
        if ctx.message.value % 50 == 7:
            ctx.wait(0.001)
        ctx.reply(ctx.message)

    unsent: list[int] = []
    over = threading.Event()
    with (
        FaultProxy(address) as proxy,
        tao.connect(proxy.address, registry=known(), reconnect=AT_ONCE, readers=readers) as client,
    ):

        def ask(first: int) -> None:
            chance = random.Random(first + seed)
            for number in range(first, first + 625):
                timeout = chance.choice((PATIENCE, PATIENCE, PATIENCE, 0.002))
                try:
                    if chance.random() < 0.5:
                        assert client.request(Number(number), timeout).value == number
                        continue
                    future = client.request_async(Number(number), timeout)
                    if chance.random() < 0.2:
                        future.cancel()
                    assert future.result().value == number
                except RequestCancelled:
                    pass
                except WouldBlock:
                    unsent.append(number)
                except RequestError as error:
                    if not error.sent:
                        unsent.append(number)

        def disturb() -> None:
            while not over.wait(0.05):
                proxy.cut()

        disturber = threading.Thread(target=disturb, name="test-disturber")
        disturber.start()
        try:
            together(*[lambda first=first: ask(first) for first in range(0, 80000, 10000)])
        finally:
            over.set()
            disturber.join()
    server.stop()
    assert len(executed.items) == len(set(executed.items))
    assert not set(unsent) & set(executed.items)
