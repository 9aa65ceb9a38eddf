"""Figures over HTTP: what the servers and clients of this process have done, and how they are.

- ``/``: a live page for people, which ``/events`` feeds (server-sent events, one a second).
- ``/connections``: JSON, a row for each connection; ``?offset=``, ``limit=``, ``server=``,
  ``filter=`` and ``sort=`` choose among them.
- ``/stacks``: where each of tao's threads is, as text.
- ``/debug/vars``: JSON. For the whole process ``TotalConn``, connections open now, ``TotalHandle``,
  messages handled, ``TotalTime``, seconds spent handling them, and ``QPS``, messages handled a
  second over the last ten (exactly: since a reading about that old, or the latest that is older,
  or the start of the monitor). For each server and client all that its `Snapshot` holds.
- ``/metrics``: the same in the text format of Prometheus, where prometheus-client is installed.
- ``/healthz``: 200 while the servers are running, 503 with the names of those that are not any
  more.

A server or client is shown as long as the program refers to it. What messages say is shown nowhere.
Whoever can connect can read all this, so the monitor listens at localhost unless told otherwise.
Nobody can hold it up: a request may take five seconds in all, a few are answered at once, and the
others wait in the kernel; so many may look at the live page, and the next is told so.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from tao.addresses import address_text
from tao.forks import renew_after_fork, renew_monitor
from tao.listener import listen
from tao.log import logger
from tao.metrics import Snapshot, tallies
from tao.monitor_http import PATIENCE, Answer, Request, shut
from tao.monitor_live import Feed
from tao.monitor_pages import page_at
from tao.threads import Deadline, gather, spawn
from tao.transport import explain

__all__ = ["Monitor", "monitor_on"]

# How many requests are answered at once, and how many may look at the live page.
_AT_ONCE, _STREAMS = 16, 16
# How many more may wait in the kernel.
_BACKLOG = 128
# What a request may take, in seconds.
_PATIENCE: float = PATIENCE
# How far back QPS looks, and how close together it keeps readings, in seconds.
_WINDOW, _STEP = 10.0, 0.5
# How long to wait after a failure to accept, in seconds.
_BACKOFF = 0.5
# Addresses at which only this machine reaches the monitor begin like this.
_LOCAL: Final = ("127.", "::1")


def monitor_on(port: int, host: str = "127.0.0.1") -> Monitor:
    """Serve the figures of this process over HTTP, in the background, until the monitor is closed.

    Args:
        port: where to listen; 0 for any that is free, see `Monitor.address`.
        host: an address of this machine; empty for all of them.

    Raises:
        OSError: the address cannot be listened at; the text names it.
        TypeError, ValueError: an argument is of the wrong type or out of range.
    """
    return Monitor(port, host)


class Monitor:
    """What `monitor_on` returns; also a context manager that closes it.

    Any thread may call any method.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._sock: socket.socket = _listen(host, port)
        #: Where it listens: host and port.
        self.address: tuple[str, int] = self._sock.getsockname()[:2]
        #: The same for a browser.
        self.url: str = f"http://{address_text(self.address)}"
        #: Whether only this machine can reach it.
        self.local: bool = self.address[0].startswith(_LOCAL)
        #: What the live page is fed with.
        self.feed = Feed()
        #: Set when the monitor is about to close.
        self.closing = threading.Event()
        self._rate = _Rate(_handled(_snapshots()))
        # Wakes the accepting thread.
        self._wake, self._woken = socket.socketpair()
        self._slots = threading.Semaphore(_AT_ONCE)
        # Guards the two below, and the closing of the sockets.
        self._lock = threading.Lock()
        self._requests: dict[socket.socket, threading.Thread] = {}
        self._streams: set[socket.socket] = set()  # those of them that send news
        self._name: str = f"tao-monitor-{self.address[1]}"
        self._thread: threading.Thread = spawn(self._accept_all, name=self._name)
        renew_after_fork(self, renew_monitor)
        self._thread.start()

    def close(self) -> None:
        """Answer no more, cut off what is under way, and wait for the threads.

        Closing twice is harmless.
        """
        with self._lock:
            if not self.closing.is_set():
                # In this order: once it is told, the accepting thread may free what is written to.
                self._wake.send(b"x")
                self.closing.set()
            for sock in self._requests:
                shut(sock, socket.SHUT_RDWR)
            threads = [self._thread, *self._requests.values()]
        gather(threads, Deadline(_PATIENCE))

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def variables(self) -> dict[str, Any]:
        """Return what ``/debug/vars`` shows."""
        snapshots = _snapshots()
        return {
            "TotalConn": sum(each.connections for each in snapshots),
            "TotalHandle": _handled(snapshots),
            "TotalTime": sum(each.handle_time for each in snapshots),
            "QPS": self._rate.now(_handled(snapshots)),
            "servers": {each.name: each.as_dict() for each in snapshots if each.kind == "server"},
            "clients": {each.name: each.as_dict() for each in snapshots if each.kind == "client"},
        }

    def page(self, path: str, query: Mapping[str, str]) -> Answer:
        """Return the page at ``path``."""
        return page_at(self, path, query)

    # -- the accepting thread

    def _accept_all(self) -> None:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        while True:
            # Closing cuts the requests off, so that one of the slots comes free.
            self._slots.acquire()
            poll.poll()
            if self.closing.is_set():
                break
            try:
                self._begin_one()
            except (OSError, RuntimeError) as error:
                self._slots.release()
                if not isinstance(error, BlockingIOError):  # who called has hung up
                    logger.warning("{}: cannot take a request: {}", self._name, explain(error))
                    time.sleep(_BACKOFF)
        for sock in (self._sock, self._wake, self._woken):
            sock.close()

    def _begin_one(self) -> None:
        sock, _ = self._sock.accept()
        thread = spawn(self._answer, sock, name=f"{self._name}-request")
        with self._lock:
            if self.closing.is_set():
                sock.close()
                return
            self._requests[sock] = thread
            try:
                thread.start()
            except RuntimeError:  # too many threads
                self._end_one(sock)
                raise

    def _end_one(self, sock: socket.socket) -> None:
        """Be done with a request. Needs _lock."""
        assert self._lock.locked()
        del self._requests[sock]
        self._streams.discard(sock)
        sock.close()

    # -- the thread of a request

    def _answer(self, sock: socket.socket) -> None:
        try:
            Request(sock, self, _PATIENCE)
        except OSError as error:
            logger.debug("{}: request cut off: {}", self._name, explain(error))
        finally:
            with self._lock:
                if sock not in self._streams:
                    self._slots.release()
                self._end_one(sock)

    @property
    def crowded(self) -> bool:
        """Whether no more can look at the live page."""
        return len(self._streams) >= _STREAMS

    def begin_stream(self, sock: socket.socket) -> bool:
        """Let a request go on for as long as it likes; False: too many do already."""
        with self._lock:
            if len(self._streams) >= _STREAMS:
                return False
            self._streams.add(sock)
        self._slots.release()  # for requests that end
        return True


