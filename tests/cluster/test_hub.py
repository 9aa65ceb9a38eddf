"""The hub of a supervisor, and the engine that joins a server with it."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tao.cluster.engine import EVERYONE, Publication, Target
from tao.cluster.hub.engine import HubEngine
from tao.cluster.hub.hub import Hub, HubMember
from tao.cluster.hub.wire import publish_record, read_publication, records
from tao.errors import ClusterUnavailable
from tests.support import PATIENCE, together, wait_until


class Node:
    """An engine and what it has delivered."""

    def __init__(self, hub: RunningHub, name: str) -> None:
        self.delivered: list[Publication] = []
        self.gaps: list[int | None] = []
        self.engine = HubEngine(hub.join())
        self.engine.start(name, self)

    def deliver(self, publication: Publication) -> None:
        self.delivered.append(publication)

    def gap(self, partition: int, missing: int | None) -> None:
        self.gaps.append(missing)


class Ignoring:
    """A receiver that nothing comes to."""

    def deliver(self, publication: Publication) -> None: ...
    def gap(self, partition: int, missing: int | None) -> None: ...


def messages(log_lines: list[Any]) -> list[str]:
    return [line["message"] for line in log_lines]


class RunningHub:
    """A hub with a thread that serves it."""

    def __init__(self) -> None:
        self.hub = Hub()
        self._near, self._far = socket.socketpair()
        self._joining: list[socket.socket] = []
        self._over = False
        self._thread = threading.Thread(target=self._run, name="test-hub")
        self._thread.start()

    def join(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        self._joining.append(ours)
        self._far.send(b"x")
        return theirs

    def _run(self) -> None:
        while not self._over:
            poll = select.poll()
            poll.register(self._near, select.POLLIN)
            for member in self.hub.members:
                poll.register(member, member.events)
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self._near.fileno() in ready:
                self._near.recv(100)
            while self._joining:
                self.hub.add(self._joining.pop())
            for member in self.hub.members.copy():
                if member.fileno() in ready:
                    self.hub.serve(member)
        self.hub.close()

    def close(self) -> None:
        if self._over:
            return
        self._over = True
        self._far.send(b"x")
        self._thread.join(PATIENCE)
        self._near.close()
        self._far.close()


@pytest.fixture
def hub() -> Iterator[RunningHub]:
    running = RunningHub()
    yield running
    running.close()


@pytest.fixture
def nodes(hub: RunningHub) -> Iterator[list[Node]]:
    found = [Node(hub, f"{number:012x}") for number in (1, 2, 3)]
    wait_until(lambda: sum(bool(each.node) for each in hub.hub.members) == 3)
    yield found
    for node in found:
        node.engine.close(PATIENCE)


def said(text: str) -> Publication:
    return Publication(EVERYONE, text.encode())


def test_one_order(nodes: list[Node]) -> None:
    """All get all publications in the same order, and each node's in the order of its calls."""
    count = 500

    def publish(node: Node, name: str) -> None:
        for number in range(count):
            node.engine.publish(said(f"{name} {number}"))

    together(
        *(lambda n=node, m=name: publish(n, m) for node, name in zip(nodes, "abc", strict=True))
    )
    wait_until(lambda: all(len(node.delivered) == 3 * count for node in nodes))
    assert nodes[0].delivered == nodes[1].delivered == nodes[2].delivered
    for name in "abc":
        mine = [each for each in nodes[0].delivered if each.frame.startswith(name.encode())]
        assert mine == [said(f"{name} {number}") for number in range(count)]
    figures = nodes[0].engine.figures
    assert (figures.published, figures.delivered, figures.queue) == (count, 3 * count, 0)
    assert figures.lag > 0


def test_confirmation(nodes: list[Node]) -> None:
    """A confirmed publication has its place in the order; without a hub none is confirmed."""
    nodes[0].engine.publish(said("first"), confirm=PATIENCE)
    nodes[1].engine.publish(said("second"), confirm=PATIENCE)
    assert nodes[1].delivered == [said("first"), said("second")]
    nodes[2].engine.close(PATIENCE)
    with pytest.raises(ClusterUnavailable):
        nodes[2].engine.publish(said("late"), confirm=PATIENCE)


def test_counts(hub: RunningHub, nodes: list[Node]) -> None:
    """A group's count is the sum over the nodes, also for one that comes later, until they go."""
    for node, count in zip(nodes, (1, 2, 3), strict=True):
        node.engine.set_count("room", count)
    wait_until(lambda: all(node.engine.count("room") == 6 for node in nodes))
    late = Node(hub, "0000000000ff")
    wait_until(lambda: late.engine.count("room") == 6)
    nodes[1].engine.set_count("room", 0)
    nodes[2].engine.close(PATIENCE)
    wait_until(lambda: late.engine.count("room") == 1)
    late.engine.close(PATIENCE)


def test_the_end_of_the_supervisor(hub: RunningHub, nodes: list[Node]) -> None:
    """Whoever publishes afterwards is told."""
    hub.close()
    wait_until(lambda: all(node.engine.state == "closed" for node in nodes))
    with pytest.raises(ClusterUnavailable):
        nodes[0].engine.publish(said("alone"))


def test_what_a_close_cannot_send(log_lines: list[Any]) -> None:
    """It is counted and logged, and whoever publishes just then is told."""
    near, far = socket.socketpair()
    engine = HubEngine(near)
    with far:
        engine.start("0" * 12, Ignoring())
        for _ in range(1000):
            engine.publish(Publication(EVERYONE, bytes(10_000)))
        sent, waiting = engine.figures.published, engine.figures.queue
        assert sent + waiting >= 1000
        left = engine.close(0.05)
        assert 0 < left <= waiting
        assert f"{left} publications did not reach the cluster" in messages(log_lines)
        assert (engine.close(0.05), engine.figures.queue) == (0, 0)
        assert engine.figures.published + left == 1000


def test_a_publication_just_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes between the last look at the queue and the end is not lost silently."""
    near, far = socket.socketpair()
    engine = HubEngine(near)
    with far:
        engine.start("0" * 12, Ignoring())
        engine.close(PATIENCE)
        monkeypatch.setattr(HubEngine, "state", "up")  # as it was a moment before
        with pytest.raises(ClusterUnavailable, match="is stopping"):
            engine.publish(said("late"))
        assert engine.figures.queue == 0


def test_a_member_that_does_not_read() -> None:
    """What waits for it is bounded; it is told how many publications it has missed."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        member = HubMember(ours, limit=100_000)
        record = publish_record("0" * 12, 1, Publication(EVERYONE, bytes(1000)))
        for _ in range(1000):
            member.pass_on(record, 1)
            member.flush()
        got = bytearray()
        while member.events & select.POLLOUT:
            got += theirs.recv(1 << 20)
            member.flush()
        ours.shutdown(socket.SHUT_WR)
        while data := theirs.recv(1 << 20):
            got += data
        *whole, last = records(got)
        missing = int.from_bytes(got[last.body : last.end], "big")
        assert 0 < missing < 1000
        assert len(whole) + missing == 1000


def test_a_publication_on_the_wire() -> None:
    """It is read as it was written, whatever is in it."""
    publication = Publication(Target("group", "r\u00e4ume:7"), b"\0frame", ("a:1", "b:2"))
    data = b"" + publish_record("0123456789ab", 2**40, publication)
    (record,) = records(data + data[:-1])
    assert read_publication(data, record) == ("0123456789ab", 2**40, publication)
