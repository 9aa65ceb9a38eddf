"""The worker pool: names, an initializer that may raise, and stopping with a deadline."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from tao.runtime.threads import in_tao_thread
from tao.runtime.worker_pool import WorkerPool
from tests.injection import Interruption, interrupting, opcodes, raise_in, skip_if_traced
from tests.programs import LONG, ROOT
from tests.support import PATIENCE, ends, together, wait_until


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    """A pool of two workers, stopped at the end of the test."""
    made = WorkerPool(2)
    yield made
    made.stop(PATIENCE)


def test_a_job_returns_or_raises(pool: WorkerPool) -> None:
    """``submit`` returns a future, and ``run`` waits for the result."""
    assert pool.submit(divmod, 7, 2).result(PATIENCE) == (3, 1)
    assert pool.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        pool.run(divmod, 7, 0)
    assert pool.run(in_tao_thread) is True


def test_it_is_an_executor() -> None:
    """It has the interface of ``concurrent.futures``; a ``with`` block finishes all jobs."""
    with WorkerPool(2) as pool:
        assert isinstance(pool, ThreadPoolExecutor)
        assert pool.submit(int, "11", base=2).result(PATIENCE) == 3
        assert list(pool.map(abs, [-1, -2])) == [1, 2]
        last = [pool.submit(abs, -number) for number in range(100)]
    assert [each.result(0) for each in last] == list(range(100))


def test_workers_have_names_and_numbers() -> None:
    """The names tell the purpose, and there are at most as many as configured."""
    pool, barrier = WorkerPool(3, name="tao-db"), threading.Barrier(3)

    def name() -> str:
        barrier.wait(PATIENCE)
        return threading.current_thread().name

    names = {future.result(PATIENCE) for future in [pool.submit(name) for _ in range(6)]}
    assert len(names) == pool.size == 3
    assert all(re.fullmatch(r"tao-db_\d", name) for name in names)
    assert pool.stop(PATIENCE) == []


def test_workers_start_when_needed() -> None:
    """An unused pool has no thread to stop."""
    pool = WorkerPool()
    assert pool.size == 20
    assert not [t for t in threading.enumerate() if t.name.startswith("tao-worker")]
    assert pool.stop() == []


def test_busy_counts_running_jobs(pool: WorkerPool) -> None:
    """It excludes jobs that wait for a worker, and those that have ended or raised."""
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


def test_run_in_a_worker_runs_the_job_directly() -> None:
    """Otherwise all workers could wait for a job that none can run."""
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
    """It runs once, before the first job; thread-local data is available to the jobs."""
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
    """The line has the worker's name; the worker and the pool continue."""

    def fail() -> None:
        raise error

    pool = WorkerPool(1, fail)
    assert [pool.run(abs, -n) for n in range(3)] == [0, 1, 2]
    (line,) = log_lines
    assert line["message"] == "the initializer of tao-worker_0 raised"
    assert line["exception"].value is error
    pool.stop(PATIENCE)


# -- stopping


def test_stopping_finishes_running_jobs_and_drops_the_rest() -> None:
    """Jobs that have not begun are cancelled, their callers get an error, and none is accepted."""
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
    """It is returned as a named thread and logged; those that ended are not."""
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


def test_a_worker_that_just_started_is_joined() -> None:
    """After a stop immediately after ``submit``, no thread is left."""
    for _ in range(50):
        pool = WorkerPool(1)
        pool.submit(int)
        assert pool.stop(PATIENCE) == []
        assert not [t for t in threading.enumerate() if t.name.startswith("tao-worker")]


def test_workers_may_stop_the_pool() -> None:
    """If all of them stop it at once, none waits for another, and all end."""
    pool, barrier = WorkerPool(3), threading.Barrier(3)

    def stop() -> list[threading.Thread]:
        barrier.wait(PATIENCE)
        return pool.stop()

    jobs = [pool.submit(stop) for _ in range(3)]
    assert [job.result(PATIENCE) for job in jobs] == [[], [], []]
    assert pool.stop(PATIENCE) == []


def test_an_initializer_may_stop_the_pool() -> None:
    """There is no deadlock, and no thread is left."""
    pool = WorkerPool(1, lambda: pool.stop())
    with pytest.raises(CancelledError):
        pool.submit(int).result(PATIENCE)
    assert pool.stop(PATIENCE) == []


def test_any_thread_may_stop_it_repeatedly() -> None:
    """Concurrent stops leave no thread."""
    pool = WorkerPool(2)
    for _ in range(10):
        pool.submit(int)
    assert together(*[lambda: pool.stop(PATIENCE)] * 3) == [[], [], []]


def test_idle_workers_are_not_reported(log_lines: list[Any]) -> None:
    """They end by themselves, so a stop without time reports none of them."""
    for _ in range(20):
        pool = WorkerPool(3)
        together(*[lambda pool=pool: pool.run(int)] * 3)
        wait_until(lambda pool=pool: len(pool._idle) == len(pool._members))
        assert pool.stop(0) == []
    assert not log_lines


def test_a_stop_after_an_interrupted_one() -> None:
    """Before CPython 3.13, a thread with an interrupted join counted as ended."""
    pool, running, gate = WorkerPool(1), threading.Event(), threading.Event()
    pool.submit(lambda: running.set() or gate.wait(PATIENCE))
    assert running.wait(PATIENCE)
    with interrupting(lambda: pool._members[0].ended.waiters):
        pool.stop()
    assert [thread.name for thread in pool.stop(0)] == ["tao-worker_0"]
    gate.set()
    assert pool.stop(PATIENCE) == []


