"""Requests over protocols other than tao's own: by fields of the frame, in order, by messages."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import tao
from tao import framing as f
from tao.connection.connection import core_of
from tao.connection.correlation import Ids, InOrder
from tao.errors import BadData, ConnectionLost, RequestsNotSupported, RequestTimeout
from tests.asking import echo, in_thread, known
from tests.ends import End, MakeServer, Number, Seen, Text
from tests.support import PATIENCE, together, wait_until

OpenEnd = Callable[..., End]


def framed(width: str = "u16", kind: type[f.Frame] = f.Frame, **options: Any) -> f.Frame:
    """A protocol with ids and a unit that a reply repeats."""
    return kind(
        f.Field("id", width, correlate=True),
        f.Length("u16", covers="unit..body"),
        f.Field("unit", "u8", default=0, echo=True),
        f.Field("kind", "u8", number=True),
        f.Body(),
        max_bytes=200,
        **options,
    )


def part(number: int, body: bytes, request: int, unit: int = 0) -> bytes:
    """A frame of `framed`, made independently."""
    return (
        request.to_bytes(2, "big")
        + (len(body) + 2).to_bytes(2, "big")
        + bytes((unit, number))
        + body
    )


@pytest.fixture
def pair(make_server: MakeServer) -> Iterator[Callable[..., tuple[Any, Any]]]:
    """A function that makes a server and a client of one codec, with options of both."""
    clients = []

    def make(**options: Any) -> tuple[Any, Any]:
        server, address = make_server(registry=known(), **options)
        clients.append(tao.connect(address, registry=known(), **options))
        return server, clients[-1]

    yield make
    for client in clients:
        client.close()


# -- requests that wait


class OwnFrame(f.Frame):
    """A codec of an application, whose messages are its own."""

    def encode(self, message: Any, header: Any = None) -> bytes:
        assert isinstance(message, Text)
        return super().encode(message, header)


def by_text(message: Any) -> Any:
    return message.text


CORRELATED: dict[str, Callable[[], dict[str, Any]]] = {
    "an envelope": dict,
    "a field": lambda: {"codec": framed()},
    "a field of an own codec": lambda: {"codec": framed(kind=OwnFrame)},
    "the order": lambda: {"codec": Lines(), "correlation": InOrder()},
    "the messages": lambda: {"correlation": tao.Correlate(request=by_text, reply=by_text)},
}


@pytest.mark.parametrize("how", CORRELATED)
def test_a_request_is_what_it_was_when_it_was_made(pair: Any, how: str) -> None:
    """Its message, or header, may be changed while it waits for others, or for a connection."""
    may_reply = threading.Event()
    server, client = pair(max_in_flight=1, **CORRELATED[how]())

    @server.handler(Text)
    def reply(ctx: Any, conn: Any) -> None:
        may_reply.wait(PATIENCE)
        ctx.reply(ctx.message)

    message, futures = Text("0"), []
    for value in ("0", "1", "2"):
        message.text = value
        futures.append(client.request_async(message))
    message.text = "changed"
    may_reply.set()
    assert [future.result(PATIENCE).text for future in futures] == ["0", "1", "2"]


def test_a_header_is_what_it_was_when_the_request_was_made(pair: Any) -> None:
    """It may be changed while the request waits."""
    units, may_reply = Seen(), threading.Event()
    server, client = pair(codec=framed(), max_in_flight=1)

    @server.handler(Text)
    def reply(ctx: Any, conn: Any) -> None:
        may_reply.wait(PATIENCE)
        units.add(ctx.header.unit)
        ctx.reply(ctx.message)

    header = {"unit": 1}
    futures = [client.request_async(Text("x"), header=header) for _ in range(2)]
    header["unit"] = 9
    may_reply.set()
    assert [future.result(PATIENCE).text for future in futures] == ["x", "x"]
    assert units.items == [1, 1]


@pytest.mark.parametrize("how", CORRELATED)
def test_what_cannot_be_encoded_is_raised_by_the_call(pair: Any, how: str) -> None:
    """Also if the request would have to wait."""

    class Broken(Text):
        def serialize(self) -> bytes:
            raise ZeroDivisionError

    server, client = pair(max_in_flight=1, **CORRELATED[how]())
    server.handler(Text)(lambda ctx, conn: ctx.defer() and None)
    client.request_async(Text("x"))
    for ask in (client.request, client.request_async):
        with pytest.raises(ZeroDivisionError):
            ask(Broken("y"))


# -- fields


def test_a_field_tells_which_reply_it_is(pair: Any) -> None:
    """Many threads ask, also more of them than there are ids; a field may be echoed."""
    server, client = pair(codec=framed("u8"))
    server.handler(Number)(echo)
    units = Seen()
    server.handler(Text)(lambda ctx, conn: units.add(ctx.header.unit) or ctx.reply(ctx.message))

    def ask(first: int) -> list[int]:
        return [client.request(Number(first + i)).value for i in range(30)]

    assert together(*[lambda i=i: ask(i) for i in range(20)]) == [
        list(range(i, i + 30)) for i in range(20)
    ]
    assert client.request(Text("x"), header={"unit": 7}).text == "x"
    assert units.items == [7]


def test_a_reply_that_nobody_waits_for_is_dropped() -> None:
    """Late ones too, while their id is remembered; other messages reach their handlers."""
    end = End("client", codec=framed(), registry=known())
    try:
        seen = Seen()
        end.registry.handler(Text)(lambda ctx, conn: seen.add(ctx.message.text))
        with pytest.raises(RequestTimeout) as caught:
            end.conn.request(Text("hi"), timeout=0.01)
        assert caught.value.sent
        request = int.from_bytes(end.read(8)[:2], "big")
        end.send(part(1, b"late", request) + part(1, b"pushed", 9999))
        assert seen.wait() == ["pushed"]
        assert core_of(end.conn).exchange.requests.late_replies == 1
    finally:
        end.stop()


def test_a_plain_write_has_an_id_of_its_own() -> None:
    """So what answers it completes no request."""
    end = End("client", codec=framed("u8"), registry=known())
    try:
        futures = [end.conn.request_async(Text("ask")) for _ in range(100)]
        asked = [end.read(8)[0] for _ in futures]
        for _ in range(400):
            end.conn.write(Text("say"))
            assert end.read(8)[0] not in asked
        assert len(set(asked)) == 100 and all(future.cancel() for future in futures)
    finally:
        end.stop()


def test_ids_wrap_around_and_skip() -> None:
    """Those in flight and those given up lately; 0 is one, too."""
    ids = Ids(7)
    assert [ids.take() for _ in range(9)] == [0, 1, 2, 3, 4, 5, 6, 7, 0]
    ids.pending = {2: None, 4: None}  # type: ignore[dict-item]
    ids.give_up(1)
    assert [ids.take() for _ in range(6)] == [3, 5, 6, 7, 0, 3]
    ids.give_up(0)
    ids.give_up(7)  # of which two are remembered
    assert sorted({ids.take() for _ in range(20)}) == [1, 3, 5, 6]


def test_a_reply_of_an_unknown_number_names_it() -> None:
    """The connection goes on."""
    end = End("client", codec=framed())
    try:
        result = in_thread(lambda: end.conn.request(Text("hi")))
        request = int.from_bytes(end.read(8)[:2], "big")
        end.send(part(9, b"", request))
        with pytest.raises(BadData, match="number 9 is not registered"):
            result()
        assert not end.conn.closed
    finally:
        end.stop()


def test_a_server_asks_only_if_replies_can_be_told(pair: Any) -> None:
    """Both ends number on their own, so an id in flight may be that of a request of the peer."""
    established = Seen()
    _server, client = pair(codec=framed(), on_connect=established.add)
    conn = next(each for each in established.wait(2) if each is not client)
    with pytest.raises(RequestsNotSupported, match="reply_when"):
        conn.request(Text("hi"))


def test_a_codec_may_tell_replies_from_requests(pair: Any) -> None:
    """Then both ends ask, at once, with the same ids."""

    def asked(ctx: Any, conn: Any) -> None:
        ctx.reply(Text(str(ctx.message.value)))

    established = Seen()
    codec = framed(reply_when=lambda header, number: number == 1)
    server, client = pair(codec=codec, on_connect=established.add)
    conn = next(each for each in established.wait(2) if each is not client)
    server.handler(Number)(asked)
    client.handler(Number)(asked)
    results = together(
        *[lambda each=each: [each.request(Number(i)).text for i in range(50)]
          for each in (client, conn)]
    )  # fmt: skip
    assert results == [[str(i) for i in range(50)]] * 2


# -- in order


class Lines(tao.Codec):
    """A message a line: a number of one digit, and text."""

    def encode(self, message: Any) -> bytes:
        return b"%d%s\n" % (message.message_number, message.serialize())

    def decoder(self, registry: Any) -> Any:
        return _LineDecoder(registry)


class _LineDecoder(f.FrameDecoder):
    def frame(self, data: memoryview, start: int) -> Any:
        end = self.find(data, start, b"\n")
        return None if end < 0 else (end + 1, data[start] - 48, bytes(data[start + 1 : end]))


def is_push(message: Any) -> bool:
    return isinstance(message, Text) and message.text.startswith(">")


def test_replies_in_the_order_of_the_requests() -> None:
    """A message that is no reply goes by."""
    end = End("client", codec=Lines(), registry=known(), correlation=InOrder(is_push))
    try:
        pushed = Seen()
        end.registry.handler(Text)(lambda ctx, conn: pushed.add(ctx.message.text))
        futures = [end.conn.request_async(Text(str(i))) for i in range(3)]
        assert end.read(9) == b"10\n11\n12\n"
        end.send(b"1a\n1>news\n1b\n1c\n")
        assert [future.result(PATIENCE).text for future in futures] == ["a", "b", "c"]
        assert pushed.wait() == [">news"]
    finally:
        end.stop()


def test_a_timeout_ends_a_connection_in_order() -> None:
    """As what comes next could not be told apart; the others fail with it."""
    end = End("client", codec=Lines(), registry=known(), correlation=InOrder())
    try:
        other = end.conn.request_async(Text("b"))
        with pytest.raises(RequestTimeout):
            end.conn.request(Text("a"), timeout=0.01)
        error = other.exception(PATIENCE)
        assert isinstance(error, ConnectionLost) and error.sent
        assert "could not be told apart" in str(end.conn.close_reason)
    finally:
        end.stop()


def test_a_request_in_order_that_was_not_sent_ends_nothing() -> None:
    """It is withdrawn while it waits for the one before."""
    end = End("client", codec=Lines(), registry=known(), correlation=InOrder(), max_in_flight=1)
    try:
        first = end.conn.request_async(Text("a"))
        with pytest.raises(RequestTimeout) as caught:
            end.conn.request(Text("b"), timeout=0.01)
        assert not caught.value.sent
        end.send(b"1A\n")
        assert first.result(PATIENCE).text == "A"
        third = end.conn.request_async(Text("c"))
        assert end.read(6) == b"1a\n1c\n"
        end.send(b"1C\n")
        assert third.result(PATIENCE).text == "C"
    finally:
        end.stop()


def test_a_server_in_order_releases_replies_in_order() -> None:
    """Whichever is ready first; what is not answered holds up nobody."""
    end = End("server", codec=Lines(), registry=known(), correlation=InOrder())
    try:
        deferred = Seen()

        @end.registry.handler(Text)
        def handle(ctx: Any, conn: Any) -> None:
            if ctx.message.text != "skip":
                ctx.defer()
                deferred.add(ctx)

        end.send(b"1a\n1skip\n1b\n1c\n")
        contexts = deferred.wait(3)
        for context in (contexts[2], contexts[1], contexts[0]):
            context.reply(context.message)
        assert end.read(9) == b"1a\n1b\n1c\n"
    finally:
        end.stop()


@pytest.mark.parametrize("error", [ValueError, tao.RemoteError("bad")])
def test_a_server_in_order_closes_when_a_reply_would_be_missing(error: Any) -> None:
    """Earlier replies are sent; later ones would be taken for that of the handler that raised."""
    end = End("server", codec=Lines(), registry=known(), correlation=InOrder())
    try:
        deferred = Seen()

        @end.registry.handler(Text)
        def handle(ctx: Any, conn: Any) -> None:
            if ctx.message.text == "bad":
                raise error
            if ctx.message.text == "late":
                ctx.defer()
                deferred.add(ctx)
            else:
                ctx.reply(ctx.message)

        end.send(b"1late\n1bad\n1good\n")
        (context,) = deferred.wait()
        end.send(b"1more\n")
        wait_until(lambda: end.conn._core.counts().handled == 4)
        context.reply(context.message)
        assert end.read(100) == b"1late\n"
        assert "cannot tell which one is missing" in str(end.conn.close_reason)
    finally:
        end.stop()


# -- by messages


class Order:
    """A message that has its own id, as in FIX or HL7."""

    message_number = 5

    def __init__(self, order: str, answers: str | None = None) -> None:
        self.order, self.answers = order, answers

    def serialize(self) -> bytes:
        return json.dumps([self.order, self.answers]).encode()

    @classmethod
    def deserialize(cls, data: bytes) -> Order:
        return cls(*json.loads(data))


def test_messages_may_tell_themselves() -> None:
    """A message that answers none in flight is a message like any other."""
    how = tao.Correlate(request=lambda order: order.order, reply=lambda order: order.answers)
    end = End("client", correlation=how)
    try:
        seen = Seen()
        end.registry.handler(Order)(lambda ctx, conn: seen.add(ctx.message.order))
        futures = {key: end.conn.request_async(Order(key)) for key in "ab"}
        with pytest.raises(ValueError, match="'a' is in flight"):
            end.conn.request(Order("a"))
        for order in (Order("x"), Order("y", "b"), Order("z", "a")):
            end.send(tao.TypeLengthValueCodec().encode(order))
        assert [futures[key].result(PATIENCE).order for key in "ab"] == ["z", "y"]
        assert seen.wait() == ["x"]
    finally:
        end.stop()


def test_a_codec_without_correlation_says_what_is_missing(open_end: OpenEnd) -> None:
    """At the first request."""
    end = open_end(codec=Lines())
    with pytest.raises(RequestsNotSupported, match="correlate=True"):
        end.conn.request(Text("hi"))


def test_a_function_that_raises_is_reported() -> None:
    """The message is taken for no reply."""
    errors = Seen()
    how = tao.Correlate(request=lambda text: text.text, reply=lambda text: 1 // 0)
    end = End(
        "client",
        registry=known(),
        correlation=how,
        on_error=lambda conn, error: errors.add(type(error)),
    )
    try:
        future = end.conn.request_async(Text("hi"))
        wait_until(lambda: core_of(end.conn).exchange.requests.in_flight)
        end.send(tao.TypeLengthValueCodec().encode(Text("re")))
        assert errors.wait() == [ZeroDivisionError]
        assert future.cancel()
    finally:
        end.stop()
