"""The callbacks of futures may block: only callbacks of the same connection wait for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

import tao
from tao.client.client import ClientConn
from tao.connection.connection import core_of
from tao.server.server import Server
from tests.asking import Peers, echo, in_thread, known
from tests.ends import Number, Seen, Text
from tests.injection import opcodes
from tests.support import PATIENCE, wait_until

READERS = pytest.mark.parametrize("readers", ["own", "shared"])


class Blocking:
    """A callback that blocks until it is set free, and what it was called with."""

    def __init__(self) -> None:
        self.called = Seen()
        self.free = threading.Event()

    def __call__(self, future: Future[Any]) -> None:
        self.called.add(future)
        self.free.wait(3 * PATIENCE)


@pytest.fixture
def blocking() -> Iterator[Blocking]:
    """Set free before the peers are closed, if the test takes it after them."""
    block = Blocking()
    yield block
    block.free.set()


@pytest.fixture
def server() -> Iterator[Server]:
    """A server that answers a `Text`, and a `Number` when that is released."""
    server = Server(registry=known())
    server.handler(Text)(echo)
    server.handler(Number)(lambda ctx, conn: ctx.defer())
    server.start(("127.0.0.1", 0))
    yield server
    server.stop()


def connect(server: Server, readers: str) -> ClientConn:
    return tao.connect(server.address, registry=known(), readers=readers, reconnect=False)


def answer_after(server: Server) -> threading.Event:
    """Have texts answered once the event is set, which is returned."""
    event = threading.Event()
    server.registry.unregister(Text.message_number)

    @server.handler(Text)
    def answer(ctx: Any, conn: Any) -> None:
        event.wait(PATIENCE)
        ctx.reply(ctx.message)

    return event


def reply(client: ClientConn, server: Server, block: Blocking) -> None:
    """Have the reply complete a future: by the thread that reads."""
    began = answer_after(server)
    client.request_async(Text("hi")).add_done_callback(block)
    began.set()


def timeout(client: ClientConn, server: Server, block: Blocking) -> None:
    """Have a timeout do it: by the thread that keeps the time."""
    client.request_async(Number(1), timeout=0.01).add_done_callback(block)


def lose(client: ClientConn, server: Server, block: Blocking) -> None:
    """Have the end of the connection do it: by the thread that notices."""
    client.request_async(Number(1)).add_done_callback(block)
    wait_until(lambda: server.connections)
    wait_until(lambda: core_of(server.connections[0]).exchange.responder.asked)
    server.connections[0].abort()


def cancel(client: ClientConn, server: Server, block: Blocking) -> None:
    """Have the caller give it up."""
    future = client.request_async(Number(1))
    future.add_done_callback(block)
    future.cancel()


@READERS
@pytest.mark.parametrize("complete", [reply, timeout, lose, cancel])
def test_a_blocking_callback_holds_up_no_other_connection(
    server: Server, blocking: Blocking, complete: Callable[..., None], readers: str
) -> None:
    """Nor a timer, whichever thread has completed the future; nor what else its own one does."""
    fired = threading.Event()
    with connect(server, readers) as client:
        complete(client, server, blocking)
        blocking.called.wait()
        with connect(server, readers) as other:
            assert other.request(Text("hi"), timeout=PATIENCE).text == "hi"
            other.run_after(0, lambda due, conn: fired.set())
            assert fired.wait(PATIENCE)
        if complete is not lose:
            assert client.request(Text("ho"), timeout=PATIENCE).text == "ho"
        blocking.free.set()


@READERS
def test_a_blocking_callback_does_not_keep_its_connection_from_ending(
    server: Server, blocking: Blocking, readers: str
) -> None:
    """A close returns when its time is over; what it has to do is done before."""
    closed = threading.Event()
    client = tao.connect(
        server.address,
        registry=known(),
        readers=readers,
        drain_timeout=0.1,
        on_close=lambda conn: closed.set(),
    )
    client.request_async(Number(1)).add_done_callback(blocking)
    in_thread(client.close)()
    assert closed.wait(PATIENCE) and blocking.called.wait()
    assert not client.wait_closed(0)
    blocking.free.set()
    assert client.wait_closed(PATIENCE)


@READERS
def test_a_close_waits_for_callbacks(server: Server, readers: str) -> None:
    """So a program that ends then has seen them return."""
    returned = Seen()

    def take_long(future: Future[Any]) -> None:
        threading.Event().wait(0.01)
        returned.add(future)

    with connect(server, readers) as client:
        futures = [client.request_async(Number(value)) for value in range(3)]
        for each in futures:
            each.add_done_callback(take_long)
    assert returned.items == futures


def test_the_close_of_a_client_that_was_never_started_waits_for_callbacks() -> None:
    """Its requests wait for a connection, and fail with the close."""
    returned = Seen()
    client = ClientConn(("127.0.0.1", 1), registry=known(), reconnect=True)
    future = client.request_async(Number(1))
    future.add_done_callback(lambda future: returned.add(type(future.exception())))
    client.close()
    assert returned.items == [tao.ConnectionLost]


def test_a_stop_does_not_wait_for_a_callback_that_blocks(blocking: Blocking) -> None:
    """Other connections are closed meanwhile; the report names the thread."""
    with Peers() as peers:
        peers.client.handler(Number)(lambda ctx, conn: ctx.defer())
        peers.conn.request_async(Number(1)).add_done_callback(blocking)
        with tao.connect(peers.address, registry=known()) as other:
            report = peers.server.stop(0.2)
            assert other.wait_closed(PATIENCE)
        assert [name.rpartition("-")[0] for name in report.threads] == ["tao-callbacks"]
        assert not report.abandoned
        blocking.free.set()


@READERS
def test_callbacks_are_called_in_order(server: Server, readers: str) -> None:
    """One after another, each once, as their futures were completed."""
    count, at_once, most, order = 200, 0, 0, Seen()
    added = answer_after(server)

    def note(future: Future[Any]) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        order.add(int(future.result().text))
        at_once -= 1

    with connect(server, readers) as client:
        for number in range(count):
            future = client.request_async(Text(str(number)))
            future.add_done_callback(note)
            future.add_done_callback(note)
        added.set()
        assert order.wait(2 * count) == [number // 2 for number in range(2 * count)]
    assert most == 1


def test_one_that_is_added_late_is_called_at_once(server: Server) -> None:
    """By the thread that adds it, as with any other future."""
    with connect(server, "own") as client:
        future = client.request_async(Text("hi"))
        future.result(PATIENCE)
        here = Seen()
        future.add_done_callback(lambda _: here.add(threading.current_thread()))
        assert here.items == [threading.current_thread()]


def test_a_callback_may_close_its_connection(server: Server) -> None:
    """It waits neither for itself nor for ever."""
    closed = Seen()

    def close(future: Future[Any]) -> None:
        client.close()
        closed.add(client.wait_closed(PATIENCE))

    with connect(server, "own") as client:
        client.request_async(Number(1), timeout=0.01).add_done_callback(close)
        assert closed.wait() == [True]


def test_without_another_thread_they_are_called_all_the_same(
    server: Server, no_thread: Callable[[str], None]
) -> None:
    """Each once, and in order, by the thread that has completed the future."""
    no_thread("tao-callbacks")
    called = Seen()
    with connect(server, "own") as client:
        futures = [client.request_async(Number(value)) for value in range(3)]
        for future in futures:
            future.add_done_callback(called.add)
    assert called.items == futures


@pytest.mark.interrupted
def test_callbacks_are_called_once_whatever_interrupts_their_thread(server: Server) -> None:
    """At each bytecode; those after them are called as well."""
    with connect(server, "own") as client:
        name = core_of(client).roles.name("callbacks")
        for moment in opcodes("tao.connection.requests.callbacks"):
            called = Seen()
            futures = [client.request_async(Number(value)) for value in range(2)]
            for future in futures:
                future.add_done_callback(called.add)
                future.add_done_callback(called.add)
            with moment.raising(thread=name):
                for future in futures:
                    future.cancel()
                called.wait(4)
            last = client.request_async(Number(3))
            last.add_done_callback(called.add)
            last.cancel()
            expected = [each for each in (*futures, last) for _ in range(2)][:5]
            assert called.wait(5) == expected, moment


@pytest.mark.interrupted
@pytest.mark.parametrize("module", ["callbacks", "pending", "making"])
def test_callbacks_are_called_once_whatever_interrupts_the_completion(
    server: Server, module: str
) -> None:
    """At each bytecode: a moment later, if the future is done."""
    with connect(server, "own") as client:
        for moment in opcodes(f"tao.connection.requests.{module}"):
            called = Seen()
            future = client.request_async(Number(1))
            future.add_done_callback(called.add)
            with moment.raising():
                future.cancel()
            future.cancel()
            assert called.wait() == [future], moment
            assert client.request(Text("hi"), timeout=PATIENCE).text == "hi"
            assert called.items == [future], moment
