"""What a server acquires when it starts, and releases when it has stopped."""

from __future__ import annotations

import contextvars
import weakref

from tao.connection.options import ServerSettings
from tao.runtime.rate_limits import TokenBucket
from tao.runtime.timing_wheel import TimingWheel, shared_wheel
from tao.runtime.worker_pool import WorkerPool
from tao.transport.tls_credentials import Credentials

__all__ = ["Resources"]


class Resources:
    """The workers, timing wheel, credentials and accept rate of a server that was started.

    Args:
        owner: the server; the shared wheel is released when it is garbage collected.
        settings: of the server.
    """

    def __init__(self, owner: object, settings: ServerSettings) -> None:
        workers = settings.workers
        self.pool: WorkerPool
        if isinstance(workers, WorkerPool):
            self.pool = workers
        else:
            self.pool = WorkerPool(workers, settings.worker_initializer)
        #: The context variables with which the callbacks of each connection begin.
        self.variables = contextvars.copy_context()
        #: Of all addresses that were not given a TLS context of their own.
        self.credentials = Credentials(settings.tls)
        #: The limit ``accept_rate``, for all listeners together.
        self.pace: TokenBucket | None = None
        if settings.accept_rate is not None:
            self.pace = TokenBucket(settings.accept_rate, settings.accept_burst)
        user = object()
        #: Releases what is shared with other servers. Calling it twice is harmless.
        self.give_back = weakref.finalize(owner, shared_wheel.release, user)
        self.give_back.atexit = False
        self.wheel: TimingWheel = shared_wheel.acquire(user)