class _Rate:
    """How fast a count grows, for whoever reads it whenever. Any thread may call it."""

    def __init__(self, count: int) -> None:
        # Guards _readings: when, and what; the first is the newest that fills the window.
        self._lock = threading.Lock()
        self._readings: deque[tuple[float, int]] = deque([(time.monotonic(), count)])

    def now(self, count: int) -> float:
        """Return the growth a second, up to a count read now."""
        with self._lock:
            now = time.monotonic()
            readings = self._readings
            while len(readings) > 1 and readings[1][0] <= now - _WINDOW:
                readings.popleft()
            then, before = readings[0]
            if now - readings[-1][0] >= _STEP:
                readings.append((now, count))
        # With a server that was forgotten its count has gone.
        return max(0.0, (count - before) / (now - then)) if now > then else 0.0


def _snapshots() -> list[Snapshot]:
    return [tally.snapshot() for tally in tallies()]


def _handled(snapshots: list[Snapshot]) -> int:
    return sum(each.handled for each in snapshots)


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening, non-blocking socket."""
    if not isinstance(port, int) or isinstance(port, bool):
        raise TypeError(f"port must be an int, not {port!r}")
    if not 0 <= port <= 65535:
        raise ValueError(f"a port is a number from 0 to 65535, not {port}")
    return listen((host or "0.0.0.0", port), _BACKLOG).sock
