"""Statistics over HTTP: the activity and state of the servers and clients of this process.

- ``/``: a live page, updated by ``/events`` (server-sent events, one per second).
- ``/connections``: JSON, a row for each connection; ``?offset=``, ``limit=``, ``server=``,
  ``filter=`` and ``sort=`` select and order the rows.
- ``/stacks``: the stack of each of tao's threads, as text.
- ``/debug/vars``: JSON. For the whole process: ``TotalConn``, the open connections;
  ``TotalHandle``, the messages handled; ``TotalTime``, the seconds spent handling them; ``QPS``,
  the messages handled per second over about the last ten seconds. For each server and client: all
  fields of its `Snapshot`.
- ``/metrics``: the same in the text format of Prometheus, if prometheus-client is installed.
- ``/healthz``: whether this process serves, see `tao.monitor.health`.

A server or client is shown as long as the program refers to it. No page shows the content of
messages. Every client that can connect can read all pages, so the monitor listens at localhost by
default. A slow client cannot block the others, see `tao.monitor.http`. The number of open live
pages is limited; above the limit, the status is 503.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from tao.atomic import AtomicReference
from tao.connection.reports.statistics import Snapshot
from tao.monitor.answers import Answer, FaultLog, respond
from tao.monitor.http import BACKLOG, HttpServer
from tao.monitor.live import PERIOD, Feed
from tao.monitor.pages import page_at
from tao.monitor.sources import OwnProcess, Source
from tao.runtime.forks import renew_after_fork
from tao.server.listening.binding import listen
from tao.transport.addresses import address_text

__all__ = ["Monitor", "monitor_on"]

# How many live pages may be open at once.
_STREAMS = 16
# The period that QPS covers, and the interval of its readings, in seconds.
_WINDOW, _STEP = 10.0, 0.5
# The prefixes of addresses at which only this machine reaches the monitor.
_LOCAL: Final = ("127.", "::1")


def monitor_on(port: int, host: str = "127.0.0.1") -> Monitor:
    """Serve statistics of this process over HTTP in the background, until the monitor is closed.

    Args:
        port: where to listen; 0 for any that is free, see `Monitor.address`.
        host: an address of this machine; empty for all of them.

    Raises:
        OSError: cannot listen at the address; the text names it.
        RuntimeError: no thread can be started.
        TypeError, ValueError: an argument is of the wrong type or out of range.
    """
    return Monitor(port, host)


class Monitor:
    """A running monitor, returned by `monitor_on`; as a context manager it closes itself.

    Methods may be called from any thread or signal handler.

    Args:
        port, host: where to listen.
        source: what is shown; None: the servers and clients of this process.
    """

    def __init__(self, port: int, host: str = "127.0.0.1", *, source: Source | None = None) -> None:
        sock = _listen(host, port)
        #: The host and port where it listens.
        self.address: tuple[str, int] = sock.getsockname()[:2]
        #: The same as a URL.
        self.url: str = f"http://{address_text(self.address)}"
        #: Whether only this machine can reach it.
        self.local: bool = self.address[0].startswith(_LOCAL)
        self._site = site = _Site(self.local, source or OwnProcess())
        name = f"tao-monitor-{self.address[1]}"
        faults = FaultLog(name)
        self._http = HttpServer(
            sock,
            name,
            respond=lambda head: respond(head, site, faults),
            news=site.news,
            period=PERIOD,
            left=site.leave_stream,
            faults=faults,
        )
        renew_after_fork(self, Monitor._forked)
        self._http.start()

    def close(self) -> None:
        """Stop serving, close all connections, and wait up to 5 s for the threads.

        Closing twice is harmless.
        """
        self._http.close()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def variables(self) -> dict[str, Any]:
        """Return what ``/debug/vars`` shows."""
        return self._site.variables()

    def _forked(self, reason: str) -> None:
        self._http.abandon()


class _Site:
    """The pages and their state. Methods may be called from any thread.

    Attributes:
        local: see `Monitor.local`.
        feed: the data of the live page.

    Args:
        source: what is shown.
    """

    def __init__(self, local: bool, source: Source) -> None:
        self.local: bool = local
        self._source = source
        self.feed = Feed(source.ends)
        self._rate = _Rate(_handled(source.snapshots()))
        # Tokens for the places of open live pages.
        self._places: deque[None] = deque([None] * _STREAMS)

    def page(self, path: str, query: Mapping[str, str]) -> Answer:
        """Return the page at ``path``."""
        return page_at(path, query, self.variables, self._source)

    def variables(self) -> dict[str, Any]:
        """Return what ``/debug/vars`` shows."""
        snapshots = self._source.snapshots()
        return {
            "TotalConn": sum(each.connections for each in snapshots),
            "TotalHandle": _handled(snapshots),
            "TotalTime": sum(each.handle_time for each in snapshots),
            "QPS": self._rate.now(_handled(snapshots)),
            "servers": {each.name: each.as_dict() for each in snapshots if each.kind == "server"},
            "clients": {each.name: each.as_dict() for each in snapshots if each.kind == "client"},
        }

    def events(self) -> str:
        """Return the first events of a live page: the history, then the current state."""
        return f"retry: 2000\nevent: history\n{_event(self.feed.history())}{self.news()}"

    def news(self) -> str:
        """Return the event of this second."""
        return _event(self.feed.news())

    def join_stream(self) -> bool:
        """Reserve a place for a live page; return False if there is none."""
        try:
            self._places.pop()
        except IndexError:
            return False
        return True

    def leave_stream(self) -> None:
        """Give the place back."""
        self._places.append(None)


class _Rate:
    """The rate at which a count grows. May be used from any thread."""

    def __init__(self, count: int) -> None:
        # Pairs of time and count; the first is the newest one that covers the window.
        first = (time.monotonic(), count)
        self._readings: AtomicReference[tuple[tuple[float, int], ...]] = AtomicReference((first,))

    def now(self, count: int) -> float:
        """Return the growth per second up to the current ``count``."""
        now = time.monotonic()

        def add(readings: tuple[tuple[float, int], ...]) -> tuple[tuple[float, int], ...]:
            first = 0
            while first + 1 < len(readings) and readings[first + 1][0] <= now - _WINDOW:
                first += 1
            latest = ((now, count),) if now - readings[-1][0] >= _STEP else ()
            return (*readings[first:], *latest)

        then, before = self._readings.update(add)[1][0]
        # The sum drops when a server is garbage-collected.
        return max(0.0, (count - before) / (now - then)) if now > then else 0.0


def _event(text: str) -> str:
    return f"data: {text}\n\n"


def _handled(snapshots: list[Snapshot]) -> int:
    return sum(each.handled for each in snapshots)


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening, non-blocking socket."""
    if not isinstance(port, int) or isinstance(port, bool):
        raise TypeError(f"port must be an int, not {port!r}")
    if not 0 <= port <= 65535:
        raise ValueError(f"port must be from 0 to 65535, not {port}")
    if not isinstance(host, str):
        raise TypeError(f"host must be a str, not {host!r}")
    return listen((host or "0.0.0.0", port), BACKLOG).sock
