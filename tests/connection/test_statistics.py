"""Figures: counts add up, whoever counted them, and never fall."""

from __future__ import annotations

import gc
import sys
from typing import Any

import pytest

from tao.client.client import ClientConn
from tao.connection.statistics import Counts, Snapshot, Tally, tallies
from tao.server.server import Server, server_core_of
from tao.wire.message import Registry


class Counted:
    """Something that counts messages."""

    def __init__(self, messages: int) -> None:
        self.messages = messages

    def counts(self) -> Counts:
        return Counts(messages_in=self.messages)


def fill(snapshot: Snapshot) -> None:
    snapshot.workers = 7


def test_the_ended_and_the_living_add_up() -> None:
    """A connection counts from its beginning, and still after its end."""
    tally = Tally("one", fill)
    first, second = Counted(3), Counted(4)
    tally.established(first)
    tally.established(second)
    assert tally.snapshot().messages_in == 7
    tally.ended(first)
    first.messages = 100
    found = tally.snapshot()
    assert (found.messages_in, found.connections_total, found.workers) == (7, 2, 7)


def test_what_never_was_a_connection_is_counted_too() -> None:
    """Refusals and failures to accept have counts of their own."""
    tally = Tally("two", fill)
    tally.refused()
    tally.accept_error()
    tally.accept_error()
    found = tally.snapshot().as_dict()
    assert (found["refused"], found["accept_errors"], found["name"]) == (1, 2, "two")


def test_tallies_are_known_while_someone_refers_to_them() -> None:
    """What a monitor shows vanishes with its owner."""
    tally = Tally("three", fill)
    assert tally not in tallies()
    tally.publish()
    assert tally in tallies()
    del tally
    gc.collect()
    assert "three" not in [each.name for each in tallies()]


@pytest.mark.parametrize("part", ["connection.core.TimerSet", "server.server.StopReport"])
def test_who_looks_sees_nothing_half_made(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """Whatever is being made in another thread at the same time."""
    module, _, name = f"tao.{part}".rpartition(".")
    original = getattr(sys.modules[module], name)

    def make(*args: Any) -> Any:
        assert all(each.snapshot().name for each in tallies())
        return original(*args)

    monkeypatch.setattr(f"tao.{part}", make)
    client = ClientConn(("127.0.0.1", 1), registry=Registry())
    server = Server(registry=Registry())
    assert {client._core.tally, server_core_of(server).tally} <= set(tallies())
    client.close()
