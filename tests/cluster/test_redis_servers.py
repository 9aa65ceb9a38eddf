"""Servers that are joined over a Redis of their own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import tao
from tao.server.server import server_core_of
from tests.cluster.redis_server import RedisServer, program
from tests.ends import Text, text
from tests.support import PATIENCE, recv_exactly, wait_until

needs_redis = pytest.mark.skipif(
    program() is None, reason="neither redis-server nor valkey-server is installed"
)
KEY = b"sixteen bytes or more"


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    with tempfile.TemporaryDirectory(prefix="tao-") as name, RedisServer(Path(name)) as running:
        yield running


MakeMember = Callable[..., tao.Server]


@pytest.fixture
def member(redis_server: RedisServer) -> Iterator[MakeMember]:
    """Makes servers that are in the cluster, and stops them."""
    with ExitStack() as stack:

        def make(**options: Any) -> tao.Server:
            server = tao.Server(registry=tao.Registry(), cluster=redis_server.url, **options)
            stack.enter_context(server)
            server.start(("127.0.0.1", 0))
            wait_until(lambda: state_of(server) == "up")
            return server

        yield make


def state_of(server: tao.Server) -> object:
    return server_core_of(server).statistics.snapshot().cluster.get("state")


def ready(server: tao.Server) -> tuple[socket.socket, tao.ServerConn]:
    """Connect, and return both ends."""
    count = server.connection_count
    sock = socket.create_connection(server.address, PATIENCE)
    wait_until(lambda: server.connection_count > count)
    return sock, server.connections[-1]


@needs_redis
def test_what_is_sent(member: MakeMember) -> None:
    """Broadcasts, groups and unicasts reach the connections of all servers, in one order."""
    servers = [member(cluster_key=KEY), member(cluster_key=[KEY])]
    (left, here), (right, there) = map(ready, servers)
    with left, right:
        here.join("room")
        there.join("room")
        wait_until(lambda: servers[0].group("room").count() == 2)
        sent = servers[0].broadcast(Text("a"), confirm=PATIENCE)
        assert repr(sent) == "Broadcast(queued=0, failed=[], published=True)"
        servers[0].group("room").broadcast(Text("b"), exclude=[here])
        servers[0].unicast(there.address_id, Text("c"))
        servers[0].broadcast(Text("d"))
        assert recv_exactly(left, 18) == text("a") + text("d")
        assert recv_exactly(right, 36) == b"".join(map(text, "abcd"))


@needs_redis
def test_gaps_and_redis_that_is_away(redis_server: RedisServer, member: MakeMember) -> None:
    """The server serves its own connections, shows its state, and reports the gap afterwards."""
    gaps: list[tuple[int, int | None]] = []
    server = member(on_gap=lambda partition, missing: gaps.append((partition, missing)))
    sock, conn = ready(server)
    with sock:
        redis_server.kill()
        wait_until(lambda: state_of(server) == "down")
        conn.write(Text("own"))
        server.broadcast(Text("late"))
        assert recv_exactly(sock, 11) == text("own")
        redis_server.start()
        assert recv_exactly(sock, 12) == text("late")
        wait_until(lambda: gaps == [(0, None)])
        assert server_core_of(server).statistics.snapshot().cluster["gaps"] == 1


@needs_redis
def test_a_fork(member: MakeMember) -> None:
    """The child has no part in the cluster, and the parent's is not affected."""
    server = member()
    sock, _ = ready(server)
    with sock:
        child = os.fork()
        if not child:
            try:
                server.broadcast(Text("child"))
            except tao.ClusterUnavailable:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        server.broadcast(Text("parent"))
        assert recv_exactly(sock, 14) == text("parent")


@needs_redis
def test_a_publisher(redis_server: RedisServer, member: MakeMember) -> None:
    """A program without a server reaches all connections, groups, and one connection."""
    server = member(cluster_key=KEY)
    (sock, conn), (other, _) = ready(server), ready(server)
    with sock, other, tao.Publisher(redis_server.url, cluster_key=KEY) as publisher:
        conn.join("room")
        publisher.broadcast(Text("a"))
        publisher.group("room").broadcast(Text("b"))
        publisher.unicast(conn.address_id, Text("c"))
        publisher.broadcast(Text("d"), exclude=[conn.address_id], confirm=PATIENCE)
        publisher.broadcast(Text("e"))
        assert recv_exactly(sock, 36) == b"".join(map(text, "abce"))
        assert recv_exactly(other, 27) == b"".join(map(text, "ade"))
    with pytest.raises(tao.ClusterUnavailable, match="closed"):
        publisher.broadcast(Text(""))


