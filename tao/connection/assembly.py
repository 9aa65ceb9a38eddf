"""The parts of a connection that differ between its own and shared reading (``readers=``)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from tao.connection.application import ApplicationLink
from tao.connection.handling.block_watch import watch_on
from tao.connection.handling.dispatcher import Dispatcher, DispatchHost
from tao.connection.handling.shared_dispatcher import SharedDispatcher
from tao.connection.options.definitions import Settings
from tao.connection.reports.statistics import Statistics
from tao.connection.roles import Roles, RolesHost
from tao.connection.sending.send_queue import SendQueue
from tao.connection.sending.transmitter import WriterFactory
from tao.connection.shared_reading.host import SharedRolesHost
from tao.connection.shared_reading.readers import SharedReaders
from tao.connection.shared_reading.roles import SharedRoles
from tao.runtime.timing_wheel import TimingWheel

__all__ = ["Assembled", "new_dispatcher", "new_roles", "new_send_queue"]


class Assembled(DispatchHost, RolesHost, SharedRolesHost, Protocol):
    """What these ask of a connection's core."""

    application: ApplicationLink
    dispatcher: Dispatcher
    roles: Roles | SharedRoles
    send_queue: SendQueue
    settings: Settings
    statistics: Statistics
    wheel: TimingWheel


def new_roles(core: Assembled, label: str, readers: SharedReaders | None) -> Roles | SharedRoles:
    """Return the roles of a connection; with ``readers`` these play them."""
    if readers is None:
        return Roles(core, label, core.settings.cpus)
    return readers.roles_for(core, label)


def new_send_queue(core: Assembled, keep: bool) -> SendQueue:
    """Return the send queue of a connection that has its roles."""
    settings, roles = core.settings, core.roles
    writer: WriterFactory | None = None
    start_writer: Callable[[], object] = bool
    if isinstance(roles, SharedRoles):
        writer = roles.writer
    else:
        start_writer = partial(_start_writer, core, roles)
    return SendQueue(
        settings.queue_size,
        start_writer,
        limit_bytes=settings.queue_bytes,
        slow_consumer=settings.slow_consumer,
        keep=keep,
        writer=writer,
    )


def _start_writer(core: Assembled, roles: Roles) -> object:
    """Start the third thread. Called by the send queue, in its turn."""
    return roles.start_writer(core.send_queue.run_writer)


def new_dispatcher(core: Assembled, run: Callable[..., object] | None) -> Dispatcher:
    """Return the dispatcher of a connection that has its roles and its send queue."""
    roles = core.roles
    kind: Any = partial(SharedDispatcher, roles) if isinstance(roles, SharedRoles) else Dispatcher
    return kind(  # type: ignore[no-any-return]
        core,
        core.application,
        core.send_queue,
        watch_on(core.wheel.in_real_time),
        run=run,
        mode=core.settings.dispatch,
        limit=core.settings.queue_size,
        latencies=core.statistics.latencies,
    )
