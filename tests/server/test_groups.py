"""Groups of connections: who gets what is sent to them, and what becomes of them at an end."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import tao
from tao.server.connection import ServerConn
from tao.server.server import Server, server_core_of
from tao.wire.message import Registry
from tests.ends import MakeServer, Number, Seen, Text, number, text
from tests.hostile import Wicked
from tests.support import PATIENCE, recv_exactly, together, wait_until

Room = Callable[..., tuple[Server, list[socket.socket], list[ServerConn]]]


@pytest.fixture
def room(make_server: MakeServer) -> Iterator[Room]:
    """A function that starts a server with some connections: returns both ends of these."""
    socks: list[socket.socket] = []

    def open_room(count: int, **options: Any) -> tuple[Server, list[socket.socket], Any]:
        server, address = make_server(**options)
        for before in range(count):
            socks.append(socket.create_connection(address, PATIENCE))
            wait_until(lambda before=before: server.connection_count > before)
        return server, socks, server.connections

    yield open_room
    for sock in socks:
        sock.close()


def test_a_broadcast_to_a_group(room: Room) -> None:
    """It reaches the members except those excluded, and tells how many."""
    server, socks, conns = room(4)
    for conn in conns[:3]:
        conn.join("room:7")
    group = server.group("room:7")
    assert (group.name, group.connections, len(group), group.count()) == ("room:7", conns[:3], 3, 3)
    assert group.broadcast(Text("a"), exclude=[conns[0], conns[1].net_id]) == tao.Broadcast(1, [])
    conns[1].leave("room:7")
    assert group.broadcast(Text("b")) == tao.Broadcast(2, [])
    server.broadcast(Text("end"))
    expected = [text("b"), b"", text("a") + text("b"), b""]
    for sock, data in zip(socks, expected, strict=True):
        data += text("end")
        assert recv_exactly(sock, len(data)) == data


def test_names_of_any_class(room: Room) -> None:
    """They are plain ones from then on, whatever their class does."""
    server, _, (first, second) = room(2)
    for conn in (first, second):
        conn.join(Wicked("room"))
    assert first.groups == {"room"} and {type(name) for name in first.groups} == {str}
    group = server.group(Wicked("room"))
    assert (group.name, group.connections) == ("room", [first, second])
    assert group.broadcast(Text("a")) == tao.Broadcast(2, [])
    first.leave(Wicked("room"))
    first.identify(Wicked("it"))
    assert (first.identity, type(first.identity)) == ("it", str)
    assert server.find(Wicked("it")) is server.find("it") is first
    first.close(Wicked("over"))
    assert (first.close_reason, type(first.close_reason)) == ("over", str)
    assert first.wait_closed(PATIENCE) and not first.groups
    assert group.connections == [second]


@pytest.mark.parametrize("give", ["join", "identify", "close"])
def test_what_is_no_name_is_refused_whatever_its_class_does(room: Room, give: str) -> None:
    """And named as far as that is possible."""

    class Odd:
        __class__ = str  # type: ignore[assignment]

        def __repr__(self) -> str:
            raise SystemExit

    _, _, (conn,) = room(1)
    with pytest.raises(TypeError, match="must be a str, not <unprintable Odd: SystemExit>"):
        getattr(conn, give)(Odd())
    assert not conn.closed


def test_numbers_of_any_class_are_excluded(room: Room) -> None:
    """Comparing them cannot raise when a broadcast has reached some connections already."""

    class Odd(int):
        __hash__ = int.__hash__

        def __eq__(self, other: object) -> bool:
            raise RuntimeError("not to be compared")

    server, _, conns = room(3)
    assert server.broadcast(Text("a"), exclude=[Odd(conns[1].net_id)]) == tao.Broadcast(2, [])


def test_broadcasts_at_the_same_time(room: Room) -> None:
    """Threads that broadcast, and write to single connections, leave each with all in order."""
    server, socks, conns = room(40)
    threads, each = 4, 50

    def send(thread: int) -> Callable[[], None]:
        def run() -> None:
            for count in range(each):
                server.broadcast(Text(f"{thread} {count:04}"))
                for conn in conns[thread::threads]:
                    conn.write(Text(f"w {count:04}"))

        return run

    together(*map(send, range(threads)))
    size = len(text("0 0000"))
    for sock in socks:
        received = recv_exactly(sock, (threads + 1) * each * size)
        got = [received[at : at + size] for at in range(0, len(received), size)]
        for sender in (*range(threads), "w"):
            expected = [text(f"{sender} {count:04}") for count in range(each)]
            assert [one for one in got if one in expected] == expected
    sent = len(conns) * (threads + 1) * each
    wait_until(lambda: server.snapshot().messages_out == sent)


def test_a_broadcast_costs_its_members_only(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message is encoded once, and other connections are not even looked at."""
    server, _, conns = room(3)
    conns[0].join("a")
    conns[1].join("a")
    encoded = Seen()

    class Counted(Text):
        def serialize(self) -> bytes:
            encoded.add(self)
            return super().serialize()

    monkeypatch.setattr(server_core_of(server).acceptor, "connections", None)
    sent = server.group("a").broadcast(Counted("x"))
    monkeypatch.undo()
    assert (sent.queued, len(encoded.items)) == (2, 1)


