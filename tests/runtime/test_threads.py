"""Threads that log what kills them, deadlines, and joining several by one of them."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
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
    """It is a daemon with the name given, and runs its function once started."""
    seen: list[Any] = []
    thread = spawn(
        lambda *args: seen.append((threading.current_thread(), args)), 1, 2, name="tao-x"
    )
    assert (thread.name, thread.daemon, thread.ident, seen) == ("tao-x", True, None, [])
    thread.start()
    thread.join(PATIENCE)
    assert seen == [(thread, (1, 2))]


@pytest.mark.parametrize("error", [ValueError("oh"), SystemExit("oh")])
def test_what_kills_a_thread_is_logged(error: BaseException, log_lines: list[Any]) -> None:
    """With the thread's name and the traceback."""

    def fail() -> None:
        raise error

    thread = spawn(fail, name="tao-doomed")
    thread.start()
    thread.join(PATIENCE)
    (line,) = log_lines
    assert (line["message"], line["level"].name) == ("thread tao-doomed died", "ERROR")
    assert line["exception"].value is error and line["exception"].traceback is not None


def test_after_an_interrupted_join_a_thread_still_runs(stuck: list[threading.Thread]) -> None:
    """Before CPython 3.13 it counted as ended, and whoever asked again was told so."""
    thread: Any = stuck[0]
    with interrupting(lambda: thread._done._waiting):
        gather([thread], Deadline(PATIENCE))
    assert thread.is_alive() and gather(stuck, Deadline(0)) == stuck


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_whatever_hits_a_thread_it_works_or_says_so() -> None:
    """At each bytecode: start() raises and nothing is done, or the work is, or `failed` is told."""
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


@pytest.mark.interrupted
def test_a_start_that_is_interrupted_leaves_nothing() -> None:
    """At each bytecode: the work is done, or it is not and never will be."""
    for moment in opcodes(
        "tao.runtime.thread_start", "tao.runtime.native_threads", "tao.runtime.wakeup"
    ):
        done = list[str]()
        thread = spawn(lambda d=done: d.append("done"), name="tao-unborn")
        with moment.raising():
            thread.start()
        wait_until(lambda thread=thread: thread not in threading.enumerate())
        assert done == ["done"] or (moment.struck and not done), moment


@pytest.mark.parametrize("begins", [False, True])
def test_a_thread_whose_start_was_interrupted_is_not_listed_for_ever(
    begins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception just before, or just after, the system has made it."""
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


def test_a_failure_is_told_until_it_is_heard(log_lines: list[Any]) -> None:
    """Whoever is told of it may be interrupted as well."""
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


def test_tao_knows_its_threads() -> None:
    """Those it made, and those marked; no other."""
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
    """What remains gets less, and is never negative."""
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


def test_a_deadline_that_never_comes() -> None:
    """None means to wait for ever, and says so."""
    never = Deadline(None)
    assert (never.remaining(), never.expired) == (None, False)
    assert repr(never) == "Deadline(remaining=None)"


def test_deadlines_can_be_compared() -> None:
    """The nearer comes before the farther, and any before the one that never comes."""
    near, far, never = Deadline(1), Deadline(1000), Deadline(None)
    assert near.before(far) and near.before(never)
    assert not far.before(near) and not near.before(near)
    assert not never.before(near) and not never.before(never)


@pytest.mark.parametrize("timeout", [1e300, math.inf])
def test_a_deadline_may_be_as_far_as_one_likes(timeout: float) -> None:
    """What remains can always be waited for, where the system's limits are lower."""
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
    """It returns when the last has ended, and has nothing to report."""
    release = threading.Event()
    threads = [spawn(release.wait, name=f"tao-{number}") for number in range(3)]
    for thread in threads:
        thread.start()
    threading.Timer(0.01, release.set).start()
    assert gather(iter(threads), Deadline(PATIENCE)) == []
    assert not any(thread.is_alive() for thread in threads)
    assert log_lines == []


def test_gather_tells_which_still_run(stuck: list[threading.Thread], log_lines: list[Any]) -> None:
    """Each is returned and gets a warning; those that ended are not mentioned."""
    ended = spawn(lambda: None, name="tao-ended")
    ended.start()
    ended.join(PATIENCE)
    assert gather([ended, *stuck], Deadline(0.01)) == stuck
    assert [line["message"] for line in log_lines] == [
        f"thread tao-stuck-{number} does not end in time" for number in range(3)
    ]
    assert {line["level"].name for line in log_lines} == {"WARNING"}


def test_gather_passes_over_what_cannot_be_waited_for() -> None:
    """The calling thread, and threads that were never started."""
    assert gather([threading.current_thread(), spawn(print, name="tao-x")], Deadline(None)) == []


# -- the doorbell


def test_a_ring_wakes_who_waits_then_or_later() -> None:
    """However often it rang before, and from whichever thread."""
    with Doorbell() as doorbell:
        for _ in range(3):
            doorbell.ring()
        assert ends(doorbell.wait)
        assert together(lambda: ends(doorbell.wait), doorbell.ring) == [True, None]


def test_ringing_never_blocks_and_never_fails() -> None:
    """Not when nobody listens for long, nor when the bell is gone."""
    with Doorbell() as doorbell:
        assert ends(lambda: [doorbell.ring() for _ in range(10_000)])
        assert ends(doorbell.wait)
    doorbell.ring()


def test_one_ring_may_wake_several() -> None:
    """Who comes too late to take it returns all the same, or waits for the next."""
    with Doorbell() as doorbell:
        waiting = [spawn(doorbell.wait, name=f"tao-waits-{number}") for number in range(3)]
        for thread in waiting:
            thread.start()
        while gather(waiting, Deadline(0.001)):
            doorbell.ring()


def test_a_signal_rings_in_the_main_thread() -> None:
    """Its handler has run when the wait returns, and the wake-up descriptor is as before."""
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
