"""A server in a cluster: what it publishes, and what it does with what it gets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import tao
from tao.cluster.engine import EngineFigures, EngineState, Publication, Receiver, Target
from tao.cluster.link import ClusterLink
from tao.server.membership import cluster_member
from tao.server.membership.cluster_member import LocalConnections
from tao.server.server import server_core_of
from tests.ends import Text, text
from tests.support import PATIENCE, recv_exactly, wait_until


class Exchange:
    """An engine that delivers to all nodes of this process at once."""

    lock = threading.Lock()
    nodes: list[Receiver] = []  # noqa: RUF012
    counts: dict[tuple[Exchange, str], int] = {}  # noqa: RUF012

    state: EngineState = "up"
    figures = EngineFigures()

    def start(self, node: str, receiver: Receiver) -> None:
        self.nodes.append(receiver)

    def publish(self, publication: Publication, confirm: float | None = None) -> None:
        if publication.frame.endswith(b"refused"):
            raise tao.ClusterUnavailable("too much waits")
        with self.lock:
            for receiver in self.nodes:
                receiver.deliver(publication)

    def set_count(self, group: str, count: int) -> None:
        self.counts[self, group] = count

    def count(self, group: str) -> int:
        return sum(count for (_, name), count in self.counts.items() if name == group)

    def close(self, timeout: float) -> int:
        return 0

    def abandon(self) -> None: ...


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tao.Server]]:
    """Two servers that are joined, as if each had a process of its own."""
    Exchange.nodes, Exchange.counts = [], {}

    def join(node: str, server: LocalConnections) -> ClusterLink:
        return ClusterLink(node, server, Exchange())

    monkeypatch.setattr(cluster_member, "_openers", [join])
    found = [tao.Server(registry=tao.Registry(), cluster="local") for _ in range(2)]
    for each in found:
        each.start(("127.0.0.1", 0))
    yield found
    for each in found:
        each.stop()


def ready(server: tao.Server) -> tuple[socket.socket, tao.ServerConn]:
    """Connect, and return both ends."""
    count = server.connection_count
    sock = socket.create_connection(server.address, PATIENCE)
    wait_until(lambda: server.connection_count > count)
    return sock, server.connections[-1]


def test_a_broadcast(servers: list[tao.Server]) -> None:
    """It reaches the connections of all servers but those left out, wherever they are."""
    (left, here), (right, _), (out, excluded) = map(ready, [*servers, servers[1]])
    with left, right, out:
        sent = servers[0].broadcast(Text("hello"), exclude=[excluded.address_id])
        assert repr(sent) == "Broadcast(queued=0, failed=[], published=True)"
        servers[0].broadcast(Text("there"), exclude=[here])
        servers[1].broadcast(Text("the end"))
        assert recv_exactly(left, 28) == text("hello") + text("the end")
        assert recv_exactly(right, 41) == text("hello") + text("there") + text("the end")
        assert recv_exactly(out, 28) == text("there") + text("the end")


def test_a_group(servers: list[tao.Server]) -> None:
    """It spans all servers: what is sent to it, and how many connections it has."""
    (left, here), (right, there), (out, excluded), (other, _) = map(ready, [*servers, *servers])
    for conn in (here, there, excluded):
        conn.join("a")
    group = servers[0].group("a")
    assert (len(group), group.count()) == (2, 3)
    assert group.broadcast(Text("x"), exclude=[excluded]).published
    here.leave("a")
    assert group.count() == servers[1].group("a").count() == 2
    servers[1].group("a").broadcast(Text("y"))
    servers[0].broadcast(Text("end"))
    for sock, words in ((left, "x"), (right, "xy"), (out, "y"), (other, "")):
        data = b"".join(map(text, words)) + text("end")
        with sock:
            assert recv_exactly(sock, len(data)) == data


def test_a_unicast(servers: list[tao.Server]) -> None:
    """It reaches a connection by its address_id from anywhere, by its number from here only."""
    (left, here), (right, there) = map(ready, servers)
    with left, right:
        servers[0].unicast(there.address_id, Text("far"))
        servers[0].unicast(here.net_id, Text("near"))
        assert recv_exactly(right, 11) == text("far")
        assert recv_exactly(left, 12) == text("near")
        for gone in (99, here.address_id + "9"):
            with pytest.raises(tao.ConnectionClosed, match=f"no connection {gone}"):
                servers[0].unicast(gone, Text(""))


def test_a_cluster_that_takes_nothing(servers: list[tao.Server]) -> None:
    """The caller is told."""
    with pytest.raises(tao.ClusterUnavailable):
        servers[0].broadcast(Text("refused"))


@pytest.mark.parametrize("wrong", ["abc", [None], [1.0], [b"x"]])
@pytest.mark.parametrize("alone", [True, False])
def test_what_is_no_list_of_connections(servers: list[tao.Server], wrong: Any, alone: bool) -> None:
    """It is refused, and nobody gets the message."""
    server = tao.Server(registry=tao.Registry()) if alone else servers[0]
    for broadcast in (server.broadcast, server.group("room").broadcast):
        with pytest.raises(TypeError, match=r"exclude must be a list|a connection has a net_id"):
            broadcast(Text("x"), exclude=wrong)


@pytest.mark.parametrize("wrong", ["2", float("nan"), ()])
@pytest.mark.parametrize("alone", [True, False])
def test_what_is_no_time_to_confirm(servers: list[tao.Server], wrong: Any, alone: bool) -> None:
    """It is refused before anything is published."""
    server = tao.Server(registry=tao.Registry()) if alone else servers[0]
    for broadcast in (server.broadcast, server.group("room").broadcast):
        with pytest.raises((TypeError, ValueError), match="must be a number of seconds"):
            broadcast(Text("x"), confirm=wrong)


@pytest.mark.parametrize("wrong", [None, 1.0, b"x"])
@pytest.mark.parametrize("alone", [True, False])
def test_what_names_no_connection(servers: list[tao.Server], wrong: Any, alone: bool) -> None:
    """It is refused."""
    server = tao.Server(registry=tao.Registry()) if alone else servers[0]
    with pytest.raises(TypeError, match="a connection has a net_id"):
        server.unicast(wrong, Text("x"))


def test_a_gap() -> None:
    """The application is told, and what it raises ends nothing."""
    told: list[tuple[int, int | None]] = []
    Exchange.nodes = []
    server = tao.Server(
        on_gap=lambda partition, missing: told.append((partition, missing)) or 1 / 0
    )
    link = ClusterLink("node", server_core_of(server), Exchange())
    link.gap(0, 7)
    link.gap(1, None)
    assert told == [(0, 7), (1, None)]


def test_a_server_alone() -> None:
    """Without a supervisor "local" is this process; ids work all the same."""
    with tao.Server(registry=tao.Registry(), cluster="local") as server:
        server.start(("127.0.0.1", 0))
        sock, conn = ready(server)
        with sock:
            assert server.broadcast(Text("a")) == tao.Broadcast(1, [])
            server.unicast(conn.address_id, Text("b"))
            assert recv_exactly(sock, 18) == text("a") + text("b")
            with pytest.raises(tao.ConnectionClosed):
                server.unicast("other:1", Text("c"))


@pytest.mark.parametrize("target", ["all", "group:room:7", "connection:ab12:7", "group:"])
def test_targets(target: str) -> None:
    """Each can be written as text and read again."""
    assert Target.parse(target).text == target


@pytest.mark.parametrize("wrong", ["", "everyone", "group", "host:7"])
def test_what_is_no_target(wrong: str) -> None:
    """It is refused."""
    with pytest.raises(ValueError, match="not the target of a publication"):
        Target.parse(wrong)
