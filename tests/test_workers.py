"""The worker pool: names, an initializer that may fail, and stopping by a deadline."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest

from tao.threads import in_tao_thread
from tao.workers import WorkerPool
from tests.programs import LONG, ROOT
from tests.support import PATIENCE, together, wait_until


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    """Two workers, stopped when the test ends."""
    made = WorkerPool(2)
    yield made
    made.stop(PATIENCE)


def test_a_job_returns_or_raises(pool: WorkerPool) -> None:
    """``submit`` gives a future of either, ``run`` waits for it."""
    assert pool.submit(divmod, 7, 2).result(PATIENCE) == (3, 1)
    assert pool.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        pool.run(divmod, 7, 0)
    assert pool.run(in_tao_thread) is True


def test_workers_have_names_and_numbers() -> None:
    """They say what they are for; there are as many as asked for, and no more."""
    pool, barrier = WorkerPool(3, name="tao-db"), threading.Barrier(3)

    def name() -> str:
        barrier.wait(PATIENCE)
        return threading.current_thread().name

    names = {future.result(PATIENCE) for future in [pool.submit(name) for _ in range(6)]}
    assert len(names) == pool.size == 3
    assert all(re.fullmatch(r"tao-db_\d", name) for name in names)
    assert pool.stop(PATIENCE) == []


def test_workers_start_when_needed() -> None:
    """A pool that nobody uses has no thread, and is stopped without."""
    pool = WorkerPool()
    assert pool.size == 20
    assert not [t for t in threading.enumerate() if t.name.startswith("tao-worker")]
    assert pool.stop() == []


def test_busy_counts_running_jobs(pool: WorkerPool) -> None:
    """Not those that wait for a worker, nor those that ended or raised."""
    running, gate = threading.Barrier(3), threading.Event()

    def job() -> None:
        running.wait(PATIENCE)
        gate.wait(PATIENCE)
        raise ValueError

    jobs = [pool.submit(job) for _ in range(2)] + [pool.submit(int)]
    running.wait(PATIENCE)
    assert pool.busy == 2
    gate.set()
    assert [type(job.exception(PATIENCE)) for job in jobs] == [ValueError, ValueError, type(None)]
    wait_until(lambda: pool.busy == 0)


def test_a_worker_that_runs_a_job_does_it_itself() -> None:
    """When all workers wait for others to run something, nobody else is left to do so."""
    pool = WorkerPool(1)

    def outer() -> tuple[str, str]:
        return threading.current_thread().name, pool.run(lambda: threading.current_thread().name)

    inside, outside = pool.submit(outer).result(PATIENCE)
    assert inside == outside
    assert pool.run(lambda: pool.run(lambda: pool.busy)) >= 1
    assert pool.busy == 0
    pool.stop(PATIENCE)


# -- the initializer


def test_the_initializer_runs_in_each_worker() -> None:
    """Once, before its first job, and what it leaves in the thread is there for the jobs."""
    local, barrier = threading.local(), threading.Barrier(2)
    calls: list[str] = []

    def open_database() -> None:
        calls.append(threading.current_thread().name)
        local.database = len(calls)

    def use_database() -> int:
        barrier.wait(PATIENCE)
        result: int = local.database
        return result

    pool = WorkerPool(2, open_database)
    used = [pool.submit(use_database) for _ in range(4)]
    assert sorted({future.result(PATIENCE) for future in used}) == [1, 2]
    assert len(calls) == len(set(calls)) == 2
    pool.stop(PATIENCE)


@pytest.mark.parametrize("error", [ValueError("oh"), SystemExit("oh")])
def test_an_initializer_that_raises_is_logged(error: BaseException, log_lines: list[Any]) -> None:
    """With the worker's name; the worker works on, and so does the pool."""

    def fail() -> None:
        raise error

    pool = WorkerPool(1, fail)
    assert [pool.run(abs, -n) for n in range(3)] == [0, 1, 2]
    (line,) = log_lines
    assert line["message"] == "the initializer of tao-worker_0 raised"
    assert line["exception"].value is error
    pool.stop(PATIENCE)


