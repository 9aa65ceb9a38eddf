"""What a worker pool is given to do: calls that somebody waits for.

A job belongs to the first who claims it: a worker to run it, or somebody who drops it. All methods
may be repeated, in part too, by whoever has been interrupted in the midst of one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from typing import Any

__all__ = ["FutureJob", "Job"]


class Job:
    """A call that somebody waits for; see `WorkerPool.run`."""

    __slots__ = ("_args", "_claims", "_done", "_error", "_function", "_kwargs", "_result")

    def __init__(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._function: Callable[..., Any] | None = function
        self._args = args
        self._kwargs = kwargs
        self._claims: dict[int, object] = {}  # at 0, whose it is
        self._result: Any = None
        self._error: BaseException | None = None
        # Held until the call has ended.
        self._done = threading.Lock()
        self._done.acquire()

    def claim(self, by: object) -> bool:
        """Make the job the caller's, if it is nobody's; tell whether it is the caller's."""
        return self._claims.setdefault(0, by) is by

    @property
    def owner(self) -> object:
        """Whose it is, None if nobody's."""
        return self._claims.get(0)

    def perform(self) -> None:
        """Make the call, by whoever has claimed the job."""
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
        """End without a result, unless the job has ended with one."""
        if self._function is not None:
            self._error = error
        self._end()

    def drop(self) -> None:
        """End without having begun."""
        self.fail(CancelledError("the worker pool was stopped"))

    def _end(self) -> None:
        self._function = None
        self._args, self._kwargs = (), {}
        try:
            self._done.release()
        except RuntimeError:
            pass  # whoever was interrupted in here calls it again

    def wait(self, timeout: float) -> bool:
        """Wait for the end, by the one thread that does; tell whether it has come."""
        return self._done.acquire(timeout=timeout)

    def result(self) -> Any:
        """Return or raise what the call did, after the end."""
        error = self._error
        if error is None:
            return self._result
        try:
            raise error
        finally:
            del error, self  # whose frame is in the traceback


class _Condition(type(threading.RLock())):  # type: ignore[misc]
    """What those who wait for a future wait for.

    ``threading.Condition`` is entered by a method in Python, which may be interrupted when it has
    just acquired the lock: then nobody ever releases it. A lock is entered in one step.
    """

    def __init__(self) -> None:
        super().__init__()
        self._waiting: list[threading.Lock] = []

    def wait(self, timeout: float | None = None) -> bool:
        """Release the lock, wait for `notify_all`, and acquire the lock; tell whether it came."""
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
        """Wake all who wait."""
        for bell in self._waiting.copy():
            try:
                bell.release()
            except RuntimeError:
                pass  # it has been woken, and is about to take itself out


class _Future(Future[Any]):
    """A future that an exception from outside leaves usable, wherever it strikes."""

    def __init__(self) -> None:
        super().__init__()
        self._condition = _Condition()

    def tell(self) -> None:
        """Wake those who wait, if whoever has set the result was interrupted before that."""
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
            self.future.tell()  # it has ended
        self._end()

    def drop(self) -> None:
        if self.future.cancel():
            self.future.set_running_or_notify_cancel()  # for ``concurrent.futures.wait``
        self._end()
