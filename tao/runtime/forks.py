"""After a fork: servers and clients stay with the parent process; the child can create new ones.

A fork copies the memory and the descriptors of a process, but only the thread that forks. So in the
child no thread accepts, reads or writes for a server that was started before, locks may be held by
threads that do not exist, and the sockets are shared with the parent: shutting one down in the
child would end the parent's connection.

Therefore, in a child of ``os.fork``, and of ``multiprocessing`` where that forks:

- A started server counts as stopped: `Server.start` raises `ServerClosed`, its connections are
  closed with the same reason, and `Server.stop` returns at once. A started client is closed. No
  callbacks are called for either.
- The child's copies of their sockets are closed; the parent's connections are not affected.
- A `Monitor` is closed, which does not affect the parent either.
- A server or client that was not started can be started in the child, and new ones can be made
  there. A `WorkerPool` that was given to a server has new workers.

The parent is not affected. If a handler forks, the child must end by ``os._exit`` or replace itself
by another program, because it runs inside a thread of the parent's connection.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

from tao.runtime.snapshots import keys_of

__all__ = ["renew_after_fork"]

# The objects of this process, each with the function to call in a child.
_living: weakref.WeakKeyDictionary[Any, Callable[[Any, str], object]] = weakref.WeakKeyDictionary()


def renew_after_fork(thing: Any, renew: Callable[[Any, str], object]) -> None:
    """Register ``renew(thing, reason)`` to be called in a child process while ``thing`` lives.

    Args:
        renew: puts the object into a state that the child can use. It must not block. The reason
            completes a sentence that begins with the object, and names the remedy.
    """
    _living[thing] = renew


def _in_child() -> None:
    reason = f"was started in process {os.getppid()} before a fork; create a new one in the child"
    for thing in keys_of(_living):
        _living[thing](thing, reason)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
