"""Requests while the connection breaks: none is executed twice, and unsent means unsent."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import tao
from tao.errors import ConnectionClosed, ConnectionLost, RequestError, RequestTimeout
from tao.testing.fault_proxy import FaultProxy, Faults
from tests.asking import echo, known
from tests.connection.test_correlation import framed
from tests.ends import MakeServer, Number, Seen
from tests.support import PATIENCE, together, wait_until

AT_ONCE = tao.Reconnect(initial=0.001, maximum=0.005)
# By the protocol: options, how much a client sends until its first request has left, and how much
# comes back. Between two taos, that is a question and the request; an answer and the reply.
_PROTOCOLS: dict[str, tuple[dict[str, Any], int, int]] = {
    "envelope": ({}, 40 + 24 + 8, 40 + 20 + 8),
    "field": ({"codec": framed("u8")}, 13, 13),
}


def counting(server: Any) -> Seen:
    """Have a server note the requests that it executes."""
    executed = Seen()

    @server.handler(Number)
    def execute(ctx: Any, conn: Any) -> None:
        executed.add(ctx.message.value)
        ctx.reply(ctx.message)

    return executed


@contextmanager
def reconnecting(address: Any) -> Iterator[tuple[FaultProxy, tao.ClientConn]]:
    """A proxy in front of a server, and a client that connects again at once."""
    with (
        FaultProxy(address) as proxy,
        tao.connect(proxy.address, registry=known(), reconnect=AT_ONCE) as client,
    ):
        yield proxy, client


@pytest.mark.parametrize("readers", ["own", "shared"])
def test_a_handler_that_asks_when_its_connection_is_lost(
    make_server: MakeServer, readers: Any
) -> None:
    """Its request fails at once: the client connects again only when the handler has returned."""
    server, address = make_server(registry=known())
    server.handler(Number)(echo)
    errors = Seen()
    with FaultProxy(address) as proxy:
        client = tao.ClientConn(
            proxy.address, registry=known(), reconnect=AT_ONCE, readers=readers, requests=True
        )

        @client.handler(Number, dispatch="pool")
        def ask(ctx: Any, conn: Any) -> None:
            proxy.reset()
            ctx.wait(PATIENCE)
            for timeout in (None, PATIENCE):
                try:
                    conn.request(Number(1), timeout=timeout)
                except ConnectionLost as error:
                    errors.add(error.sent)

        with client:
            wait_until(lambda: server.connections)
            server.broadcast(Number(0))
            assert errors.wait(2) == [False, False]
            assert client.request(Number(2), timeout=PATIENCE).value == 2
            assert client.reconnects == 1


@pytest.mark.parametrize("reconnect", [False, AT_ONCE], ids=["plain", "reconnect"])
@pytest.mark.parametrize("back", [False, True], ids=["request", "reply"])
@pytest.mark.parametrize("readers", ["own", "shared"])
@pytest.mark.parametrize("protocol", _PROTOCOLS)
def test_a_reset_at_each_byte(
    make_server: MakeServer, protocol: str, readers: Any, reconnect: Any, back: bool
) -> None:
    """The caller learns whether its request may have been executed; it is at most once."""
    options, sent, received = _PROTOCOLS[protocol]
    server, address = make_server(registry=known(), readers=readers, **options)
    executed = counting(server)
    fates: dict[int, bool | None] = {}
    for at in range(received if back else sent + 1):
        fault = Faults(reset_after=at)
        plans = [(Faults(), fault) if back else (fault, Faults())]
        plan = lambda n, plans=plans: plans.pop() if plans else (Faults(), Faults())  # noqa: E731
        with FaultProxy(address, plan=plan) as proxy:
            client = tao.ClientConn(
                proxy.address, registry=known(), reconnect=reconnect, readers=readers, **options
            )
            try:
                with client:
                    assert client.request(Number(at), timeout=PATIENCE).value == at
                    fates[at] = None
            except RequestError as error:
                fates[at] = error.sent
            except ConnectionClosed:
                fates[at] = False
    server.stop()
    check(fates, executed.items)


def check(fates: dict[int, bool | None], executed: list[int]) -> None:
    """Check what happened to requests, by whether they were sent; None: they were answered."""
    assert len(executed) == len(set(executed)), "twice"
    assert {each for each, sent in fates.items() if sent is None} <= set(executed)
    assert not {each for each, sent in fates.items() if sent is False} & set(executed)


def test_unsent_requests_wait_for_the_next_connection(make_server: MakeServer) -> None:
    """Also many at once; those that may wait are executed once, the others fail at once."""
    server, address = make_server(registry=known())
    executed = counting(server)
    with reconnecting(address) as (proxy, client):
        assert client.request(Number(0)).value == 0
        proxy.refuse()
        proxy.cut()
        wait_until(lambda: not client.connected)
        with pytest.raises(ConnectionLost) as caught:
            client.request(Number(-1), only_if_connected=True)
        assert not caught.value.sent
        futures = [client.request_async(Number(i)) for i in range(1, 50)]
        proxy.accept()
        assert [future.result(PATIENCE).value for future in futures] == list(range(1, 50))
    assert sorted(executed.items) == list(range(50))


def test_sent_requests_fail_with_their_connection(make_server: MakeServer) -> None:
    """At once, as nobody knows whether they were executed; what is timed out is not sent later."""
    server, address = make_server(registry=known())
    begun = Seen()

    @server.handler(Number)
    def wait(ctx: Any, conn: Any) -> None:
        begun.add(ctx.message.value)
        ctx.wait(PATIENCE)

    with reconnecting(address) as (proxy, client):
        future = client.request_async(Number(1))
        begun.wait()
        proxy.refuse()
        proxy.cut()
        error = future.exception(PATIENCE)
        assert isinstance(error, ConnectionLost) and error.sent
        with pytest.raises(RequestTimeout) as caught:
            client.request(Number(2), timeout=0.01)
        assert not caught.value.sent
        proxy.accept()
        future = client.request_async(Number(3))
        assert begun.wait(2) == [1, 3]
        assert future.cancel()


def test_requests_while_the_connection_breaks_again_and_again(make_server: MakeServer) -> None:
    """Four threads ask; each request that was executed was sent, and was executed once."""
    server, address = make_server(registry=known())
    executed = counting(server)
    fates: dict[int, bool | None] = {}
    over = threading.Event()
    with reconnecting(address) as (proxy, client):

        def ask(first: int) -> None:
            for number in range(first, first + 100):
                try:
                    assert client.request(Number(number), timeout=PATIENCE).value == number
                    fates[number] = None
                except ConnectionLost as error:
                    fates[number] = error.sent
            if first == 3000:
                over.set()

        def disturb() -> None:
            while not over.wait(0.003):
                proxy.reset()

        together(disturb, *[lambda first=first: ask(first) for first in range(0, 4000, 1000)])
    server.stop()
    check(fates, executed.items)


def test_a_client_asks_again_on_each_connection(make_server: MakeServer) -> None:
    """Whether its peer answers requests: the next one may be another."""
    server, address = make_server(registry=known())
    server.handler(Number)(echo)
    with reconnecting(address) as (proxy, client):
        for i in range(10):
            assert client.request(Number(i), timeout=PATIENCE).value == i
            proxy.cut()
            wait_until(lambda i=i: client.reconnects == i + 1)


def test_a_reply_never_goes_to_another_connection(make_server: MakeServer) -> None:
    """One that a client has deferred until its connection is lost raises, and is not kept."""
    established, deferred = Seen(), Seen()
    _server, address = make_server(registry=known(), on_connect=established.add)
    with reconnecting(address) as (proxy, client):
        client.handler(Number)(lambda ctx, conn: ctx.defer() or deferred.add(ctx))
        future = established.wait()[0].request_async(Number(1))
        [context] = deferred.wait()
        proxy.refuse()
        proxy.cut()
        wait_until(lambda: not client.connected)
        with pytest.raises(ConnectionClosed):
            context.reply(Number(2))
        assert client.send_queue_length == 0
        assert isinstance(future.exception(PATIENCE), ConnectionLost)
        proxy.accept()
