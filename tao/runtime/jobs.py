"""Jobs: the calls that a worker pool runs, with their results.

A job belongs to the first claimant: a worker that runs it, or a caller that drops it. A method that
was interrupted may be called again; it completes what is missing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from typing import Any

__all__ = ["FutureJob", "Job"]


class Job:
    """A call whose result a thread waits for; see `WorkerPool.run`."""

    __slots__ = ("_args", "_claims", "_done", "_error", "_function", "_kwargs", "_result")

    def __init__(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._function: Callable[..., Any] | None = function
        self._args = args
        self._kwargs = kwargs
        self._claims: dict[int, object] = {}  # at 0, the owner
        self._result: Any = None
        self._error: BaseException | None = None
        # Held until the call has ended.
        self._done = threading.Lock()
        self._done.acquire()

    def claim(self, by: object) -> bool:
        """Claim the job for ``by`` unless it has an owner; return whether ``by`` owns it."""
        return self._claims.setdefault(0, by) is by

    @property
    def owner(self) -> object:
        """The claimant that owns the job, or None."""
        return self._claims.get(0)

    def perform(self) -> None:
        """Make the call. Called by the owner."""
        function = self._function
        assert function is not None
        try:
            result = function(*self._args, **self._kwargs)
        except BaseException as error:
            self.fail(error)
        else:
            self.succeed(result)

    def succeed(self, result: Any) -> None:
        self._result = result
        self._end()

    def fail(self, error: BaseException) -> None:
        """Finish with an error, unless the job has finished."""
        if self._function is not None:
            self._error = error
        self._end()

    def drop(self) -> None:
        """Finish a job that was never begun."""
        self.fail(CancelledError("the worker pool was stopped"))

    def _end(self) -> None:
        self._function = None
        self._args, self._kwargs = (), {}
        try:
            self._done.release()
        except RuntimeError:
            pass  # released already: an interrupted caller repeats this method

    def wait(self, timeout: float) -> bool:
        """Wait for the end; return whether it has come. Called by one thread only."""
        return self._done.acquire(timeout=timeout)

    def result(self) -> Any:
        """Return the result or raise the error. Called after the end."""
        error = self._error
        if error is None:
            return self._result
        try:
            raise error
        finally:
            del error, self  # the traceback refers to this frame


class _Condition(type(threading.RLock())):  # type: ignore[misc]
    """The condition inside a future, safe against asynchronous exceptions.

    ``threading.Condition.__enter__`` is Python code. An exception that strikes just after it has
    acquired the lock leaves the lock held for ever. This class is a lock, acquired in one step.
    """

    def __init__(self) -> None:
        super().__init__()
        self._waiting: list[threading.Lock] = []

    def wait(self, timeout: float | None = None) -> bool:
        """Release the lock, wait for `notify_all`, reacquire; return whether it was notified."""
        bell = threading.Lock()
        bell.acquire()
        self._waiting.append(bell)
        state = self._release_save()
        try:
            return bell.acquire(timeout=-1 if timeout is None else max(0.0, timeout))
        finally:
            self._acquire_restore(state)
            self._waiting.remove(bell)

    def notify_all(self) -> None:
        """Wake all waiting threads."""
        for bell in list(self._waiting):
            try:
                bell.release()
            except RuntimeError:
                pass  # it was woken already and is about to remove itself


class _Future(Future[Any]):
    """A future that stays usable when an asynchronous exception strikes inside it."""

    def __init__(self) -> None:
        super().__init__()
        self._condition = _Condition()

    def tell(self) -> None:
        """Wake the waiting threads, in case the thread that set the result was interrupted."""
        with self._condition:
            self._condition.notify_all()


class FutureJob(Job):
    """A call with a future, see `WorkerPool.submit`."""

    __slots__ = ("future",)

    def __init__(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        super().__init__(function, args, kwargs)
        self.future = _Future()

    def perform(self) -> None:
        if self.future.set_running_or_notify_cancel():
            super().perform()

    def succeed(self, result: Any) -> None:
        self.future.set_result(result)
        self._end()

    def fail(self, error: BaseException) -> None:
        try:
            self.future.set_exception(error)
        except InvalidStateError:
            self.future.tell()  # it has finished already
        self._end()

    def drop(self) -> None:
        if self.future.cancel():
            self.future.set_running_or_notify_cancel()  # for ``concurrent.futures.wait``
        self._end()
