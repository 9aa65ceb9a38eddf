"""What happens to a session at the same time, or in an unusual order."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from loguru import logger

import tao
from tao.connection.connection import core_of
from tao.session.frames import Hello
from tao.testing import Clock
from tests.ends import Number, Seen, Text, number
from tests.session_pairs import READERS, Both, open_session, wait_established
from tests.support import PATIENCE, wait_until

pytestmark = pytest.mark.usefixtures("patient")

OpenBoth = Callable[..., Both]
SIDES = pytest.mark.parametrize("side", ["client", "server"])


def raw_session(server: tao.Server, address: Any) -> tuple[socket.socket, Any, bytes]:
    """Begin a session as a client does; return the socket, and the session's id and secret."""
    sock, opening = open_session(address, Hello())
    welcome = opening.welcome
    assert welcome is not None
    wait_established(server)
    return sock, welcome.session_id, welcome.secret


def numbers() -> tuple[Seen, tao.Registry]:
    """Return the numbers that handlers of a registry are called with, and that."""
    seen, registry = Seen(), tao.Registry()
    registry.handler(Number)(lambda ctx, conn: seen.add(ctx.message.value))
    return seen, registry


# -- acknowledgements


@READERS
@SIDES
def test_what_is_handled_while_there_is_no_link_is_acknowledged(
    open_both: OpenBoth, readers: str, side: str
) -> None:
    """With the next link, or soon after that, although nothing else comes or goes."""
    both = open_both(readers=readers, heartbeat=None)
    begun, may_go_on = Seen(), threading.Event()
    sender = both.conn if side == "client" else both.client

    @(both.client if side == "client" else both.server).handler(Text, dispatch="pool")
    def slow(ctx: Any, conn: Any) -> None:
        begun.add(ctx.message.text)
        may_go_on.wait(PATIENCE)

    sender.write(Text("hello"))
    begun.wait()
    both.proxy.refuse()
    both.lose()
    wait_until(lambda: not both.conn.session.connected)  # type: ignore[union-attr]
    both.proxy.accept()
    wait_until(lambda: both.client.session.connected and both.conn.session.connected)  # type: ignore[union-attr]
    may_go_on.set()
    wait_until(lambda: sender.session.unacknowledged == 0)


@READERS
def test_replies_that_no_envelope_carries_are_acknowledged(
    open_both: OpenBoth, readers: str
) -> None:
    """A reply is no message for a handler, however it is found."""
    both = open_both(readers=readers, client={"correlation": tao.InOrder()})
    both.server.handler(Text)(lambda ctx, conn: conn.write(ctx.message))
    both.client.registry.register(1, Text.deserialize)
    for each in ("a", "b"):
        assert both.client.request(Text(each), timeout=PATIENCE).text == each
    wait_until(lambda: both.conn.session.unacknowledged == 0)  # type: ignore[union-attr]


# -- clocks of the connection


def test_a_message_that_was_cut_is_not_late(make_server: Any) -> None:
    """It comes again, whole, with the next link; until then nothing has begun."""
    with Clock() as clock:
        seen, registry = numbers()
        server, address = make_server(sessions=tao.Sessions(), frame_timeout=1.0, registry=registry)
        first, session_id, secret = raw_session(server, address)
        first.sendall(number(1)[:-1])
        conn = server.connections[0]
        wait_until(lambda: core_of(conn).reader.limits._begun is not None)
        first.close()
        wait_until(lambda: not conn.session.connected)
        clock.advance(5)
        second, _ = open_session(address, Hello(session_id, 1), secret)
        wait_until(lambda: conn.session.connected)
        clock.advance(1)
        second.sendall(number(1))
        assert seen.wait() == [1]
        second.close()


def test_a_peer_without_a_link_is_not_silent(make_server: Any) -> None:
    """Its time begins with the next link."""
    with Clock() as clock:
        seen, registry = numbers()
        server, address = make_server(sessions=tao.Sessions(), idle_timeout=10.0, registry=registry)
        first, session_id, secret = raw_session(server, address)
        conn = server.connections[0]
        first.close()
        wait_until(lambda: not conn.session.connected)
        clock.advance(9)
        second, _ = open_session(address, Hello(session_id, 1), secret)
        wait_until(lambda: conn.session.connected)
        clock.advance(2)
        second.sendall(number(1))
        assert seen.wait() == [1]
        second.close()


# -- two threads at once


