"""Waiting for many sockets at once: epoll, or the best that ``selectors`` has elsewhere.

One thread at a time waits; any thread may change what is waited for meanwhile, or wake the thread
that waits. A descriptor is reported for as long as it is ready (level-triggered), so one turn need
not exhaust it.
"""

from __future__ import annotations

import select
import selectors
import socket
from collections import deque
from typing import Protocol

__all__ = ["ENDED", "READABLE", "WRITABLE", "Poller", "new_poller"]

#: What to wait for: bits of a mask. Errors and the end of the stream are reported as well, by these
#: or by further bits.
READABLE, WRITABLE = 1, 4

# What ``epoll`` reports if it is asked to: the peer has ended its direction.
_PEER_ENDED: int = getattr(select, "EPOLLRDHUP", 0)
#: Bits that say, where ``epoll`` waits, that a stream has ended or is broken. What came before the
#: end may still have to be read.
ENDED: int = _PEER_ENDED | getattr(select, "EPOLLHUP", 0) | getattr(select, "EPOLLERR", 0)

# How many descriptors are reported at once.
_MOST = 1024


class Poller(Protocol):
    """What waits for descriptors."""

    def change(self, descriptor: int, before: int, now: int) -> None:
        """Wait for other events of a descriptor. Calls for one descriptor come one at a time.

        Args:
            before, now: the events, 0 for none.

        Raises:
            OSError: the descriptor cannot be waited for; nothing is changed.
        """

    def wait(self, timeout: float | None) -> list[tuple[int, int]]:
        """Wait until something is ready, up to ``timeout`` seconds, or for `wake`.

        Returns:
            descriptors and their events.
        """

    def wake(self) -> None:
        """Have the thread that waits, or the next one, return. Any thread may call it."""

    def close(self) -> None:
        """Free the descriptors. No thread may wait any more."""


class _Bell:
    """A pair of sockets that wakes the thread that waits."""

    __slots__ = ("_far", "near")

    def __init__(self) -> None:
        self.near, self._far = socket.socketpair()
        for each in (self.near, self._far):
            each.setblocking(False)

    def ring(self) -> None:
        try:
            self._far.send(b"\0")
        except OSError:
            pass  # it rings already, or is closed

    def silence(self) -> None:
        try:
            self.near.recv(4096)
        except OSError:
            pass  # another thread was faster

    def close(self) -> None:
        self.near.close()
        self._far.close()


class EpollPoller:
    """Linux's ``epoll``."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._bell = _Bell()
        self._ringing = (self._bell.near.fileno(), READABLE)  # what is reported when it rings
        self._epoll.register(*self._ringing)

    def change(self, descriptor: int, before: int, now: int) -> None:
        if now & READABLE:
            now |= _PEER_ENDED
        try:
            if not now:
                self._epoll.unregister(descriptor)
            elif before:
                self._epoll.modify(descriptor, now)
            else:
                self._epoll.register(descriptor, now)
        except FileExistsError:  # an interrupted call has done it
            self._epoll.modify(descriptor, now)
        except FileNotFoundError:
            if now:
                self._epoll.register(descriptor, now)

    def wait(self, timeout: float | None) -> list[tuple[int, int]]:
        ready: list[tuple[int, int]] = self._epoll.poll(timeout, _MOST)
        if self._ringing in ready:
            self._bell.silence()
            ready.remove(self._ringing)
        return ready

    def wake(self) -> None:
        self._bell.ring()

    def close(self) -> None:
        self._epoll.close()
        self._bell.close()


class SelectorPoller:
    """``kqueue``, ``poll`` or ``select``, by `selectors`.

    A selector may not be changed while a thread waits in it. So changes are noted, the thread is
    woken, and makes them before it waits again.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._bell = _Bell()
        self._selector.register(self._bell.near, selectors.EVENT_READ)
        self._changes: deque[tuple[int, int]] = deque()  # appended to by any thread

    def change(self, descriptor: int, before: int, now: int) -> None:
        self._changes.append((descriptor, now))
        self._bell.ring()

    def wait(self, timeout: float | None) -> list[tuple[int, int]]:
        while self._changes:
            self._apply(*self._changes[0])
            self._changes.popleft()  # last: one that is made twice is harmless
        ready = []
        for key, mask in self._selector.select(timeout):
            if key.fileobj is self._bell.near:
                self._bell.silence()
            else:
                events = READABLE if mask & selectors.EVENT_READ else 0
                ready.append((key.fd, events | (WRITABLE if mask & selectors.EVENT_WRITE else 0)))
        return ready

    def _apply(self, descriptor: int, events: int) -> None:
        mask = selectors.EVENT_READ if events & READABLE else 0
        mask |= selectors.EVENT_WRITE if events & WRITABLE else 0
        try:
            if descriptor in self._selector.get_map():
                self._selector.unregister(descriptor)
            if mask:
                self._selector.register(descriptor, mask)
        except (OSError, ValueError):
            pass  # it was closed meanwhile

    def wake(self) -> None:
        self._bell.ring()

    def close(self) -> None:
        self._selector.close()
        self._bell.close()


def new_poller() -> Poller:
    """Return the best poller of this platform."""
    return EpollPoller() if hasattr(select, "epoll") else SelectorPoller()
