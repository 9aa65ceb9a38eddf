"""Sessions: what is written is handled once, in order, whatever happens to the connections."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import tao
from tao.client import resuming
from tao.connection.connection import core_of
from tao.connection.sessions.stream import SessionStream
from tao.errors import ConnectionClosed, WouldBlock
from tao.runtime.combining import Busy, never_waiting
from tao.server.handshake import Handshake
from tao.server.server import server_core_of
from tao.server.sessions import resumption
from tao.session.frames import Hello
from tao.session.session import Session
from tao.testing import Clock
from tao.testing.fault_proxy import Faults
from tao.transport.poller import READABLE
from tao.transport.stream import Transport
from tao.wire.capabilities import ANSWER, REQUESTS, capability_frame
from tao.wire.message import Registry
from tests.ends import Number, Seen, Text, number, text
from tests.session_pairs import (
    READERS,
    Both,
    begin_session,
    established,
    open_session,
    wait_established,
    write_all,
)
from tests.support import PATIENCE, recv_exactly, wait_until


@READERS
@pytest.mark.parametrize("side", ["to_server", "to_client"])
def test_a_cut_at_every_byte_of_resuming(
    open_both: Callable[..., Both], readers: str, side: str
) -> None:
    """The session goes on with the next connection."""
    both = open_both(readers=readers)
    both.client.write(Number(0))
    for byte in range(1, 180):
        cut = Faults(cut_after=byte)
        first = both.proxy.accepted + 1
        both.proxy.plan = lambda index, cut=cut, first=first: (
            (  # type: ignore[misc]
                (cut, Faults()) if side == "to_server" else (Faults(), cut)
            )
            if index == first
            else (Faults(), Faults())
        )
        both.proxy.reset()
        both.client.write(Number(byte))
        both.at_server.wait(byte + 1)
    assert both.at_server.items == list(range(180))
    assert both.events.items.count("connect") == 1


@READERS
@pytest.mark.parametrize("side", ["to_server", "to_client"])
def test_a_cut_at_every_byte_of_the_first_agreement(
    open_both: Callable[..., Both], readers: str, side: str
) -> None:
    """The client asks again, and no session is left that nobody has."""
    sessions = tao.Sessions()
    both = open_both(readers=readers, server={"sessions": sessions})
    for byte in range(1, 160):
        cut = Faults(cut_after=byte)
        first = both.proxy.accepted + 1
        both.proxy.plan = lambda index, cut=cut, first=first: (
            (  # type: ignore[misc]
                (cut, Faults()) if side == "to_server" else (Faults(), cut)
            )
            if index == first
            else (Faults(), Faults())
        )
        client = tao.ClientConn(
            both.proxy.address,
            registry=Registry(),
            session="required",
            reconnect=tao.Reconnect(initial=0.001),
        )
        client.start(keep_trying=True)
        client.write(Number(byte))
        assert both.at_server.wait(byte) == list(range(1, byte + 1))
        client.close()
    wait_until(lambda: len(sessions) == 1)


@READERS
def test_a_wish_that_arrives_late_does_not_replace_a_later_one(
    make_server: Any, readers: str
) -> None:
    """A client has closed the connection of its first attempt, whenever the server serves that."""
    events, sessions = Seen(), tao.Sessions()
    _, address = make_server(
        sessions=sessions,
        readers=readers,
        on_connect=lambda conn: events.add("connect"),
        on_close=lambda conn: events.add("close"),
    )
    hello = Hello(wish=b"w" * 16, attempt=1)
    first, late = begin_session(address, hello)
    first.sendall(late.output[:-1])
    second, opening = open_session(address, hello._replace(attempt=2))
    assert opening.welcome is not None
    first.sendall(late.output[-1:])
    assert first.recv(1) == b""
    assert sessions.find(opening.welcome.session_id) is not None
    assert len(sessions) == 1
    assert events.wait(1) == ["connect"]
    first.close()
    second.close()


@READERS
def test_a_session_that_its_client_never_got_is_replaced(make_server: Any, readers: str) -> None:
    """At once when it asks again, even if the server takes the connection for alive."""
    events, sessions = Seen(), tao.Sessions()
    _, address = make_server(
        sessions=sessions,
        readers=readers,
        on_connect=lambda conn: events.add(("connect", conn.net_id)),
        on_session_lost=lambda conn, lost: events.add(("lost", conn.net_id)),
        on_close=lambda conn: events.add(("close", conn.net_id)),
    )
    hello = Hello(wish=b"w" * 16, attempt=1)
    first, _ = open_session(address, hello)
    events.wait(1)
    others = [open_session(address, wish)[0] for wish in (Hello(), Hello(wish=b"v" * 16))]
    events.wait(3)
    second, opening = open_session(address, hello._replace(attempt=2))
    assert first.recv(1) == b"" and not opening.refusal
    seen = events.wait(6)
    assert set(seen[3:]) == {("lost", 1), ("close", 1), ("connect", 4)}
    assert len(sessions) == 3
    for each in (first, second, *others):
        each.close()


@READERS
def test_the_connection_is_the_same(open_both: Callable[..., Both], readers: str) -> None:
    """Its number, state, groups, identity and timers; callbacks tell of each resume."""
    both = open_both(readers=readers)
    conn = both.conn
    conn.state.user = "ann"
    conn.join("room")
    conn.identify("ann")
    ticks = Seen()
    conn.run_every(0.02, lambda due, conn: ticks.add(conn))
    before = conn.net_id, conn.context
    for _ in range(3):
        both.cut()
    both.events.wait(4)
    both.client_events.wait(4)
    assert both.events.items == both.client_events.items == ["connect", *["resume"] * 3]
    assert both.server.connections == [conn] and (conn.net_id, conn.context) == before
    assert both.server.find("ann") is conn and both.server.group("room").connections == [conn]
    ticks.wait(len(ticks.items) + 2)
    assert conn.session is not None and both.client.session is not None
    assert conn.session.id == both.client.session.id and conn.session.resumes == 3
    assert both.server.snapshot().connections_total == 1


@READERS
def test_idle_sessions_are_resumed_again_and_again(
    open_both: Callable[..., Both], readers: str
) -> None:
    """Before there was any message; then everything is as new."""
    both = open_both(readers=readers)
    for _ in range(10):
        both.cut()
    both.client.write(Number(1))
    both.conn.write(Number(2))
    assert both.at_server.wait() == [1] and both.at_client.wait() == [2]


@READERS
def test_an_old_connection_that_seems_alive_is_replaced(
    open_both: Callable[..., Both], readers: str
) -> None:
    """The server has not noticed that the client is gone when it comes back."""
    both = open_both(readers=readers)
    both.client.write(Number(1))
    both.at_server.wait()
    both.proxy.to_server.swallow = both.proxy.to_client.swallow = True
    both.client.write(Number(2))
    both.conn.write(Number(3))
    both.proxy.plan = lambda index: (Faults(), Faults())
    core_of(both.client).transport.outlives("the test says so")
    both.client_events.wait(2)
    assert both.at_server.wait(2) == [1, 2] and both.at_client.wait() == [3]
    assert both.events.wait(2) == ["connect", "resume"]


@READERS
def test_a_silent_connection_is_replaced(open_both: Callable[..., Both], readers: str) -> None:
    """With an idle timeout, both sides do without it; nothing is lost."""
    both = open_both(readers=readers, heartbeat=0.05, client={"idle_timeout": 0.3})
    both.proxy.to_server.swallow = both.proxy.to_client.swallow = True
    both.proxy.plan = lambda index: (Faults(), Faults())
    both.client.write(Number(1))
    both.conn.write(Number(2))
    assert both.at_server.wait() == [1] and both.at_client.wait() == [2]
    assert both.client.close_reason is None


# -- the end of a session


@READERS
def test_a_session_that_is_not_resumed_in_time(
    open_both: Callable[..., Both], readers: str
) -> None:
    """Both sides are told what is uncertain, before on_close; then there is a new session."""
    both = open_both(readers=readers, server={"sessions": tao.Sessions(linger=0.3)})
    both.client.write(Number(1))
    both.at_server.wait()
    wait_until(lambda: both.client.session.unacknowledged == 0)  # type: ignore[union-attr]
    both.proxy.to_server.swallow = both.proxy.to_client.swallow = True
    both.client.write(Number(2))
    both.conn.write(Number(3))
    wait_until(lambda: both.conn.session.unacknowledged)  # type: ignore[union-attr]
    wait_until(lambda: both.client.session.unacknowledged)  # type: ignore[union-attr]
    both.proxy.refuse()
    both.lose()
    both.client.write(Number(4))  # waits, and was never sent
    assert both.events.wait(3) == ["connect", ("lost", [3]), "close"]
    assert both.client_events.wait(3) == ["connect", ("lost", [2]), "close"]
    both.proxy.plan = lambda index: (Faults(), Faults())
    both.proxy.accept()
    assert both.at_server.wait(2) == [1, 4]
    assert both.client_events.wait(4)[3] == "connect"


@READERS
def test_a_server_that_was_replaced_does_not_know_the_session(
    open_both: Callable[..., Both], make_server: Any, readers: str
) -> None:
    """As after a crash: the client is told what is uncertain, and begins anew."""
    both = open_both(readers=readers)
    both.client.write(Number(1))
    both.at_server.wait()
    wait_until(lambda: both.client.session.unacknowledged == 0)  # type: ignore[union-attr]
    both.proxy.to_server.swallow = True
    both.client.write(Number(2))
    seen, registry = Seen(), Registry()
    registry.handler(Number)(lambda ctx, conn: seen.add(ctx.message.value))
    _, both.proxy.target = make_server(registry=registry, sessions=tao.Sessions())
    both.proxy.plan = lambda index: (Faults(), Faults())
    both.proxy.reset()
    assert both.client_events.wait(4) == ["connect", ("lost", [2]), "close", "connect"]
    both.client.write(Number(3))
    assert seen.wait() == [3]


@READERS
@pytest.mark.parametrize("closer", ["client", "server"])
def test_a_graceful_close_loses_nothing_and_ends_the_session(
    open_both: Callable[..., Both], readers: str, closer: str
) -> None:
    """What was written before is handled and acknowledged, so nothing is uncertain."""
    both = open_both(readers=readers)
    for value in range(100):
        (both.client if closer == "client" else both.conn).write(Number(value))
    if closer == "client":
        both.client.close()
        seen = both.at_server
    else:
        both.conn.close()
        seen = both.at_client
    assert seen.wait(100) == list(range(100))
    wait_until(lambda: "close" in both.events.items and "close" in both.client_events.items)
    assert not [each for each in both.events.items + both.client_events.items if "lost" in each]


@READERS
def test_a_client_that_is_told_to_leave(open_both: Callable[..., Both], readers: str) -> None:
    """It ends the session in order, also if the connection is lost meanwhile, and begins anew."""
    both = open_both(readers=readers)
    core = core_of(both.client)
    both.client.write(Number(1))
    both.at_server.wait()
    both.proxy.to_server.swallow = True
    both.client.write(Number(2))
    assert core_of(both.conn).exchange.send_away()
    wait_until(lambda: core.transport.session.outgoing.ended)
    both.client.write(Number(3))  # waits for the next session
    both.proxy.plan = lambda index: (Faults(), Faults())
    both.proxy.reset()
    assert both.at_server.wait(3) == [1, 2, 3]
    expected = ["connect", "resume", "close", "connect"]
    assert both.client_events.wait(4) == expected and both.events.wait(4) == expected


@READERS
def test_closing_and_stopping_while_it_is_lost(
    open_both: Callable[..., Both], readers: str
) -> None:
    """Neither waits for a client, or a server, that does not come."""
    both = open_both(readers=readers)
    both.proxy.refuse()
    both.lose()
    wait_until(lambda: not both.conn.session.connected)  # type: ignore[union-attr]
    begun = time.monotonic()
    both.client.close()
    report = both.server.stop()
    assert time.monotonic() - begun < core_of(both.client).settings.drain_timeout / 2
    assert report.finished and not report.threads
    assert both.events.items == ["connect", ("lost", []), "close"]


@READERS
@pytest.mark.parametrize("lost", ["before", "after"])
def test_a_client_that_is_closed_hands_over_what_it_has_written(
    open_both: Callable[..., Both], readers: str, lost: str
) -> None:
    """It resumes its session for that, within drain_timeout, also while its back-off is long."""
    both = open_both(readers=readers, client={"reconnect": tao.Reconnect(initial=20, maximum=20)})
    both.client.write(Number(0))
    both.at_server.wait()
    both.proxy.to_server.swallow = both.proxy.to_client.swallow = True
    both.client.write(Number(1))
    if lost == "before":
        both.proxy.refuse()
        both.lose()
    for value in range(2, 50):
        both.client.write(Number(value))
    both.proxy.plan = lambda index: (Faults(), Faults())
    both.proxy.accept()
    closer = threading.Thread(target=both.client.close, name="test-closer")
    closer.start()
    wait_until(lambda: both.client.close_reason)
    if lost == "after":
        both.proxy.reset()
    assert both.at_server.wait(50) == list(range(50))
    closer.join()
    both.client.close()  # which changes nothing any more
    wait_until(lambda: "close" in both.events.items)
    assert both.client.snapshot().sessions_lost == 0
    assert [each for each in both.client_events.items if each != "resume"] == ["connect", "close"]


@READERS
@pytest.mark.parametrize("end", ["close", "abort"])
def test_a_client_that_cannot_hand_over_tells_what_is_uncertain(
    open_both: Callable[..., Both], readers: str, end: str
) -> None:
    """When drain_timeout is over, or at once if it is aborted meanwhile."""
    both = open_both(readers=readers, client={"drain_timeout": 0.3 if end == "close" else 60})
    both.proxy.to_server.swallow = both.proxy.to_client.swallow = True
    both.client.write(Number(1))
    both.proxy.refuse()
    both.lose()
    both.client.write(Number(2))  # was never sent
    if end == "close":
        both.client.close()
    else:
        closer = threading.Thread(target=both.client.close, name="test-closer")
        closer.start()
        wait_until(lambda: both.client.close_reason)
        both.client.abort()
        closer.join(PATIENCE)
    assert both.client.wait_closed(PATIENCE)
    assert both.client_events.items == ["connect", ("lost", [1]), "close"]


def test_a_link_is_freed_although_its_close_is_put_off(open_both: Callable[..., Both]) -> None:
    """A thread that must not wait for another one leaves the close to a third one."""
    core = core_of(open_both().client)
    near, far = socket.socketpair()
    link = Transport(near)
    stream = SessionStream(core, Session(bytes(16), bytes(32), 1000), link, core.resuming)
    held, may_go = threading.Event(), threading.Event()

    def hold() -> None:
        with link._closing:
            held.set()
            may_go.wait(PATIENCE)

    holder = threading.Thread(target=hold, name="test-holder")
    holder.start()
    held.wait(PATIENCE)
    with pytest.raises(Busy):
        never_waiting(stream.close)
    may_go.set()
    holder.join()
    assert near.fileno() >= 0
    stream.close()
    assert near.fileno() < 0
    far.close()


def test_on_resume_may_refuse(open_both: Callable[..., Both]) -> None:
    """The session ends then, at both sides."""
    both = open_both(server={"on_resume": lambda conn: False})
    both.lose()
    assert both.events.wait(3)[:3] == ["connect", ("lost", []), "close"]
    assert both.client_events.wait(3)[:3] == ["connect", ("lost", []), "close"]


@READERS
@pytest.mark.parametrize("kind", [ValueError, SystemExit, GeneratorExit, KeyboardInterrupt])
def test_an_on_resume_of_a_client_that_raises(
    open_both: Callable[..., Both], readers: str, kind: type[BaseException]
) -> None:
    """It is reported, and the session ends as if it had refused; the client connects again."""
    errors, raised = Seen(), [kind]

    def resume(conn: tao.ClientConn) -> None:
        if raised:
            raise raised.pop()

    options = {"on_resume": resume, "on_error": lambda conn, error: errors.add(type(error))}
    both = open_both(readers=readers, client=options)
    both.lose()
    assert both.client_events.wait(4)[:4] == ["connect", ("lost", []), "close", "connect"]
    assert errors.items[0] is kind


@READERS
def test_on_resume_sees_the_new_address(open_both: Callable[..., Both], readers: str) -> None:
    """It may judge by it, and what it sets instead stays."""
    seen = Seen()

    def resume(conn: tao.ServerConn) -> None:
        seen.add(conn.remote_address)
        conn.remote_address = "set by on_resume"

    both = open_both(readers=readers, server={"on_resume": resume})
    both.cut()
    assert seen.items == [core_of(both.conn).link_address]
    assert both.conn.remote_address == "set by on_resume"


def test_lost_sessions_do_not_count_as_connections(open_both: Callable[..., Both]) -> None:
    """They have a limit of their own, by which those lost first end."""
    sessions = tao.Sessions(maximum=1)
    both = open_both(server={"sessions": sessions, "max_connections": 2})
    both.proxy.refuse()
    both.lose()
    wait_until(lambda: sessions.lingering == 1)
    others = [tao.connect(both.address, registry=Registry()) for _ in range(2)]
    for each in others:
        each.write(Number(0))  # whoever speaks has no session; of the silent, that is not known yet
    wait_until(lambda: len(both.server.connections) == 3)
    for each in others:
        each.close()
    wait_until(lambda: not len(server_core_of(both.server).acceptor.admission))  # there is room
    with tao.connect(both.address, registry=Registry(), session=True, reconnect=True) as other:
        core_of(other).transport.outlives("the test says so")
        wait_until(lambda: other.session.resumes or sessions.lingering == 1)  # type: ignore[union-attr]
    both.proxy.accept()


def test_sessions_of_one_host_are_counted_by_its_own_address(make_server: Any) -> None:
    """Not by the one that an application sets, and that peers may choose."""
    sessions, over = tao.Sessions(per_host=1), Seen()

    def behind_a_proxy(conn: tao.ServerConn) -> bool:
        conn.remote_address = (f"192.0.2.{conn.net_id}", 1)
        return True

    server, address = make_server(
        sessions=sessions,
        on_connect=behind_a_proxy,
        on_close=lambda conn: over.add((conn.net_id, conn.close_reason)),
    )
    for count in (1, 2):
        sock, _ = open_session(address, Hello())
        wait_until(lambda count=count: sum(map(established, server.connections)) == count)
        sock.close()
        wait_until(lambda: not len(server_core_of(server).acceptor.admission))
    assert over.wait() == [(1, "too many sessions wait for their clients")]


# -- load


@READERS
def test_a_full_session_is_a_full_queue(open_both: Callable[..., Both], readers: str) -> None:
    """What is not acknowledged is bounded; then writes raise, until the peer has handled more."""
    may_go_on = threading.Event()
    both = open_both(
        readers=readers,
        server={"sessions": tao.Sessions(retain_bytes=1600)},
        client={"queue_size": 4},
    )
    both.client.registry.unregister(2)
    seen = Seen()

    @both.client.handler(Number)
    def slow(ctx: Any, conn: Any) -> None:
        may_go_on.wait(PATIENCE)
        seen.add(ctx.message.value)

    conn, accepted = both.conn, 0
    with pytest.raises(WouldBlock):
        for accepted in range(100_000):
            conn.write(Number(accepted))
    assert 100 <= accepted < 2000
    assert conn.session.unacknowledged < 1600 + 256 * 1024  # type: ignore[union-attr]
    both.proxy.reset()  # which a client whose handlers do not keep up may notice later
    may_go_on.set()
    conn.write(Number(accepted), timeout=PATIENCE)
    assert seen.wait(accepted + 1) == list(range(accepted + 1))


def test_drop_policies_act_before_the_session(open_both: Callable[..., Both]) -> None:
    """What is dropped was never sent; the rest is handled once, in order."""
    both = open_both(
        server={
            "slow_consumer": "drop_oldest",
            "queue_size": 8,
            "sessions": tao.Sessions(retain_bytes=1000),
        }
    )
    both.proxy.to_client.stall = True
    for value in range(500):
        both.conn.write(Number(value))
        if value % 100 == 50:
            both.proxy.reset()
    both.proxy.to_client.stall = False
    both.conn.write(Number(500), timeout=PATIENCE)
    wait_until(lambda: both.at_client.items[-1:] == [500])
    dropped = both.server.snapshot().dropped
    assert dropped > 0 and len(both.at_client.items) == 501 - dropped
    assert both.at_client.items == sorted(set(both.at_client.items))


@READERS
def test_much_is_sent_again_in_both_directions(
    open_both: Callable[..., Both], readers: str
) -> None:
    """As much as either keeps, 16 MiB each way, while both read."""
    both = open_both(readers=readers, queue_size=1000)
    at_server, at_client = Seen(), Seen()
    both.server.handler(Text)(lambda ctx, conn: at_server.add(ctx.message.text[:4]))
    both.client.handler(Text)(lambda ctx, conn: at_client.add(ctx.message.text[:4]))
    size, count = 64 * 1024, 256
    both.proxy.to_server.swallow = both.proxy.to_client.swallow = True
    for value in range(count):
        both.client.write(Text(f"{value:04}".ljust(size)), timeout=PATIENCE)
        both.conn.write(Text(f"{value:04}".ljust(size)), timeout=PATIENCE)
    for end in (both.client, both.conn):
        wait_until(lambda end=end: end.session.unacknowledged > count * size)
    both.proxy.plan = lambda index: (Faults(), Faults())
    both.proxy.reset()
    expected = [f"{value:04}" for value in range(count)]
    assert at_server.wait(count) == at_client.wait(count) == expected


@READERS
def test_requests_get_exactly_one_reply(open_both: Callable[..., Both], readers: str) -> None:
    """They ride on the session, and so do the replies."""
    both = open_both(readers=readers, client={"max_in_flight": 50, "queue_size": 1000})
    asked = Seen()

    @both.server.handler(Text)
    def answer(ctx: Any, conn: Any) -> None:
        asked.add(ctx.message.text)
        ctx.reply(ctx.message)

    both.client.registry.register(1, Text.deserialize)
    futures = []
    for value in range(500):
        futures.append(both.client.request_async(Text(str(value)), timeout=PATIENCE))
        if value % 50 == 25:
            both.proxy.reset()
    assert [each.result(PATIENCE).text for each in futures] == [str(i) for i in range(500)]
    assert asked.items == [str(i) for i in range(500)]


# -- those without sessions


def test_a_peer_that_knows_none_sees_a_longer_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else; the client goes on without a session."""
    monkeypatch.setattr(resuming, "_PATIENCE", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = tao.ClientConn(
            listener.getsockname(), registry=Registry(), session=True, reconnect=True
        )
        with client:
            peer, _ = listener.accept()
            client.write(Text("hi"))
            with peer:
                data = recv_exactly(peer, 50)
            assert data[:8] == struct.pack("<iI", 0, 32) and data[40:] == text("hi")
            assert client.session is None


def test_a_session_may_be_required(make_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then a server without sessions is none to talk to."""
    monkeypatch.setattr(resuming, "_PATIENCE", 0.05)
    _, address = make_server()
    client = tao.ClientConn(address, registry=Registry(), session="required", reconnect=True)
    with pytest.raises(ConnectionClosed, match="required"):
        client.start()
    client.close()


@READERS
def test_a_server_without_sessions_may_speak_first(make_server: Any, readers: str) -> None:
    """What it says before it answers is not lost."""
    _, address = make_server(on_connect=lambda conn: conn.write(Text("welcome")))
    seen = Seen()
    client = tao.ClientConn(
        address, registry=Registry(), session=True, reconnect=True, readers=readers
    )
    client.handler(Text)(lambda ctx, conn: seen.add(ctx.message.text))
    with client:
        assert seen.wait() == ["welcome"] and client.session is None


def test_a_silent_client_is_looked_at_until_its_time_is_up() -> None:
    """Whenever the look comes: one that was too early would be the last otherwise."""
    settings = server_core_of(tao.Server(sessions=tao.Sessions())).settings
    near, far = socket.socketpair()
    transport, looks = Transport(near), []
    handshake = Handshake(near, transport, settings.handshake_timeout, None)
    beginning = resumption.Beginning(handshake, transport, settings, 0, looks.append)
    for count in range(1, 4):
        assert beginning.advance() == READABLE
        assert len(looks) == count and 0 < looks[-1] <= 1
    transport.close()
    far.close()


@READERS
@pytest.mark.parametrize("first", ["a message", "a byte", "nothing", "an old question"])
def test_clients_without_a_session(
    make_server: Any, readers: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are served as ever, silent ones after a moment."""
    monkeypatch.setattr(resumption, "_PATIENCE", 0.1)
    seen, connected, registry = Seen(), Seen(), Registry()
    registry.handler(Text)(lambda ctx, conn: seen.add(ctx.message.text))
    _, address = make_server(
        registry=registry, sessions=tao.Sessions(), readers=readers, on_connect=connected.add
    )
    with socket.create_connection(address, PATIENCE) as peer:
        question = capability_frame(1, 1, REQUESTS, 5)
        sent = {"a message": text("hi"), "a byte": text("hi")[:1], "an old question": question}
        peer.sendall(sent.get(first, b""))
        connected.wait()
        if first == "an old question":
            answer = recv_exactly(peer, 40)
            assert answer[25] == ANSWER and answer[-8:] == question[-8:]
        peer.sendall(text("hi")[1:] if first == "a byte" else text("hi"))
        seen.wait(2 if first == "a message" else 1)


@READERS
def test_nothing_waits_to_send_once_the_end_has_been_sent(make_server: Any, readers: str) -> None:
    """A writer thread that begins to wait when another thread has just sent it would stay."""
    server, address = make_server(sessions=tao.Sessions(), readers=readers)
    sock, _ = open_session(address, Hello())
    wait_until(lambda: server.connections)
    core = core_of(server.connections[0])
    stream = core.transport
    closer = threading.Thread(target=server.connections[0].close, name="test-closer")
    closer.start()
    wait_until(lambda: core.send_queue.fin_sent)
    writer = threading.Thread(target=stream.wait_writable, name="test-writer")
    writer.start()
    writer.join()
    assert stream.connected and not stream.ended  # which would have ended the wait as well
    sock.close()
    closer.join()


@READERS
def test_of_two_attempts_the_later_one_wins(make_server: Any, readers: str) -> None:
    """Whichever arrives first; the other gets a clear answer."""
    server, address = make_server(sessions=tao.Sessions(), readers=readers)
    first, opening = open_session(address, Hello())
    welcome = opening.welcome
    assert welcome is not None
    wait_established(server)
    hello = Hello(welcome.session_id, 2)
    second, opening = open_session(address, hello, welcome.secret)
    assert opening.welcome is not None and not opening.refusal
    assert first.recv(1) == b""
    for attempt, secret in ((1, welcome.secret), (2, welcome.secret), (3, b"x" * 32)):
        other, opening = open_session(address, hello._replace(attempt=attempt), secret)
        assert opening.refusal
        assert other.recv(1) == b""
        other.close()
    second.sendall(number(1))
    second.close()
    first.close()


@READERS
def test_a_session_is_not_resumed_before_it_has_begun(make_server: Any, readers: str) -> None:
    """While on_connect runs no other callback does; the client comes again a little later."""
    events, may_go = Seen(), threading.Event()

    def connected(conn: tao.ServerConn) -> None:
        events.add("connecting")
        may_go.wait(PATIENCE)
        events.add("connected")

    server, address = make_server(
        sessions=tao.Sessions(),
        readers=readers,
        on_connect=connected,
        on_resume=lambda conn: events.add("resumed"),
    )
    first, opening = open_session(address, Hello())
    welcome = opening.welcome
    assert welcome is not None
    events.wait(1)
    first.close()
    second, early = begin_session(address, Hello(welcome.session_id, 1), welcome.secret)
    second.sendall(early.output)
    assert second.recv(1) == b""
    may_go.set()
    wait_established(server)
    third, opening = open_session(address, Hello(welcome.session_id, 2), welcome.secret)
    assert opening.welcome is not None and not opening.refusal
    assert events.items == ["connecting", "connected", "resumed"]
    second.close()
    third.close()


def test_what_does_not_fit_together_ends_the_session(make_server: Any) -> None:
    """Such as a client that has received more than was sent."""
    lost = Seen()
    server, address = make_server(
        sessions=tao.Sessions(), on_session_lost=lambda conn, messages: lost.add(messages)
    )
    first, opening = open_session(address, Hello())
    assert opening.welcome is not None
    wait_established(server)
    hello = Hello(opening.welcome.session_id, 1, 1000)
    second, opening = open_session(address, hello, opening.welcome.secret)
    assert "fit" in opening.refusal and lost.wait() == [[]]
    first.close()
    second.close()


@pytest.mark.parametrize(
    "options", [{"session": True}, {"session": "maybe"}, {"session": True, "codec": object()}]
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    """Where they are written."""
    with pytest.raises((ValueError, TypeError), match=r"session|codec"):
        tao.ClientConn(("127.0.0.1", 1), **options)


# -- what would not fit


@READERS
def test_frames_are_whole(open_both: Callable[..., Both], readers: str) -> None:
    """`write_frame` refuses anything else, as the stream could not be resumed."""
    both = open_both(readers=readers)
    later, one = tao.ClientConn(both.address, session=True, reconnect=True), number(1)
    for end in (both.client, both.conn, later):
        for frame in (b"", one[:7], one[:-1], one + b"x", one + one):
            with pytest.raises(ValueError, match="one whole message at a time"):
                end.write_frame(frame)
    later.close()
    both.client.write_frame(one)
    both.conn.write_frame(one)
    assert both.at_server.wait() == both.at_client.wait() == [1]


@READERS
@pytest.mark.parametrize("side", ["client", "server"])
def test_on_resume_does_not_wait_for_a_reply(
    open_both: Callable[..., Both], readers: str, side: str
) -> None:
    """Nothing is read before it returns; a request whose future is kept is fine."""
    told, asked = Seen(), Seen()

    def resume(conn: Any) -> None:
        try:
            conn.request(Text("now"))
        except tao.WouldDeadlock as error:
            told.add(str(error))
        asked.add(conn.request_async(Text("later")))

    both = open_both(readers=readers, **{side: {"on_resume": resume}})
    for end in (both.server, both.client):
        end.handler(Text)(lambda ctx, conn: ctx.reply(ctx.message))
    both.client.request(Text("first"))
    both.proxy.reset()
    assert "nothing is read before it returns" in told.wait()[0]
    assert asked.wait()[0].result(PATIENCE).text == "later"


@READERS
def test_a_silent_client_with_a_session_is_no_stranger(readers: str) -> None:
    """What it was to get is reported as unsent when its session ends, though it never sent."""
    errors = Seen()
    options = {"on_error": lambda conn, error: errors.add(str(error))}
    with Clock() as clock:
        both = Both(readers=readers, server=options).start()
        try:
            both.proxy.refuse()
            both.lose()
            wait_until(lambda: not both.conn.session.connected)  # type: ignore[union-attr]
            write_all(both.conn, 5)
            clock.advance(86_400)
            assert "5 messages" in errors.wait()[0]
        finally:
            both.close()
