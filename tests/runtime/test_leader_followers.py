"""Threads that take turns in accepting, and serve what they accepted."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tao.runtime.deadline import Deadline
from tao.runtime.leader_followers import LeaderFollowers, Run
from tao.runtime.thread_start import StartableThread
from tao.server.server import server_core_of
from tests.ends import MakeServer, Seen, Text, text
from tests.support import PATIENCE, recv_exactly, together, wait_until


class Work:
    """The source of work: tests put runs into it."""

    def __init__(self) -> None:
        self._runs: queue.Queue[Run | None] = queue.Queue()
        self.turns = LeaderFollowers(self._find, "tao-leader", None)
        self.leaders = Seen()

    def _find(self, found: list[Run]) -> bool:
        self.leaders.add((threading.get_ident(), threading.current_thread().name))
        run = self._runs.get()
        if run is None:
            return False
        try:
            self.turns.provide()
        except RuntimeError:
            return self._find(found)  # as a listener does, which loses the connection
        found.append(run)
        return True

    def give(self, target: Callable[[], object], name: str = "tao-test") -> Run:
        """Add a run."""
        run = Run(target, name)
        self._runs.put(run)
        return run

    def do(self, name: str = "tao-test") -> tuple[int, str]:
        """Add a run, and return its thread and the thread's name during the run."""
        seen: list[tuple[int, str]] = []
        run = self.give(
            lambda: seen.append((threading.get_ident(), threading.current_thread().name)), name
        )
        run.join(PATIENCE)
        assert (run.is_alive(), run.ident) == (False, None)
        return seen[0]

    def end(self) -> None:
        """End the source of work."""
        self._runs.put(None)


@pytest.fixture
def work() -> Iterator[Work]:
    """A source of work with its threads; afterwards none of them is left."""
    made = Work()
    made.turns.start()
    yield made
    made.end()
    assert made.turns.join(Deadline(PATIENCE)) == []
    assert not made.turns._all


def test_the_thread_that_finds_work_does_it(work: Work) -> None:
    """It has the run's name while another thread leads; then it follows, and leads again."""
    first = work.do("tao-one")
    assert first[1] == "tao-one"
    second = work.do("tao-another")
    assert second[1] == "tao-another"
    assert [ident for ident, _ in work.leaders.items[:2]] == [first[0], second[0]]
    for _ in range(10):
        work.do()
    assert {name for _, name in work.leaders.items} == {"tao-leader"}
    assert len({ident for ident, _ in work.leaders.items}) <= 3


def test_concurrent_runs_have_separate_threads(work: Work) -> None:
    """A run never waits for a busy thread."""
    meeting = threading.Barrier(4)
    runs = [work.give(lambda: meeting.wait(PATIENCE)) for _ in range(4)]
    for run in runs:
        run.join(PATIENCE)
    assert not meeting.broken


