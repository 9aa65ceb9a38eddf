"""What a server has while it runs."""

from __future__ import annotations

import contextvars
import weakref

from tao.connection.options import ServerSettings
from tao.runtime.rate_limits import TokenBucket
from tao.runtime.timing_wheel import TimingWheel, shared_wheel
from tao.runtime.worker_pool import WorkerPool
from tao.server.tls_reload import Credentials

__all__ = ["Holdings"]


class Holdings:
    """What a server takes when it starts.

    Args:
        owner: the server; when it is forgotten, what is shared with others is given back.
        options: of the server.
    """

    def __init__(self, owner: object, options: ServerSettings) -> None:
        workers = options.workers
        self.pool: WorkerPool
        if isinstance(workers, WorkerPool):
            self.pool = workers
        else:
            self.pool = WorkerPool(workers, options.worker_initializer)
        #: What the context variables of each connection's callbacks begin with.
        self.variables = contextvars.copy_context()
        #: Of the listeners that have none of their own.
        self.credentials = Credentials(options.tls)
        #: Of the accepting, all listeners together.
        self.pace: TokenBucket | None = None
        if options.accept_rate is not None:
            self.pace = TokenBucket(options.accept_rate, options.accept_burst)
        user = object()
        #: To be called when the server has stopped; again does nothing.
        self.give_back = weakref.finalize(owner, shared_wheel.release, user)
        self.give_back.atexit = False
        self.wheel: TimingWheel = shared_wheel.acquire(user)
