"""Replies that no request waits for: late, second or unknown ones reach no handler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

import tao
from tao.connection.connection import core_of
from tao.connection.correlation import InOrder
from tao.errors import ConnectionLost, RequestTimeout
from tao.wire.codec import TypeLengthValueCodec
from tao.wire.envelope import REQUEST, error_frame, reply_frame
from tao.wire.message import HEARTBEAT
from tests.asking import answer_question, in_thread, known, read_other
from tests.connection.test_correlation import Lines, framed, part
from tests.ends import End, Number, Seen, Text, text
from tests.support import PATIENCE, wait_until

AT_ONCE = tao.Reconnect(initial=0.001, maximum=0.005)


class Kind(NamedTuple):
    """One way to tell which request a reply belongs to.

    Attributes:
        options: of the end that asks.
        read: reads what the end sends up to the next request, and returns the id of that.
        reply: returns the bytes of a reply with an id.
        unknown: an id that no request has.
        tells: whether an id of no request makes a message a reply all the same.
        server: whether a server may ask, too.
    """

    options: Callable[[], dict[str, Any]]
    read: Callable[[End], Any]
    reply: Callable[[Any], bytes]
    unknown: Any
    tells: bool = True
    server: bool = True


def read_envelope(end: End) -> int:
    """The id of the next request; answer the question for capabilities that may precede it."""
    while True:
        kind, value = read_other(end)
        if kind == REQUEST:
            return int.from_bytes(value[:8], "little")
        if kind == HEARTBEAT:
            answer_question(end, value)


def by_text(message: Any) -> str | None:
    """What a `Text` replies to, if it is a reply."""
    told: str = getattr(message, "text", "")
    return told[1:] if told.startswith("!") else None


def told_apart(header: Any, number: Any) -> bool:
    return bool(number == Text.message_number)


KINDS = {
    "envelope": Kind(dict, read_envelope, lambda key: reply_frame(key, text("re")), 5),
    "field": Kind(
        lambda: {"codec": framed()},
        lambda end: int.from_bytes(end.read(14)[:2], "big"),
        lambda key: part(1, b"re", key),
        9999,
        tells=False,
        server=False,
    ),
    "reply_when": Kind(
        lambda: {"codec": framed(reply_when=told_apart)},
        lambda end: int.from_bytes(end.read(14)[:2], "big"),
        lambda key: part(1, b"re", key),
        9999,
    ),
    "messages": Kind(
        lambda: {"correlation": tao.Correlate(request=lambda it: str(it.value), reply=by_text)},
        lambda end: str(Number.deserialize(end.read_frame()[1]).value),
        lambda key: text(f"!{key}"),
        "unknown",
    ),
}


class Line:
    """An end that asks, whose handler of `Text` notes what it gets.

    Args:
        where: a kind of `End`.
        kind: how it tells replies from other messages.
        options: further options of the end.
    """

    def __init__(self, where: str, kind: Kind, **options: Any) -> None:
        self.kind, self.seen = kind, Seen()
        registry = known()
        registry.handler(Text)(lambda ctx, conn: self.seen.add(ctx.message.text))
        self.end = End(where, registry=registry, heartbeat=None, **{**kind.options(), **options})
        self._count = 0

    def ask(self) -> tuple[Any, Any]:
        """Ask; return the future, and the id when the request has been read."""
        self._count += 1
        future = self.end.conn.request_async(Number(self._count), PATIENCE)
        return future, self.kind.read(self.end)

    def answer(self, *keys: Any) -> None:
        self.end.send(b"".join(map(self.kind.reply, keys)))

    def exchange(self) -> Any:
        """Ask and get the reply; return the id."""
        future, key = self.ask()
        self.answer(key)
        assert future.result(PATIENCE) is not None
        return key

    def check(self, late: int, seen: int = 0) -> None:
        """Check how many replies have come in vain, and reached the handler; and that all works."""
        self.exchange()
        wait_until(lambda: core_of(self.end.conn).exchange.late_replies == late)
        wait_until(lambda: len(self.seen.items) == seen)


@pytest.fixture(
    params=[
        (where, kind)
        for where in ("client", "client-shared", "server", "server-shared")
        for kind, told in KINDS.items()
        if told.server or where.startswith("client")
    ],
    ids="-".join,
)
def line(request: pytest.FixtureRequest) -> Iterator[Line]:
    """A `Line` of each kind, at each end that may ask so."""
    where, kind = request.param
    made = Line(where, KINDS[kind])
    yield made
    made.end.stop()


def test_a_second_reply(line: Line) -> None:
    """And a third, at once and later: none reaches a handler."""
    future, key = line.ask()
    line.answer(key, key)
    future.result(PATIENCE)
    line.answer(key)
    line.check(late=2)
    line.answer(key)
    line.check(late=3)


def test_a_reply_after_a_timeout(line: Line) -> None:
    """It is dropped, however many times it comes."""
    line.exchange()
    asked = in_thread(lambda: line.end.conn.request(Number(-1), 0.05))
    key = line.kind.read(line.end)
    with pytest.raises(RequestTimeout) as caught:
        asked()
    assert caught.value.sent
    line.answer(key)
    line.check(late=1)
    line.answer(key, key)
    line.check(late=3)


def test_a_reply_after_a_cancellation(line: Line) -> None:
    """Also while others are in flight."""
    given_up, key = line.ask()
    other, other_key = line.ask()
    assert given_up.cancel()
    line.answer(key, other_key)
    other.result(PATIENCE)
    line.check(late=1)


def test_a_reply_with_an_id_of_no_request(line: Line) -> None:
    """It is dropped, unless only the id could tell that it is a reply: then it is a message."""
    line.exchange()
    line.answer(line.kind.unknown)
    line.check(late=1 if line.kind.tells else 0, seen=0 if line.kind.tells else 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["client", "client-shared"])
def test_a_reply_to_a_request_of_an_earlier_connection(where: str, kind: str) -> None:
    """Answered there or not, it is dropped."""
    line = Line(where, KINDS[kind], reconnect=AT_ONCE)
    try:
        answered = line.exchange()
        lost, key = line.ask()
        line.end.peer.close()
        error = lost.exception(PATIENCE)
        assert isinstance(error, ConnectionLost) and error.sent
        assert line.end.listener is not None
        line.end.peer, _ = line.end.listener.accept()
        line.end.peer.settimeout(PATIENCE)
        line.exchange()
        line.answer(answered, key, key)
        line.check(late=3)
    finally:
        line.end.stop()


def test_second_refusals() -> None:
    """Of tao's own: a refusal after a reply, and a reply after a refusal."""
    line = Line("client", KINDS["envelope"])
    try:
        future, key = line.ask()
        refusal, reply = error_frame(key, "no", ""), line.kind.reply(key)
        line.end.send(refusal + reply + refusal)
        with pytest.raises(tao.RemoteError):
            future.result(PATIENCE)
        line.check(late=2)
    finally:
        line.end.stop()


