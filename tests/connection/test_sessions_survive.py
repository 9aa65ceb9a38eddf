"""What a session survives: clocks that jump, forks, other versions; and who is told of the rest."""

from __future__ import annotations

import signal
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import tao
from tao.errors import ConnectionClosed
from tao.session.agreement import Opening
from tao.session.frames import CHALLENGE, RESUMED, Hello
from tao.testing import Clock
from tao.wire.capabilities import ANSWER, REQUESTS, SESSIONS, capability_frame
from tao.wire.message import Registry
from tests.ends import Number, Seen, frame
from tests.programs import Program
from tests.session_pairs import READERS, Both
from tests.support import PATIENCE, recv_exactly, wait_until
from tests.tls_pairs import ALICE, CA, MUTUAL_SERVER

OpenBoth = Callable[..., Both]


# -- clocks


@pytest.mark.parametrize("seconds", [-1_000_000, 1_000_000])
def test_the_time_of_day_may_jump(
    open_both: OpenBoth, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    """A session is resumed as ever, and as long as ever."""
    both = open_both()
    now, now_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: now() + seconds)
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() + seconds * 10**9)
    both.lose()
    both.client.write(Number(1))
    both.conn.write(Number(2))
    assert both.at_server.wait() == [1] and both.at_client.wait() == [2]
    assert both.client_events.wait(2) == ["connect", "resume"]


@READERS
def test_it_lingers_by_the_clock_of_the_timers(readers: str) -> None:
    """Both ends wait as long as `Clock` says; at a jump both give it up, and tell so."""
    with Clock() as clock:
        both = Both(readers=readers, client={"reconnect": tao.Reconnect(initial=1, maximum=1)})
        both.start()
        try:
            both.proxy.refuse()
            both.lose()
            wait_until(lambda: not both.conn.session.connected)  # type: ignore[union-attr]
            clock.advance(55)
            assert both.events.items == both.client_events.items == ["connect"]
            clock.advance(86_400)
            expected = ["connect", ("lost", []), "close"]
            assert both.events.wait(3) == expected and both.client_events.wait(3) == expected
        finally:
            both.close()


# -- processes


@READERS
@pytest.mark.parametrize("when", ["connected", "lost"])
def test_a_fork_is_no_end_of_the_session(readers: str, when: str) -> None:
    """Both ends are closed in the child, and go on in the parent."""
    with Program("tests.session_programs", "fork", readers, when) as program:
        assert program.status() == 0, program.errors
        assert program.output == ["closed", "closed", "[1, 3] [2, 4]"]


@READERS
def test_a_client_is_told_that_the_server_was_killed(open_both: OpenBoth, readers: str) -> None:
    """Of what it does not know to be handled; then it goes on with another server."""
    both = open_both(readers=readers)
    with Program("tests.session_programs", "server") as killed:
        both.proxy.target = ("127.0.0.1", int(killed.prints(r"port (\d+)")[1]))
        client = tao.ClientConn(
            both.proxy.address,
            registry=Registry(),
            session="required",
            reconnect=tao.Reconnect(initial=0.01),
            on_connect=lambda conn: both.client_events.add("connect"),
            on_session_lost=lambda conn, lost: both.client_events.add([len(lost), conn]),
            readers=readers,
        )
        client.start()
        client.write(Number(1))
        killed.prints("handled 1")
        wait_until(lambda: client.session.unacknowledged == 0)  # type: ignore[union-attr]
        killed.send(signal.SIGSTOP)
        client.write(Number(2))
        wait_until(lambda: client.session.unacknowledged)  # type: ignore[union-attr]
        both.proxy.target = both.address
        killed.send(signal.SIGKILL)
        assert both.client_events.wait(4)[1:] == ["connect", [1, client], "connect"]
        client.write(Number(3))
        assert both.at_server.wait() == [3]
        client.close()


