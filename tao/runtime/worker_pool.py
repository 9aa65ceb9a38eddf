"""The worker pool: the threads that run handlers which may block.

Guarantees:

- Jobs run as long as the process lives. The standard library's executors take none once the main
  thread has returned, and tell their workers to end then, although other threads of the application
  go on.
- A worker that never returns does not keep the process from ending: all are daemon threads.
- Any method may be called at any moment, by a signal handler, a finalizer or a log sink, also in
  the midst of another call: no lock is ever waited for.
- A job is run once or not at all, and whoever waits for it hears of its end, whatever exception is
  raised in the worker, or in the caller, between any two steps.

Mechanism: jobs wait in a ``queue.SimpleQueue``, whose ``put`` is reentrant. All other state is in
sets and dictionaries of which only single operations are used, each atomic in CPython, also without
the interpreter lock. A job belongs to the first who claims it: a worker to run it, or somebody who
drops it; so one that is queued twice does no harm. A worker that is interrupted therefore queues
again whatever is not claimed, as it may have lost what it had just taken.

There is a worker for each job as long as there may be more workers. Whoever queues a job, and each
worker that takes one, compares afterwards how many jobs and how many workers wait; so the last of
those who change one of the numbers sees both.
"""

from __future__ import annotations

import atexit
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from time import monotonic
from typing import Any, ParamSpec, TypeVar

from tao.callables import check_callable
from tao.runtime.deadline import Deadline
from tao.runtime.jobs import FutureJob, Job
from tao.runtime.log import logger
from tao.runtime.threads import spawn
from tao.runtime.wakeup import Wakeup

__all__ = ["WorkerPool"]

P = ParamSpec("P")
T = TypeVar("T")

# How often to look for workers that have died, and how long one may take to start, in seconds.
_LOOK, _START_MOST = 1.0, 5.0
# How long an idle worker may take to end, beyond the timeout of a stop, in seconds.
_MOMENT = 0.1
# So many workers that wait are replaced at most.
_WAITING_MOST = 256
# Who drops a job that no worker has claimed.
_CALLER, _STOP = "caller", "stop"


class _Worker:
    """What the pool knows of one of its threads."""

    __slots__ = ("_fate", "born", "claim", "ended", "job", "prepared", "preparing", "thread")

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.born: float = monotonic()
        #: Set when the thread is about to end.
        self.ended = Wakeup()
        # At 0, whether it begins or is given up; at 1, who has found it dead.
        self._fate: dict[int, object] = {}
        # Written by the thread.
        self.job: Job | None = None  # that it has taken
        self.claim: object = None  # with which it claims that
        self.preparing: bool = False  # it runs the initializer
        self.prepared: bool = False

    def decide(self, step: int, by: object) -> bool:
        """Decide a step of its life, if nobody has; tell whether it was this caller who did."""
        return self._fate.setdefault(step, by) is by

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        thread = self.thread
        return thread is not None and thread.is_alive() and not self.ended.is_set()

    @property
    def dead(self) -> bool:
        """Whether the thread has died, or has not come to life in time."""
        if self.alive or self.ended.is_set():
            return False
        began = self.thread is not None and self.thread.ident is not None
        return began or monotonic() - self.born > _START_MOST

    @property
    def at_work(self) -> bool:
        """Whether it runs something of the application's."""
        return self.preparing or self.job is not None


