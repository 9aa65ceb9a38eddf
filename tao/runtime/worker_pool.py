"""The worker pool: threads that run handlers which may block.

Guarantees:

- Jobs run as long as the process lives. The executors of the standard library accept no jobs once
  the main thread has returned, and end their workers, although other threads of the application
  continue.
- A worker that never returns does not keep the process from exiting: all are daemon threads.
- Every method may be called at any moment from a signal handler, a finalizer or a log sink, even
  during another call, because none waits for a lock.
- A job is run once or not at all, and the waiting thread learns of its end, whatever exception is
  raised in the worker or in the caller, between any two steps.

Mechanism: jobs wait in a ``queue.SimpleQueue``, whose ``put`` is reentrant. All other state is in
sets and dictionaries on which only single operations are used, each atomic in CPython, with or
without the GIL. A job belongs to the first claimant: a worker that runs it, or a caller that drops
it. So a job that is queued twice is harmless. An interrupted worker may have lost a job that it had
just taken, so it queues all unclaimed jobs again.

There is a worker for each job until the limit is reached. After queueing or taking a job, a thread
compares the number of waiting jobs and idle workers, so the last thread that changes either number
sees both.
"""

from __future__ import annotations

import atexit
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from time import monotonic
from typing import Any, ParamSpec, TypeVar

from tao.callables import check_callable
from tao.runtime.deadline import Deadline
from tao.runtime.jobs import FutureJob, Job
from tao.runtime.log import logger
from tao.runtime.snapshots import keys_of
from tao.runtime.threads import spawn
from tao.runtime.wakeup import Wakeup
from tao.safe_text import safe_repr

__all__ = ["WorkerPool", "lend_this_worker"]

P = ParamSpec("P")
T = TypeVar("T")

# How often to check for dead workers, and how long a worker may take to start, in seconds.
_LOOK, _START_MOST = 1.0, 5.0
# How long an idle worker may take to end, beyond the timeout of a stop, in seconds.
_MOMENT = 0.1
# How many waiting workers are replaced at most.
_WAITING_MOST = 256
# Has an attribute ``pool`` in the workers of all pools.
_here = threading.local()
# What a thread that is no worker enters to wait.
_NOT_A_WORKER = nullcontext()
# The claimants that drop a job.
_CALLER, _STOP = "caller", "stop"


class _Worker:
    """The state of one worker thread."""

    __slots__ = ("_fate", "born", "claim", "ended", "job", "prepared", "preparing", "thread")

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.born: float = monotonic()
        #: Set when the thread is about to end.
        self.ended = Wakeup()
        # At 0, the decision whether it begins or is given up; at 1, the finder of its death.
        self._fate: dict[int, object] = {}
        # Written by the thread.
        self.job: Job | None = None  # the job it has taken
        self.claim: object = None  # the claimant token for that job
        self.preparing: bool = False  # whether it runs the initializer
        self.prepared: bool = False

    def decide(self, step: int, by: object) -> bool:
        """Decide a step unless it is decided; return whether ``by`` made the decision."""
        return self._fate.setdefault(step, by) is by

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        thread = self.thread
        return thread is not None and thread.is_alive() and not self.ended.is_set()

    @property
    def dead(self) -> bool:
        """Whether the thread has died, or has not started in time."""
        if self.alive or self.ended.is_set():
            return False
        began = self.thread is not None and self.thread.ident is not None
        return began or monotonic() - self.born > _START_MOST

    @property
    def at_work(self) -> bool:
        """Whether it runs the application's code."""
        return self.preparing or self.job is not None


