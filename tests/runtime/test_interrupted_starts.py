"""A start that is interrupted when the thread has begun already: the thread is not lost.

Whoever lists threads might forget it after the thread has listed itself. Then a stop does not wait
for it, or closes what it still uses, and it may wait for ever.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tao.connection.handling.block_watch import watch_on
from tao.connection.shared_reading.loop import ReadingLoop
from tao.monitor.http import HttpServer
from tao.runtime.deadline import Deadline
from tao.runtime.helper_threads import HelperTask, HelperThreads
from tao.runtime.leader_followers import LeaderFollowers, Run
from tao.runtime.thread_start import StartableThread
from tao.runtime.timing_wheel import TimingWheel
from tests.injection import Interruption
from tests.support import PATIENCE, wait_until


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[threading.Thread]]]:
    """Have the next start of a thread of a name raise, once it has begun; returns the thread."""
    start, threads = StartableThread.start, list[threading.Thread]()

    def strike(name: str, until: Callable[[float], object] = bool) -> list[threading.Thread]:
        def start_and_raise(thread: StartableThread) -> None:
            start(thread)
            if thread.name == name:
                monkeypatch.setattr(StartableThread, "start", start)
                until(PATIENCE)
                threads.append(thread)
                raise Interruption

        monkeypatch.setattr(StartableThread, "start", start_and_raise)
        return threads

    yield strike
    assert threads
    wait_until(lambda: not any(each.is_alive() for each in threads))


def test_a_shared_reader(
    begun: Callable[..., list[threading.Thread]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the lead when the start raises, and keeps it: only one may wait in the poller."""
    lead, leads = ReadingLoop._lead, threading.Event()

    def note_and_lead(one: ReadingLoop, me: Any) -> None:
        leads.set()
        lead(one, me)

    monkeypatch.setattr(ReadingLoop, "_lead", note_and_lead)
    wheel, threads = TimingWheel(), begun("tao-reader-struck", leads.wait)
    loop = ReadingLoop("tao-reader-struck")
    with pytest.raises(Interruption):
        loop.start(watch_on(wheel))
    loop.pass_lead()
    assert loop.threads == threads
    assert not loop.stop(Deadline(PATIENCE))
    wheel.stop()


def test_a_group_of_leader_and_followers(
    begun: Callable[..., list[threading.Thread]],
) -> None:
    """It leads when the start raises."""
    over, leads = threading.Event(), threading.Event()

    def find(found: list[Run]) -> bool:
        leads.set()
        return not over.wait(PATIENCE)

    threads = begun("tao-group-struck", leads.wait)
    group = LeaderFollowers(find, "tao-group-struck", None)
    with pytest.raises(Interruption):
        group.start()
    assert group.begun and group.led
    over.set()
    assert not group.join(Deadline(PATIENCE))
    assert not threads[0].is_alive()


def test_a_helper_thread(begun: Callable[..., list[threading.Thread]]) -> None:
    """It has begun its task when the start raises: it does it, and counts as one that runs."""
    threads, leave = begun("tao-helper-struck-1"), threading.Event()
    helpers, task = HelperThreads("tao-helper-struck", 1), HelperTask(lambda: leave.wait(PATIENCE))
    with pytest.raises(Interruption):
        helpers.submit(task)
    assert helpers.running == 1 and threads[0].is_alive()
    leave.set()
    wait_until(lambda: task.done)
    assert task.result is True and task.error is None


def test_the_thread_of_the_monitor(begun: Callable[..., list[threading.Thread]]) -> None:
    """It waits for requests when the start raises: it ends, and closes the sockets."""
    threads, sock = begun("tao-monitor-struck"), socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    unused: Any = None
    server = HttpServer(sock, "tao-monitor-struck", unused, unused, 1.0, unused, unused)
    with pytest.raises(Interruption):
        server.start()
    assert threads
    wait_until(lambda: sock.fileno() == -1)
