"""Requests between two taos: each has one outcome, and an error says whether it was sent."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

import tao
from tao.connection.connection import core_of
from tao.errors import (
    BadData,
    ConnectionLost,
    NoHandler,
    RemoteError,
    RequestCancelled,
    RequestTimeout,
    WouldBlock,
    WouldDeadlock,
)
from tao.wire.envelope import error_frame, reply_frame
from tests.asking import Peers, agree, echo, in_thread, known, read_asked, read_other
from tests.ends import End, Number, Seen, Text, text
from tests.support import PATIENCE, together, wait_until


@pytest.fixture(params=["own", "shared"])
def peers(request: pytest.FixtureRequest) -> Iterator[Peers]:
    with Peers(readers=request.param, server={"readers": request.param}) as both:
        yield both


@pytest.fixture(params=["client", "server"])
def asker(request: pytest.FixtureRequest, peers: Peers) -> tuple[Any, Any]:
    """What declares handlers at the one end, and the connection that asks from the other."""
    return peers.ends()[request.param]


# -- outcomes


def test_a_reply_goes_to_the_call(asker: tuple[Any, Any]) -> None:
    """Either end may ask; one handler serves requests and plain messages."""
    asked, conn = asker
    asked.handler(Text)(lambda ctx, conn: ctx.reply(Text(ctx.message.text + "!")))
    assert conn.request(Text("hi")).text == "hi!"
    assert conn.request_async(Text("ho")).result(PATIENCE).text == "ho!"


@pytest.mark.parametrize("deferred", [False, True])
def test_what_is_answered_is_freed_without_the_garbage_collector(
    asker: tuple[Any, Any], deferred: bool
) -> None:
    """Nothing of a request refers to itself, on neither end, so no pause of the collector comes."""
    asked, conn = asker
    seen: list[weakref.ref[Any]] = []

    @asked.handler(Text)
    def answer(ctx: Any, conn: Any) -> None:
        seen.append(weakref.ref(ctx.message))
        if deferred:
            ctx.defer()
        ctx.reply(Text("fine"))

    gc.disable()
    try:
        for _ in range(20):
            conn.request(Text("hi"))
            future = conn.request_async(Text("hi"))
            future.result(PATIENCE)
            seen.append(weakref.ref(future))
        # A thread may still hold what it has done last.
        wait_until(lambda: len(seen) == 60 and sum(each() is not None for each in seen) < 5)
    finally:
        gc.enable()


def test_a_refusal_is_freed_without_the_garbage_collector(asker: tuple[Any, Any]) -> None:
    """Its traceback does not refer to what refers to it."""
    asked, conn = asker
    seen: list[weakref.ref[Any]] = []

    @asked.handler(Text)
    def refuse(ctx: Any, conn: Any) -> None:
        raise RemoteError("busy")

    gc.disable()
    try:
        for _ in range(20):
            try:
                conn.request(Text("hi"))
            except RemoteError as error:
                seen.append(weakref.ref(error))
        wait_until(lambda: sum(each() is not None for each in seen) < 5)
    finally:
        gc.enable()


def test_a_message_that_was_no_request_is_answered_plainly(peers: Peers) -> None:
    """The reply reaches the handler of its number."""
    seen = Seen()
    peers.server.handler(Text)(echo)
    peers.client.handler(Text)(lambda ctx, conn: seen.add(ctx.message.text))
    peers.client.write(Text("plain"))
    assert seen.wait() == ["plain"]


class Unprintable:
    """Raises when it is formatted."""

    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ValueError("secret"), "error"),
        (RemoteError("busy", "come again"), "busy: come again"),
        (RemoteError.__new__(RemoteError), "error"),  # a subclass may forget to call it
        (RemoteError("busy", Unprintable()), "busy: <unprintable Unprintable: ValueError>"),  # type: ignore[arg-type]
        (None, "no_reply"),
    ],
)
def test_a_refusal_says_no_more_than_it_should(
    asker: tuple[Any, Any], raised: Exception | None, expected: str
) -> None:
    """Of an exception only that there was one; a RemoteError says what it is given."""
    asked, conn = asker

    @asked.handler(Text)
    def refuse(ctx: Any, conn: Any) -> None:
        if raised is not None:
            raise raised

    with pytest.raises(RemoteError) as caught:
        conn.request(Text("hi"))
    assert str(caught.value) == expected and caught.value.sent


def test_a_refusal_from_elsewhere_is_not_passed_on(peers: Peers) -> None:
    """A handler that does not catch the RemoteError of its own request has failed."""
    peers.server.handler(Text)(lambda ctx, conn: conn.request(Number(1)))
    with pytest.raises(RemoteError, match=r"^error$"):
        peers.client.request(Text("hi"))


def test_a_message_without_handler_is_refused_at_once(asker: tuple[Any, Any]) -> None:
    """Also one whose number is not registered there."""
    _, conn = asker
    for message in (Text("hi"), type("Other", (Text,), {"message_number": 9})("hi")):
        with pytest.raises(NoHandler):
            conn.request(message)


def test_a_reply_may_come_later_from_any_thread(asker: tuple[Any, Any]) -> None:
    """The handler says so, and the request goes on."""
    asked, conn = asker
    deferred = Seen()

    @asked.handler(Text)
    def defer(ctx: Any, conn: Any) -> None:
        ctx.defer()
        deferred.add(ctx)

    futures = [conn.request_async(Text(str(i))) for i in range(3)]
    contexts = deferred.wait(3)
    contexts[2].reply(Text("two"))
    contexts[0].reply(RemoteError("no", "never"))
    assert futures[2].result(PATIENCE).text == "two"
    assert isinstance(futures[0].exception(PATIENCE), RemoteError)
    assert not futures[1].done()


def test_a_request_is_answered_once(asker: tuple[Any, Any]) -> None:
    """A second reply is a mistake of the handler, and is not sent."""
    asked, conn = asker
    seen = Seen()

    @asked.handler(Text)
    def twice(ctx: Any, conn: Any) -> None:
        ctx.reply(Text("one"))
        try:
            ctx.reply(Text("two"))
        except RuntimeError as error:
            seen.add(str(error))

    assert conn.request(Text("hi")).text == "one"
    assert seen.wait() == ["this request is answered already"]


def test_a_reply_of_an_unknown_class_names_its_number(asker: tuple[Any, Any]) -> None:
    """The connection goes on."""
    asked, conn = asker
    asked.handler(Text)(
        lambda ctx, conn: ctx.reply(type("New", (Text,), {"message_number": 9})("x"))
    )
    asked.handler(Number)(echo)
    with pytest.raises(BadData, match="message number 9 is not registered"):
        conn.request(Text("hi"))
    assert conn.request(Number(5)).value == 5


# -- giving up


def test_a_timeout_cancels_the_handler(asker: tuple[Any, Any]) -> None:
    """The peer is told, and the context of its handler is cancelled."""
    asked, conn = asker
    ended = Seen()

    @asked.handler(Text)
    def wait(ctx: Any, conn: Any) -> None:
        ended.add(ctx.wait(PATIENCE))

    asked.handler(Number)(echo)
    conn.request(Number(1))  # what has to be agreed upon first is no part of the short time
    with pytest.raises(RequestTimeout) as caught:
        conn.request(Text("hi"), timeout=0.3)
    assert caught.value.sent and isinstance(caught.value, TimeoutError)
    assert ended.wait() == [True]


def test_a_request_that_nobody_waits_for_is_not_begun(peers: Peers) -> None:
    """It is cancelled while another one is handled."""
    handled, leave = Seen(), threading.Event()

    @peers.server.handler(Text)
    def handle(ctx: Any, conn: Any) -> None:
        handled.add(ctx.message.text)
        leave.wait(PATIENCE)
        ctx.reply(Text("done"))

    first = peers.client.request_async(Text("first"))
    handled.wait()
    second = peers.client.request_async(Text("second"))
    wait_until(lambda: peers.conn._core.dispatcher.pending > 1)
    assert second.cancel() and second.cancelled()
    with pytest.raises(RequestCancelled):
        second.result()
    wait_until(lambda: len(core_of(peers.conn).exchange.responder.asked) == 1)
    leave.set()
    assert first.result(PATIENCE).text == "done"
    peers.server.handler(Number)(echo)
    assert peers.client.request(Number(1)).value == 1
    assert handled.items == ["first"]


def test_a_cancelled_future_says_whether_it_was_sent(make_server: Any) -> None:
    """In its result and in its exception, as every other error of a request does."""
    begun = Seen()
    server, address = make_server()
    server.handler(Text)(lambda ctx, conn: ctx.defer() or begun.add(ctx))
    client = tao.ClientConn(address, registry=server.registry)
    unsent = client.request_async(Text("early"))
    assert unsent.cancel()
    with client:
        sent = client.request_async(Text("on its way"))
        begun.wait()
        assert sent.cancel()
    for future in (unsent, sent):
        for wait in (future.result, future.exception):
            with pytest.raises(RequestCancelled) as caught:
                wait(PATIENCE)
            assert caught.value.sent is (future is sent)


@pytest.mark.parametrize("later", [False, True])
def test_a_request_that_cannot_be_sent_any_more_is_lost(peers: Peers, later: bool) -> None:
    """As the connection is about to end: it was not sent, and never will be."""
    peers.server.handler(Number)(echo)
    assert peers.client.request(Number(1)).value == 1
    core_of(peers.client).send_queue.seal("the end is near")
    with pytest.raises(ConnectionLost, match="the end is near") as caught:
        if later:
            peers.client.request_async(Number(2)).result(PATIENCE)
        peers.client.request(Number(2))
    assert not caught.value.sent


def test_what_is_not_sent_in_time_never_is(make_server: Any) -> None:
    """A client that is not connected yet gives a request up; the server never sees it."""
    handled = Seen()
    server, address = make_server()
    server.handler(Text)(lambda ctx, conn: handled.add(ctx.message.text))
    client = tao.ClientConn(address, registry=server.registry)
    with pytest.raises(RequestTimeout) as caught:
        client.request(Text("early"), timeout=0.01)
    assert not caught.value.sent
    with client:
        client.write(Text("late"))
        assert handled.wait() == ["late"]


def test_closing_fails_what_is_left(asker: tuple[Any, Any]) -> None:
    """Whichever side closes; later requests fail at once, and were not sent."""
    asked, conn = asker
    begun = Seen()

    @asked.handler(Text)
    def wait(ctx: Any, other: Any) -> None:
        begun.add(other)
        ctx.wait(PATIENCE)

    result = in_thread(lambda: conn.request(Text("hi")))
    [other] = begun.wait()
    other.close()
    with pytest.raises(ConnectionLost) as caught:
        result()
    assert caught.value.sent
    with pytest.raises(ConnectionLost) as again:
        conn.request(Text("hi"))
    assert not again.value.sent and conn.wait_closed(PATIENCE)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_no_replies_to_wait_for(peers: Peers) -> None:
    """Its futures fail; those of the parent do not."""
    leave = threading.Event()
    peers.server.handler(Text, dispatch="pool")(
        lambda ctx, conn: leave.wait(PATIENCE) and echo(ctx, conn)
    )
    future = peers.client.request_async(Text("hi"))
    child = os.fork()
    if not child:
        os._exit(0 if isinstance(future.exception(1), ConnectionLost) else 1)
    leave.set()
    assert future.result(PATIENCE).text == "hi"
    assert os.waitpid(child, 0)[1] == 0


# -- from handlers and elsewhere


@pytest.mark.parametrize("dispatch", ["auto", "pool", "inline"])
def test_a_handler_asks_its_own_peer(asker: tuple[Any, Any], dispatch: Any) -> None:
    """Again and again: the reply is read although the handler has not returned."""
    asked, conn = asker
    peer = conn  # which is asked back

    @asked.handler(Text, dispatch=dispatch)
    def ask_back(ctx: Any, conn: Any) -> None:
        ctx.reply(Text(f"{conn.request(Number(len(ctx.message.text))).value}"))

    core_of(peer).application.find().registry.handler(Number, dispatch=dispatch)(echo)
    for i in range(10):
        assert peer.request(Text("x" * i)).text == str(i)


def test_workers_that_wait_for_replies_do_not_count() -> None:
    """The only worker waits for one client, and another client's handler runs; both prepared."""
    prepared, leave = Seen(), threading.Event()
    options = {"workers": 1, "worker_initializer": lambda: prepared.add("prepared")}
    with Peers(server=options) as peers:
        peers.server.handler(Text)(lambda ctx, conn: ctx.reply(conn.request(Number(3))))
        peers.client.handler(Number)(
            lambda ctx, conn: leave.wait(PATIENCE) and ctx.reply(ctx.message)
        )
        waiting = peers.client.request_async(Text("ask back"))
        wait_until(lambda: core_of(peers.conn).exchange.requests.in_flight)
        peers.server.handler(Number)(echo)
        with tao.connect(peers.address, registry=peers.client.registry) as other:
            assert other.request(Number(5)).value == 5
        leave.set()
        assert waiting.result(PATIENCE).value == 3
    assert prepared.items == ["prepared"] * 2


