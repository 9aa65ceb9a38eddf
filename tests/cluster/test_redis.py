"""The engine that joins servers over Redis, with a Redis of its own that fails in many ways."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tao.cluster.engine import EVERYONE, Publication, Target
from tao.cluster.redis import presence
from tao.cluster.redis import reader as redis_reader
from tao.cluster.redis import writer as redis_writer
from tao.cluster.redis.engine import RedisEngine
from tao.cluster.redis.scripts import PUBLISH
from tao.cluster.redis.wire import Signer, draft_of
from tao.cluster.redis.writer import stream_key
from tao.errors import ClusterUnavailable
from tao.testing import FaultProxy
from tao.transport.certificates import DevelopmentCA
from tests.cluster.redis_server import RedisServer, program
from tests.injection import Interruption
from tests.support import PATIENCE, ends, together, wait_until

pytestmark = pytest.mark.skipif(
    program() is None, reason="neither redis-server nor valkey-server is installed"
)
STREAM = stream_key("tao", 0)
KEY = b"sixteen bytes or more"
#: While Redis is killed, by three nodes together; and how often it is killed.
PUBLICATIONS = int(os.environ.get("PUBLICATIONS", "10000"))
KILLS = max(3, PUBLICATIONS // 5000)
#: For how many seconds Redis is stopped; ``make cluster`` sets it.
PAUSE = float(os.environ.get("PAUSE", "1"))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose name is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="tao-") as name:
        yield Path(name)


@pytest.fixture
def server(folder: Path) -> Iterator[RedisServer]:
    """A Redis that loses nothing when it is killed."""
    with RedisServer(folder, "--appendonly", "yes", "--appendfsync", "always") as running:
        yield running


class Node:
    """An engine and what it has delivered."""

    def __init__(self, number: int, url: str, *keys: bytes) -> None:
        self.name = f"{number:012x}"
        self.delivered: list[str] = []
        self.gaps: list[tuple[int, int | None]] = []
        self.engine = RedisEngine(url, keys)
        self.engine.start(self.name, self)
        wait_until(self.up)

    def up(self) -> bool:
        return self.engine.state == "up"

    def deliver(self, publication: Publication) -> None:
        self.delivered.append(publication.frame.decode())

    def gap(self, partition: int, missing: int | None) -> None:
        self.gaps.append((partition, missing))

    def __repr__(self) -> str:
        got = f"{len(self.delivered)} delivered, the last one {self.delivered[-1:]}"
        return f"{self.name}: {self.engine.state}, {got}, gaps {self.gaps}, {self.engine.figures}"

    def say(self, text: str, confirm: float | None = None) -> None:
        self.engine.publish(Publication(EVERYONE, text.encode()), confirm)

    def hears(self, *texts: str) -> None:
        """Wait until that was delivered at last."""
        wait_until(lambda: tuple(self.delivered[-len(texts) :]) == texts)


@pytest.fixture
def make() -> Iterator[Callable[..., Node]]:
    """Makes nodes, which are closed at the end."""
    with ExitStack() as stack:
        numbers = iter(range(1, 100))

        def node(url: str, *keys: bytes) -> Node:
            made = Node(next(numbers), url, *keys)
            stack.callback(made.engine.close, 0.2)
            return made

        yield node


@pytest.fixture
def nodes(server: RedisServer, make: Callable[..., Node]) -> list[Node]:
    return [make(server.url) for _ in range(3)]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def publish(node: Node, count: int) -> None:
    for number in range(count):
        node.say(f"{node.name} {number}")


def heard_all(nodes: list[Node], count: int) -> None:
    """Check that all nodes have got so many of each, once, all in the same order."""
    try:
        wait_until(lambda: all(len(node.delivered) >= len(nodes) * count for node in nodes))
    except AssertionError:
        for node in nodes:
            print(node)  # for the report
        print(*(thread.name for thread in threading.enumerate()))
        raise
    for node in nodes:
        assert node.delivered == nodes[0].delivered
        assert node.gaps == []
        mine = [each for each in nodes[0].delivered if each.startswith(node.name)]
        assert mine == [f"{node.name} {number}" for number in range(count)]


def test_one_order(nodes: list[Node]) -> None:
    """All get all publications in the same order, and each node's in the order of its calls."""
    together(*(lambda n=node: publish(n, 500) for node in nodes))
    heard_all(nodes, 500)
    figures = nodes[0].engine.figures
    assert (figures.published, figures.delivered, figures.queue) == (500, 1500, 0)
    assert figures.lag > 0


