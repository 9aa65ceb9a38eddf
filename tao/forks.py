"""After a fork: what runs in a process stays that process's, and the child can begin anew.

A fork copies the memory and the descriptors of a process, but of its threads only the one that
forks. So in the child nobody would accept, read or write for what was started before, its locks may
be held by threads that are not there, and its sockets are those of the parent: to close in order
what is still in use there would end it there.

Therefore, in a child of ``os.fork``, and of ``multiprocessing`` where that forks:

- A server that was started is stopped: `Server.start` raises `ServerClosed`, which says so, its
  connections are closed with that reason, and `Server.stop` returns at once. A client that was
  started is closed. No callback is called for either.
- The child's copies of their sockets are closed. The parent's connections do not notice.
- A `Monitor` is closed, likewise without the parent's noticing.
- What was not started can be started in the child, as can what is made there. A `WorkerPool` that
  was given to a server has new workers.

The parent does not notice anything. In a handler, let the child end by ``os._exit`` or become
another program: it has no business in the threads of the parent's connection.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import tao.context
import tao.metrics
import tao.watch
from tao.ending import EndClock
from tao.metrics import Tally
from tao.send_queue import SendQueue
from tao.timers import TimerSet
from tao.timing import shared_wheel
from tao.transport import Transport
from tao.wakeup import Wakeup
from tao.watch import watch_on
from tao.workers import WorkerPool

if TYPE_CHECKING:
    from tao.connection import Connection
    from tao.reconnect import ClientCore
    from tao.server import Server

__all__ = ["renew_after_fork", "renew_client", "renew_server"]

_LOCKS = {type(threading.Lock()): threading.Lock, type(threading.RLock()): threading.RLock}
# What there is in this process, and what to call with it in a child.
_living: weakref.WeakKeyDictionary[Any, Callable[[Any, str], object]] = weakref.WeakKeyDictionary()


def renew_after_fork(thing: Any, renew: Callable[[Any, str], object]) -> None:
    """Have ``renew(thing, reason)`` called in a child process, as long as the thing is there.

    Args:
        renew: makes of it what the child may use. It must not wait for anything. The reason says
            in words that the process was forked.
    """
    _living[thing] = renew


def _in_child() -> None:
    reason = f"it belongs to process {os.getppid()}, of which this one is a fork"
    for module in (tao.context, tao.metrics, tao.watch):
        _renew_locks(module)
    for thing, renew in list(_living.items()):
        renew(thing, reason)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def _renew_locks(*things: Any) -> None:
    """Replace the locks among the attributes of things: nobody is there to release them."""
    for thing in things:
        names = set(getattr(thing, "__dict__", ()))
        for kind in type(thing).__mro__:
            names.update(getattr(kind, "__slots__", ()))
        for name in names:
            make = _LOCKS.get(type(getattr(thing, name, None)))
            if make is not None:
                setattr(thing, name, make())


def _renew_tally(tally: Tally) -> None:
    floods = tally.floods, tally.overdue
    _renew_locks(tally, tally.latencies, tally.failures, *floods)
    _renew_locks(*(each._bucket for each in floods))


def renew_server(server: Server, reason: str) -> None:
    """Stop a server that was started; one that was not can be started."""
    _renew_locks(server)
    _renew_tally(server._tally)
    if isinstance(server._options.workers, WorkerPool):
        server._options.workers.after_fork()
    if server._state == "new":
        return
    if server._held:  # a server may be stopped without having been started
        server._held[0].give_back()
    server._stopping.finish()
    server._why_stopped = f"the server was started in another process: {reason}"
    for listener in server._listeners:
        listener.abandon()
    server._listeners.clear()
    for conn in server._all.values():
        _abandon(conn, reason)
        _close(conn._accepted)
    server._all.clear()
    server._admission.clear()


def renew_client(client: ClientCore, reason: str) -> None:
    """Close a client that was started; one that was not can be started."""
    _renew_locks(client)
    _renew_tally(client._tally)
    if client.new:
        client._wheel = wheel = shared_wheel.wheel
        client._timers = TimerSet(wheel, client._dispatcher.post)
        client._dispatcher._watch = watch_on(wheel)
        client._send_queue.after_fork()
        client._dispatcher.renew_turn()
        return
    client._source.forked()
    _abandon(client, reason)
    client._up, client._hurry = Wakeup(), Wakeup()
    client._up.set()
    client._give_back()


def _close(transport: Transport | None) -> None:
    """Free the descriptor, and leave the connection to the parent: without a shutdown."""
    sock = getattr(transport, "_sock", None)
    if sock is not None:
        sock.close()


def _abandon(conn: Connection, reason: str) -> None:
    """Make a connection one that has ended, without a word to the peer."""
    _renew_locks(conn, conn._reporter)
    transport, conn._transport = conn._transport, None
    _close(transport)
    conn._reason = conn._reason or reason
    conn._established = False
    conn._over = True
    conn._threads.clear()
    conn._stuck = []
    conn._timers = TimerSet(conn._wheel, lambda call: None)
    conn._timers.close(conn._reason)
    conn._timers.end()
    conn._send_queue = send_queue = SendQueue(1, conn._start_writer)
    send_queue.seal(conn._reason)
    conn._end_clock = EndClock(conn)
    dispatcher = conn._dispatcher
    dispatcher.after_fork(send_queue)
    conn._finished = Wakeup()
    conn._finished.set()
