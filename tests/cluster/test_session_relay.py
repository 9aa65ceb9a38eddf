"""What relays connections with TLS; the client and the other process are threads here."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import pytest

from tao.cluster.sessions import relay as session_relay
from tao.cluster.sessions.relay import SessionRelay
from tao.errors import ConnectionClosed
from tests.injection import Interruption, opcodes, raise_in, skip_if_traced
from tests.support import PATIENCE, ends, recv_exactly, together
from tests.tls_pairs import tls_pair

#: More than all buffers on the way take.
MUCH = random.Random(1).randbytes(8 * 1024 * 1024)


class Relayed:
    """A client, and the other process's end."""

    def __init__(self, relay: SessionRelay) -> None:
        ours, self.client = tls_pair()
        together(lambda: ours.handshake(PATIENCE), lambda: self.client.handshake(PATIENCE))
        near, self.far = socket.socketpair()
        relay.add(ours, near)

    def client_sends(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            self.client.answers.clear()
            sent = self.client.send(rest)
            rest = rest[sent:]
            if not sent:
                self.client.wait_writable()

    def client_receives(self, count: int) -> bytes:
        """Read so many bytes, or fewer if the other side closes first."""
        data = bytearray()
        while len(data) < count and (piece := self.client.recv(64 * 1024)):
            data += piece
        return bytes(data)

    def close(self) -> None:
        self.client.close()
        self.far.close()


@pytest.fixture
def relay() -> Iterator[SessionRelay]:
    relay = SessionRelay()
    yield relay
    relay.close()


@pytest.fixture
def relayed(relay: SessionRelay) -> Iterator[Relayed]:
    relayed = Relayed(relay)
    yield relayed
    relayed.close()


def test_much_in_both_directions(relayed: Relayed) -> None:
    """All arrives, although neither side reads while it sends."""
    _, _, received, answered = together(
        lambda: relayed.client_sends(MUCH),
        lambda: relayed.far.sendall(MUCH),
        lambda: recv_exactly(relayed.far, len(MUCH)),
        lambda: relayed.client_receives(len(MUCH)),
    )
    assert received == MUCH and answered == MUCH


def test_what_one_side_does_not_read(relay: SessionRelay, relayed: Relayed) -> None:
    """It keeps the other from sending, and holds up no other connection."""
    relayed.far.setblocking(False)
    with pytest.raises(BlockingIOError):
        while relayed.far.send(MUCH):
            pass
    other = Relayed(relay)
    other.client_sends(b"hi")
    assert recv_exactly(other.far, 2) == b"hi"
    other.close()


def test_ends(relayed: Relayed) -> None:
    """Each side hears of the other's end, after everything else."""
    relayed.client_sends(b"last words")
    assert relayed.client.shutdown_write()
    assert recv_exactly(relayed.far, 100) == b"last words"
    relayed.far.close()
    assert relayed.client_receives(1) == b""


def test_a_client_that_is_gone(relayed: Relayed) -> None:
    """The other process hears of it."""
    relayed.client.abort(reset=True)
    assert ends(lambda: recv_exactly(relayed.far, 1))


def test_a_client_that_stays(relayed: Relayed, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the other process has ended, it has a moment to do so, too."""
    monkeypatch.setattr(session_relay, "_PARTING", 0.1)
    monkeypatch.setattr(session_relay, "_LOOK", 0.05)
    relayed.far.sendall(b"farewell")
    relayed.far.close()
    assert relayed.client_receives(100) == b"farewell"
    with pytest.raises(OSError, match=r"reset|pipe"):
        while True:
            relayed.client_sends(MUCH)


def test_the_thread_is_interrupted(relay: SessionRelay, relayed: Relayed) -> None:
    """A connection that was being copied arrives whole or ends; others and new ones go on."""
    skip_if_traced()
    for _ in range(12):  # a series of twenty would end it
        struck = Relayed(relay)
        raise_in(relay._thread, Interruption)
        assert said_through(struck) in (b"there", b"")
        struck.close()
    assert said_through(Relayed(relay)) == said_through(relayed) == b"there"


@pytest.mark.interrupted
def test_the_thread_is_interrupted_at_any_bytecode() -> None:
    """The same, whichever one an exception strikes."""
    for moment in opcodes("tao.cluster.sessions.relay"):
        with moment.raising(thread="tao-session-relay"):
            relay = SessionRelay()
            pair, other = Relayed(relay), Relayed(relay)
            assert said_through(pair) in (b"there", b""), moment
        assert said_through(other) in (b"there", b""), moment
        assert said_through(Relayed(relay)) == b"there", moment
        relay.close()


def said_through(pair: Relayed) -> bytes:
    """Say something, and return what arrived until the connection ended."""
    data = bytearray()
    try:
        pair.client_sends(b"there")
        pair.client.shutdown_write()
        while piece := pair.far.recv(5):
            data += piece
    except (OSError, ConnectionClosed):
        pass  # reset, as the thread was interrupted
    pair.close()
    return bytes(data)


def test_the_end_of_the_relay(relay: SessionRelay, relayed: Relayed) -> None:
    """Both sides hear of it."""
    relayed.client_sends(b"hi")
    assert recv_exactly(relayed.far, 2) == b"hi"
    relay.close()
    assert relayed.far.recv(1) == b""
    with pytest.raises(ConnectionClosed):
        relayed.client.recv(1)