def test_restarts(server: RedisServer, nodes: list[Node]) -> None:
    """While Redis is killed again and again, nothing is lost and nothing comes twice."""

    def kill() -> None:
        for _ in range(KILLS):
            wait_until(nodes[0].up)
            server.kill()
            server.start()

    def run(node: Node) -> None:
        for number in range(PUBLICATIONS // 3):
            node.say(f"{node.name} {number}", confirm=PATIENCE if number % 50 == 0 else None)

    together(kill, *(lambda n=node: run(n) for node in nodes))
    heard_all(nodes, PUBLICATIONS // 3)
    assert all(node.engine.figures.reconnects for node in nodes)


def test_killed_connections(server: RedisServer, nodes: list[Node]) -> None:
    """They are made again, and bring what came meanwhile."""
    over = threading.Event()

    def kill() -> None:
        while not over.is_set():
            server.client.client_kill_filter(_type="normal", skipme=True)
            over.wait(0.05)

    killer = threading.Thread(target=kill, name="test-killer")
    killer.start()
    try:
        for number in range(300):
            for node in nodes:
                node.say(f"{node.name} {number}", confirm=PATIENCE if number % 100 == 0 else None)
    finally:
        over.set()
        killer.join()
    heard_all(nodes, 300)


def test_a_pause(server: RedisServer, nodes: list[Node]) -> None:
    """What is published while Redis does not answer arrives when it does again."""
    server.send(signal.SIGSTOP)
    try:
        publish(nodes[0], 100)
        with pytest.raises(ClusterUnavailable, match=r"not confirmed within 0\.05 s"):
            nodes[0].say("late", confirm=0.05)
        assert nodes[0].delivered == []
    finally:
        server.send(signal.SIGCONT)
    for node in nodes:
        node.hears("late")
        assert len(node.delivered) == 101


def test_a_long_stop(
    server: RedisServer, nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All nodes notice it and try again; afterwards everything arrives once, in one order.

    Redis then answers the attempts of before as well, whose connections are given up.
    """
    if PAUSE < 10:  # else the times are the real ones
        monkeypatch.setattr(redis_reader, "_BLOCK", 0.05)
        monkeypatch.setattr(redis_reader, "_GRACE", 0.1)
        monkeypatch.setattr(redis_writer, "_ANSWER", 0.1)
    over = threading.Event()
    counts: list[int] = []

    def publish_on(node: Node) -> None:
        count = 0
        while not over.wait(0.002):
            node.say(f"{node.name} {count}")
            count += 1
        counts.append(count)

    def stop() -> None:
        try:
            wait_until(lambda: all(node.delivered for node in nodes))
            server.send(signal.SIGSTOP)
            over.wait(PAUSE)
            wait_until(lambda: all(node.engine.state == "down" for node in nodes))
            assert all(node.engine.figures.queue for node in nodes)
            server.send(signal.SIGCONT)
            wait_until(lambda: all(node.up() for node in nodes))
        finally:
            over.set()

    together(stop, *(lambda n=node: publish_on(n) for node in nodes))
    wait_until(lambda: all(len(node.delivered) == sum(counts) for node in nodes))
    for node in nodes:
        assert node.delivered == nodes[0].delivered
        assert node.gaps == []
        assert node.engine.figures.reconnects
        mine = [each for each in nodes[0].delivered if each.startswith(node.name)]
        assert mine == [f"{node.name} {number}" for number, _ in enumerate(mine)]


def test_flushed_data(server: RedisServer, nodes: list[Node]) -> None:
    """Every node is told of a gap of unknown size, and the next publications arrive."""
    nodes[0].say("before", confirm=PATIENCE)
    for node in nodes:
        node.hears("before")
    server.client.flushall()
    nodes[2].say("after", confirm=PATIENCE)
    for node in nodes:
        node.hears("before", "after")
        assert node.gaps == [(0, None)]
    assert nodes[0].engine.figures.gaps == 1


def test_an_empty_redis_after_a_restart(folder: Path, make: Callable[..., Node]) -> None:
    """A node that only reads is told too, as soon as it is connected again."""
    with RedisServer(folder) as server:
        node = make(server.url)
        node.say("before", confirm=PATIENCE)
        node.hears("before")
        server.kill()
        server.start()
        wait_until(lambda: node.gaps == [(0, None)])
        make(server.url).say("after")
        node.hears("before", "after")


def records(count: int) -> list[bytes]:
    """Return so many publications of a node of their own, which say their places from 0."""
    frames = [f"{number}".encode() for number in range(count)]
    drafts = [draft_of(Publication(EVERYONE, frame)) for frame in frames]
    return [Signer("tao").record("f" * 12, 0, place + 1, each) for place, each in enumerate(drafts)]


def test_trimming(server: RedisServer, nodes: list[Node]) -> None:
    """A node that reads too late is told how many publications are missing."""
    with server.client.pipeline() as transaction:
        for first in range(0, 10, 2):  # two in each entry
            pair = records(10)[first : first + 2]
            transaction.eval(PUBLISH.text, 1, STREAM, 0, 0, 1000, "", *pair)
        transaction.xtrim(STREAM, 2, approximate=False)
        transaction.execute()
    for node in nodes:
        node.hears("6", "7", "8", "9")
        ((partition, missing),) = node.gaps
        assert partition == 0
        assert missing == node.engine.figures.missing
        assert missing in (6, 7, 8)  # some of them what a node told of itself


def test_what_is_kept(server: RedisServer) -> None:
    """As many publications as were asked for, however many an entry has, of the latest epochs."""
    call = server.client.register_script(PUBLISH.text)
    for _ in range(100):
        call([STREAM], [0, 0, 2000, "", *records(100)])
    epoch, offset = call([STREAM], [0, 0, 2000, "", *records(1)])
    kept = server.client.xlen(STREAM)
    assert 20 <= kept < 60
    call([STREAM], [epoch, offset + 1, 2000, "", *records(1)])
    assert server.client.xlen(STREAM) == kept + 1  # a new epoch leaves what was before


def test_a_second_attempt(server: RedisServer) -> None:
    """It adds a batch only if the first one has not: behind others too, or in an earlier epoch."""
    call = server.client.register_script(PUBLISH.text)
    mine, others = records(30)[:3], records(30)[3:]
    epoch, before = call([STREAM], [0, 0, 1000, "", *records(1)])
    place = f"{epoch}-{before}"
    _, offset = call([STREAM], [epoch, before, 1000, place, *mine])
    assert offset == before + 3
    for each in others:
        call([STREAM], [0, 0, 1000, "", each])
    assert call([STREAM], [epoch, before, 1000, place, *mine]) == [epoch, offset + 27]
    length = server.client.xlen(STREAM)
    later, offset = call([STREAM], [epoch, 1000, 1000, place, *mine])  # data has gone back
    assert (later > epoch, offset, server.client.xlen(STREAM)) == (True, 1, length + 1)
    server.client.delete(STREAM)
    later, offset = call([STREAM], [later, 1, 1000, place, *mine])
    assert offset == 4  # with the mark of a new epoch
    assert call([STREAM], [later, 1, 1000, place, *mine]) == [later, offset]
    assert server.client.xlen(STREAM) == 1


def test_an_answer_that_is_lost(server: RedisServer) -> None:
    """The publications are in the stream once, in their order."""
    with FaultProxy(str(server.socket)) as proxy:
        engine = RedisEngine("redis://{}:{}".format(*proxy.address))
        engine.start("f" * 12, None)

        def say(text: str, confirm: float | None = None) -> None:
            engine.publish(Publication(EVERYONE, text.encode()), confirm)

        say("one", PATIENCE)
        entries = server.client.xlen(STREAM)
        proxy.to_client.swallow = True
        say("two")
        wait_until(lambda: server.client.xlen(STREAM) > entries)
        proxy.to_client.swallow = False
        server.client.client_kill_filter(_type="normal", skipme=True)
        say("three", PATIENCE)
        engine.close(PATIENCE)
    found = [fields.get(b"p", b"")[-3:] for _, fields in server.client.xrange(STREAM)]
    assert found == [b"", b"one", b"two", b"ree"]


def test_an_attempt_that_redis_carries_out_late(server: RedisServer, nodes: list[Node]) -> None:
    """If it comes after the second one, the readers drop it."""
    call = server.client.register_script(PUBLISH.text)
    for batch in (records(2), records(3)[2:], records(2)):
        call([STREAM], [0, 0, 1000, "", *batch])
    nodes[0].say("end", confirm=PATIENCE)
    for node in nodes:
        node.hears("0", "1", "2", "end")
        assert (len(node.delivered), node.gaps) == (4, [])


def test_one_write_for_each_call(server: RedisServer, make: Callable[..., Node]) -> None:
    """Redis never writes a transaction, of which it might lose the end.

    It is killed within the write of a batch, at many places. Nothing that it acknowledges
    afterwards is lost.
    """
    if server.version < 7:
        pytest.skip("Redis 6 writes a transaction for each script")
    node = make(server.url)
    node.engine.set_count("room", 1)
    node.say("one", confirm=PATIENCE)
    server.client.flushall()
    node.say("two", confirm=PATIENCE)  # in a new epoch
    before = server.log_of_writes.stat().st_size
    publish(node, 100)
    node.say("three", confirm=PATIENCE)
    node.engine.close(PATIENCE)
    server.kill()
    written = server.log_of_writes.read_bytes()
    assert b"XADD" in written
    assert b"MULTI" not in written.upper()
    for length in range(before + 1, len(written), (len(written) - before) // 8):
        server.log_of_writes.write_bytes(written[:length])
        server.start()
        publisher, text = make(server.url), f"after {length}"
        publisher.say(text, confirm=PATIENCE)
        server.kill()
        server.start()
        kept = str(server.client.xrevrange(STREAM))
        assert text in kept
        publisher.say("end", confirm=PATIENCE)
        publisher.hears(text, "end")
        assert publisher.gaps == []
        publisher.engine.close(PATIENCE)
        server.kill()


def test_a_promoted_replica(folder: Path, make: Callable[..., Node]) -> None:
    """One that lacks the latest publications begins a new epoch, and the gap is told."""
    port, at_once = free_port(), ("--repl-diskless-sync-delay", "0")
    with RedisServer(folder / "a", *at_once, "--port", str(port)) as old, ExitStack() as stack:
        new = RedisServer(folder / "b", "--replicaof", "127.0.0.1", str(port))
        stack.enter_context(new)
        node, other = make(old.url), make(old.url)
        node.say("both", confirm=PATIENCE)
        wait_until(lambda: new.client.exists(STREAM) and old.client.wait(1, 100))
        new.client.replicaof("NO", "ONE")
        node.say("lost", confirm=PATIENCE)
        other.hears("both", "lost")
        new.socket.rename(old.socket)
        old.client.client_kill_filter(_type="normal", skipme=True)
        wait_until(lambda: node.gaps and other.gaps)
        node.say("next", confirm=PATIENCE)
        other.hears("both", "lost", "next")
        assert node.gaps == other.gaps == [(0, None)]


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_a_replica_that_went_on(server: RedisServer, nodes: list[Node], ahead: int) -> None:
    """Another publication in the place of the one read last is noticed at the next connection.

    It may be in the midst of an entry.
    """
    nodes[0].say("mine", confirm=PATIENCE)
    for node in nodes:
        node.hears("mine")
    wait_until(lambda: server.client.info("clients")["blocked_clients"] == 3)
    epoch, offset = server.client.xinfo_stream(STREAM)["last-generated-id"].decode().split("-")
    fields = [word for record in records(2 + ahead) for word in ("p", record)]
    with server.client.pipeline() as transaction:
        transaction.client_kill_filter(_type="normal", skipme=True)
        transaction.delete(STREAM)
        transaction.execute_command("XADD", STREAM, f"{epoch}-{int(offset) + ahead}", *fields)
        transaction.execute()
    wait_until(lambda: all(node.gaps == [(0, None)] for node in nodes))


def test_an_exception_within_an_entry(
    server: RedisServer, nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs the publication that was being delivered, not the others of its entry."""
    node, deliver = nodes[0], nodes[0].deliver

    def strike(publication: Publication) -> None:
        if publication.frame == b"4":
            raise Interruption
        deliver(publication)

    monkeypatch.setattr(node, "deliver", strike)
    server.client.eval(PUBLISH.text, 1, STREAM, 0, 0, 1000, "", *records(10))
    node.hears(*"012356789")
    assert node.gaps == [(0, None)]
    nodes[1].hears(*"0123456789")


def test_full_memory(server: RedisServer, nodes: list[Node]) -> None:
    """Publications wait while Redis accepts none, and arrive afterwards."""
    server.client.config_set("maxmemory", 1)
    nodes[0].say("first")
    wait_until(lambda: nodes[0].engine.state == "down")
    with pytest.raises(ClusterUnavailable, match="not confirmed"):
        nodes[0].say("second", confirm=0.01)
    server.client.config_set("maxmemory", 0)
    nodes[1].hears("first", "second")
    wait_until(nodes[0].up)


def test_a_full_queue(
    server: RedisServer, make: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While Redis is away a bounded number waits; the caller is told of the rest."""
    monkeypatch.setattr(redis_writer, "_MOST_WAITING", 1000)
    node = make(server.url)
    server.kill()
    with pytest.raises(ClusterUnavailable, match="1000 publications wait for Redis already"):
        publish(node, 2000)
    assert node.engine.figures.queue >= 1000
    server.start()
    wait_until(lambda: len(node.delivered) >= 1000)
    assert node.delivered == [f"{node.name} {number}" for number in range(len(node.delivered))]


def test_counts(server: RedisServer, make: Callable[..., Node]) -> None:
    """A group's count is the sum over the nodes, for late ones too, and after a flush."""
    nodes = [make(server.url) for _ in range(3)]
    for node, count in zip(nodes, (1, 2, 3), strict=True):
        node.engine.set_count("room", count)
    wait_until(lambda: all(node.engine.count("room") == 6 for node in nodes))
    late = make(server.url)
    wait_until(lambda: late.engine.count("room") == 6)
    nodes[1].engine.set_count("room", 0)
    nodes[2].engine.close(PATIENCE)
    wait_until(lambda: late.engine.count("room") == 1)
    server.client.flushall()
    nodes[0].engine.set_count("room", 5)
    wait_until(lambda: late.engine.count("room") == 5)


def test_a_node_that_gives_no_sign_of_life(
    server: RedisServer, make: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not counted any more, until it comes back."""
    node, silent = make(server.url), make(server.url)
    silent.engine.set_count("room", 1)
    wait_until(lambda: node.engine.count("room") == 1)
    with monkeypatch.context() as short:
        short.setattr(presence, "_LEASE", 0.0)
        node.say("look", confirm=PATIENCE)
        wait_until(lambda: node.engine.count("room") == 0)
    silent.engine.set_count("other", 1)
    wait_until(lambda: node.engine.count("room") == 1)


def test_partitions(server: RedisServer, make: Callable[..., Node]) -> None:
    """The order is that of each group, and there are as many streams."""
    nodes = [make(f"{server.url}?partitions=4&prefix=parts") for _ in range(2)]
    for number in range(200):
        for name in "abcdef":
            target = Target("group", name)
            nodes[0].engine.publish(Publication(target, f"{name}{number}".encode()))
    wait_until(lambda: all(len(node.delivered) == 1200 for node in nodes))
    for name in "abcdef":
        mine = [each for each in nodes[1].delivered if each.startswith(name)]
        assert mine == [f"{name}{number}" for number in range(200)]
    assert len(server.client.keys("{parts:*}:stream")) == 4


def test_partitions_that_differ(
    server: RedisServer,
    make: Callable[..., Node],
    log_lines: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both sides log it, once, as they miss publications of each other."""
    monkeypatch.setattr(presence, "BEAT", 0.01)
    one, two = make(server.url), make(f"{server.url}?partitions=2")

    def told(node: Node, other: Node, numbers: tuple[int, int]) -> bool:
        text = "node {} has partitions={}, this one {}: ".format(other.name, *numbers)
        return sum(line["message"].startswith(text) for line in log_lines) == 1

    wait_until(lambda: told(one, two, (2, 1)) and told(two, one, (1, 2)))


def test_signatures(server: RedisServer, make: Callable[..., Node]) -> None:
    """What is not signed with one of the keys is refused, and so is what was there before."""
    one, two = make(server.url, KEY), make(server.url, KEY[::-1], KEY)
    make(server.url).say("unsigned", confirm=PATIENCE)
    make(server.url, b"x" * 16).say("wrong", confirm=PATIENCE)
    one.say("right", confirm=PATIENCE)
    two.hears("right")
    *_, (_, fields) = server.client.xrevrange(STREAM, count=50)[::-1]
    top = server.client.xinfo_stream(STREAM)["last-generated-id"].decode().split("-")
    server.client.xadd(STREAM, fields, id=f"{top[0]}-{int(top[1]) + 1}")
    one.say("end", confirm=PATIENCE)
    two.hears("right", "end")
    assert two.delivered == ["right", "end"]


def test_a_replica_is_left(server: RedisServer, nodes: list[Node]) -> None:
    """A node does not read from a former master, which may bring nothing for ever."""
    server.client.replicaof("127.0.0.1", str(free_port()))
    server.client.client_kill_filter(_type="normal", skipme=True)
    wait_until(lambda: nodes[0].engine.state == "down")
    server.client.replicaof("NO", "ONE")
    wait_until(lambda: all(node.up() for node in nodes))


def test_redis_that_is_not_there(folder: Path) -> None:
    """A node can start and stop without it; it reports what could not be published."""
    engine = RedisEngine(f"unix://{folder}/none")
    engine.start("0" * 12, None)
    engine.publish(Publication(EVERYONE, b"waits"))
    wait_until(lambda: engine.state == "down")
    assert ends(lambda: engine.close(0.1))
    assert engine.state == "closed"
    with pytest.raises(ClusterUnavailable, match="has left the cluster"):
        engine.publish(Publication(EVERYONE, b"late"))


def test_a_stop_while_redis_hangs(server: RedisServer, make: Callable[..., Node]) -> None:
    """It does not wait for Redis."""
    node = make(server.url)
    server.send(signal.SIGSTOP)
    try:
        node.say("lost")
        assert ends(lambda: node.engine.close(0.1))
        assert not [each.name for each in threading.enumerate() if "tao-redis" in each.name]
    finally:
        server.send(signal.SIGCONT)


@pytest.fixture
def pair(
    server: RedisServer, make: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Node, Node, FaultProxy]]:
    """Two nodes that soon notice silence, the second with a proxy before Redis."""
    monkeypatch.setattr(redis_reader, "_BLOCK", 0.05)
    monkeypatch.setattr(redis_reader, "_GRACE", 0.3)
    monkeypatch.setattr(redis_writer, "_ANSWER", 0.3)
    with FaultProxy(str(server.socket)) as proxy, ExitStack() as stack:
        far = Node(100, "redis://{}:{}?retain=1000".format(*proxy.address))
        stack.callback(far.engine.close, 0.2)
        yield make(f"{server.url}?retain=1000"), far, proxy


@pytest.mark.parametrize("both_ways", [True, False], ids=["nothing passes", "no answer passes"])
def test_a_partition(pair: tuple[Node, Node, FaultProxy], both_ways: bool) -> None:
    """A node notices that Redis has fallen silent; afterwards it has received each message once."""
    near, far, proxy = pair
    proxy.to_client.swallow, proxy.to_server.swallow = True, both_ways
    publish(near, 500)
    publish(far, 300)
    near.say("near", confirm=PATIENCE)
    wait_until(lambda: far.engine.state == "down")
    proxy.to_client.swallow = proxy.to_server.swallow = False
    far.say("end", confirm=PATIENCE)
    for node in pair[:2]:
        wait_until(lambda n=node: len(n.delivered) >= 802)
    assert near.delivered == far.delivered
    for node in (near, far):
        mine = [each for each in near.delivered if each.startswith(node.name)]
        assert mine == [f"{node.name} {number}" for number, _ in enumerate(mine)]
    assert near.gaps == far.gaps == []


def test_a_partition_for_too_long(pair: tuple[Node, Node, FaultProxy]) -> None:
    """What Redis does not keep any more is reported as missing, and the rest arrives."""
    near, far, proxy = pair
    proxy.to_client.swallow = proxy.to_server.swallow = True
    for total in range(500, 3001, 500):  # it keeps up itself
        publish(near, 500)
        wait_until(lambda n=total: len(near.delivered) == n)
    wait_until(lambda: far.engine.state == "down")
    proxy.to_client.swallow = proxy.to_server.swallow = False
    far.say("end", confirm=PATIENCE)
    for node in (near, far):
        node.hears("end")
    ((partition, missing),) = far.gaps
    assert partition == 0
    assert far.delivered == near.delivered[-len(far.delivered) :]
    assert 0 < 3001 - len(far.delivered) <= (missing or 0) == far.engine.figures.missing
    assert near.gaps == []


def test_tls(folder: Path, make: Callable[..., Node]) -> None:
    """rediss:// reaches a Redis with TLS, and a stop interrupts what waits there."""
    port, ca = free_port(), DevelopmentCA()
    issued = ca.issue("localhost", "127.0.0.1")
    issued.write(folder / "cert", folder / "key")
    (folder / "ca").write_bytes(issued.authority)
    words = ["--tls-cert-file", "cert", "--tls-key-file", "key", "--tls-auth-clients", "no"]
    server = RedisServer(folder, "--tls-port", str(port), *words)
    try:
        server.start()
    except RuntimeError as error:
        pytest.skip(f"this Redis has no TLS: {error}")
    with closing(server):
        secure = make(f"rediss://127.0.0.1:{port}?ssl_ca_certs={folder}/ca")
        plain = make(server.url)
        secure.say("hidden", confirm=PATIENCE)
        plain.hears("hidden")
        plain.say("open")
        secure.hears("hidden", "open")
        assert ends(lambda: secure.engine.close(PATIENCE))