def test_no_more_than_max_waiting_workers_are_replaced() -> None:
    """One more that waits for a reply keeps its worker, so other handlers wait for that."""
    asked, handled = Seen(), Seen()
    options = {"workers": 1, "max_waiting_workers": 1}
    with Peers(server=options) as peers, tao.connect(peers.address, registry=known()) as other:
        peers.server.handler(Text)(lambda ctx, conn: ctx.reply(conn.request(Number(3))))
        peers.server.handler(Number)(lambda ctx, conn: handled.add(ctx.message.value))
        for conn in (peers.client, other):
            conn.handler(Number)(lambda ctx, conn: ctx.defer() or asked.add(ctx))
        waiting = []
        for conn in (peers.client, other):
            waiting.append(conn.request_async(Text("ask back")))
            asked.wait(len(waiting))
        with tao.connect(peers.address, registry=known()) as third:
            third.write(Number(5))
            conn = max(peers.server.connections, key=lambda conn: conn.net_id)
            wait_until(lambda: core_of(conn).dispatcher.pending)
            assert not handled.items
            asked.items[1].reply(Number(4))
            assert handled.wait() == [5]
        asked.items[0].reply(Number(4))
        assert [each.result(PATIENCE).value for each in waiting] == [4, 4]


def test_a_timer_asks(asker: tuple[Any, Any]) -> None:
    """On either end, beside the requests of a thread."""
    asked, conn = asker
    seen = Seen()
    asked.handler(Number)(echo)
    conn.run_after(0, lambda due, conn: seen.add(conn.request(Number(7)).value))
    assert [conn.request(Number(i)).value for i in range(20)] == list(range(20))
    assert seen.wait() == [7]