@READERS
def test_a_server_is_told_that_the_client_was_killed(make_server: Any, readers: str) -> None:
    """When it has not come back, of what it does not know to be handled."""
    events = Seen()
    server, (_, port) = make_server(
        sessions=tao.Sessions(linger=0.2),
        readers=readers,
        on_connect=lambda conn: events.add("connect"),
        on_session_lost=lambda conn, lost: events.add(
            [Number.deserialize(each.value).value for each in lost]
        ),
        on_close=lambda conn: events.add("close"),
    )
    with Program("tests.session_programs", "client", port) as killed:
        killed.prints("connected")
        events.wait()
        wait_until(lambda: server.connections)
        conn = server.connections[0]
        conn.write(Number(1))
        killed.prints("handled 1")
        wait_until(lambda: conn.session.unacknowledged == 0)
        killed.send(signal.SIGSTOP)
        conn.write(Number(2))
        wait_until(lambda: conn.session.unacknowledged)
        killed.send(signal.SIGKILL)
        assert events.wait(3) == ["connect", [2], "close"]


# -- certificates


def agree(
    address: Any, tls: ssl.SSLContext, hello: Hello, secret: bytes = b""
) -> tuple[socket.socket, Opening]:
    """Agree on a session, as a client with a certificate does."""
    plain = socket.create_connection(address, PATIENCE)
    sock = tls.wrap_socket(plain, server_hostname="localhost")
    opening = Opening(1, REQUESTS, 2, hello, secret)
    while not opening.over:
        sock.sendall(opening.output)
        opening.output = b""
        opening.feed(recv_exactly(sock, opening.wanted))
    return sock, opening


@READERS
def test_a_session_belongs_to_the_subject_of_a_certificate(make_server: Any, readers: str) -> None:
    """Its secret is of no use with another one; a renewed one of the same subject will do."""
    _, address = make_server(tls=MUTUAL_SERVER, sessions=tao.Sessions(), readers=readers)
    first, opening = agree(address, ALICE, Hello())
    welcome = opening.welcome
    assert welcome is not None
    hello = Hello(welcome.session_id, 1)
    bob, renewed = (CA.issue_client(name).client_config() for name in ("bob", "alice"))
    second, opening = agree(address, bob, hello, welcome.secret)
    assert "certificate" in opening.refusal
    third, opening = agree(address, renewed, hello, welcome.secret)
    assert opening.welcome is not None and opening.welcome.kind == RESUMED
    for each in (first, second, third):
        each.close()


# -- other versions


@READERS
def test_a_client_of_another_version_is_refused(make_server: Any, readers: str) -> None:
    """Its connection ends; nothing of it is taken for a message, and others are served."""
    seen, registry = Seen(), Registry()
    registry.handler(Number)(lambda ctx, conn: seen.add(ctx.message.value))
    _, address = make_server(registry=registry, sessions=tao.Sessions(), readers=readers)
    with socket.create_connection(address, PATIENCE) as sock:
        opening = Opening(1, REQUESTS, 2, Hello())
        sock.sendall(opening.output)
        opening.output = b""
        while not opening.output:
            opening.feed(recv_exactly(sock, opening.wanted))
        said = bytearray(opening.output)
        said[8] = 2  # the version
        sock.sendall(said)
        assert sock.recv(1) == b""
    with tao.connect(address, registry=Registry(), session=True, reconnect=True) as client:
        client.write(Number(1))
        assert seen.wait() == [1] and client.session is not None


@READERS
def test_a_server_of_another_version_is_refused(readers: str) -> None:
    """The client says so, and does not wait."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                question = recv_exactly(peer, 40)
                nonce = struct.unpack("<Q", question[-8:])[0]
                peer.sendall(capability_frame(1, ANSWER, SESSIONS, nonce))
                peer.sendall(frame(CHALLENGE, bytes(16)))
                recv_exactly(peer, 80)
                peer.sendall(frame(CHALLENGE + 2, b"\2" + bytes(63)))
                assert peer.recv(1) == b""

        thread = threading.Thread(target=serve, name="test-server")
        thread.start()
        client = tao.ClientConn(
            listener.getsockname(),
            registry=Registry(),
            session=True,
            reconnect=True,
            readers=readers,
        )
        with pytest.raises(ConnectionClosed, match="version 2"):
            client.start()
        client.close()
        thread.join()
