"""Links of sessions that fail in unusual ways, or at an unusual time: the session goes on."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

import tao
from tao.client import resuming
from tao.connection.connection import core_of
from tao.connection.sessions.stream import SessionStream
from tao.errors import ConnectionClosed
from tao.server.sessions import resumption
from tao.session.frames import END_FRAME, Hello, ack_frame, frames_in
from tao.testing.fault_proxy import Faults
from tao.transport.stream import Transport
from tests.ends import Number, Seen, Text, number
from tests.injection import Interruption
from tests.session_pairs import (
    READERS,
    Both,
    begin_session,
    finish_opening,
    open_session,
    wait_established,
)
from tests.support import PATIENCE, recv_exactly, wait_until

OpenBoth = Callable[..., Both]


def noting(seen: Seen) -> tao.Registry:
    """Return a registry whose handler notes each number."""
    registry = tao.Registry()
    registry.handler(Number)(lambda ctx, conn: seen.add(ctx.message.value))
    return registry


# -- errors of receiving


def fail_once(monkeypatch: pytest.MonkeyPatch, link: Transport, error: Exception) -> None:
    """Have the next receive by a link raise an error."""
    errors = [error]

    def patch(name: str) -> None:
        found: Any = getattr(Transport, name)

        def fail(*args: int) -> bytes:
            raise errors.pop()

        def get(transport: Transport) -> Any:
            return fail if transport is link and errors else found.fget(transport)

        monkeypatch.setattr(Transport, name, property(get))

    patch("recv")
    patch("receive_now")


@READERS
@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("error", [MemoryError("no room"), ValueError("a bug")])
def test_an_error_that_nobody_expects_costs_the_link_only(
    open_both: OpenBoth,
    monkeypatch: pytest.MonkeyPatch,
    readers: str,
    side: str,
    error: Exception,
) -> None:
    """It is reported, and the session is resumed; nothing is lost."""
    errors = Seen()
    both = open_both(readers=readers, **{side: {"on_error": lambda conn, error: errors.add(error)}})
    receiver, sender = (both.client, both.conn) if side == "client" else (both.conn, both.client)
    seen = both.at_client if side == "client" else both.at_server
    transport: Any = core_of(receiver).transport
    fail_once(monkeypatch, transport._link, error)
    sender.write(Number(1))  # a thread that waits for it already still gets it
    wait_until(lambda: receiver.session.resumes and receiver.session.connected)  # type: ignore[union-attr]
    sender.write(Number(2))
    assert seen.wait(2) == [1, 2] and errors.wait() == [error]
    assert both.client.close_reason is None and both.conn.close_reason is None


@READERS
def test_an_attempt_that_fails_unexpectedly_is_not_the_last(
    open_both: OpenBoth, monkeypatch: pytest.MonkeyPatch, readers: str
) -> None:
    """It is reported, and the client tries again."""
    errors, told = [MemoryError("no room")], Seen()
    both = open_both(readers=readers, client={"on_error": lambda conn, error: told.add(error)})
    core, dial = core_of(both.client), type(core_of(both.client)).dial

    def fail(mine: Any) -> Transport:
        if mine is core and errors:
            raise errors.pop()
        transport: Transport = dial(mine)
        return transport

    monkeypatch.setattr(type(core), "dial", fail)
    both.cut()
    both.client.write(Number(1))
    assert both.at_server.wait() == [1] and type(told.wait()[0]) is MemoryError
    assert both.client_events.wait(2) == ["connect", "resume"]


# -- attempts that are overtaken


@READERS
def test_an_attempt_that_is_overtaken_changes_nothing(
    make_server: Any, monkeypatch: pytest.MonkeyPatch, readers: str
) -> None:
    """However late it goes on: it takes no link away, ends no session, and calls no callback."""
    monkeypatch.setattr(resumption, "_PATIENCE", PATIENCE)
    events, seen = Seen(), Seen()
    server, address = make_server(
        sessions=tao.Sessions(),
        readers=readers,
        registry=noting(seen),
        on_resume=lambda conn: events.add("resume"),
        on_close=lambda conn: events.add("close"),
    )
    first, opening = open_session(address, Hello())
    welcome = opening.welcome
    assert welcome is not None
    wait_established(server)
    conn, there, may_go_on = server.connections[0], threading.Event(), threading.Event()
    let_go = SessionStream.let_go

    def hold_up(stream: Any, attempt: int | None = None) -> int:
        if attempt == 1:
            there.set()
            may_go_on.wait(PATIENCE)
        return let_go(stream, attempt)

    monkeypatch.setattr(SessionStream, "let_go", hold_up)
    slow, early = begin_session(address, Hello(welcome.session_id, 1), welcome.secret)
    slow.sendall(early.output)
    assert there.wait(PATIENCE)
    second, opening = open_session(address, Hello(welcome.session_id, 2), welcome.secret)
    conn.write(Number(1))
    assert recv_exactly(second, 16 + 16)[16:] == number(1)  # behind an acknowledgement
    second.sendall(ack_frame(16))
    wait_until(lambda: conn.session.unacknowledged == 0)
    early.output = b""
    may_go_on.set()
    finish_opening(slow, early)
    assert "faster" in early.refusal
    second.sendall(number(2))
    assert seen.wait() == [2] and events.items == ["resume"]
    for each in (first, slow, second):
        each.close()


# -- links that are lost once the peer has ended the session


def ended_by_peer(server: tao.Server, address: Any) -> tuple[tao.ServerConn, Any]:
    """Return a connection whose peer has ended its half, got a message, and lost the link.

    Returns:
        it, and what the server has told of the session.
    """
    first, opening = open_session(address, Hello())
    wait_established(server)
    conn = server.connections[0]
    first.sendall(END_FRAME)
    wait_until(lambda: conn.peer_finished)
    conn.write(Number(1))
    assert recv_exactly(first, 16) == number(1)
    first.close()
    return conn, opening.welcome


@READERS
def test_a_side_that_still_sends_is_resumed(make_server: Any, readers: str) -> None:
    """With ``half_close`` it may go on, over the next link as well, until it closes itself."""
    server, address = make_server(
        sessions=tao.Sessions(), readers=readers, half_close=True, registry=tao.Registry()
    )
    conn, welcome = ended_by_peer(server, address)
    for attempt in (1, 2):
        hello = Hello(welcome.session_id, attempt, 16 * attempt, 8)
        sock, opening = open_session(address, hello, welcome.secret)
        assert not opening.refusal
        wait_until(lambda attempt=attempt: conn.session.resumes == attempt)
        conn.write(Number(1 + attempt))
        data = recv_exactly(sock, 32)
        assert data[16:] == number(1 + attempt)  # behind an acknowledgement
        if attempt == 1:
            sock.close()
    conn.write(Number(4))
    closer = threading.Thread(target=conn.close, name="test-closer")
    closer.start()
    rest = b""
    while not rest.endswith(END_FRAME):
        rest += sock.recv(1000)
    assert rest.startswith(number(4))
    sock.close()
    closer.join()
    assert conn.wait_closed(PATIENCE)


@READERS
def test_a_side_that_still_sends_is_lost_in_time(make_server: Any, readers: str) -> None:
    """If its peer does not come back for what it has sent."""
    events = Seen()
    server, address = make_server(
        sessions=tao.Sessions(linger=0.1),
        readers=readers,
        half_close=True,
        on_session_lost=lambda conn, lost: events.add(len(lost)),
        on_close=lambda conn: events.add("close"),
    )
    ended_by_peer(server, address)
    assert events.wait(2) == [1, "close"]


@READERS
@pytest.mark.parametrize("end", ["abort", "close"])
def test_a_side_that_still_sends_may_end(make_server: Any, readers: str, end: str) -> None:
    """At once, though its peer does not hang up."""
    server, address = make_server(
        sessions=tao.Sessions(), readers=readers, half_close=True, drain_timeout=0.2
    )
    first, _ = open_session(address, Hello())
    wait_established(server)
    conn = server.connections[0]
    first.sendall(END_FRAME)
    wait_until(lambda: conn.peer_finished)
    getattr(conn, end)()
    assert conn.wait_closed(PATIENCE)
    first.close()


@READERS
def test_a_client_that_is_closed_notices_a_link_that_breaks_after_the_end(
    open_both: OpenBoth, readers: str
) -> None:
    """It hands over what is left at once, not when ``drain_timeout`` is over."""
    both = open_both(
        readers=readers,
        server={"drain_timeout": 600.0},
        client={"drain_timeout": 600.0, "queue_size": 1000},
    )
    conn, stream = both.conn, core_of(both.client).transport
    both.server.registry.unregister(2)
    both.proxy.to_server.stall = True
    with pytest.raises(tao.WouldBlock):
        for _ in range(100_000):
            both.client.write(Text("x" * 100_000))
    closers = [
        threading.Thread(target=each.close, name="test-closer") for each in (both.client, conn)
    ]
    closers[0].start()
    wait_until(lambda: both.client.close_reason)
    closers[1].start()
    wait_until(lambda: stream.session.incoming.ended)  # type: ignore[union-attr]
    both.proxy.plan = lambda index: (Faults(), Faults())
    both.proxy.reset()
    assert both.client.wait_closed(PATIENCE)
    for each in closers:
        each.join()


@READERS
def test_the_end_is_told_although_another_link_comes_at_that_moment(
    make_server: Any, readers: str
) -> None:
    """A peer that has ended the session, and comes again for what it gets, gets it."""
    server, address = make_server(sessions=tao.Sessions(), readers=readers)
    first, opening = open_session(address, Hello())
    welcome = opening.welcome
    assert welcome is not None
    wait_established(server)
    core = core_of(server.connections[0])
    first.sendall(END_FRAME)
    sock, begun = begin_session(address, Hello(welcome.session_id, 1, 0, 8), welcome.secret)
    try:
        finish_opening(sock, begun)
    except OSError:
        pass  # it had ended already
    else:
        data = sock.recv(1000)
        assert begun.refusal or END_FRAME in data or not data, list(frames_in(data))
    assert core.finished.wait(PATIENCE)
    first.close()
    sock.close()


# -- many links at once


def test_a_cut_of_all_links_at_once(make_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All clients come back together, each to its own session; nothing is lost, nothing doubled."""
    monkeypatch.setattr(resumption, "_PATIENCE", PATIENCE)
    monkeypatch.setattr(resuming, "_PATIENCE", PATIENCE)
    count, each_writes, sessions = 60, 30, tao.Sessions()
    handled, echoed, registry = [Seen() for _ in range(count)], Seen(), tao.Registry()

    @registry.handler(Number)
    def echo(ctx: Any, conn: Any) -> None:
        client, value = divmod(ctx.message.value, each_writes)
        handled[client].add(value)
        conn.write(ctx.message, timeout=PATIENCE)

    server, address = make_server(registry=registry, sessions=sessions, readers="shared")
    options: dict[str, Any] = {"session": "required", "readers": "shared"}
    options["reconnect"] = tao.Reconnect(initial=0.001, maximum=0.05)
    clients = [tao.ClientConn(address, registry=noting(echoed), **options) for _ in range(count)]
    for each in clients:
        each.start()
    wait_until(lambda: len(server.connections) == count)
    for value in range(each_writes):
        for client, each in enumerate(clients):
            each.write(Number(client * each_writes + value), timeout=PATIENCE)
        if value % 10 == 5:
            for conn in server.connections:
                core_of(conn).transport.outlives("the test says so")  # type: ignore[union-attr]
    for seen in handled:
        assert seen.wait(each_writes) == list(range(each_writes))
    assert sorted(echoed.wait(count * each_writes)) == list(range(count * each_writes))
    assert len(sessions) == count and all(each.session.resumes for each in clients)  # type: ignore[union-attr]
    for each in clients:
        each.close()


@pytest.mark.parametrize("late", [False, True])
def test_the_end_of_a_wait_between_attempts_is_interrupted(
    open_both: OpenBoth, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """The wheel repeats it, and one thread goes on, whether one was started before or not."""
    both = open_both(readers="shared")
    core, launch, struck = core_of(both.client), resuming.Resuming._launch, Seen()
    dial, refusals = type(core).dial, [ConnectionClosed("raised by a test")]

    def refuse_once(mine: Any) -> Transport:
        if mine is core and refusals:
            raise refusals.pop()
        transport: Transport = dial(mine)
        return transport

    def strike(mine: Any, function: Callable[[], object]) -> None:
        strikes = sys._getframe(1).f_code.co_name == "_end_wait" and not struck.items
        if late or not strikes:
            launch(mine, function)
        if strikes:
            struck.add(True)
            raise Interruption

    monkeypatch.setattr(type(core), "dial", refuse_once)
    monkeypatch.setattr(resuming.Resuming, "_launch", strike)
    both.cut()
    both.client.write(Number(1))
    assert both.at_server.wait() == [1] and struck.wait()
    assert both.client_events.wait(2) == ["connect", "resume"]
    assert core.reconnects == 1 and both.client.close_reason is None