# -- stopping


def test_stopping_finishes_what_runs_and_drops_the_rest() -> None:
    """Jobs that had not begun are cancelled, who waits for one is told, and none is taken."""
    pool, running, gate = WorkerPool(1), threading.Event(), threading.Event()

    def job() -> str:
        running.set()
        gate.wait(PATIENCE)
        return "done"

    first = pool.submit(job)
    assert running.wait(PATIENCE)
    second = pool.submit(job)
    assert [thread.name for thread in pool.stop(0)] == ["tao-worker_0"]
    gate.set()
    assert pool.stop(PATIENCE) == []
    assert first.result(PATIENCE) == "done" and second.cancelled()
    with pytest.raises(CancelledError):
        second.result()
    with pytest.raises(RuntimeError):
        pool.submit(job)
    with pytest.raises(RuntimeError):
        pool.run(job)


def test_a_stuck_worker_is_reported(log_lines: list[Any]) -> None:
    """As a thread with a name, and in the log; those that ended are not."""
    pool, both, gate = WorkerPool(2), threading.Barrier(2), threading.Event()
    stuck = pool.submit(lambda: (both.wait(PATIENCE), gate.wait(PATIENCE)))
    quick = pool.submit(both.wait, PATIENCE)
    quick.result(PATIENCE)
    wait_until(lambda: len(pool.stop(0)) == 1)
    log_lines.clear()
    (thread,) = pool.stop(0.01)
    assert thread.is_alive() and thread.name.startswith("tao-worker_")
    assert [line["message"] for line in log_lines] == [f"thread {thread.name} does not end in time"]
    gate.set()
    stuck.result(PATIENCE)
    assert pool.stop(PATIENCE) == []


def test_a_worker_that_only_just_started_is_waited_for() -> None:
    """Whoever stops the pool right after a job was given finds no thread left."""
    for _ in range(50):
        pool = WorkerPool(1)
        pool.submit(int)
        assert pool.stop(PATIENCE) == []
        assert not [t for t in threading.enumerate() if t.name.startswith("tao-worker")]


def test_workers_may_stop_the_pool() -> None:
    """All of them at once: none waits for another, and then all end."""
    pool, barrier = WorkerPool(3), threading.Barrier(3)

    def stop() -> list[threading.Thread]:
        barrier.wait(PATIENCE)
        return pool.stop()

    jobs = [pool.submit(stop) for _ in range(3)]
    assert [job.result(PATIENCE) for job in jobs] == [[], [], []]
    assert pool.stop(PATIENCE) == []


def test_an_initializer_may_stop_the_pool() -> None:
    """However odd, it neither dead-locks nor leaves a thread."""
    pool = WorkerPool(1, lambda: pool.stop())
    with pytest.raises(CancelledError):
        pool.submit(int).result(PATIENCE)
    assert pool.stop(PATIENCE) == []


def test_any_thread_may_stop_it_and_twice() -> None:
    """Several at once find nothing left."""
    pool = WorkerPool(2)
    for _ in range(10):
        pool.submit(int)
    assert together(*[lambda: pool.stop(PATIENCE)] * 3) == [[], [], []]


# -- arguments


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((0,), ValueError, "workers must be at least 1, not 0"),
        ((True,), TypeError, "workers must be an int, not True"),
        (("20",), TypeError, "workers must be an int, not '20'"),
        ((1, 5), TypeError, "initializer must be callable, not 5"),
    ],
)
def test_arguments_are_checked(
    arguments: tuple[Any, ...], error: type[Exception], text: str
) -> None:
    """The error names the argument and what it was."""
    with pytest.raises(error, match=text):
        WorkerPool(*arguments)


def test_a_pool_that_is_forgotten_lets_the_program_end() -> None:
    """Its idle workers do not keep the interpreter from ending, whoever has started them."""
    program = "import tao; pool = tao.WorkerPool(1); print(pool.submit(int).result())"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=LONG, cwd=ROOT
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
