"""The worker pool: names, an initializer that may fail, and stopping by a deadline."""

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
from tests.injection import Interruption, interrupting, opcodes, raise_in
from tests.programs import LONG, ROOT
from tests.support import PATIENCE, ends, together, wait_until


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


def test_it_is_an_executor() -> None:
    """With all that ``concurrent.futures`` has for one; leaving a ``with`` block finishes all."""
    with WorkerPool(2) as pool:
        assert isinstance(pool, ThreadPoolExecutor)
        assert pool.submit(int, "11", base=2).result(PATIENCE) == 3
        assert list(pool.map(abs, [-1, -2])) == [1, 2]
        last = [pool.submit(abs, -number) for number in range(100)]
    assert [each.result(0) for each in last] == list(range(100))


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


def test_idle_workers_are_not_waited_for(log_lines: list[Any]) -> None:
    """They end by themselves, so a stop that is given no time names none of them."""
    for _ in range(20):
        pool = WorkerPool(3)
        together(*[lambda pool=pool: pool.run(int)] * 3)
        wait_until(lambda pool=pool: len(pool._idle) == len(pool._members))
        assert pool.stop(0) == []
    assert not log_lines


def test_after_an_interrupted_stop_the_next_tells_the_truth() -> None:
    """Before CPython 3.13 a thread whose join was interrupted counts as ended."""
    pool, running, gate = WorkerPool(1), threading.Event(), threading.Event()
    pool.submit(lambda: running.set() or gate.wait(PATIENCE))
    assert running.wait(PATIENCE)
    with interrupting(lambda: pool._members[0].ended._waiting):
        pool.stop()
    assert [thread.name for thread in pool.stop(0)] == ["tao-worker_0"]
    gate.set()
    assert pool.stop(PATIENCE) == []


# -- interrupted anywhere


def works(pool: WorkerPool) -> bool:
    """Whether as many jobs as there may be workers run at once, and no more workers are there."""
    met = threading.Barrier(pool.size)
    jobs = [pool.submit(met.wait, PATIENCE) for _ in range(pool.size)]
    return len({job.result(PATIENCE) for job in jobs}) == pool.size == len(pool._members)


@pytest.mark.parametrize("call", ["submit", "run", "stop"])
def test_any_call_may_come_in_the_midst_of_another(call: str) -> None:
    """From a signal handler or a finalizer, at each bytecode: both do what they should."""
    for moment in opcodes("tao.runtime.worker_pool", "tao.runtime.jobs"):
        pool, results = WorkerPool(2), []
        same = partial(pool.stop, PATIENCE) if call == "stop" else partial(pool.run, list)
        with moment.calling(lambda call=same, add=results.append: add(call())):
            results.append(pool.submit(list).result(PATIENCE) if call == "submit" else same())
        assert results == [[]] * (1 + moment.struck), moment
        assert call == "stop" or works(pool), moment
        assert pool.stop(PATIENCE) == [] and not pool.busy, moment


@pytest.mark.parametrize("call", ["submit", "run", "stop"])
def test_an_exception_at_any_bytecode_of_a_call(call: str) -> None:
    """What was called has begun or has not, and the pool works on, with all of its workers."""
    for moment in opcodes("tao.runtime.worker_pool", "tao.runtime.jobs"):
        pool, done = WorkerPool(2), []
        pool.run(int)
        with moment.raising():
            pool.stop(PATIENCE) if call == "stop" else getattr(pool, call)(done.append, 1)
        if call != "stop":
            assert works(pool) and len(done) <= 1, moment
        assert pool.stop(PATIENCE) == [] and not pool._accepted, moment


def test_an_exception_at_any_bytecode_of_a_worker(log_lines: list[Any]) -> None:
    """Its job is run, or ends with that exception; the worker goes on, or another comes."""
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
    """However many are raised in workers, all jobs end, and no worker is lost."""
    for hook in ("unraisablehook", "excepthook"):  # which may be struck as well
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
    """Run a program and return what it printed; its last line is what tao logged, if anything."""
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


def test_jobs_run_as_long_as_the_process_lives() -> None:
    """Also when the main thread has returned and another goes on: CPython's executors do not."""
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


def test_jobs_dropped_at_the_end_of_the_process_are_logged() -> None:
    """Those not begun, and those cut off; what never returns does not keep it from ending."""
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
