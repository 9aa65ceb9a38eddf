"""Ends that agree on no session only as one of them is too slow: the client comes again."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import tao
from tao.client import resuming
from tao.server.sessions import resumption
from tests.ends import Number, Seen, Text
from tests.session_pairs import READERS
from tests.support import PATIENCE, wait_until


class Late:
    """A server with sessions, and a client whose first connections are slow to speak.

    Args:
        patch: the test's.
        slow: how many of its connections.
        server, client, both: their options.
    """

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        *,
        slow: int = 1,
        server: Any = None,
        client: Any = None,
        **both: Any,
    ) -> None:
        self.patch = patch
        patch.setattr(resuming, "_PATIENCE", PATIENCE)
        self.seen, self.greeted, self.events = Seen(), Seen(), Seen()
        registry = tao.Registry()
        registry.handler(Number)(lambda ctx, conn: self.seen.add(ctx.message.value))
        registry.handler(Text)(lambda ctx, conn: ctx.reply(ctx.message))
        options = {"registry": registry, "sessions": tao.Sessions(), **both, **(server or {})}
        self.server = tao.Server(**options)
        self.address = self.server.start(("127.0.0.1", 0))
        self.slow, self.dialled = slow, 0
        mine = tao.Registry()
        mine.handler(Text)(lambda ctx, conn: self.greeted.add(ctx.message.text))
        options = {
            "registry": mine,
            "session": True,
            "reconnect": tao.Reconnect(initial=0.001, maximum=0.01),
            "on_connect": lambda conn: self.events.add("connect"),
            "on_close": lambda conn: self.events.add("close"),
            "on_session_lost": lambda conn, lost: self.events.add(lost),
            **both,
            **(client or {}),
        }
        self.client = tao.ClientConn(self.dial, **options)

    def dial(self) -> socket.socket:
        """Connect; a slow one goes on when the server has taken it for one without a session."""
        before = {each.net_id for each in self.server.connections}
        slow = self.dialled < self.slow
        self.patch.setattr(resumption, "_PATIENCE", 0.02 if slow else PATIENCE)
        sock = socket.create_connection(self.address, PATIENCE)
        self.dialled += 1
        if slow:
            wait_until(lambda: {each.net_id for each in self.server.connections} - before)
        return sock

    def close(self) -> None:
        self.client.close()
        self.server.stop()


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Late]]:
    """A function that makes `Late`."""
    made: list[Late] = []

    def make(**options: Any) -> Late:
        made.append(Late(monkeypatch, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@READERS
@pytest.mark.parametrize("greets", [False, True])
def test_a_client_that_asks_too_late_comes_again(
    late: Callable[..., Late], readers: str, greets: bool
) -> None:
    """It gets a session then; what is written meanwhile is handled once, in order."""
    greet = {"on_connect": lambda conn: conn.write(Text("hello"))} if greets else {}
    both = late(readers=readers, server=greet)
    both.client.start()
    for value in range(300):
        both.client.write(Number(value), timeout=PATIENCE)
        if value == 150:
            wait_until(lambda: both.client.session is not None)
    assert both.seen.wait(300) == list(range(300))
    assert both.events.items == ["connect", "close", "connect"] and both.dialled == 2
    if greets:
        assert both.greeted.wait(2) == ["hello"] * 2


@READERS
def test_requests_are_answered_once_meanwhile(late: Callable[..., Late], readers: str) -> None:
    """Those that are under way before it comes again, and those that are made then."""
    both = late(readers=readers)
    both.client.registry.unregister(1)
    both.client.registry.register(1, Text.deserialize)
    both.client.start()
    replies = [both.client.request_async(Text(str(i)), timeout=PATIENCE) for i in range(50)]
    wait_until(lambda: both.client.session is not None)
    assert [each.result(PATIENCE).text for each in replies] == [str(i) for i in range(50)]


@READERS
def test_one_that_is_always_too_late_goes_on_without(
    late: Callable[..., Late], readers: str
) -> None:
    """After it has come again once."""
    both = late(readers=readers, slow=1000)
    both.client.start()
    assert both.events.wait(3) == ["connect", "close", "connect"]
    both.client.write(Number(1))
    assert both.seen.wait() == [1]
    assert both.client.session is None and both.dialled == 2
    both.slow = 0
    for each in both.server.connections:
        each.close()
    wait_until(lambda: both.client.session is not None)


@READERS
def test_one_that_requires_a_session_tries_until_it_is_in_time(
    late: Callable[..., Late], readers: str
) -> None:
    """It is never without; nothing that waits is sent before."""
    both = late(readers=readers, slow=3, client={"session": "required"})
    both.client.start(keep_trying=True)
    both.client.write(Number(1))
    assert both.seen.wait() == [1] and both.events.items == ["connect"]
    assert both.client.session is not None and both.dialled == 4


@READERS
def test_one_that_resumes_too_late_tries_again(late: Callable[..., Late], readers: str) -> None:
    """Its session waits for that; nothing is lost, and nothing comes twice."""
    both = late(readers=readers, slow=0)
    both.client.start()
    both.client.write(Number(1))
    both.seen.wait()
    both.slow = both.dialled + 2
    session: Any = both.client.session
    for each in both.server.connections:
        core: Any = each._core
        core.transport.outlives("the test says so")
    both.client.write(Number(2))
    assert both.seen.wait(2) == [1, 2]
    assert both.client.session is not None and both.client.session.id == session.id
    assert both.events.items == ["connect"] and both.dialled == 4


@READERS
def test_a_server_that_answers_too_late(
    late: Callable[..., Late], monkeypatch: pytest.MonkeyPatch, readers: str
) -> None:
    """The client has gone on without; when the answer comes, it comes again."""
    may_listen = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    both = late(readers=readers, slow=0)
    serving, both.address = both.address, listener.getsockname()
    monkeypatch.setattr(resuming, "_PATIENCE", 0.05)

    def relay() -> None:
        """Let the server see the connection only when it may."""
        near, _ = listener.accept()
        may_listen.wait(PATIENCE)
        with near, socket.create_connection(serving, PATIENCE) as far:
            there = threading.Thread(target=pump, args=(near, far), name="test-pump")
            there.start()
            pump(far, near)
            there.join()

    thread = threading.Thread(target=relay, name="test-relay")
    thread.start()
    both.client.start()
    assert both.client.session is None
    monkeypatch.setattr(resuming, "_PATIENCE", PATIENCE)
    both.address = serving
    may_listen.set()
    wait_until(lambda: both.client.session is not None)
    both.client.write(Number(1))
    assert both.seen.wait() == [1]
    assert both.events.items == ["connect", "close", "connect"]
    thread.join()
    listener.close()


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Pass bytes on until the end of a stream, and that."""
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        sink.close()
