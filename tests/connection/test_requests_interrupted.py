"""Requests, interrupted at each bytecode: they end, and the next one works."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tao.connection.connection import core_of
from tao.connection.requests.pending import Request
from tao.connection.requests.responding import ReplyOrder, Responder
from tao.runtime.context import Context
from tests.asking import Peers, echo
from tests.ends import Number
from tests.injection import opcodes
from tests.support import wait_until

pytestmark = pytest.mark.interrupted

MODULES = (
    "tao.connection.requests.making",
    "tao.connection.requests.asking",
    "tao.connection.requests.pending",
)


@pytest.fixture
def peers() -> Iterator[Peers]:
    with Peers() as both:
        both.server.handler(Number)(echo)
        both.client.request(Number(0))
        yield both


def settled(peers: Peers) -> bool:
    requests = core_of(peers.client).exchange.requests
    return not requests.in_flight and not requests.waiting


@pytest.mark.parametrize("module", MODULES)
def test_an_interrupted_request_leaves_nothing(peers: Peers, module: str) -> None:
    """Whatever a signal handler raises in it; what it has sent is cancelled, or answered."""
    for moment in opcodes(module):
        with moment.raising():
            peers.client.request(Number(1), timeout=5)
        assert peers.client.request(Number(2), timeout=5).value == 2, moment.place
        wait_until(lambda: settled(peers), 2)


@pytest.mark.parametrize("module", MODULES)
def test_an_interrupted_future_ends(peers: Peers, module: str) -> None:
    """A request whose future nobody got is completed or times out, and the next one works."""
    for moment in opcodes(module):
        with moment.raising():
            peers.client.request_async(Number(1), timeout=0.2).result()
        assert peers.client.request(Number(2), timeout=5).value == 2, moment.place
        wait_until(lambda: settled(peers), 2)


@pytest.mark.parametrize("module", MODULES)
def test_a_request_whose_reply_has_come_is_completed(peers: Peers, module: str) -> None:
    """Or it stays in flight, so that it fails with its connection; no caller waits for ever."""
    requests = core_of(peers.client).exchange.requests
    for moment in opcodes(module):
        request = Request(Number(1), None)
        requests._pending["a key"] = request
        with moment.raising():
            requests.complete("a key", Number(2))
        assert request.outcome or requests._pending.pop("a key") is request, moment


class Written:
    """What a `ReplyOrder` asks of a connection; it notes what is written, and why it closes."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.why: list[str] = []
        self.context = Context()
        self.lifecycle = self.application = self.replies = self.timers = cast("Any", None)
        self.send_queue: Any = SimpleNamespace(write=self.frames.append)

    def begin_close(self, reason: str, *, drain: bool, timeout: float | None) -> None:
        self.why.append(reason)


def test_no_reply_without_an_id_is_sent_twice() -> None:
    """At any bytecode: each takes its place, or the connection is closed with a reason."""
    for moment in opcodes("tao.connection.requests.responding"):
        host = Written()
        order = ReplyOrder(host, Responder(host))
        first, second = (order.line_up(Number(1), None) for _ in range(2))
        with moment.raising():
            second.send(b"2")
            first.send(b"1")
        second.send(b"2")
        first.send(b"1")
        assert host.frames == [b"1", b"2"][: len(host.frames)], moment
        assert len(host.frames) == 2 or host.why, moment
        assert moment.struck or not host.why
