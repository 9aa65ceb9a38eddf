"""What an application gives to requests may raise anything, and return anything."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

import tao
from tao.errors import BadData, ConnectionLost, RemoteError, RequestTimeout, WouldBlock
from tao.testing import Clock
from tests.asking import Peers, echo, in_thread
from tests.ends import Number, Seen, Text
from tests.hostile import Touchy
from tests.support import PATIENCE

_RAISED = [ValueError, StopIteration, SystemExit, KeyboardInterrupt, GeneratorExit]


class Unprintable:
    """What cannot be formatted."""

    def __str__(self) -> str:
        raise ValueError("not to be printed")


@pytest.fixture(params=["own", "shared"])
def errors(request: pytest.FixtureRequest) -> Iterator[tuple[Peers, Seen]]:
    """Peers, and what the errors of both are added to."""
    seen = Seen()
    options: dict[str, Any] = {
        "readers": request.param,
        "on_error": lambda conn, error: seen.add(type(error)),
    }
    with Peers(server=options, **options) as peers:
        yield peers, seen


@pytest.mark.parametrize("kind", _RAISED)
def test_a_callback_that_raises_ends_nothing(
    errors: tuple[Peers, Seen], kind: type[BaseException], log_lines: list[Any]
) -> None:
    """It is logged and told of; the callbacks after it are called, and the connection goes on."""
    peers, seen = errors
    added, called = threading.Event(), Seen()

    @peers.server.handler(Text)
    def answer(ctx: Any, conn: Any) -> None:
        added.wait(PATIENCE)
        ctx.reply(ctx.message)

    def fail(_: Future[Any]) -> None:
        raise kind

    future = peers.client.request_async(Text("hi"))
    future.add_done_callback(fail)
    future.add_done_callback(called.add)
    added.set()
    assert called.wait() == [future]
    assert seen.wait() == [kind]
    assert peers.client.request(Text("ho"), timeout=PATIENCE).text == "ho"
    told = [each for each in log_lines if "callback of a request's future" in each["message"]]
    assert [each["level"].name for each in told] == ["ERROR"]


@pytest.mark.parametrize("kind", _RAISED)
def test_a_callback_that_raises_at_a_timeout(kind: type[BaseException]) -> None:
    """The same on the thread that keeps the time."""
    seen, called = Seen(), Seen()

    def fail(_: Future[Any]) -> None:
        raise kind

    with (
        Clock() as clock,
        Peers(
            heartbeat=None,
            server={"heartbeat": None},
            on_error=lambda conn, error: seen.add(type(error)),
        ) as peers,
    ):
        peers.server.handler(Number)(lambda ctx, conn: ctx.defer())
        future = peers.client.request_async(Number(1), timeout=1)
        future.add_done_callback(fail)
        future.add_done_callback(called.add)
        in_thread(lambda: clock.advance(1))()
        assert called.wait() == [future]
        assert isinstance(future.exception(), RequestTimeout)
        assert seen.wait() == [kind]


def test_a_callback_that_would_run_nothing_is_refused(errors: tuple[Peers, Seen]) -> None:
    """A coroutine function, say: it is refused where it is given."""
    peers, _ = errors
    peers.server.handler(Text)(echo)

    async def later(future: Future[Any]) -> None:
        """Never awaited."""

    future = peers.client.request_async(Text("hi"))
    with pytest.raises(TypeError, match="asynchronous"):
        future.add_done_callback(later)
    assert future.result(PATIENCE).text == "hi"


@pytest.mark.parametrize("where", ["code", "text"])
def test_a_refusal_that_cannot_be_printed(errors: tuple[Peers, Seen], where: str) -> None:
    """The peer is refused all the same, and does not wait in vain."""
    peers, _ = errors
    given: dict[str, Any] = {"code": "busy", where: Unprintable()}

    @peers.server.handler(Text)
    def refuse(ctx: Any, conn: Any) -> None:
        raise RemoteError(**given)

    with pytest.raises(RemoteError, match="<unprintable Unprintable: ValueError>"):
        peers.client.request(Text("hi"), timeout=PATIENCE)


def test_a_refusal_that_finds_no_room_is_reported() -> None:
    """The peer waits for an answer that does not come, so somebody has to be told."""
    seen = Seen()
    options: dict[str, Any] = {
        "reply_timeout": 0.01,
        "on_error": lambda conn, error: seen.add(type(error)),
    }
    stop = threading.Event()
    with Peers(server=options) as peers:

        @peers.client.handler(Text, dispatch="pool")
        def hold(ctx: Any, conn: Any) -> None:
            stop.wait(PATIENCE)

        @peers.server.handler(Number)
        def refuse(ctx: Any, conn: Any) -> None:
            try:
                while True:
                    conn.write(Text("x" * 100_000))
            except WouldBlock:
                raise RemoteError("busy") from None

        future = peers.client.request_async(Number(1))
        assert seen.wait() == [WouldBlock]
        future.cancel()
        stop.set()


def test_a_request_needs_an_id() -> None:
    """A function that returns none is told of at once, not when the time is over."""
    how = tao.Correlate(request=lambda text: None, reply=lambda text: text.text)
    with Peers(correlation=how) as peers, pytest.raises(ValueError, match="no id"):
        peers.client.request(Text("hi"), timeout=PATIENCE)


@pytest.mark.parametrize("end", ["client", "server"])
@pytest.mark.parametrize("readers", ["own", "shared"])
@pytest.mark.parametrize("kind", _RAISED)
def test_an_unsolicited_that_raises_ends_the_connection(
    kind: type[BaseException], readers: str, end: str
) -> None:
    """At once, and with the reason: which message is the next reply cannot be told any more."""
    seen = Seen()

    def fail(_: Any) -> bool:
        raise kind("the reason")

    def note(conn: Any, error: BaseException) -> None:
        seen.add((type(error), conn.close_reason))

    failing = tao.InOrder(unsolicited=fail)
    options: dict[str, Any] = {"readers": readers}
    server = {**options, **({"correlation": failing, "on_error": note} if end == "server" else {})}
    mine = {"correlation": failing, "on_error": note} if end == "client" else {}
    with Peers(server=server, **{"correlation": tao.InOrder(), **options, **mine}) as peers:
        peers.server.handler(Text)(echo)
        with pytest.raises(ConnectionLost) as caught:
            peers.client.request(Text("hi"), timeout=PATIENCE)
        assert caught.value.sent
        conn = peers.client if end == "client" else peers.conn
        assert conn.wait_closed(PATIENCE) and "error: " in str(conn.close_reason)
        assert [each for each, _ in seen.wait()] == [kind]


@pytest.mark.parametrize("kind", _RAISED)
def test_a_reply_function_that_raises_is_reported(
    errors: tuple[Peers, Seen], kind: type[BaseException]
) -> None:
    """Its message is taken for no reply, and the connection goes on."""
    raised, seen = [kind], Seen()

    def reply(message: Any) -> Any:
        if raised:
            raise raised.pop()
        return message.text

    how = tao.Correlate(request=lambda text: text.text, reply=reply)
    on_error = lambda conn, error: seen.add(type(error))  # noqa: E731
    with Peers(correlation=how, on_error=on_error) as peers:
        peers.server.handler(Text)(echo)
        future = peers.client.request_async(Text("a"))
        assert seen.wait() == [kind]
        assert peers.client.request(Text("b"), timeout=PATIENCE).text == "b"
        assert not future.done() and future.cancel()


@pytest.mark.parametrize("kind", _RAISED)
def test_a_reply_that_cannot_be_deserialized_fails_its_request(
    errors: tuple[Peers, Seen], kind: type[BaseException]
) -> None:
    """And nothing else."""
    peers, _ = errors

    class Failing(Text):
        @classmethod
        def deserialize(cls, data: bytes) -> Text:
            if data == b"fail":
                raise kind
            return Text(data.decode())

    peers.client.registry.unregister(Text.message_number)
    peers.client.registry.register(Text.message_number, Failing.deserialize)
    peers.server.handler(Text)(echo)
    with pytest.raises(BadData, match=f"could not be deserialized: {kind.__name__}"):
        peers.client.request(Text("fail"), timeout=PATIENCE)
    assert peers.client.request(Text("hi"), timeout=PATIENCE).text == "hi"


@pytest.fixture
def touchy() -> Iterator[tuple[Peers, list[Future[Any]]]]:
    """Peers, and two requests with ids that raise from now on when they are compared."""
    how = tao.Correlate(
        request=lambda number: Touchy(number.value), reply=lambda number: Touchy(number.value)
    )
    with Peers(correlation=how) as peers:
        peers.server.handler(Number)(
            lambda ctx, conn: ctx.defer() if ctx.message.value < 3 else ctx.reply(ctx.message)
        )
        futures = [peers.client.request_async(Number(value)) for value in range(1, 3)]
        Touchy.error = LookupError("not to be compared")
        try:
            yield peers, futures
        finally:
            Touchy.error = None


def test_ids_that_cannot_be_compared_do_not_keep_a_connection_open(
    touchy: tuple[Peers, list[Future[Any]]],
) -> None:
    """Their requests fail with it."""
    peers, futures = touchy
    peers.client.close()
    assert peers.client.wait_closed(PATIENCE)
    assert [type(future.exception(PATIENCE)) for future in futures] == [ConnectionLost] * 2


def test_ids_that_cannot_be_compared_do_not_keep_requests_in_flight(
    touchy: tuple[Peers, list[Future[Any]]],
) -> None:
    """Each can be cancelled, and others are made meanwhile."""
    peers, futures = touchy
    with pytest.raises(RequestTimeout):
        peers.client.request(Number(3), timeout=0.05)  # its reply is not recognised
    assert all(future.cancel() for future in futures)
    Touchy.error = None
    assert peers.client.snapshot().requests_in_flight == 0
    assert peers.client.request(Number(4), timeout=PATIENCE).value == 4


def test_an_id_may_be_of_a_class_with_its_own_equality() -> None:
    """Of a case-insensitive text, say; and an enumeration is like its value."""

    class Name(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            return isinstance(other, str) and self.lower() == other.lower()

        def __hash__(self) -> int:
            return hash(self.lower())

    how = tao.Correlate(
        request=lambda text: Name(text.text), reply=lambda text: Name(text.text.upper())
    )
    with Peers(correlation=how) as peers:
        peers.server.handler(Text)(echo)
        assert peers.client.request(Text("hi"), timeout=PATIENCE).text == "hi"


@pytest.mark.parametrize("name", ["save", "load"])
def test_functions_of_sessions_that_would_run_nothing(name: str) -> None:
    """They are refused when they are given, not at the first reload."""

    async def later(*args: Any) -> bytes:
        return b""

    given: dict[str, Any] = {"save": lambda conn: b"", "load": lambda conn, data: None}
    tao.Sessions(**given)
    with pytest.raises(TypeError, match="asynchronous"):
        tao.Sessions(**{**given, name: later})
    with pytest.raises(TypeError, match=f"{name} must be callable"):
        tao.Sessions(**{**given, name: 5})
