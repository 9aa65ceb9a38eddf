"""The worker pool: the threads that run handlers which may block.

A ThreadPoolExecutor with three things added: workers have names and are known as tao's, the
application's initializer runs in each of them and cannot break the pool, and it can be stopped by a
deadline, telling which worker did not end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import thread as _executors
from typing import Any

from tao.log import logger
from tao.threads import Deadline, gather, mark_tao_thread, pin

__all__ = ["WorkerPool"]


class WorkerPool:
    """A number of threads that run what they are given. Any thread may call any method.

    Several servers may share one: who makes it stops it, after the servers.

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
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be callable, not {initializer!r}")
        self.size: int = workers
        self.initializer = initializer
        # Guards the two counts, and the making of workers.
        self._lock = threading.Lock()
        self._busy: int = 0
        self._let_go_of: int = 0  # workers that the interpreter does not wait for
        self._inside = threading.local()  # has an attribute ``worker`` in the workers
        self._executor = ThreadPoolExecutor(workers, name, initializer=self._begin)

    @property
    def busy(self) -> int:
        """How many jobs are running."""
        return self._busy

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Have ``function(*args)`` run by a worker and return its future.

        Raises:
            RuntimeError: the pool is stopped, the interpreter is ending, or no thread can be had;
                the function will not be run.
        """
        job = [function, args]
        with self._lock:
            try:
                future = self._executor.submit(self._job, job)
            except RuntimeError:
                # If it was for lack of a thread, the executor keeps the job for another worker. It
                # has not begun, as it needs the lock for that; now it never does.
                job.clear()
                raise
            self._let_go()
        return future

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Have ``function(*args)`` run by a worker, wait for it, return or raise what it does.

        Called by one of the workers, it runs there and then: all others may be waiting likewise.

        Raises:
            RuntimeError: as `submit`.
            concurrent.futures.CancelledError: the pool was stopped before a worker was free.
        """
        if self._is_worker():
            return self._job([function, args])
        return self.submit(function, *args).result()

    def stop(self, timeout: float | None = None) -> list[threading.Thread]:
        """Take no more jobs, drop those not begun, wait for the others.

        Called by one of the workers, it waits for none, as another may be stopping the pool too.

        Returns:
            the workers that still ran at the end of ``timeout`` seconds.
        """
        self._executor.shutdown(wait=False, cancel_futures=True)
        if self._is_worker():
            return []
        # Only the executor knows also those that it has started but that have not begun yet. It
        # adds none after shutdown.
        return gather(list(self._executor._threads), Deadline(timeout))

    def _is_worker(self) -> bool:
        return hasattr(self._inside, "worker")

    def _let_go(self) -> None:
        """Keep the interpreter from waiting for new workers when it ends. Needs _lock.

        An executor has its threads joined at exit, so a handler that never returns would keep the
        process from ending. The list of those to join is private to the standard library; should it
        go, the exit waits again, and a test fails.
        """
        threads = self._executor._threads
        if len(threads) == self._let_go_of:
            return
        self._let_go_of = len(threads)
        to_join: MutableMapping[threading.Thread, Any] = getattr(_executors, "_threads_queues", {})
        for thread in threads:
            # One that is not a daemon, as its maker is none, is joined in any case, and has to be
            # told to end.
            if thread.daemon:
                to_join.pop(thread, None)

    def _begin(self) -> None:
        mark_tao_thread()
        pin(None)  # a connection's thread, which may be pinned, has started this one
        self._inside.worker = True
        if self.initializer is None:
            return
        try:
            self.initializer()
        except BaseException:
            logger.exception("the initializer of {} raised", threading.current_thread().name)

    def _job(self, job: list[Any]) -> Any:
        with self._lock:
            if not job:
                return None
            function, args = job
            self._busy += 1
        try:
            return function(*args)
        finally:
            with self._lock:
                self._busy -= 1
