"""What sessions keep is bounded, at both ends and all together; whoever waits for room gets it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import tao
from tao.connection.sessions import acknowledging
from tao.errors import WouldBlock
from tao.session.frames import END_FRAME, Hello, frames_in
from tao.testing import FaultProxy
from tao.wire.message import Registry
from tests.ends import Number, Seen, Text
from tests.session_pairs import READERS, Both, open_session, write_all
from tests.support import PATIENCE, wait_until

SIZE = 16  # of a `Number` on the wire


class Crowd:
    """A server with sessions, and clients that handle nothing until they may.

    Args:
        count: of the clients.
        sessions: what they share.
        both: options of the server and the clients.
    """

    def __init__(self, count: int, sessions: tao.Sessions, **both: Any) -> None:
        self.sessions = sessions
        registry = Registry()
        registry.register(1, Text.deserialize)
        registry.handler(Number)(lambda ctx, conn: conn.write(ctx.message))
        self.server = tao.Server(registry=registry, sessions=sessions, **both)
        self.proxy = FaultProxy(self.server.start(("127.0.0.1", 0)))
        self.may_handle = [threading.Event() for _ in range(count)]
        self.seen = [Seen() for _ in range(count)]
        self.clients = [self._client(index, both) for index in range(count)]

    def _client(self, index: int, both: Any) -> tao.ClientConn:
        registry, seen, may = Registry(), self.seen[index], self.may_handle[index]

        def handle(ctx: Any, conn: Any) -> None:
            may.wait(PATIENCE)
            seen.add(len(ctx.message.text) if isinstance(ctx.message, Text) else ctx.message.value)

        registry.handler(Text)(handle)
        registry.handler(Number)(handle)
        client = tao.ClientConn(
            self.proxy.address,
            registry=registry,
            session="required",
            reconnect=tao.Reconnect(initial=0.001, maximum=0.05),
            **both,
        )
        client.start()
        wait_until(lambda: len(self.server.connections) == index + 1)
        return client

    def kept(self, index: int) -> int:
        """How many bytes the server keeps for a client."""
        session = self.server.connections[index].session
        assert session is not None
        return session.unacknowledged

    def fill(self, index: int, size: int = 500) -> int:
        """Write to a client until there is no room; return how many messages were taken."""
        conn = self.server.connections[index]
        for count in range(100_000):
            try:
                conn.write(Text("x" * size))
            except WouldBlock:
                return count
        raise AssertionError("there is always room")

    def fill_to(self, index: int, kept: int) -> None:
        """Write to a client until so much is kept, as a short queue is full for moments only."""
        wait_until(lambda: self.fill(index) >= 0 and self.kept(index) >= kept)

    def let_all_handle(self) -> None:
        for each in self.may_handle:
            each.set()

    def close(self) -> None:
        self.let_all_handle()
        for each in self.clients:
            each.abort()
        self.server.stop()
        self.proxy.close()


@contextmanager
def crowd(count: int, sessions: tao.Sessions, **both: Any) -> Iterator[Crowd]:
    """A `Crowd` for the time of a ``with`` block."""
    it = Crowd(count, sessions, **both)
    try:
        yield it
    finally:
        it.close()


@pytest.fixture
def prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what was handled be acknowledged sooner, where a test waits for that many times."""
    monkeypatch.setattr(acknowledging, "_DELAY", 0.01)


# -- each session


@READERS
@pytest.mark.parametrize("side", ["client", "server"])
def test_so_many_messages_are_kept(prompt: None, readers: str, side: str) -> None:
    """Then writes to a full queue raise `WouldBlock`, until the peer has handled some of them."""
    retain, queue = 20, 4
    sessions = tao.Sessions(retain=retain if side == "server" else 10**6)
    options = {"retain": retain} if side == "client" else {}
    both = Both(readers=readers, queue_size=queue, server={"sessions": sessions}, client=options)
    may, seen = threading.Event(), Seen()
    receiver = both.server if side == "client" else both.client
    receiver.registry.unregister(2)

    @receiver.handler(Number, dispatch="pool")
    def handle(ctx: Any, conn: Any) -> None:
        may.wait(PATIENCE)
        seen.add(ctx.message.value)

    both.start()
    try:
        writer: Any = both.client if side == "client" else both.conn
        taken = 0
        with pytest.raises(WouldBlock):
            for taken in range(10_000):
                writer.write(Number(taken))
        assert retain <= taken <= retain + 2 * queue + 2
        assert writer.session.unacknowledged <= (retain + queue + 2) * SIZE
        may.set()
        for value in range(taken, taken + 200):
            writer.write(Number(value), timeout=PATIENCE)
        assert seen.wait(taken + 200) == list(range(taken + 200))
    finally:
        may.set()
        both.close()


@pytest.mark.parametrize("options", [{"retain": 1}, {"retain_bytes": 1}, {"retain": 3}])
def test_the_smallest_bounds_still_pass_everything(
    prompt: None, open_both: Callable[..., Both], options: dict[str, Any]
) -> None:
    """One message at a time then, over lost connections as well."""
    both = open_both(server={"sessions": tao.Sessions(**options)}, client=options, queue_size=4)
    writer = threading.Thread(target=write_all, args=(both.conn, 40), name="test-writer")
    writer.start()
    write_all(both.client, 20)
    both.proxy.reset()
    for value in range(20, 40):
        both.client.write(Number(value), timeout=PATIENCE)
    writer.join()
    assert both.at_server.wait(40) == both.at_client.wait(40) == list(range(40))