@needs_redis
def test_a_publisher_in_forks(redis_server: RedisServer, member: MakeMember) -> None:
    """Each process has a connection of its own, wherever the publisher was made."""
    sock, _ = ready(member())
    with sock, tao.Publisher(redis_server.url) as publisher:
        publisher.broadcast(Text("a"), confirm=PATIENCE)
        child = os.fork()
        if not child:
            try:
                publisher.broadcast(Text("b"), confirm=PATIENCE)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        publisher.broadcast(Text("c"))
        assert recv_exactly(sock, 27) == b"".join(map(text, "abc"))


@needs_redis
def test_the_end_of_a_program_that_publishes(redis_server: RedisServer, member: MakeMember) -> None:
    """What it has published last arrives, although it does not close its publisher."""
    sock, _ = ready(member())
    program = "import sys, tao; from tests.ends import Text; "
    program += "tao.Publisher(sys.argv[1]).broadcast(Text('last'))"
    with sock:
        subprocess.run([sys.executable, "-c", program, redis_server.url], check=True, timeout=60)
        assert recv_exactly(sock, 12) == text("last")


def away() -> str:
    """The URL of a Redis that is not there."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"redis://127.0.0.1:{sock.getsockname()[1]}/0"


def test_what_a_stop_cannot_publish(log_lines: list[Any]) -> None:
    """The report of the stop has it, and is not clean."""
    server = tao.Server(registry=tao.Registry(), cluster=away())
    server.start(("127.0.0.1", 0))
    for _ in range(3):
        server.broadcast(Text("x"))
    report = server.stop()
    assert (report.unpublished, report.clean, report.finished) == (3, False, True)
    lines = [line["message"] for line in log_lines]
    assert "3 publications did not reach the cluster" in lines


@pytest.mark.parametrize("ending", ["", "sys.exit(3)"])
def test_what_a_program_drops_is_logged(ending: str) -> None:
    """A server that is not stopped drops what waits for its cluster when the program ends."""
    program = f"""
import sys, loguru, tao
from tests.ends import Text
loguru.logger.enable("tao")
server = tao.Server(registry=tao.Registry(), cluster={away()!r})
server.start(("127.0.0.1", 0))
for _ in range(3):
    server.broadcast(Text("x"))
{ending}
"""
    words = [sys.executable, "-X", "dev", "-c", program]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == (3 if ending else 0)
    assert "so 3 publications do not reach the cluster" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("wrong", ["local", "http://there", ""])
def test_where_a_publisher_cannot_publish(wrong: str) -> None:
    """It is refused where it is made."""
    with pytest.raises(ValueError, match="url"):
        tao.Publisher(wrong)


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says how to install it."""
    for name in [name for name in sys.modules if name.startswith("tao.cluster.redis")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis.backoff", None)
    with (
        tao.Server(registry=tao.Registry(), cluster="redis://127.0.0.1") as server,
        pytest.raises(ValueError, match=r"pip install 'tao-tcp\[redis\]'"),
    ):
        server.start(("127.0.0.1", 0))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://:secret@there", '"local" or a URL that begins with one of redis://'),
        ("redis://:secret@there/0?prefix=", "prefix must have 1 to 200 printable characters"),
        ("redis://there?partitions=0", "partitions must be a number from 1 to 64, not '0'"),
        ("unix://", "must be"),
    ],
)
def test_wrong_urls(url: str, says: str) -> None:
    """They are refused where they are given, and a password is not shown."""
    with pytest.raises(ValueError, match=says) as caught:
        tao.Server(cluster=url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("wrong", ["text", [], [b"x" * 16, 1], b"short"])
def test_wrong_keys(wrong: Any) -> None:
    """A key is bytes, and not too few."""
    with pytest.raises((TypeError, ValueError), match="cluster_key"):
        tao.Server(cluster="redis://there", cluster_key=wrong)