def test_a_hundred_threads_share_a_connection(peers: Peers) -> None:
    """Each gets its own replies."""
    peers.server.handler(Number)(echo)

    def ask(first: int) -> list[int]:
        return [peers.client.request(Number(first + i)).value for i in range(5)]

    results = together(*[lambda i=i: ask(100 * i) for i in range(100)])
    assert results == [[100 * i + j for j in range(5)] for i in range(100)]


def test_each_side_asks_the_other_at_once(peers: Peers) -> None:
    """Many times, from threads of the application."""
    for asked, _ in peers.ends().values():
        asked.handler(Number)(echo)
    client, server = together(
        lambda: [peers.client.request(Number(i)).value for i in range(100)],
        lambda: [peers.conn.request(Number(i)).value for i in range(100)],
    )
    assert client == server == list(range(100))


def test_the_callback_of_a_future_may_wait_for_a_reply(peers: Peers) -> None:
    """It runs on a thread that nothing else depends on."""
    added, seen = threading.Event(), Seen()

    @peers.server.handler(Number)
    def answer(ctx: Any, conn: Any) -> None:
        added.wait(PATIENCE)
        ctx.reply(ctx.message)

    def ask(future: Any) -> None:
        seen.add(peers.client.request(Number(2), timeout=PATIENCE).value)

    peers.client.request_async(Number(1)).add_done_callback(ask)
    added.set()
    assert seen.wait() == [2]


