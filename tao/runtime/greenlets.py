"""gevent: what differs when ``gevent.monkey.patch_all()`` has made greenlets of threads.

tao needs little for this, as it is written with the standard library's documented functions, and
those are what gevent replaces. In a program without gevent everything here does nothing. Nothing
here is asked per message: what is special about a socket is settled when its transport is made.

These differences matter:

- gevent's sockets wait where a real one would say at once that it cannot (``MSG_DONTWAIT``), and
  ``shutdown`` raises an error in the greenlet that reads. See `GreenSocket`.
- ``select.poll`` does not tell of a hang-up.
- A greenlet that finds data whenever it reads would never let another one run.
- The event loop itself may not wait. Callbacks run in it, and so may signal handlers and
  finalizers. There a thread is started without waiting until it runs (`start_thread`), and nothing
  else is waited for (`in_event_loop`).
- ``sys._current_frames`` knows the greenlet that runs, but not those that wait.
"""

from __future__ import annotations

import _socket
import sys
import threading
import weakref
from collections.abc import Callable
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Any

from tao.runtime.deadline import Deadline

if TYPE_CHECKING:
    import socket

__all__ = [
    "GreenSocket",
    "adapted",
    "add_frames",
    "in_event_loop",
    "is_patched",
    "note_greenlet",
    "start_thread",
]

# How often to look whether a connection has hung up, in seconds: at first, and at most.
_LOOK_LEAST, _LOOK_MOST = 0.001, 0.05
# For how long a greenlet may find data whenever it reads before it lets others run, in seconds.
_SLICE = 0.001

# The greenlets that are tao's threads, by the number that threading.get_ident() gives them.
_greenlets: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def is_patched() -> bool:
    """Tell whether threads are greenlets of gevent's."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def in_event_loop() -> bool:
    """Tell whether the caller runs in gevent's event loop, which may not wait for anything."""
    if not is_patched():
        return False
    import gevent.hub

    return isinstance(gevent.getcurrent(), gevent.hub.Hub)


def start_thread(start: Callable[[], object]) -> None:
    """Call a thread's ``start``; in the event loop it runs as soon as that has its next turn."""
    if not is_patched():
        start()
        return
    from gevent.exceptions import BlockingSwitchOutError

    try:
        start()
    except BlockingSwitchOutError:
        pass  # it is started; what cannot be done here is to wait until it says that it runs


def note_greenlet() -> None:
    """Have `add_frames` find the calling thread, if it is a greenlet."""
    if is_patched():
        import gevent

        _greenlets[threading.get_ident()] = gevent.getcurrent()


def add_frames(frames: dict[int, FrameType]) -> None:
    """Add the stacks of tao's threads that are greenlets to those of real threads."""
    for ident, greenlet in list(_greenlets.items()):
        if greenlet.gr_frame is not None:  # as it is for the one that runs
            frames[ident] = greenlet.gr_frame


def adapted(sock: socket.socket) -> socket.socket:
    """Return a socket that behaves as a transport needs it: itself, unless it is gevent's."""
    if is_patched():
        import gevent.socket

        if isinstance(sock, gevent.socket.socket):
            green: Any = GreenSocket(sock)
            return green  # type: ignore[no-any-return]
    return sock


class GreenSocket:
    """A socket of gevent's, for a transport. What is not here is the socket's own.

    Args:
        sock: connected and blocking.
    """

    __slots__ = ("_pass_on", "_passed_on", "_sock")

    def __init__(self, sock: Any) -> None:
        import gevent

        self._sock = sock
        self._pass_on: Callable[[float], None] = gevent.sleep
        self._passed_on: float = monotonic()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def recv(self, size: int) -> bytes:
        """Wait for bytes, and let others run now and then although there are some already."""
        data: bytes = self._sock.recv(size)
        if monotonic() - self._passed_on > _SLICE:
            self._pass_on(0)
            self._passed_on = monotonic()
        return data

    def send(self, data: bytes | memoryview, flags: int) -> int:
        """Give bytes to the kernel without blocking.

        Raises:
            BlockingIOError: it takes none.
        """
        count: int = self._sock.send(data, flags, timeout=0.0)
        return count

    def shutdown(self, how: int) -> None:
        """End one direction or both, of which a waiting greenlet hears what a thread would."""
        plain = _socket.socket(fileno=self._sock.fileno())
        try:
            plain.shutdown(how)
        finally:
            plain.detach()

    def wait_hung_up(self, timeout: float | None) -> bool:
        """Wait until both directions have ended, or the connection is broken.

        Returns:
            False if neither happened in time.
        """
        from gevent.monkey import get_original

        poll = get_original("select", "poll")()
        poll.register(self._sock.fileno(), 0)
        deadline, pause = Deadline(timeout), _LOOK_LEAST
        while not poll.poll(0):
            left = deadline.remaining()
            if left == 0:
                return False
            self._pass_on(pause if left is None else min(pause, left))
            pause = min(2 * pause, _LOOK_MOST)
        return True
