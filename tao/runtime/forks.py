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
import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["renew_after_fork"]

# What there is in this process, and what to call with it in a child.
_living: weakref.WeakKeyDictionary[Any, Callable[[Any, str], object]] = weakref.WeakKeyDictionary()


def renew_after_fork(thing: Any, renew: Callable[[Any, str], object]) -> None:
    """Have ``renew(thing, reason)`` called in a child process, as long as the thing is there.

    Args:
        renew: makes of it what the child may use. It must not wait for anything. The reason is
            the rest of a sentence that begins with the thing, and says what to do.
    """
    _living[thing] = renew


def _in_child() -> None:
    reason = f"was started in process {os.getppid()} before a fork; create a new one in the child"
    for thing, renew in list(_living.items()):
        renew(thing, reason)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
