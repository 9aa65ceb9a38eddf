"""The monitor of a supervisor: what several workers tell becomes one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest

from tao.cluster.engine import EngineFigures
from tao.connection.reports.recent_errors import Failure
from tao.connection.reports.statistics import Snapshot
from tao.monitor.connections import Survey, WrongQuery
from tao.monitor.ends import End, packed, unpacked
from tao.monitor.live import Feed
from tao.monitor.prometheus import exposition
from tao.monitor.workers import WorkersSource
from tao.runtime.histogram import dense


def end(handled: int, *, state: str = "running", connections: int = 1) -> End:
    """A server of a worker."""
    snapshot = Snapshot(name="server-1", kind="server", state=state, address="127.0.0.1:7")
    snapshot.handled, snapshot.connections, snapshot.error_kinds = (
        handled,
        connections,
        {"OSError": 1},
    )
    snapshot.cluster = {"state": "up", **asdict(EngineFigures(published=handled, queue=2, lag=0.5))}
    survey = Survey(2, 3, [(1.5, "slow")], [], [])
    failure = Failure(1.0, 7, "peer", "OSError", "why")
    return End(snapshot, survey, {1: dense({5: handled})}, [("server-1", failure)], {1: "echo"})


class Supervisor:
    """Workers that answer what they are told to; by number: the slot, and the answer or None."""

    def __init__(self) -> None:
        self.workers: dict[int, tuple[int, Any]] = {}

    def ask(self, what: str, query: dict[str, str], timeout: float) -> dict[int, Any]:
        return {
            number: json.loads(json.dumps(answer))
            for number, (_, answer) in self.workers.items()
            if answer is not None
        }

    def slots_of_workers(self) -> dict[int, int]:
        return {number: slot for number, (slot, _) in self.workers.items()}


@pytest.fixture
def supervisor() -> Supervisor:
    return Supervisor()


@pytest.fixture
def source(supervisor: Supervisor) -> Iterator[WorkersSource]:
    return WorkersSource(supervisor)


def handled(source: WorkersSource) -> dict[str, int]:
    return {each.name: each.handled for each in source.snapshots()}


def test_the_same_in_another_process() -> None:
    """An end survives the way as JSON; its name says in which process it is."""
    sent = end(9)
    came = unpacked(json.loads(json.dumps(packed(sent))), "2")
    assert (came.label, came.process, came.snapshot.name) == ("server-1", "2", "server-1@2")
    assert (came.survey, came.cells, came.names) == (sent.survey, sent.cells, sent.names)
    assert came.failures == [("server-1@2", sent.failures[0][1])]


def test_an_error_does_not_lose_the_counts_of_what_is_gone(
    supervisor: Supervisor, source: WorkersSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lack of memory, say, fails one request of the monitor; the next one has all counts."""
    source.gone(1, 1, [packed(end(10)), packed(end(5))])
    with monkeypatch.context() as patch:
        patch.setattr("tao.monitor.workers._joined", _raise)
        with pytest.raises(MemoryError):
            source.snapshots()
    assert handled(source) == {"server-1@1": 15}


def _raise(*args: Any) -> Any:
    raise MemoryError("raised by a test")


def test_counts_never_fall(supervisor: Supervisor, source: WorkersSource) -> None:
    """Neither when a worker does not answer, nor when it is killed or replaced."""
    supervisor.workers = {1: (1, [packed(end(10))]), 2: (2, [packed(end(20))])}
    assert handled(source) == {"server-1@1": 10, "server-1@2": 20}
    supervisor.workers[1] = (1, None)  # hangs
    assert handled(source) == {"server-1@1": 10, "server-1@2": 20}
    del supervisor.workers[1]  # is killed, and has told nothing any more
    source.gone(1, 1, None)
    assert handled(source) == {"server-1@1": 10, "server-1@2": 20}
    supervisor.workers[3] = (1, [packed(end(5))])
    source.gone(2, 2, [packed(end(25))])  # has told its last figures
    del supervisor.workers[2]
    assert handled(source) == {"server-1@1": 15, "server-1@2": 25}
    first, second = source.ends()
    assert (first.snapshot.connections, second.snapshot.connections) == (1, 0)
    assert (first.snapshot.cluster["published"], first.snapshot.cluster["queue"]) == (15, 2)
    assert (second.snapshot.cluster["published"], second.snapshot.cluster["queue"]) == (25, 0)
    assert (sum(first.cells[1]), first.snapshot.error_kinds) == (15, {"OSError": 2})


def test_a_reload(supervisor: Supervisor, source: WorkersSource) -> None:
    """Old and new worker are one end, in the state of the new one."""
    supervisor.workers = {
        1: (1, [packed(end(10, state="draining", connections=7))]),
        2: (1, [packed(end(1))]),
    }
    (only,) = source.snapshots()
    assert (only.state, only.handled, only.connections) == ("running", 11, 8)
    assert source.health({}).status == 200
    assert source.health({"port": "7"}).status == 200


def test_a_cluster_that_is_down(supervisor: Supervisor, source: WorkersSource) -> None:
    """The health page tells it, and the live page; connections are served all the same."""
    lonely = end(1)
    lonely.snapshot.cluster["state"] = "down"
    supervisor.workers = {1: (1, [packed(lonely)]), 2: (2, [packed(end(1))])}
    answer = source.health({})
    assert (answer.status, answer.body) == (200, "ok\nserver-1@1: its cluster cannot be reached\n")
    (concern, *_) = json.loads(Feed(source.ends).news())["concerns"]
    assert (concern["end"], concern["bad"]) == ("server-1@1", True)


def test_nobody_serves(supervisor: Supervisor, source: WorkersSource) -> None:
    """That is not well."""
    assert source.health({}).status == 503
    supervisor.workers = {1: (1, [packed(end(1, state="stopping"))])}
    assert source.health({}).status == 503


def test_metrics_and_the_live_page(supervisor: Supervisor, source: WorkersSource) -> None:
    """Each process is told apart, and the page has the sum of all."""
    pytest.importorskip("prometheus_client")
    supervisor.workers = {1: (1, [packed(end(10))]), 2: (2, [packed(end(20))])}
    text = exposition(source.ends())[1].decode()
    assert 'tao_handled_total{name="server-1",process="2"} 20.0' in text
    assert 'tao_handler_seconds_count{name="server-1",number="1",process="1"} 10.0' in text
    assert 'tao_cluster_published_total{name="server-1",process="2"} 20.0' in text
    assert 'tao_cluster_up{name="server-1",process="1"} 1.0' in text
    everything = json.loads(Feed(source.ends).news())["ends"][0]
    assert (everything["handled"], everything["pending"]) == (30, 4)


def test_connections(supervisor: Supervisor, source: WorkersSource) -> None:
    """The rows of all workers are sorted and cut as those of one."""
    for number, ids in ((1, (5, 1)), (2, (4, 2))):
        rows = [{"id": each, "server": "server-1"} for each in ids]
        supervisor.workers[number] = (number, {"total": 9, "connections": rows})
    page = source.connections({"sort": "-id", "offset": "1", "limit": "2"})
    assert page["total"] == 18
    assert [(row["id"], row["server"]) for row in page["connections"]] == [
        (4, "server-1@2"),
        (2, "server-1@2"),
    ]
    only = source.connections({"server": "server-1@1"})["connections"]
    assert [row["process"] for row in only] == [1, 1]
    supervisor.workers = {1: (1, {"wrong": "sort is one of these"})}
    with pytest.raises(WrongQuery, match="sort is one of these"):
        source.connections({"sort": "nothing"})
