"""Statistics: counts add up across connections, and never decrease."""

from __future__ import annotations

import gc
import itertools
import sys
import threading
from dataclasses import astuple
from typing import Any

import pytest

from tao.client.client import ClientConn
from tao.connection.reports.statistics import Counts, Snapshot, Statistics, all_statistics
from tao.server.server import Server, server_core_of
from tao.wire.message import Registry

_ids = itertools.count(1)


class Counted:
    """An object that counts messages."""

    def __init__(self, messages: int) -> None:
        self.messages = messages
        self.net_id = next(_ids)

    def requests_now(self) -> tuple[int, float]:
        return 0, 0.0

    def counts(self) -> Counts:
        return Counts(messages_in=self.messages)

    def totals(self) -> tuple[Any, ...]:
        return astuple(self.counts())


def fill(snapshot: Snapshot) -> None:
    snapshot.workers = 7


def test_open_and_closed_connections_add_up() -> None:
    """The counts of a connection are included during its life and after its end."""
    statistics = Statistics("one", fill)
    first, second = Counted(3), Counted(4)
    statistics.established(first)
    statistics.established(second)
    assert statistics.snapshot().messages_in == 7
    statistics.ended(first)
    first.messages = 100
    found = statistics.snapshot()
    assert (found.messages_in, found.connections_total, found.workers) == (7, 2, 7)


def test_a_handler_counts_after_the_end() -> None:
    """What runs on when its connection has ended counts until it returns, and once."""
    statistics = Statistics("handler", fill)
    conn, returned = Counted(3), threading.Event()
    thread = threading.Thread(target=returned.wait, name="test-handler")
    thread.start()
    statistics.established(conn)
    statistics.ended(conn, [thread])
    assert not statistics.living() and statistics.snapshot().messages_in == 3
    conn.messages = 4
    assert statistics.snapshot().messages_in == 4
    returned.set()
    thread.join()
    assert statistics.snapshot().messages_in == 4
    conn.messages = 100  # it is forgotten
    assert statistics.snapshot().messages_in == 4 and sys.getrefcount(conn) == 2


def test_refused_connections_are_counted() -> None:
    """Refusals and failures to accept have counts of their own."""
    statistics = Statistics("two", fill)
    statistics.refused()
    statistics.accept_error()
    statistics.accept_error()
    found = statistics.snapshot().as_dict()
    assert (found["refused"], found["accept_errors"], found["name"]) == (1, 2, "two")


def test_statistics_are_listed_as_long_as_they_exist() -> None:
    """A monitor shows them until their owner is garbage-collected."""
    statistics = Statistics("three", fill)
    assert statistics not in all_statistics()
    statistics.publish()
    assert statistics in all_statistics()
    del statistics
    gc.collect()
    assert "three" not in [each.name for each in all_statistics()]


@pytest.mark.parametrize("part", ["connection.core.TimerSet", "server.server.StopReport"])
def test_readers_see_no_incomplete_objects(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """Another thread may be creating any part of them at the same time."""
    module, _, name = f"tao.{part}".rpartition(".")
    original = getattr(sys.modules[module], name)

    def make(*args: Any) -> Any:
        assert all(each.snapshot().name for each in all_statistics())
        return original(*args)

    monkeypatch.setattr(f"tao.{part}", make)
    client = ClientConn(("127.0.0.1", 1), registry=Registry())
    server = Server(registry=Registry())
    assert {client._core.statistics, server_core_of(server).statistics} <= set(all_statistics())
    client.close()
