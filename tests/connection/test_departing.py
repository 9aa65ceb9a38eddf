"""Connections that wait for their end, as many peers have left together: who is served when."""

from __future__ import annotations

import socket

import pytest

import tao
from tao.connection.shared_reading.departing import FEW, Departing
from tao.transport.poller import ENDED, READABLE
from tao.wire.message import Registry
from tests.ends import MakeServer, Number, Seen, number
from tests.support import PATIENCE, wait_until

GONE = READABLE | ENDED
linux_only = pytest.mark.skipif(not ENDED, reason="others do not tell an end from data")


class Member:
    """A connection that notes whether it has a break."""

    def __init__(self) -> None:
        self.rests = False

    def took(self, seconds: float) -> bool:
        return False

    def take_break(self) -> None:
        self.rests = True

    def end_break(self) -> None:
        self.rests = False


@linux_only
def test_those_whose_peers_have_left_wait() -> None:
    """All others are served at once, and so is what is no member any more."""
    departing, members = Departing(), {each: Member() for each in range(3)}
    ready = [(0, GONE), (1, READABLE), (2, GONE), (9, GONE)]
    assert departing.set_aside(ready, members) == [(1, READABLE), (9, GONE)]
    assert [each.rests for each in members.values()] == [True, False, True]
    assert list(departing.some(members)) == [(0, GONE), (2, GONE)]
    assert not departing


@linux_only
def test_a_few_end_at_a_time() -> None:
    """They end in the order in which they came, those of a later round last."""
    departing, members = Departing(), {each: Member() for each in range(2 * FEW)}
    departing.set_aside([(each, GONE) for each in range(FEW + 1)], members)
    departing.set_aside([(each, GONE) for each in range(FEW + 1, 2 * FEW)], members)
    assert [descriptor for descriptor, _ in departing.some(members)] == list(range(FEW))
    assert [descriptor for descriptor, _ in departing.some(members)] == list(range(FEW, 2 * FEW))
    assert not departing


@linux_only
def test_one_that_has_ended_meanwhile_is_left_out() -> None:
    """Its descriptor may belong to another connection by now."""
    departing, members = Departing(), {0: Member(), 1: Member()}
    departing.set_aside([(0, GONE), (1, GONE)], members)
    members[0] = Member()
    assert list(departing.some(members)) == [(1, GONE)]
    assert not departing


@linux_only
def test_one_whose_turn_is_interrupted_is_not_forgotten() -> None:
    """It waits until its turn is over."""
    departing, members = Departing(), {0: Member(), 1: Member()}
    departing.set_aside([(0, GONE), (1, GONE)], members)
    assert next(departing.some(members)) == (0, GONE)
    assert list(departing.some(members)) == [(0, GONE), (1, GONE)]


def test_what_a_crowd_has_sent_before_it_left_is_handled(make_server: MakeServer) -> None:
    """Also if handlers block meanwhile: each message is handled, and each connection ends."""
    handled, closed, registry = Seen(), Seen(), Registry()
    server, address = make_server(registry=registry, readers="shared", on_close=closed.add)

    @registry.handler(Number)
    def note(ctx: tao.Context, conn: tao.Connection) -> None:
        handled.add(ctx.message.value)
        if ctx.message.value == FEW // 2:
            handled.wait(3 * FEW)

    peers = [socket.create_connection(address, PATIENCE) for _ in range(3 * FEW)]
    wait_until(lambda: server.connection_count == 3 * FEW)
    for count, peer in enumerate(peers):
        peer.sendall(number(count))
    for peer in peers:
        peer.close()
    closed.wait(3 * FEW)
    assert sorted(handled.items) == list(range(3 * FEW))
    wait_until(lambda: not server.connection_count)
