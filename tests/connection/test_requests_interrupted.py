"""Requests, interrupted at each bytecode: they end, and the next one works."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tao.connection.connection import core_of
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
