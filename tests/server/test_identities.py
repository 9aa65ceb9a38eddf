"""Identities: one connection for each, whoever claims it, and nothing left of those that ended."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import tao
from tao.server.connection import ServerConn
from tao.server.membership.identities import Identities
from tao.server.server import Server, server_core_of
from tests.ends import MakeServer, Seen
from tests.injection import opcodes
from tests.support import PATIENCE, together, wait_until

Peers = Callable[..., tuple[Server, list[ServerConn]]]


@pytest.fixture
def peers(make_server: MakeServer) -> Iterator[Peers]:
    """A function that starts a server and returns it with some connections."""
    socks: list[socket.socket] = []

    def connect(count: int, **options: Any) -> tuple[Server, list[ServerConn]]:
        server, address = make_server(**options)
        for number in range(count):
            socks.append(socket.create_connection(address, PATIENCE))
            wait_until(lambda number=number: server.connection_count > number)
        return server, server.connections

    yield connect
    for sock in socks:
        sock.close()


def test_a_second_login_replaces_the_first(peers: Peers) -> None:
    """The first is closed and told why; what it releases later is not what the second has."""
    closed = Seen()
    server, (first, second) = peers(2, on_close=lambda conn: closed.add((conn, conn.identity)))
    first.identify("dev-42", replace=True)
    assert (server.find("dev-42"), first.identity, second.identity) == (first, "dev-42", None)
    second.identify("dev-42", replace=True)
    assert first.close_reason == "replaced by connection 2"
    assert first.wait_closed(PATIENCE)
    assert closed.items == [(first, "dev-42")] and first.identity is None
    assert server.find("dev-42") is second and not second.closed


def test_without_replace(peers: Peers) -> None:
    """The first keeps it as long as it is not closing; a claim of its own changes nothing."""
    server, (first, second) = peers(2)
    for _ in range(2):
        first.identify("dev-42")
    with pytest.raises(tao.IdentityTaken, match=r"^connection 1 is 'dev-42' already$"):
        second.identify("dev-42")
    assert (server.find("dev-42"), second.identity) == (first, None)
    first.close()
    second.identify("dev-42")
    assert server.find("dev-42") is second
    with pytest.raises(tao.ConnectionClosed, match="closed by this side"):
        first.identify("other")


def test_another_identity(peers: Peers) -> None:
    """It gives up the former, which is free again."""
    server, (conn, other) = peers(2)
    conn.identify("a")
    conn.identify("b")
    other.identify("a")
    assert (conn.identity, server.find("b"), server.find("a")) == ("b", conn, other)
    for wrong, error in ((7, TypeError), ("", ValueError), ("x" * 256, ValueError)):
        for use in (conn.identify, server.find):
            with pytest.raises(error, match="an identity must"):
                use(wrong)  # type: ignore[operator]


def test_many_logins_at_once(peers: Peers) -> None:
    """One of them remains, and nothing is kept of the others."""
    server, conns = peers(8)
    together(*(lambda conn=conn: conn.identify("dev-42", replace=True) for conn in conns))
    remaining = server.find("dev-42")
    assert [conn for conn in conns if not conn.closed] == [remaining]
    wait_until(lambda: server_core_of(server).identities._names.keys() == {remaining.net_id})
    remaining.close()
    wait_until(lambda: not server_core_of(server).identities._owners)


class Peer:
    """What is known of a connection."""

    def __init__(self, net_id: int) -> None:
        self.net_id = net_id
        self.closed = False
        self.close_reason: str | None = None

    def close(self, reason: str) -> None:
        self.closed, self.close_reason = True, reason


@pytest.mark.interrupted
def test_an_exception_at_any_bytecode_of_a_claim() -> None:
    """It is made completely, and the replaced one is closed, or it is not begun."""
    for moment in opcodes("tao.server.membership.identities", "tao.runtime.combining"):
        identities, first, second = Identities[Peer](), Peer(1), Peer(2)
        identities.claim(first, "a", replace=True)
        identities.claim(second, "b", replace=True)
        with moment.raising():
            identities.claim(second, "a", replace=True)
        made = identities._owners == {"a": second}
        assert made or identities._owners == {"a": first, "b": second}, moment
        assert identities.identity(2) == ("a" if made else "b"), moment
        if moment.possible:
            assert first.closed is made, moment
        identities.claim(second, "a", replace=True)
        assert first.closed


def test_a_claim_beside_the_end() -> None:
    """Of a connection that claims while it ends nothing is left."""
    identities = Identities[Peer]()

    def claim(peer: Peer) -> None:
        try:
            identities.claim(peer, "a", replace=True)
        except tao.ConnectionClosed:
            pass

    def end(peer: Peer) -> None:
        peer.close("over")
        identities.forget(peer.net_id)

    for net_id in range(200):
        peer = Peer(net_id)
        together(lambda peer=peer: claim(peer), lambda peer=peer: end(peer))
        assert (identities._owners, identities._names) == ({}, {})