class HeldUp:
    """Holds up the thread that logs a certain line."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.there, self.may_go_on = threading.Event(), threading.Event()
        self._sink = logger.add(lambda line: None, filter=self._look, level="DEBUG")
        logger.enable("tao")

    def _look(self, record: Any) -> bool:
        if self._text in record["message"]:
            self.there.set()
            self.may_go_on.wait(PATIENCE)
        return False

    def __enter__(self) -> HeldUp:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.may_go_on.set()
        logger.disable("tao")
        logger.remove(self._sink)


def test_a_client_that_is_back_before_its_loss_is_noted(make_server: Any) -> None:
    """Its session does not linger, so it is not among those of which there are too many."""
    seen, registry = numbers()
    sessions = tao.Sessions(maximum=1)
    server, address = make_server(sessions=sessions, registry=registry, max_connections=5)
    first, session_id, secret = raw_session(server, address)
    conn = server.connections[0]
    with HeldUp("its session can be resumed") as reader:
        first.close()
        assert reader.there.wait(PATIENCE)
        second, _ = open_session(address, Hello(session_id, 1), secret)
        wait_until(lambda: conn.session.connected)
    second.sendall(number(1))
    assert seen.wait() == [1]  # the thread that has noticed the loss has read it
    assert sessions.lingering == 0
    assert len(core_of(conn)._owner.acceptor.admission) == 1
    open_session(address, Hello())[0].close()
    wait_until(lambda: sessions.lingering == 1)
    second.close()
    wait_until(lambda: len(sessions) == 1)  # the first to linger ends for the second
    assert conn.close_reason is None


def test_a_session_that_ends_while_it_is_resumed(make_server: Any) -> None:
    """It does not go on, and the client's connection is closed."""
    events = Seen()
    server, address = make_server(
        sessions=tao.Sessions(), on_session_lost=lambda conn, lost: events.add(lost)
    )
    first, session_id, secret = raw_session(server, address)
    core = core_of(server.connections[0])
    stream = core.transport
    first.close()
    wait_until(lambda: not stream.connected)
    inside, may_go_on = threading.Event(), threading.Event()

    def take_the_turn() -> None:
        inside.set()
        may_go_on.wait(PATIENCE)

    sender = threading.Thread(target=core.send_queue.in_turn, args=(take_the_turn,), name="test")
    sender.start()
    assert inside.wait(PATIENCE)
    second, _ = open_session(address, Hello(session_id, 1), secret)
    wait_until(lambda: is_held(stream._switching))  # it has found that the session goes on
    stream.end("its time is up")
    may_go_on.set()
    assert second.recv(1) == b""
    assert events.wait() == [[]]
    sender.join()
    second.close()


def is_held(lock: Any) -> bool:
    """Whether another thread has a lock."""
    if not lock.acquire(False):
        return True
    lock.release()
    return False


@READERS
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_on_resume_that_is_interrupted(
    make_server: Any, readers: str, error: type[BaseException]
) -> None:
    """The session lingers then, as long as any other one; the client may come again."""
    errors = [error]

    def resume(conn: Any) -> None:
        if errors:
            raise errors.pop()

    sessions = tao.Sessions()
    server, address = make_server(sessions=sessions, readers=readers, on_resume=resume)
    first, session_id, secret = raw_session(server, address)
    conn = server.connections[0]
    with pytest.raises(OSError):
        open_session(address, Hello(session_id, 1), secret)
    wait_until(lambda: sessions.lingering == 1)
    third, _ = open_session(address, Hello(session_id, 2), secret)
    wait_until(lambda: conn.session.connected and sessions.lingering == 0)
    first.close()
    third.close()


def test_watching_what_is_read_at_once() -> None:
    """Of functions that threads add and remove at once, none is lost; the last stays last."""
    client = tao.ClientConn(("127.0.0.1", 1))
    reader = core_of(client).reader
    last = partial(list)
    reader.watch(last, last=True)
    for _ in range(200):
        together = threading.Barrier(3)
        mine = [partial(list) for _ in range(3)]

        def change(look: Any, together: Any = together) -> None:
            together.wait()
            reader.watch(look)

        threads = [threading.Thread(target=change, args=(each,)) for each in mine]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(reader._looks) == {*mine, last} and reader._looks[-1] is last
        for each in mine:
            reader.unwatch(each)
        assert reader._looks == (last,)
    client.close()