@READERS
@pytest.mark.parametrize("side", ["client", "server"])
def test_acknowledgements_behind_many_messages_are_read(
    prompt: None, readers: str, side: str
) -> None:
    """Handlers that wait for room to reply do not keep them from being read."""
    count, options = 3000, {"retain_bytes": 1000, "retain": 50}
    both = Both(
        readers=readers,
        server={"sessions": tao.Sessions(**options) if side == "server" else tao.Sessions()},
        client=options if side == "client" else {},
    )
    both.start()
    replies = Seen()
    answers, asks = (both.server, both.client) if side == "server" else (both.client, both.conn)
    answers.handler(Text)(lambda ctx, conn: conn.write(ctx.message))
    asking = both.client if side == "server" else both.server
    asking.registry.handler(Text)(lambda ctx, conn: replies.add(ctx.message.text))
    try:
        for value in range(count):
            asks.write(Text(str(value)), timeout=PATIENCE)
        assert replies.wait(count) == [str(value) for value in range(count)]
    finally:
        both.close()


@READERS
def test_a_peer_that_has_ended_gets_the_rest(make_server: Any, readers: str) -> None:
    """It acknowledges nothing any more, so nothing is kept back for want of room."""
    sessions = tao.Sessions(retain_bytes=1000)
    server, address = make_server(sessions=sessions, readers=readers, queue_size=100)
    sock, _ = open_session(address, Hello())
    wait_until(lambda: server.connections)
    conn = server.connections[0]
    with pytest.raises(WouldBlock):
        write_all(conn, 10_000, 0)
    assert conn.session.unacknowledged < 1000 + 100 * SIZE
    sock.sendall(END_FRAME)
    taken = b""
    while not taken.endswith(END_FRAME):
        taken += sock.recv(10_000)
    values = [value for kind, value in frames_in(taken) if kind == Number.message_number]
    assert values == [Number(value).serialize() for value in range(len(values))]
    assert len(values) >= 1000 // SIZE + 100
    sock.close()
    assert conn.wait_closed(PATIENCE)


# -- all sessions


@READERS
def test_an_acknowledgement_makes_room_for_another_session(readers: str) -> None:
    """One that waits goes on though its own peer has acknowledged nothing."""
    with crowd(2, tao.Sessions(total_bytes=40_000), readers=readers, queue_size=4) as both:
        first = both.fill(0)
        taken = both.kept(0)
        assert 20_000 <= taken < 26_000 and 20_000 <= both.sessions.retained_bytes <= taken
        both.fill(1)
        before = both.kept(1)
        assert 10_000 <= before < 16_000
        assert both.sessions.retained_bytes < 40_000
        both.may_handle[0].set()
        assert both.seen[0].wait(first) == [500] * first
        wait_until(lambda: both.kept(1) > before)
        both.fill_to(1, 20_000)
        assert not both.seen[1].items


@READERS
def test_a_session_that_ends_makes_room_for_another(readers: str) -> None:
    """What it kept is gone, and the shares of the others grow."""
    with crowd(2, tao.Sessions(total_bytes=40_000), readers=readers, queue_size=4) as both:
        both.fill(0)
        both.fill(1)
        before = both.kept(1)
        leaving = both.server.connections[0]
        leaving.abort()
        assert leaving.wait_closed(PATIENCE)
        wait_until(lambda: both.kept(0) > before)  # the other one is the first now
        both.fill_to(0, 20_000)
        assert len(both.sessions) == 1


@READERS
def test_clients_that_do_not_read_leave_room_for_the_others(readers: str) -> None:
    """They have filled what is for all; each other client still has its share."""
    with crowd(4, tao.Sessions(total_bytes=40_000), readers=readers) as all_of_them:
        for index in range(3):
            all_of_them.fill(index)
        assert all_of_them.sessions.retained_bytes > 20_000
        all_of_them.may_handle[3].set()
        write_all(all_of_them.clients[3], 2000)
        assert all_of_them.seen[3].wait(2000) == list(range(2000))
        assert not any(each.items for each in all_of_them.seen[:3])


@READERS
@pytest.mark.parametrize("total", [1, 3000])
def test_nobody_waits_for_ever(readers: str, total: int) -> None:
    """With little room for all, and connections that are lost, everything arrives."""
    count, each_writes = 5, 300
    with crowd(count, tao.Sessions(total_bytes=total), readers=readers) as all_of_them:
        all_of_them.let_all_handle()
        writers = [
            threading.Thread(target=write_all, args=(client, each_writes), name="test-writer")
            for client in all_of_them.clients
        ]
        for each in writers:
            each.start()
        for _ in range(3):
            reached = len(all_of_them.seen[0].items) + each_writes // 6
            all_of_them.seen[0].wait(min(reached, each_writes))
            all_of_them.proxy.reset()
        for each in writers:
            each.join()
        for seen in all_of_them.seen:
            assert seen.wait(each_writes) == list(range(each_writes))
        wait_until(lambda: not any(map(all_of_them.kept, range(count))))
        assert all_of_them.sessions.retained_bytes == 0