def test_a_group_exists_as_long_as_it_has_members(room: Room) -> None:
    """An empty one is false, takes no memory, and a broadcast to it reaches nobody."""
    server, _, (conn,) = room(1)
    index = server_core_of(server).groups
    group = server.group("room")
    assert (bool(group), group.broadcast(Text("x")), len(index)) == (False, (0, []), 0)
    for _ in range(2):
        conn.join("room")
    assert (repr(group), len(index)) == ("<Group 'room': 1 connections>", 1)
    for _ in range(2):
        conn.leave("room")
    assert (conn.groups, len(group), len(index)) == (frozenset(), 0, 0)


def test_what_a_connection_has_joined(room: Room) -> None:
    """It is bounded, and joining again or leaving makes room."""
    _, _, (conn, other) = room(2, max_groups=2)
    conn.join("a")
    conn.join("b")
    conn.join("a")
    with pytest.raises(tao.TooManyGroups, match=r"in 2 groups \(max_groups\) already"):
        conn.join("c")
    conn.leave("a")
    conn.join("c")
    assert (conn.groups, other.groups) == ({"b", "c"}, frozenset())


def test_what_is_refused(room: Room) -> None:
    """What is no name is refused wherever one is given."""
    server, _, (conn,) = room(1)
    for use in (server.group, conn.join, conn.leave):
        with pytest.raises(TypeError, match="the name of a group must be a str"):
            use(7)
        with pytest.raises(ValueError, match="must not be empty"):
            use("")


def test_the_end_of_a_member(room: Room) -> None:
    """On close a connection gets nothing more; on_close still sees its groups, then they go."""
    seen = Seen()

    def left(conn: ServerConn) -> None:
        sent = server.group("a").broadcast(Text("gone"))
        seen.add((conn.groups, conn in server.group("a").connections, sent))

    server, socks, (conn, other) = room(2, on_close=left)
    conn.join("a")
    other.join("a")
    conn.close()
    with pytest.raises(tao.ConnectionClosed, match="closed by this side"):
        conn.join("b")
    socks[0].close()
    assert seen.wait() == [({"a"}, False, (1, []))]
    assert conn.wait_closed(PATIENCE)
    conn.leave("a")
    assert (conn.groups, server.group("a").connections) == (frozenset(), [other])


def test_joining_in_on_connect(room: Room) -> None:
    """A member is reached from the moment that it is open; one that is refused leaves nothing."""
    allowed = iter([True, False])

    def enter(conn: ServerConn) -> bool:
        conn.join("all")
        return next(allowed)

    server, (sock,), _ = room(1, on_connect=enter)
    server.group("all").broadcast(Text("welcome"))
    assert recv_exactly(sock, 15) == text("welcome")
    with socket.create_connection(server.address, PATIENCE) as refused:
        assert refused.recv(1) == b""
        refused.close()
        wait_until(lambda: server_core_of(server).groups.count("all") == 1)


def test_a_member_that_is_not_ready(make_server: MakeServer) -> None:
    """It gets nothing before its login is accepted, and what is sent from then on."""
    registry = Registry()

    @registry.handler(Number)
    def log_in(ctx: Any, conn: Any) -> None:
        conn.join("a")
        skipped = ctx.server.group("a").broadcast(Text("too early"))
        conn.ready()
        conn.write(Number(skipped.queued))
        ctx.server.group("a").broadcast(Text("now"))

    _, address = make_server(registry=registry, login=(Number,))
    with socket.create_connection(address, PATIENCE) as sock:
        sock.sendall(number(7))
        data = number(0) + text("now")
        assert recv_exactly(sock, len(data)) == data


def test_broadcasts_beside_ends(room: Room) -> None:
    """Members that close, abort, leave and join meanwhile harm neither a broadcast nor another."""
    server, socks, conns = room(12)
    stay, leave, close = conns[:4], conns[4:8], conns[8:]
    for conn in conns:
        conn.join("a")

    def say() -> int:
        return sum(server.group("a").broadcast(Text("x")).queued for _ in range(50))

    def wander() -> None:
        for _ in range(50):
            for conn in leave:
                conn.leave("a")
                conn.join("a")

    together(say, say, wander, *(each.abort for each in close))
    wait_until(lambda: server_core_of(server).groups.count("a") == 8)
    for sock in socks[: len(stay)]:
        assert recv_exactly(sock, 900) == text("x") * 100


def test_a_close_inside_a_broadcast(room: Room) -> None:
    """A member that the broadcast itself disconnects is reported, and the others get it."""
    server, socks, conns = room(3, slow_consumer="close", queue_size=1)
    for conn in conns:
        conn.join("a")
    conns[1].write(Text("x" * 8_000_000))  # its peer reads nothing
    sent = server.group("a").broadcast(Text("y"))
    assert sent.queued == 2 and [conn for conn, _ in sent.failed] == [conns[1]]
    for sock in (socks[0], socks[2]):
        assert recv_exactly(sock, 9) == text("y")
    wait_until(lambda: server_core_of(server).groups.count("a") == 2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork(room: Room) -> None:
    """In the child all groups are empty; in the parent nothing has changed."""
    server, _, (conn,) = room(1)
    conn.join("a")
    child = os.fork()
    if not child:
        try:
            conn.join("b")
        except tao.ConnectionClosed:
            os._exit(10 + len(server.group("a")) + len(conn.groups))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 10
    assert (len(server.group("a")), conn.groups) == (1, {"a"})