def test_many_late_replies() -> None:
    """To a thousand requests that were given up at once."""
    line = Line("client", KINDS["field"])
    try:
        asked = [line.ask() for _ in range(1000)]
        assert all(future.cancel() for future, _ in asked)
        line.answer(*[key for _, key in asked])
        line.check(late=1000)
        line.answer(*[key for _, key in asked[-100:]])
        line.check(late=1100)
    finally:
        line.end.stop()


# -- ids that are used anew


def test_narrow_ids_that_are_used_anew() -> None:
    """Second replies are dropped while ids wrap around; answers to plain writes are messages."""
    codec = framed("u8")
    kind = Kind(
        lambda: {"codec": codec},
        lambda end: end.read(13)[0],
        lambda key: bytes((key, 0, 4, 0, 1)) + b"re",
        None,
    )
    line = Line("client", kind)
    try:
        keys = []
        for turn in range(1, 301):
            future, key = line.ask()
            line.answer(key, key)
            future.result(PATIENCE)
            line.end.conn.write(Text("say"))
            written = line.end.read(8)[0]
            line.answer(written, written)
            assert line.seen.wait(2 * turn) == ["re"] * 2 * turn
            keys += [key, written]
        assert set(keys) == set(range(256))
        assert core_of(line.end.conn).exchange.late_replies == 300
    finally:
        line.end.stop()