def test_a_request_among_too_many_messages_fails_in_time(open_end: Any) -> None:
    """When the reply cannot be read any more, and not before."""
    seen = Seen()
    end: End = open_end(queue_size=4)

    @end.registry.handler(Text, dispatch="pool")
    def ask(ctx: Any, conn: Any) -> None:
        if ctx.message.text != "ask":
            return
        try:
            conn.request(Number(1))
        except WouldDeadlock as error:
            seen.add(error.sent)

    end.send(text("ask"))
    agree(end)
    read_asked(end)
    wait_until(lambda: end.send(text("more")) or seen.items)
    assert seen.items == [True]
    end.registry.handler(Number)(lambda ctx, conn: seen.add("on"))
    end.send(Number_frame)
    assert seen.wait(2) == [True, "on"]


Number_frame = b"\2\0\0\0\x08\0\0\0" + bytes(8)


def test_what_comes_meanwhile_does_not_hold_up_the_reply(open_end: Any) -> None:
    """Twice as many messages as the inbox takes wait for the handler that asks."""
    seen = Seen()
    end: End = open_end(queue_size=4)
    end.registry.register(2, Number.deserialize)

    @end.registry.handler(Text, dispatch="pool")
    def ask(ctx: Any, conn: Any) -> None:
        seen.add(conn.request(Number(1)).value if ctx.message.text == "ask" else ctx.message.text)

    end.send(text("ask"))
    agree(end)
    asked = read_asked(end)
    for i in range(7):
        end.send(text(str(i)))
    end.send(reply_frame(asked.request_id, Number_frame))
    assert seen.wait(8) == [0, *"0123456"]


