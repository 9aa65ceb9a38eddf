"""Threads that log their errors, deadlines, and joining several threads."""

from __future__ import annotations

import itertools
import math
import os
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from tao.runtime.deadline import Deadline
from tao.runtime.threads import Doorbell, gather, in_tao_thread, mark_tao_thread, spawn
from tests.injection import Interruption, interrupting, opcodes
from tests.support import PATIENCE, ends, together, wait_until


@pytest.fixture
def stuck() -> Iterator[list[threading.Thread]]:
    """Three threads that end with the test."""
    release = threading.Event()
    threads = [spawn(release.wait, name=f"tao-stuck-{number}") for number in range(3)]
    for thread in threads:
        thread.start()
    yield threads
    release.set()


def test_a_thread_is_made_but_not_started() -> None:
    """It is a daemon with the given name, and runs its function once it is started."""
    seen: list[Any] = []
    thread = spawn(
        lambda *args: seen.append((threading.current_thread(), args)), 1, 2, name="tao-x"
    )
    assert (thread.name, thread.daemon, thread.ident, seen) == ("tao-x", True, None, [])
    thread.start()
    thread.join(PATIENCE)
    assert seen == [(thread, (1, 2))]


@pytest.mark.parametrize("error", [ValueError("oh"), SystemExit("oh")])
def test_an_error_of_a_thread_is_logged(error: BaseException, log_lines: list[Any]) -> None:
    """The line has the thread's name and the traceback."""

    def fail() -> None:
        raise error

    thread = spawn(fail, name="tao-doomed")
    thread.start()
    thread.join(PATIENCE)
    (line,) = log_lines
    assert (line["message"], line["level"].name) == ("thread tao-doomed died", "ERROR")
    assert line["exception"].value is error and line["exception"].traceback is not None


def test_a_thread_still_runs_after_an_interrupted_join(stuck: list[threading.Thread]) -> None:
    """Before CPython 3.13, it counted as ended for later callers."""
    thread: Any = stuck[0]
    with interrupting(lambda: thread._done.waiters):
        gather([thread], Deadline(PATIENCE))
    assert thread.is_alive() and gather(stuck, Deadline(0)) == stuck


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_interrupted_thread_works_or_reports() -> None:
    """At each bytecode: ``start`` raises, the work is done, or ``failed`` is called."""
    for moment in opcodes("tao.runtime.thread_start", "tao.runtime.threads"):
        done, failed = list[str](), list[BaseException]()
        thread = spawn(lambda d=done: d.append("done"), name="tao-struck", failed=failed.append)
        with moment.raising(thread="tao-struck"):
            try:
                thread.start()
            except RuntimeError:
                failed.append(RuntimeError())
                assert not done, moment
            wait_until(lambda thread=thread: not thread.is_alive())
        assert done or failed, moment
        assert len(done) <= 1 and len(failed) <= 1, moment


def test_a_thread_that_goes_on_keeps_nothing() -> None:
    """The variables of the calls that an exception has ended are freed, of its causes too."""
    sockets = list[weakref.ref[socket.socket]]()
    begun, leave = threading.Event(), threading.Event()

    def open_one() -> None:
        sock = socket.socket()
        sockets.append(weakref.ref(sock))
        sock.close()
        raise ValueError

    def work() -> None:
        try:
            open_one()
        except ValueError:
            open_one()

    def go_on(error: BaseException) -> None:
        begun.set()
        leave.wait(PATIENCE)

    thread = spawn(work, name="test-goes-on", failed=go_on)
    thread.start()
    assert begun.wait(PATIENCE)
    assert [each() for each in sockets] == [None, None]
    leave.set()
    thread.join()


