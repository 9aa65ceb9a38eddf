"""What a server acquires when it starts, and releases when it has stopped."""

from __future__ import annotations

import contextvars
import weakref
from collections.abc import Callable
from typing import Any

from tao.connection.options.definitions import ServerSettings
from tao.connection.shared_reading.readers import SharedReaders
from tao.runtime.rate_limits import TokenBucket
from tao.runtime.timing_wheel import TimingWheel, shared_wheel
from tao.runtime.worker_pool import WorkerPool
from tao.transport.tls_credentials import Credentials

__all__ = ["Resources"]


class Resources:
    """The workers, timing wheel, credentials and accept rate of a server that was started.

    Args:
        owner: the server; what its threads do not end is released when it is garbage collected.
        settings: of the server.
    """

    def __init__(self, owner: object, settings: ServerSettings) -> None:
        workers = settings.workers
        self.pool: WorkerPool
        if isinstance(workers, WorkerPool):
            self.pool = workers
        else:
            self.pool = WorkerPool(
                workers, settings.worker_initializer, max_waiting=settings.max_waiting_workers
            )
        #: Has the workers run something, see `WorkerPool.run`.
        self.run: Callable[..., Any] = self.pool.run
        #: The context variables with which the callbacks of each connection begin.
        self.variables = contextvars.copy_context()
        #: Of all addresses that were not given a TLS context of their own.
        self.credentials = Credentials(settings.tls)
        #: The limit ``accept_rate``, for all listeners together.
        self.pace: TokenBucket | None = None
        if settings.accept_rate is not None:
            self.pace = TokenBucket(settings.accept_rate, settings.accept_burst)
        user, readers = object(), list[SharedReaders]()
        #: Releases what is shared with other servers, and has the readers end, if they have not
        #: been stopped. Calling it twice is harmless.
        self.give_back = weakref.finalize(owner, _give_back, user, readers)
        self.give_back.atexit = False
        self.wheel: TimingWheel = shared_wheel.acquire(user)
        #: The threads that read all connections; None: each has its own.
        self.readers: SharedReaders | None = None
        if settings.shared_readers:
            self.readers = SharedReaders(
                settings.shared_readers, self.wheel, self.pool, settings.cpus
            )
            # First, so that they end with the server if an exception interrupts the next step.
            readers.append(self.readers)
            self.readers.start()


def _give_back(user: object, readers: list[SharedReaders]) -> None:
    try:
        _release(user, readers)
    except BaseException:
        _release(user, readers)  # again, as a finalizer is called only once
        raise


def _release(user: object, readers: list[SharedReaders]) -> None:
    try:
        for each in readers:
            each.retire()
    finally:
        shared_wheel.release(user)