class WorkerPool(ThreadPoolExecutor):
    """A pool of threads that run jobs. Methods may be called from any thread.

    It is also an executor of ``concurrent.futures``. Several servers may share a pool; stop it
    yourself, after the servers.

    Args:
        workers: maximum number of threads, which are started on demand.
        initializer: called in each worker when it starts, for example to open a database
            connection. If it raises, that is logged and the worker continues.
        name: of the threads; a number is appended.
        max_waiting: how many further workers there may be in place of those that wait for a peer.
    """

    def __init__(
        self,
        workers: int = 20,
        initializer: Callable[[], object] | None = None,
        name: str = "tao-worker",
        max_waiting: int = _WAITING_MOST,
    ) -> None:
        if not isinstance(workers, int) or isinstance(workers, bool):
            raise TypeError(f"workers must be an int, not {safe_repr(workers)}")
        if workers < 1:
            raise ValueError(f"workers must be at least 1, not {workers}")
        if initializer is not None:
            check_callable("initializer", initializer)
        super().__init__(workers, name)
        self.size: int = workers
        self.initializer = initializer
        self.max_waiting: int = max_waiting
        self._name: str = name
        self._stopped: bool = False
        self._begin_anew()
        _pools[self] = None

    def _begin_anew(self) -> None:
        """Reset to a pool without workers and jobs."""
        self._inside = threading.local()  # has an attribute ``worker`` in the workers
        # See the top of the file for these.
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()  # None: end
        self._accepted: set[Job] = set()  # jobs that have not ended
        self._members: dict[int, _Worker] = {}  # by number
        self._idle: set[_Worker] = set()  # workers that wait for jobs, or are about to
        self._looked: float = monotonic()  # time of the last check for dead workers
        self._waiting: set[object] = set()  # one item for each worker inside `waiting`

    # The inherited methods, ``map`` and those of a context manager, use the ones below.

    @property
    def stopped(self) -> bool:
        """Whether it accepts no more jobs."""
        return self._stopped

    @property
    def busy(self) -> int:
        """How many jobs are running."""
        return sum(worker.job is not None for worker in list(self._members.values()))

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run ``fn(*args, **kwargs)`` on a worker; return its future.

        Raises:
            RuntimeError: the pool is stopped, or no thread can be started; the function is not run.
        """
        job = FutureJob(fn, args, kwargs)
        self._hand_in(job)
        return job.future

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run ``function(*args)`` on a worker, wait, and return its result or raise its error.

        Called on a worker, it runs the function there: all other workers may be waiting too.

        Raises:
            RuntimeError: as for `submit`.
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
        """Let another worker run while the calling worker waits in this ``with`` block.

        So handlers that wait for their peers do not exhaust the pool. At most ``max_waiting``
        workers are replaced at the same time. In other threads it has no effect.
        """
        item = object()
        replaced = self._is_worker() and len(self._waiting) < self.max_waiting
        try:
            if replaced:
                self._waiting.add(item)
                self._provide_if_possible()
            yield
        finally:
            self._waiting.discard(item)

    def stop(self, timeout: float | None = None, *, drop: bool = True) -> list[threading.Thread]:
        """Accept no more jobs, drop those not begun, and wait for the others.

        Called on a worker, it does not wait, as another worker may be stopping the pool too.

        Args:
            timeout: how long to wait, in seconds; None: as long as it takes.
            drop: whether to drop the jobs not begun; False: they are run, and waited for.

        Returns:
            the workers that were still running a job after ``timeout`` seconds.
        """
        deadline = Deadline(timeout)
        self._end(drop=drop)
        return [] if self._is_worker() else self._wait_for_workers(deadline)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more jobs, as in ``concurrent.futures``; see `stop`.

        Args:
            wait: wait for the workers to end, unless called on a worker.
            cancel_futures: drop the jobs not begun.
        """
        self._end(drop=cancel_futures)
        if wait and not self._is_worker():
            self._wait_for_workers(Deadline(None))

    def after_fork(self) -> None:
        """Reset the pool in a child process, where its workers do not exist."""
        self._begin_anew()

    def _submitted(self) -> list[Job]:
        """Return unfinished jobs, except those of `run`: its callers get an exception."""
        return [job for job in list(self._accepted) if isinstance(job, FutureJob)]

    # -- inside

    def _is_worker(self) -> bool:
        return hasattr(self._inside, "worker")

    def _hand_in(self, job: Job) -> None:
        """Queue a job and provide a worker for it, or raise."""
        self._raise_if_stopped()
        self._accepted.add(job)
        try:
            self._jobs.put(job)
            try:
                self._provide()
            except (RuntimeError, MemoryError):
                if not any(worker.alive for worker in list(self._members.values())):
                    raise
                # The job waits for one of the existing workers.
            self._raise_if_stopped()  # all workers may have ended meanwhile
        except BaseException as error:
            dropped = job.claim(_CALLER)
            if dropped:
                self._accepted.discard(job)
            if dropped or not isinstance(error, (RuntimeError, MemoryError)):
                raise
            # A worker has claimed it already.

    def _raise_if_stopped(self) -> None:
        if self._stopped:
            raise RuntimeError(f"the worker pool {self._name} is stopped")

    def _provide(self) -> None:
        """Start a worker if there are more jobs than idle workers and the limit allows it.

        Raises:
            RuntimeError, MemoryError: no thread can be started.
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
                    # It counts as idle from now on, so that one job does not start several.
                    self._idle.add(worker)
                    name, work = f"{self._name}_{number}", partial(self._work, worker)
                    worker.thread = spawn(work, name=name, failed=work)
                    worker.thread.start()
                    return
        except BaseException:
            if worker.decide(0, self):  # not begun, and now it never will
                self._forget(worker)
            raise

    def _forget(self, worker: _Worker) -> None:
        """Free the number of a worker. Called once for each worker."""
        self._idle.discard(worker)
        for number, each in dict(self._members).items():
            if each is worker:
                self._members.pop(number, None)

    def _look_for_dead(self) -> None:
        """Replace dead workers, and finish the jobs that they had taken."""
        self._looked = monotonic()
        for worker in list(self._members.values()):
            if worker.dead and worker.decide(1, object()):
                worker.decide(0, self)  # if it starts after all, it ends at once
                self._recover(worker, RuntimeError("the worker has died"))
                self._forget(worker)
        self._provide_if_possible()

    def _provide_if_possible(self) -> None:
        try:
            self._provide()
        except (RuntimeError, MemoryError):
            pass  # the next check tries again

    def _end(self, *, drop: bool) -> None:
        """Make the workers end when no job is left."""
        self._stopped = True
        if drop:
            for job in list(self._accepted):
                if job.claim(_STOP):
                    job.drop()
                    self._accepted.discard(job)
        self._jobs.put(None)

    def _wait_for_workers(self, deadline: Deadline) -> list[threading.Thread]:
        """Return the threads that still run a job at the deadline."""
        running = []
        left = deadline.remaining()
        # Idle workers end in a moment; they get extra time and are not reported.
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

    # -- on the workers

    def _work(self, worker: _Worker, error: BaseException | None = None) -> None:
        """Run a worker's thread, which continues after asynchronous exceptions."""
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
                self._forget(worker)  # it replaced a worker that no longer waits
                self._provide_if_possible()
                return
        jobs.put(None)  # for the others
        for job in list(self._accepted):  # jobs that an interrupted worker has queued after the end
            self._perform(worker, job)

    def _prepare(self, worker: _Worker) -> None:
        self._inside.worker = worker
        _here.pool = self
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
        worker.claim = claim = object()  # a new one each time: a job that is queued twice runs once
        worker.job = job  # from now on `_recover` can find it
        if job.claim(claim):
            job.perform()
            self._accepted.discard(job)
        worker.job = None

    def _recover(self, worker: _Worker, error: BaseException) -> None:
        """Restore the state after a worker was interrupted by an asynchronous exception."""
        job = worker.job
        self._idle.discard(worker)
        if job is not None and job.owner is worker.claim:
            job.fail(error)
            self._accepted.discard(job)
        worker.job = None
        for job in list(self._accepted):
            if job.owner is None:
                self._jobs.put(job)  # maybe a second time; the first claimant runs it
        if self._stopped:
            self._jobs.put(None)
        name = None if worker.thread is None else worker.thread.name
        logger.opt(exception=error).error("worker {} was interrupted", name)


def lend_this_worker() -> AbstractContextManager[None]:
    """Return a context in which the calling thread, if it is a worker, does not count as one."""
    pool: WorkerPool | None = getattr(_here, "pool", None)
    return _NOT_A_WORKER if pool is None else pool.waiting()


def _tell_what_is_dropped() -> None:
    """Log the jobs that are dropped or interrupted because the process exits."""
    for pool in keys_of(_pools):
        jobs = pool._submitted()
        if jobs:
            begun = sum(job.owner is not None for job in jobs)
            logger.warning(
                "the process ends, so {} jobs of the worker pool {} are dropped, {} are cut off",
                len(jobs) - begun, pool._name, begun,
            )  # fmt: skip


# The pools of the process.
_pools: weakref.WeakKeyDictionary[WorkerPool, None] = weakref.WeakKeyDictionary()
atexit.register(_tell_what_is_dropped)
