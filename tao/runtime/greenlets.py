"""Support for gevent, where ``gevent.monkey.patch_all()`` has turned threads into greenlets.

Little is needed, because tao uses documented functions of the standard library, which gevent
replaces. Without gevent nothing here has an effect. Nothing here costs time per message: a socket
is adapted once, when its transport is made.

These differences matter:

- A gevent socket waits where a real one fails at once (``MSG_DONTWAIT``), and ``shutdown`` raises
  an error in the greenlet that reads. See `GreenSocket`.
- ``select.poll`` does not report a hang-up.
- A greenlet that always finds data to read would never let another one run.
- The event loop itself must not block. Callbacks run in it, and signal handlers and finalizers may
  run in it. There a thread is started without waiting until it runs (`start_thread`), and all other
  waits are skipped (`in_event_loop`).
- ``sys._current_frames`` has the running greenlet, but not the waiting ones.
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

# How often to check whether a connection has hung up: first and longest interval, in seconds.
_LOOK_LEAST, _LOOK_MOST = 0.001, 0.05
# How long a greenlet may read without waiting before it lets others run, in seconds.
_SLICE = 0.001

# The greenlets that are tao's threads, by their threading.get_ident().
_greenlets: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def is_patched() -> bool:
    """Return whether threads are gevent greenlets."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def in_event_loop() -> bool:
    """Return whether the caller runs in gevent's event loop, which must not block."""
    if not is_patched():
        return False
    import gevent.hub

    return isinstance(gevent.getcurrent(), gevent.hub.Hub)


def start_thread(start: Callable[[], object]) -> None:
    """Call a thread's ``start``; if called in the event loop, do not wait until it runs."""
    if not is_patched():
        start()
        return
    from gevent.exceptions import BlockingSwitchOutError

    try:
        start()
    except BlockingSwitchOutError:
        pass  # it is started; only the wait for its first step is not possible here


def note_greenlet() -> None:
    """Register the calling thread for `add_frames`, if it is a greenlet."""
    if is_patched():
        import gevent

        _greenlets[threading.get_ident()] = gevent.getcurrent()


def add_frames(frames: dict[int, FrameType]) -> None:
    """Add the stacks of tao's threads that are greenlets to those of real threads."""
    for each in _greenlets.valuerefs():
        greenlet = each()
        if greenlet is not None and greenlet.gr_frame is not None:  # None for the running one
            frames[each.key] = greenlet.gr_frame


def adapted(sock: socket.socket) -> socket.socket:
    """Return a socket that a transport can use: the same one, or a wrapper of a gevent socket."""
    if is_patched():
        import gevent.socket

        if isinstance(sock, gevent.socket.socket):
            green: Any = GreenSocket(sock)
            return green  # type: ignore[no-any-return]
    return sock


class GreenSocket:
    """Wraps a gevent socket for a transport. Other attributes are those of the socket.

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

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Wait for bytes, and regularly let other greenlets run even if data is available.

        Args:
            flags: with ``MSG_DONTWAIT`` it does not wait.

        Raises:
            BlockingIOError: there are none, and it was not to wait.
        """
        if flags & _socket.MSG_DONTWAIT:
            return self._recv_now(size, flags)
        data: bytes = self._sock.recv(size)
        if monotonic() - self._passed_on > _SLICE:
            self._pass_on(0)
            self._passed_on = monotonic()
        return data

    def send(self, data: bytes | memoryview, flags: int) -> int:
        """Pass bytes to the kernel without blocking.

        Raises:
            BlockingIOError: the socket buffer is full.
        """
        count: int = self._sock.send(data, flags, timeout=0.0)
        return count

    def _recv_now(self, size: int, flags: int) -> bytes:
        plain = _socket.socket(fileno=self._sock.fileno())
        try:
            return plain.recv(size, flags)
        finally:
            plain.detach()

    def shutdown(self, how: int) -> None:
        """Shut down one direction or both; a waiting greenlet sees it as a thread would."""
        plain = _socket.socket(fileno=self._sock.fileno())
        try:
            plain.shutdown(how)
        finally:
            plain.detach()

    def wait_hung_up(self, timeout: float | None) -> bool:
        """Wait until both directions have ended or the connection is broken.

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