# -- a window, and a peer that does as it likes


def test_no_more_than_max_in_flight_are_sent() -> None:
    """The others wait in order; a reply lets the next one go."""
    with Peers(max_in_flight=1) as peers:
        held, most = Seen(), []

        @peers.server.handler(Number)
        def hold(ctx: Any, conn: Any) -> None:
            ctx.defer()
            most.append(len(core_of(conn).exchange.responder.asked))
            held.add(ctx)

        futures = [peers.client.request_async(Number(i)) for i in range(5)]
        for i in range(5):
            context = held.wait(i + 1)[i]
            context.reply(context.message)
            assert futures[i].result(PATIENCE).value == i
        assert most == [1] * 5


def test_what_waits_without_a_thread_is_bounded() -> None:
    """One more raises; a thread that waits for its reply may always wait."""
    with Peers(max_in_flight=1, queue_size=2) as peers:
        peers.server.handler(Number)(lambda ctx, conn: ctx.defer())
        futures = [peers.client.request_async(Number(0))]
        wait_until(lambda: core_of(peers.client).exchange.requests.in_flight)
        futures += [peers.client.request_async(Number(i)) for i in (1, 2)]
        with pytest.raises(WouldBlock, match="2 requests wait"):
            peers.client.request_async(Number(3))
        with pytest.raises(RequestTimeout):
            peers.client.request(Number(4), timeout=0.01)
        assert not any(future.done() for future in futures)


def test_replies_that_fit_nothing_are_counted(open_end: Any) -> None:
    """A second, a late and an unknown one; the connection and its requests go on."""
    end: End = open_end()
    end.registry.register(1, Text.deserialize)
    result = in_thread(lambda: end.conn.request(Text("hi")))
    agree(end)
    asked = read_asked(end)
    reply = reply_frame(asked.request_id, text("yes"))
    end.send(reply + reply + reply_frame(5, text("no")) + error_frame(6, "x", ""))
    assert result().text == "yes"
    result = in_thread(lambda: end.conn.request(Text("again")))
    end.send(reply_frame(read_asked(end).request_id, text("yes again")))
    assert result().text == "yes again"
    assert core_of(end.conn).exchange.requests.late_replies == 3


@pytest.mark.parametrize("number", range(-(2**31), -(2**31) + 4))
def test_garbage_in_an_envelope_ends_the_connection(open_end: Any, number: int) -> None:
    """As other bytes that cannot be decoded do; a request that waits fails."""
    end: End = open_end()
    result = in_thread(lambda: end.conn.request(Text("hi")))
    agree(end)
    read_asked(end)
    end.send(number.to_bytes(4, "little", signed=True) + b"\3\0\0\0abc")
    with pytest.raises(ConnectionLost, match="protocol error"):
        result()


def test_the_bound_is_that_of_the_message_inside() -> None:
    """What just fits plainly fits into an envelope, there and back."""
    codec = tao.TypeLengthValueCodec(max_bytes=100)
    with Peers(codec=codec, server={"codec": codec}) as peers:
        peers.server.handler(Text)(echo)
        assert peers.client.request(Text("x" * 100)).text == "x" * 100
        with pytest.raises(BadData, match="the limit is 100"):
            peers.client.request(Text("x" * 101))


def test_requests_and_writes_leave_in_order(open_end: Any) -> None:
    """Once it is known that the peer answers requests."""
    end: End = open_end()
    first = end.conn.request_async(Text("0"))
    agree(end)
    read_asked(end)
    futures = [first]
    for i in range(1, 4):
        futures.append(end.conn.request_async(Text(str(i))))
        end.conn.write(Text(str(i)))
    for i in range(1, 4):
        assert read_asked(end).value == str(i).encode()
        assert read_other(end) == (1, str(i).encode())
    assert all(future.cancel() for future in futures)