class WorkerPool(ThreadPoolExecutor):
    """A number of threads that run what they are given. Any thread may call any method.

    It is an executor like those of ``concurrent.futures``, for whoever wants one. Several servers
    may share one: who makes it stops it, after the servers.

    Args:
        workers: how many threads at most; they are started as they are needed.
        initializer: called in each worker as it starts, to open a database connection, say. If it
            raises, that is logged and the worker works on.
        name: of the threads, which get a number each.
    """

    def __init__(
        self,
        workers: int = 20,
        initializer: Callable[[], object] | None = None,
        name: str = "tao-worker",
    ) -> None:
        if not isinstance(workers, int) or isinstance(workers, bool):
            raise TypeError(f"workers must be an int, not {workers!r}")
        if workers < 1:
            raise ValueError(f"workers must be at least 1, not {workers}")
        if initializer is not None:
            check_callable("initializer", initializer)
        super().__init__(workers, name)
        self.size: int = workers
        self.initializer = initializer
        self._name: str = name
        self._stopped: bool = False
        self._begin_anew()
        _pools.add(self)

    def _begin_anew(self) -> None:
        """Be a pool without workers and jobs."""
        self._inside = threading.local()  # has an attribute ``worker`` in the workers
        # See the text at the top for these.
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()  # None: end
        self._accepted: set[Job] = set()  # that have not ended
        self._members: dict[int, _Worker] = {}  # by number
        self._idle: set[_Worker] = set()  # that wait for jobs, or are about to
        self._looked: float = monotonic()  # when somebody last looked for dead workers
        self._waiting: set[object] = set()  # one item for each worker that is in `waiting`

    # The base's methods that are not here, ``map`` and those of a context manager, use these.

    @property
    def busy(self) -> int:
        """How many jobs are running."""
        return sum(worker.job is not None for worker in list(self._members.values()))

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have ``fn(*args, **kwargs)`` run by a worker and return its future.

        Raises:
            RuntimeError: the pool is stopped, or no thread can be had; the function will not be
                run.
        """
        job = FutureJob(fn, args, kwargs)
        self._hand_in(job)
        return job.future

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Have ``function(*args)`` run by a worker, wait for it, return or raise what it does.

        Called by one of the workers, it runs there and then: all others may be waiting likewise.

        Raises:
            RuntimeError: as `submit`.
            concurrent.futures.CancelledError: the pool was stopped before a worker was free.
        """
        if self._is_worker():
            return function(*args)
        job = Job(function, args, {})
        self._hand_in(job)
        while not job.wait(_LOOK):
            self._look_for_dead()
        return job.result()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While the calling worker waits in this ``with`` block, another may run in its place.

        So handlers that wait for their peers do not use the workers up. At most 256 are replaced
        at the same time. Any other thread may enter it, too; that changes nothing.
        """
        item = object()
        replaced = self._is_worker() and len(self._waiting) < _WAITING_MOST
        try:
            if replaced:
                self._waiting.add(item)
                self._provide_if_possible()
            yield
        finally:
            self._waiting.discard(item)

    def stop(self, timeout: float | None = None) -> list[threading.Thread]:
        """Take no more jobs, drop those not begun, wait for the others.

        Called by one of the workers, it waits for none, as another may be stopping the pool too.

        Returns:
            the workers that still ran something at the end of ``timeout`` seconds.
        """
        deadline = Deadline(timeout)
        self._end(drop=True)
        return [] if self._is_worker() else self._wait_for_workers(deadline)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more jobs, as executors do; see `stop`.

        Args:
            wait: for the workers to end; not if called by one of them.
            cancel_futures: drop the jobs not begun.
        """
        self._end(drop=cancel_futures)
        if wait and not self._is_worker():
            self._wait_for_workers(Deadline(None))

    def after_fork(self) -> None:
        """In a child process: be a pool that has not started any worker."""
        self._begin_anew()

    def _submitted(self) -> list[Job]:
        """Jobs that have not ended, without those of `run`, whose callers tell of them."""
        return [job for job in list(self._accepted) if isinstance(job, FutureJob)]

    # -- inside

    def _is_worker(self) -> bool:
        return hasattr(self._inside, "worker")

    def _hand_in(self, job: Job) -> None:
        """Queue a job and see to a worker for it, or raise."""
        self._raise_if_stopped()
        self._accepted.add(job)
        try:
            self._jobs.put(job)
            try:
                self._provide()
            except (RuntimeError, MemoryError):
                if not any(worker.alive for worker in list(self._members.values())):
                    raise
                # It waits for one of the workers that there are.
            self._raise_if_stopped()  # maybe after all workers have left
        except BaseException as error:
            dropped = job.claim(_CALLER)
            if dropped:
                self._accepted.discard(job)
            if dropped or not isinstance(error, (RuntimeError, MemoryError)):
                raise
            # A worker has it already.

    def _raise_if_stopped(self) -> None:
        if self._stopped:
            raise RuntimeError(f"the worker pool {self._name} is stopped")

    def _provide(self) -> None:
        """Start a worker if more jobs wait than workers, and there may be one more.

        Raises:
            RuntimeError, MemoryError: no thread can be had.
        """
        if self._jobs.qsize() <= len(self._idle) or self._stopped:
            return
        most = self.size + len(self._waiting)
        if len(self._members) >= most:
            if monotonic() - self._looked > _LOOK:
                self._look_for_dead()
            return
        worker = _Worker()
        try:
            for number in range(most):
                if self._members.setdefault(number, worker) is worker:
                    # It counts as idle from now on, or several would be started for one job.
                    self._idle.add(worker)
                    name, work = f"{self._name}_{number}", partial(self._work, worker)
                    worker.thread = spawn(work, name=name, failed=work)
                    worker.thread.start()
                    return
        except BaseException:
            if worker.decide(0, self):  # it has not begun, and never will
                self._forget(worker)
            raise

    def _forget(self, worker: _Worker) -> None:
        """Make its number free. Called once for each worker."""
        self._idle.discard(worker)
        for number, each in list(self._members.items()):
            if each is worker:
                self._members.pop(number, None)

    def _look_for_dead(self) -> None:
        """Replace workers that have died, and go on with what they had taken."""
        self._looked = monotonic()
        for worker in list(self._members.values()):
            if worker.dead and worker.decide(1, object()):
                worker.decide(0, self)  # should it come to life after all, it ends
                self._recover(worker, RuntimeError("the worker has died"))
                self._forget(worker)
        self._provide_if_possible()

    def _provide_if_possible(self) -> None:
        try:
            self._provide()
        except (RuntimeError, MemoryError):
            pass  # the next who looks tries again

    def _end(self, *, drop: bool) -> None:
        """Have the workers end when no job is left."""
        self._stopped = True
        if drop:
            for job in list(self._accepted):
                if job.claim(_STOP):
                    job.drop()
                    self._accepted.discard(job)
        self._jobs.put(None)

    def _wait_for_workers(self, deadline: Deadline) -> list[threading.Thread]:
        """Return the threads of those that still run something at the deadline."""
        running = []
        left = deadline.remaining()
        # Those that have nothing to do end in a moment, which is not held against them.
        moment = Deadline(None if left is None else left + _MOMENT)
        for worker in list(self._members.values()):
            thread = worker.thread
            while thread is not None and worker.alive:
                left = (deadline if worker.at_work else moment).remaining()
                if left == 0:
                    break
                worker.ended.wait(_LOOK if left is None else min(left, _LOOK))
            if thread is None or worker.ended.is_set():
                continue
            if worker.alive and worker.at_work:
                logger.warning("thread {} does not end in time", thread.name)
                running.append(thread)
        return running

    # -- for the workers

    def _work(self, worker: _Worker, error: BaseException | None = None) -> None:
        """A worker's thread, which goes on whatever is raised in it from outside."""
        while not worker.ended.is_set():
            try:
                if error is not None:
                    self._recover(worker, error)
                    error = None
                if worker.decide(0, worker):
                    self._serve(worker)
                break
            except BaseException as caught:
                error = caught
        worker.ended.set()

    def _serve(self, worker: _Worker) -> None:
        """Run jobs until the pool is stopped."""
        self._prepare(worker)
        jobs, idle = self._jobs, self._idle
        while True:
            idle.add(worker)
            job = jobs.get()
            idle.discard(worker)
            if job is None:
                break
            if jobs.qsize() > len(idle):
                self._provide_if_possible()
            self._perform(worker, job)
            del job
            if len(self._members) > self.size + len(self._waiting):
                self._forget(worker)  # it was there for one that waited
                self._provide_if_possible()
                return
        jobs.put(None)  # for the others
        for job in list(self._accepted):  # that an interrupted worker has queued after the end
            self._perform(worker, job)

    def _prepare(self, worker: _Worker) -> None:
        self._inside.worker = worker
        if self.initializer is None or worker.prepared:
            return
        worker.preparing = worker.prepared = True
        try:
            self.initializer()
        except BaseException:
            logger.exception("the initializer of {} raised", threading.current_thread().name)
        finally:
            worker.preparing = False

    def _perform(self, worker: _Worker, job: Job) -> None:
        worker.claim = claim = object()  # another each time: a job that is queued twice runs once
        worker.job = job  # from now on it is known who has it
        if job.claim(claim):
            job.perform()
            self._accepted.discard(job)
        worker.job = None

    def _recover(self, worker: _Worker, error: BaseException) -> None:
        """Put right what a worker left that was interrupted by an exception from outside."""
        job = worker.job
        self._idle.discard(worker)
        if job is not None and job.owner is worker.claim:
            job.fail(error)
            self._accepted.discard(job)
        worker.job = None
        for job in list(self._accepted):
            if job.owner is None:
                self._jobs.put(job)  # again, maybe; who claims it first runs it
        if self._stopped:
            self._jobs.put(None)
        name = None if worker.thread is None else worker.thread.name
        logger.opt(exception=error).error("worker {} was interrupted", name)


def _tell_what_is_dropped() -> None:
    """At the end of the process: log what was submitted and never begun, or not finished."""
    for pool in list(_pools):
        jobs = pool._submitted()
        if jobs:
            begun = sum(job.owner is not None for job in jobs)
            logger.warning(
                "the process ends, so {} jobs of the worker pool {} are dropped, {} are cut off",
                len(jobs) - begun, pool._name, begun,
            )  # fmt: skip


# The pools of the process.
_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()
atexit.register(_tell_what_is_dropped)
