"""What the roles of a connection whose reading is shared ask of others."""

from __future__ import annotations

from typing import Any, Protocol

from tao.connection.lifecycle import Lifecycle
from tao.connection.receiving.reading import Reader
from tao.connection.shared_reading.loop import ReadingLoop
from tao.connection.shared_reading.member import Outbox
from tao.runtime.wakeup import Wakeup
from tao.runtime.worker_pool import WorkerPool
from tao.transport.stream import Transport

__all__ = ["LoopOwner", "SharedRolesHost"]


class SharedRolesHost(Protocol):
    """What this asks of a connection's core."""

    dispatcher: Any
    finished: Wakeup
    lifecycle: Lifecycle
    send_queue: Outbox
    readiness: Any
    reader: Reader
    transport: Transport | None

    @property
    def greets(self) -> bool:
        """Whether the application wants to be asked when a connection opens."""

    @property
    def ends_at_once(self) -> bool:
        """Whether the last steps need no waiting, and call nothing of the application's."""

    def collapse(self, error: BaseException, *, for_good: bool = False) -> None:
        """End at once, with this reason; or lose the transport, unless it is to end for good."""

    def finish(self) -> None:
        """Do the last steps, once."""

    def renew(self) -> bool | None:
        """Get another transport and return True, or finish; None: another thread does it."""

    def transport_failed(self, error: OSError) -> None:
        """Go on without the transport: receiving has raised this."""


class LoopOwner(Protocol):
    """What this asks of the readers that all connections share."""

    pool: WorkerPool
    helpers: WorkerPool

    def next_loop(self) -> ReadingLoop:
        """Return a loop for another connection."""

    def start(self) -> None:
        """Start the threads of the loops, unless that is done."""