# -- interrupted at any bytecode


def works(pool: WorkerPool) -> bool:
    """Return whether all workers run jobs concurrently, and there are no more workers."""
    met = threading.Barrier(pool.size)
    jobs = [pool.submit(met.wait, PATIENCE) for _ in range(pool.size)]
    return len({job.result(PATIENCE) for job in jobs}) == pool.size == len(pool._members)


@pytest.mark.parametrize("call", ["submit", "run", "stop"])
def test_nested_calls(call: str) -> None:
    """From a signal handler or finalizer at each bytecode: both calls have their effect."""
    for moment in opcodes("tao.runtime.worker_pool", "tao.runtime.jobs"):
        pool, results = WorkerPool(2), []
        same = partial(pool.stop, PATIENCE) if call == "stop" else partial(pool.run, list)
        with moment.calling(lambda call=same, add=results.append: add(call())):
            results.append(pool.submit(list).result(PATIENCE) if call == "submit" else same())
        assert results == [[]] * (1 + moment.struck), moment
        assert call == "stop" or works(pool), moment
        assert pool.stop(PATIENCE) == [] and not pool.busy, moment


@pytest.mark.interrupted
@pytest.mark.parametrize("call", ["submit", "run", "stop"])
def test_an_exception_at_any_bytecode_of_a_call(call: str) -> None:
    """The call has taken effect or not, and the pool works with all of its workers."""
    for moment in opcodes("tao.runtime.worker_pool", "tao.runtime.jobs"):
        pool, done = WorkerPool(2), []
        pool.run(int)
        with moment.raising():
            pool.stop(PATIENCE) if call == "stop" else getattr(pool, call)(done.append, 1)
        if call != "stop":
            assert works(pool) and len(done) <= 1, moment
        assert pool.stop(PATIENCE) == [] and not pool._accepted, moment


@pytest.mark.interrupted
def test_an_exception_at_any_bytecode_of_a_worker(log_lines: list[Any]) -> None:
    """Its job runs, or ends with that exception; the worker continues or is replaced."""
    for moment in opcodes("tao.runtime.worker_pool", "tao.runtime.jobs"):
        pool = WorkerPool(1, bool)
        with moment.raising(thread="tao-worker_0"):
            for _ in range(2):
                try:
                    assert pool.run(int) == 0, moment
                except Interruption:
                    assert moment.struck
        assert works(pool), moment
        assert pool.stop(PATIENCE) == [] and not pool._accepted, moment


def test_exceptions_from_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """All jobs end, and no worker is lost, for any number of exceptions."""
    skip_if_traced()
    for hook in ("unraisablehook", "excepthook"):  # these may be interrupted as well
        monkeypatch.setattr(sys if hook[0] == "u" else threading, hook, lambda _: None)
    pool = WorkerPool(3)
    jobs = [pool.submit(sum, range(2000)) for _ in range(1000)]
    for job in jobs:
        for worker in list(pool._members.values()):
            raise_in(worker.thread, Interruption)
        job.exception(PATIENCE)
    kinds = {type(job.exception(PATIENCE)) for job in jobs}
    assert kinds <= {type(None), Interruption}
    wait_until(lambda: not pool.busy)
    assert ends(lambda: works(pool))
    assert pool.stop(PATIENCE) == []


# -- the end of the process


def output_of(program: str) -> str:
    """Run a program and return its output; the last line is tao's log line, if any."""
    begin = "import loguru, sys, tao\n"
    begin += "loguru.logger.remove()\n"
    begin += "loguru.logger.add(lambda line: print(line.strip()), format='{level} {message}')\n"
    begin += "loguru.logger.enable('tao')\n"
    done = subprocess.run(
        [sys.executable, "-c", begin + program],
        capture_output=True, text=True, timeout=LONG, cwd=ROOT,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_jobs_run_until_the_process_exits() -> None:
    """They run after the end of the main thread, unlike those of CPython's executors."""
    program = (
        "import threading\n"
        "pool = tao.WorkerPool(2)\n"
        "early = pool.submit(int)\n"
        "def go_on():\n"
        "    threading.main_thread().join()\n"
        "    print(early.result(), pool.run(int), list(pool.map(int, [0] * 9)))\n"
        "    print(tao.WorkerPool().submit(int).result())\n"
        "threading.Thread(target=go_on).start()\n"
    )
    assert output_of(program) == f"0 0 {[0] * 9}\n0\n"


def test_jobs_dropped_at_exit_are_logged() -> None:
    """This includes interrupted ones; a job that never returns does not delay the exit."""
    program = (
        "import threading\n"
        "pool, running = tao.WorkerPool(1), threading.Event()\n"
        "block = lambda: running.set() or threading.Event().wait()\n"
        "jobs = [pool.submit(block) for _ in range(3)]\n"
        "assert running.wait()\n"
    )
    assert output_of(program) == (
        "WARNING the process ends, so 2 jobs of the worker pool tao-worker are dropped, "
        "1 are cut off\n"
    )


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
    """The error names the argument and its value."""
    with pytest.raises(error, match=text):
        WorkerPool(*arguments)


def test_a_forgotten_pool_does_not_prevent_the_exit() -> None:
    """Its idle workers do not keep the interpreter alive, whichever thread started them."""
    program = "import tao; pool = tao.WorkerPool(1); print(pool.submit(int).result())"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=LONG, cwd=ROOT
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