@pytest.mark.interrupted
def test_an_interrupted_start_leaves_nothing() -> None:
    """At each bytecode: the work is done, or never will be."""
    before = sys.exc_info()[1]  # an interruption in another test may have left one
    for moment in opcodes(
        "tao.runtime.thread_start", "tao.runtime.native_threads", "tao.runtime.wakeup"
    ):
        done = list[str]()
        thread = spawn(lambda d=done: d.append("done"), name="tao-unborn")
        with moment.raising():
            thread.start()
        wait_until(lambda thread=thread: thread not in threading.enumerate())
        assert done == ["done"] or (moment.struck and not done), moment
        assert sys.exc_info()[1] is before, moment


def test_a_start_that_is_interrupted_twice_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither waits the caller, nor does the standard library list the thread for ever."""

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise Interruption

    name = "_start_joinable_thread" if sys.version_info >= (3, 13) else "_start_new_thread"
    for moment in opcodes("tao.runtime.thread_start"):
        thread = spawn(print, name="tao-never")
        with monkeypatch.context() as patch, suppress(Interruption), moment.raising():
            patch.setattr(threading, name, interrupted)
            patch.setattr(type(thread._done), "wait", pytest.fail)  # type: ignore[attr-defined]
            thread.start()
        assert thread not in threading.enumerate() or not moment.possible, moment


@pytest.mark.parametrize("begins", [False, True])
def test_a_thread_with_an_interrupted_start_is_not_listed(
    begins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exception comes just before or after the system has created the thread."""
    name = "_start_joinable_thread" if sys.version_info >= (3, 13) else "_start_new_thread"
    start, done = getattr(threading, name), list[str]()

    def interrupted(*args: Any, **kwargs: Any) -> None:
        if begins:
            start(*args, **kwargs)
        raise Interruption

    monkeypatch.setattr(threading, name, interrupted)
    thread = spawn(lambda: done.append("done"), name="tao-unborn")
    with pytest.raises(Interruption):
        thread.start()
    wait_until(lambda: thread not in threading.enumerate())
    assert not thread.is_alive() and (begins or not done)


def test_only_a_series_of_failures_ends_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it goes on for a moment after each, it may be interrupted any number of times."""
    heard: list[BaseException] = []

    def failed(error: BaseException) -> None:
        heard.append(error)
        if len(heard) < 50:
            raise ValueError(len(heard))

    monkeypatch.setattr("tao.runtime.thread_start.monotonic", itertools.count(0, 0.02).__next__)
    thread = spawn(lambda: 1 // 0, name="tao-x", failed=failed)
    thread.start()
    thread.join(PATIENCE)
    assert len(heard) == 50


def test_a_failure_is_reported_again_if_interrupted(log_lines: list[Any]) -> None:
    """The callback that is notified may be interrupted as well."""
    heard: list[BaseException] = []

    def failed(error: BaseException) -> None:
        heard.append(error)
        if len(heard) < 3:
            raise ValueError(len(heard))

    thread = spawn(lambda: 1 // 0, name="tao-x", failed=failed)
    thread.start()
    thread.join(PATIENCE)
    assert [type(error) for error in heard] == [ZeroDivisionError, ValueError, ValueError]
    assert {line["message"] for line in log_lines} == {"thread tao-x was interrupted"}


def test_in_tao_thread() -> None:
    """It is true in threads made by tao and in marked ones, and in no other."""
    seen: list[bool] = []
    thread = spawn(lambda: seen.append(in_tao_thread()), name="tao-x")
    thread.start()
    thread.join(PATIENCE)

    def marked() -> bool:
        mark_tao_thread()
        return in_tao_thread()

    assert seen == [True]
    assert together(in_tao_thread, marked) == [False, True]
    assert not in_tao_thread()


def test_a_deadline_runs_down_to_zero() -> None:
    """The remaining time decreases, and is never negative."""
    deadline = Deadline(1000)
    first = deadline.remaining()
    assert first is not None and 0 < first <= 1000 and not deadline.expired
    while time.monotonic() == (now := time.monotonic()):
        assert now
    second = deadline.remaining()
    assert second is not None and second < first
    for past in (Deadline(0), Deadline(-5)):
        assert (past.remaining(), past.expired) == (0.0, True)
        assert repr(past) == "Deadline(remaining=0.0)"


def test_a_deadline_without_a_time() -> None:
    """None means to wait forever."""
    never = Deadline(None)
    assert (never.remaining(), never.expired) == (None, False)
    assert repr(never) == "Deadline(remaining=None)"


def test_deadlines_can_be_compared() -> None:
    """An earlier one is less than a later one, and any is less than one without a time."""
    near, far, never = Deadline(1), Deadline(1000), Deadline(None)
    assert near.before(far) and near.before(never)
    assert not far.before(near) and not near.before(near)
    assert not never.before(near) and not never.before(never)


@pytest.mark.parametrize("timeout", [1e300, math.inf])
def test_a_distant_deadline(timeout: float) -> None:
    """Its remaining time can always be waited for, despite the system's limits."""
    deadline = Deadline(timeout)
    remaining = deadline.remaining()
    assert remaining is not None and not deadline.expired
    ready = threading.Event()
    ready.set()
    assert ready.wait(remaining)
    thread = spawn(lambda: None, name="tao-x")
    thread.start()
    assert gather([thread], deadline) == []


