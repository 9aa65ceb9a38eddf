"""An exception that strikes a thread of a cluster does not end it for good, unless it says so.

Libraries for timeouts raise exceptions in threads that they do not own
(``PyThreadState_SetAsyncExc``), and a thread that stays away without a word is the worst of faults:
everything seems to work.
"""

from __future__ import annotations

import itertools
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tao
from tao.cluster.engine import EVERYONE, Publication
from tao.cluster.hub.engine import HubEngine
from tao.cluster.redis.engine import RedisEngine
from tests.cluster.redis_server import RedisServer, program
from tests.injection import Interruption, Moment, opcodes, raise_in
from tests.support import PATIENCE, wait_until

needs_redis = pytest.mark.skipif(
    program() is None, reason="neither redis-server nor valkey-server is installed"
)


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="tao-") as name, RedisServer(Path(name)) as server:
        yield server.url


class Node:
    """An engine, and what it has delivered and missed."""

    names = itertools.count(1)

    def __init__(self, url: str) -> None:
        self.delivered: list[str] = []
        self.gaps: int = 0
        self.engine = RedisEngine(url)
        self.engine.start(f"{next(self.names):012x}", self)

    def deliver(self, publication: Publication) -> None:
        self.delivered.append(publication.frame.decode())

    def gap(self, partition: int, missing: int | None) -> None:
        self.gaps += 1

    def say(self, text: str, confirm: float | None = None) -> None:
        self.engine.publish(Publication(EVERYONE, text.encode()), confirm)

    def up(self) -> bool:
        return self.engine.state == "up"


def thread_of(engine: RedisEngine, role: str) -> threading.Thread:
    part: Any = engine._reader if role == "reader" else engine._writer
    thread: threading.Thread = part._thread
    return thread


@needs_redis
@pytest.mark.parametrize("error", [Interruption, RuntimeError, ConnectionError])
@pytest.mark.parametrize("role", ["reader", "writer"])
def test_a_struck_thread_of_redis_goes_on(
    redis_url: str, role: str, error: type[BaseException]
) -> None:
    """What is said meanwhile arrives once and in order, or counts as missed."""
    struck, other = Node(redis_url), Node(redis_url)
    try:
        wait_until(lambda: struck.up() and other.up())
        said = []
        for number in range(12):  # a series of twenty would end the thread
            said += [f"{number} {each}" for each in range(20)]
            for text in said[-20:]:
                struck.say(text)
            raise_in(thread_of(struck.engine, role), error)
        said += ["struck by now", "the end"]
        struck.say(said[-2], PATIENCE)
        wait_until(lambda: said[-2] in struck.delivered or struck.gaps)
        struck.say(said[-1], PATIENCE)
        wait_until(lambda: said[-1] in other.delivered and said[-1] in struck.delivered)
        assert other.delivered == said and other.gaps == 0
        check_what_came(struck, said)
    finally:
        struck.engine.close(1)
        other.engine.close(1)


def check_what_came(node: Node, said: list[str]) -> None:
    """Check that it came once and in order, but for one publication for each gap."""
    places = [said.index(each) for each in node.delivered]
    assert places == sorted(set(places))
    assert len(said) - len(places) <= node.gaps


@needs_redis
@pytest.mark.interrupted
@pytest.mark.parametrize("role", ["reader", "writer"])
def test_a_thread_of_redis_goes_on_from_any_bytecode(redis_url: str, role: str) -> None:
    """After an exception at any of its bytecodes both ways work, and nothing comes twice."""
    modules = (
        f"tao.cluster.redis.{role}",
        "tao.cluster.redis.presence",
        "tao.cluster.redis.engine",
    )
    for moment in opcodes(*modules, step=7, first=1):
        strike(moment, redis_url, role)


def strike(moment: Moment, url: str, role: str) -> None:
    nodes: list[Node] = []
    try:
        with moment.raising(thread=f"tao-redis-{role}"):
            nodes.append(Node(url))
            node = nodes[0]
            for text in "abc":
                node.say(text)
            wait_until(node.up)
            node.engine.set_count("group", 1)
            node.say("d", PATIENCE)
            wait_until(lambda: moment.struck or "d" in node.delivered)
        node.say("e", PATIENCE)
        wait_until(lambda: "e" in node.delivered)
        check_what_came(node, [*"abcde"])
    finally:
        for each in nodes:
            each.engine.close(1)


@pytest.mark.parametrize("role", ["reader", "writer"])
def test_a_struck_thread_of_the_hub_ends_the_engine(role: str) -> None:
    """What is on its way may be cut off, so the engine takes nothing more, and says so."""
    near, far = socket.socketpair()
    engine = HubEngine(near)

    class Receiver:
        def deliver(self, publication: Publication) -> None: ...
        def gap(self, partition: int, missing: int | None) -> None: ...

    with far:
        engine.start("0" * 12, Receiver())
        thread: Any = engine._reader if role == "reader" else engine._writer
        raise_in(thread, Interruption)
        if role == "writer":
            engine.set_count("group", 1)  # wakes it
        else:
            far.sendall(b"\0\0")
        wait_until(lambda: engine.state == "closed")
        with pytest.raises(tao.ClusterUnavailable):
            engine.publish(Publication(EVERYONE, b"x"))
        engine.close(1)