def test_followers_do_not_stay_forever(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while without work, a leader and one follower remain."""
    monkeypatch.setattr("tao.runtime.leader_followers._PATIENCE", 0.01)
    meeting = threading.Barrier(5)
    for _ in range(5):
        work.give(lambda: meeting.wait(PATIENCE))
    wait_until(lambda: len(work.turns._all) == 2 and work.turns.following == 1)
    work.do()


def test_followers_are_limited(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """A follower above the limit ends at once."""
    monkeypatch.setattr("tao.runtime.leader_followers._MOST", 2)
    meeting = threading.Barrier(6)
    for _ in range(6):
        work.give(lambda: meeting.wait(PATIENCE))
    wait_until(lambda: len(work.turns._all) <= 3)
    work.do()


def test_a_follower_that_times_out_while_it_becomes_the_leader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever thread gives up, another leads, and all work is done."""
    monkeypatch.setattr("tao.runtime.leader_followers._PATIENCE", 0.0002)
    work = Work()
    work.turns.start()
    done = Seen()
    together(*[lambda: [done.add(work.do()) for _ in range(200)]] * 3)
    assert len(done.items) == 600
    work.end()
    assert work.turns.join(Deadline(PATIENCE)) == []
    assert not work.turns._all


def test_a_run_that_raises(work: Work, log_lines: list[Any]) -> None:
    """The exception is logged, and the thread continues."""
    run = work.give(lambda: 1 / 0, "tao-raises")
    run.join(PATIENCE)
    wait_until(lambda: log_lines)  # this happens last
    assert [record["message"] for record in log_lines] == ["thread tao-raises died"]


def test_the_end_during_work(work: Work) -> None:
    """Followers end at once, the others after their run."""
    go = threading.Event()
    runs = [work.give(lambda: go.wait(PATIENCE)) for _ in range(2)]
    wait_until(lambda: all(run.is_alive() for run in runs))
    work.end()
    assert len(work.turns.join(Deadline(0.01))) == 2
    assert work.turns.join(Deadline(0.01), runs) == []
    go.set()


def test_a_thread_that_cannot_start(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """The leader gets the exception and stays the leader; later all continues."""
    start, refused = StartableThread.start, threading.Event()

    def refuse(thread: StartableThread) -> None:
        if not refused.is_set():
            refused.set()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(StartableThread, "start", refuse)
    run = work.give(lambda: None)
    assert refused.wait(PATIENCE)
    work.do()
    assert not run.is_alive()


def test_finding_work_fails(
    work: Work, log_lines: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any exception is logged, and a thread leads afterwards."""
    work.do()
    for error in (SystemExit("no more"), MemoryError(), KeyboardInterrupt()):

        def refuse(error: BaseException = error) -> None:
            monkeypatch.undo()
            raise error

        monkeypatch.setattr(work.turns, "provide", refuse)
        work.give(lambda: None)
        work.do()
    assert [record["message"] for record in log_lines] == [
        "tao-leader continues after an error"
    ] * 3


@pytest.mark.parametrize("raised", [MemoryError, RuntimeError, SystemExit])
def test_the_handling_of_errors_fails(
    work: Work, raised: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it raises for lack of memory or because of a log sink, a thread still leads."""
    refused = Seen()

    def refuse(*args: Any, **kwargs: Any) -> Any:
        refused.add(None)
        raise raised

    monkeypatch.setattr("tao.runtime.leader_followers.logger", SimpleNamespace(opt=refuse))
    monkeypatch.setattr("tao.runtime.leader_followers._PAUSE", 0.001)
    provide = work.turns.provide
    work.turns.provide = refuse  # type: ignore[method-assign]
    for _ in range(3):
        work.give(lambda: None)
    refused.wait(3)
    work.turns.provide = provide  # type: ignore[method-assign]
    work.give(lambda: 1 / 0).join(PATIENCE)
    work.do()


def test_a_thread_that_ends_before_it_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not count: the thread that starts it gets an exception, and stays the leader."""
    monkeypatch.setattr("tao.runtime.leader_followers._BIRTH", 0.01)
    work = Work()
    work.turns.start()
    work.do()
    monkeypatch.setattr(
        "tao.runtime.leader_followers.LeaderFollowers._take_turns", lambda turns, follows: None
    )
    meeting = threading.Barrier(2)
    work.give(lambda: meeting.wait(PATIENCE))
    work.give(lambda: None)
    assert work.turns.led
    monkeypatch.undo()
    meeting.wait(PATIENCE)
    work.do()
    work.end()
    assert work.turns.join(Deadline(PATIENCE)) == []


def test_the_first_thread_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller of ``start`` gets the exception."""

    def refuse(thread: StartableThread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(StartableThread, "start", refuse)
    work = Work()
    with pytest.raises(RuntimeError, match="can't start"):
        work.turns.start()
    assert (work.turns._all, work.turns.following) == (set(), 0)


def rests(group: Any) -> bool:
    """Whether one thread leads, and all others wait for the lead."""
    leader, followers = group._leader, set(group._followers)
    leads = leader is not None and leader.name == group._name and leader not in followers
    return leads and followers == set(group._all) - {leader}


def test_consecutive_connections(make_server: MakeServer) -> None:
    """They are served by the accepting threads, which get the names of the connections."""
    server, address = make_server(dispatch="inline")
    names, idents = Seen(), Seen()

    @server.handler(Text)
    def note(ctx: Any, conn: Any) -> None:
        names.add(threading.current_thread().name)
        idents.add(threading.get_ident())
        conn.write(ctx.message)

    for _ in range(4):
        with socket.create_connection(address) as sock:
            sock.sendall(text("x"))
            recv_exactly(sock, len(text("x")))
        wait_until(lambda: rests(server_core_of(server).listeners.all[0]._accepting))
    assert names.items == [f"tao-reader-{number}" for number in (1, 2, 3, 4)]
    assert len(set(idents.items)) <= 2