def test_gather_waits_for_all(log_lines: list[Any]) -> None:
    """It returns when the last thread has ended, and logs nothing."""
    release = threading.Event()
    threads = [spawn(release.wait, name=f"tao-{number}") for number in range(3)]
    for thread in threads:
        thread.start()
    threading.Timer(0.01, release.set).start()
    assert gather(iter(threads), Deadline(PATIENCE)) == []
    assert not any(thread.is_alive() for thread in threads)
    assert log_lines == []


def test_gather_reports_running_threads(
    stuck: list[threading.Thread], log_lines: list[Any]
) -> None:
    """Each is returned and logged as a warning; those that ended are not."""
    ended = spawn(lambda: None, name="tao-ended")
    ended.start()
    ended.join(PATIENCE)
    assert gather([ended, *stuck], Deadline(0.01)) == stuck
    assert [line["message"] for line in log_lines] == [
        f"thread tao-stuck-{number} does not end in time" for number in range(3)
    ]
    assert {line["level"].name for line in log_lines} == {"WARNING"}


def test_gather_skips_threads_that_cannot_be_joined() -> None:
    """It skips the calling thread and threads that were never started."""
    assert gather([threading.current_thread(), spawn(print, name="tao-x")], Deadline(None)) == []


# -- the bell


def test_a_ring_wakes_a_present_or_later_wait() -> None:
    """It works from any thread, however often it was rung before."""
    with Doorbell() as doorbell:
        for _ in range(3):
            doorbell.ring()
        assert ends(doorbell.wait)
        assert together(lambda: ends(doorbell.wait), doorbell.ring) == [True, None]


def test_ringing_never_blocks_and_never_fails() -> None:
    """It works if no thread waits for a long time, and if the bell is closed."""
    with Doorbell() as doorbell:
        assert ends(lambda: [doorbell.ring() for _ in range(10_000)])
        assert ends(doorbell.wait)
    doorbell.ring()


def test_one_ring_may_wake_several_threads() -> None:
    """A thread that is too late to take the ring returns as well, or waits for the next."""
    with Doorbell() as doorbell:
        waiting = [spawn(doorbell.wait, name=f"tao-waits-{number}") for number in range(3)]
        for thread in waiting:
            thread.start()
        while gather(waiting, Deadline(0.001)):
            doorbell.ring()


def test_a_signal_rings_in_the_main_thread() -> None:
    """The signal handler has run when the wait returns, and the wake-up descriptor is restored."""
    handled: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: handled.append(number))
    try:
        with Doorbell() as doorbell:
            threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            while not handled:
                doorbell.wait()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert handled == [signal.SIGUSR1]
    assert signal.set_wakeup_fd(-1) == -1