def test_given_up_narrow_ids_that_are_used_anew() -> None:
    """More are given up than may be kept back: late replies reach no handler all the same."""
    kind = Kind(
        lambda: {"codec": framed("u8")},
        lambda end: end.read(13)[0],
        lambda key: bytes((key, 0, 4, 0, 1)) + b"re",
        None,
    )
    line = Line("client", kind)
    try:
        asked = [line.ask() for _ in range(100)]
        assert all(future.cancel() for future, _ in asked)
        line.answer(*[key for _, key in asked])
        line.check(late=100)
        again = [line.exchange() for _ in range(300)]
        assert set(again) == set(range(256))
        assert core_of(line.end.conn).exchange.late_replies == 100
    finally:
        line.end.stop()


def test_only_the_number_of_the_reply_makes_a_second_one() -> None:
    """A message of another number with the same id is one that the peer sends unasked."""
    line = Line("client", KINDS["field"])
    try:
        numbers = Seen()
        line.end.registry.handler(Number)(lambda ctx, conn: numbers.add(ctx.message.value))
        key = line.exchange()
        line.end.send(part(2, bytes(8), key) + line.kind.reply(key))
        assert numbers.wait() == [0]
        line.check(late=1)
    finally:
        line.end.stop()


def test_a_write_with_a_header_has_an_id_of_its_own() -> None:
    """So what answers it completes no request, as for a write without one."""
    line = Line("client", KINDS["field"])
    try:
        asked = [line.ask() for _ in range(20)]
        for _ in range(20):
            line.end.conn.write(Number(0), header={"unit": 7})
            key = line.kind.read(line.end)
            line.answer(key)
        assert line.seen.wait(20) == ["re"] * 20
        line.answer(*[key for _, key in asked])
        assert all(future.result(PATIENCE).text == "re" for future, _ in asked)
    finally:
        line.end.stop()


# -- in order

IN_ORDER = Kind(
    lambda: {"codec": Lines(), "correlation": InOrder(lambda it: it.text == "push")},
    lambda end: end.read(10),
    lambda key: b"1re\n",
    None,
)


def test_a_second_reply_in_order() -> None:
    """With nothing in flight it is dropped; what is said to be no reply reaches its handler."""
    line = Line("client", IN_ORDER)
    try:
        future, _ = line.ask()
        line.end.send(b"1re\n1re\n1push\n1re\n")
        assert future.result(PATIENCE).text == "re"
        assert line.seen.wait() == ["push"]
        line.check(late=2, seen=1)
    finally:
        line.end.stop()


@pytest.mark.parametrize("readers", ["own", "shared"])
@pytest.mark.parametrize("kind", ["reply_when", "messages", "in order"])
def test_the_answer_to_a_login_that_is_written_plainly(kind: str, readers: Any) -> None:
    """Its handler gets it on each connection, whatever was asked on earlier ones."""
    it = IN_ORDER if kind == "in order" else KINDS[kind]
    registry, seen = known(), Seen()

    @registry.handler(Text)
    def log_in(ctx: Any, conn: Any) -> None:
        seen.add(ctx.message.text)
        conn.ready()

    end = End(
        "client" if readers == "own" else "client-shared",
        registry=registry,
        ready="manual",
        on_connect=lambda conn: conn.write(Number(7)),
        reconnect=AT_ONCE,
        heartbeat=None,
        **it.options(),
    )
    try:
        for turn in range(1, 4):
            end.send(it.reply(it.read(end)))
            seen.wait(turn)
            assert end.conn.wait_connected(PATIENCE)
            asked = in_thread(lambda: end.conn.request(Number(0)))
            it.read(end)
            end.peer.close()
            with pytest.raises(ConnectionLost):
                asked()
            assert end.listener is not None
            end.peer, _ = end.listener.accept()
            end.peer.settimeout(PATIENCE)
    finally:
        end.stop()


def test_a_client_that_never_asks_gets_all_messages() -> None:
    """What would be a reply is one only on a connection that makes requests."""
    codec = TypeLengthValueCodec()
    line = Line("client", KINDS["messages"])
    try:
        line.end.send(codec.encode(Text("!x")))
        assert line.seen.wait() == ["!x"]
    finally:
        line.end.stop()
