"""Figures over HTTP: what the servers and clients of this process have done, and how they are.

- ``/debug/vars``: JSON. For the whole process ``TotalConn``, connections open now, ``TotalHandle``,
  messages handled, ``TotalTime``, seconds spent handling them, and ``QPS``, messages handled a
  second over the last ten (exactly: since a reading about that old, or the latest that is older,
  or the start of the monitor). For each server and client all that its `Snapshot` holds.
- ``/metrics``: the same in the text format of Prometheus, where prometheus-client is installed.
- ``/healthz``: 200 while the servers are running, 503 with the names of those that are not any
  more.

A server or client is shown as long as the program refers to it. Whoever can connect can read all
this, so the monitor listens at localhost unless told otherwise. Nobody can hold it up: a request
may take five seconds in all, a few are answered at once, and the others wait in the kernel.
"""

from __future__ import annotations

import errno
import io
import json
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tao.log import logger
from tao.metrics import Snapshot, tallies
from tao.threads import Deadline, gather, spawn
from tao.transport import address_text, explain
from tao.version import __version__

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["Monitor", "monitor_on"]

# What a request may take, in seconds, and its head, in bytes.
_PATIENCE, _LONGEST_HEAD = 5.0, 16 * 1024
# How many requests are answered at once.
_AT_ONCE = 16
# How far back QPS looks, and how close together it keeps readings, in seconds.
_WINDOW, _STEP = 10.0, 0.5
# How long to wait after a failure to accept, in seconds.
_BACKOFF = 0.5

_TEXT: Final = "text/plain; charset=utf-8"


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
        self._rate = _Rate(_handled(_snapshots()))
        # Wakes the accepting thread.
        self._wake, self._woken = socket.socketpair()
        self._slots = threading.Semaphore(_AT_ONCE)
        # Guards the two below, and the closing of the sockets.
        self._lock = threading.Lock()
        self._closed: bool = False
        self._requests: dict[socket.socket, threading.Thread] = {}
        self._name: str = f"tao-monitor-{self.address[1]}"
        self._thread: threading.Thread = spawn(self._accept_all, name=self._name)
        self._thread.start()

    def close(self) -> None:
        """Answer no more, cut off what is under way, and wait for the threads.

        Closing twice is harmless.
        """
        with self._lock:
            if not self._closed:
                self._closed = True
                self._wake.send(b"x")
            for sock in self._requests:
                _shut(sock, socket.SHUT_RDWR)
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

    # -- the accepting thread

    def _accept_all(self) -> None:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        while True:
            # Closing cuts the requests off, so that one of the slots comes free.
            self._slots.acquire()
            poll.poll()
            if self._closed:
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
            if self._closed:
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
        sock.close()

    # -- the thread of a request

    def _answer(self, sock: socket.socket) -> None:
        try:
            _Request(sock, None, self)
        except OSError as error:
            logger.debug("{}: request cut off: {}", self._name, explain(error))
        finally:
            with self._lock:
                self._end_one(sock)
            self._slots.release()


class _Answer(NamedTuple):
    status: int
    content_type: str
    body: str | bytes


class _Request(BaseHTTPRequestHandler):
    """One request: read, answered and seen off by its constructor.

    Raises:
        OSError: the peer is gone, or too slow.
    """

    server_version: str = f"tao/{__version__}"
    sys_version: str = ""
    error_message_format: str = "%(code)d %(message)s\n"
    error_content_type: str = _TEXT

    def __init__(self, sock: socket.socket, address: None, monitor: Monitor) -> None:
        self._monitor = monitor
        self._deadline = Deadline(_PATIENCE)
        super().__init__(sock, address, monitor)  # type: ignore[arg-type]

    def setup(self) -> None:
        """Read the head as a whole, for which there is one deadline, not one for each piece."""
        self.connection: socket.socket = self.request
        head = b""
        while len(head) < _LONGEST_HEAD and b"\r\n\r\n" not in head and b"\n\n" not in head:
            data = self._receive()
            if not data:
                break
            head += data
        self.rfile = io.BytesIO(head)
        self.wfile = io.BytesIO()

    def finish(self) -> None:
        """Send the answer, then wait for the peer to close: doing so first would reset it."""
        self.connection.settimeout(self._deadline.remaining() or 0.001)
        self.connection.sendall(self.wfile.getvalue())  # type: ignore[attr-defined]
        _shut(self.connection, socket.SHUT_WR)
        while self._receive():
            pass

    def _receive(self) -> bytes:
        if self._deadline.expired:
            raise TimeoutError(f"not done after {_PATIENCE} s")
        self.connection.settimeout(self._deadline.remaining() or 0.001)
        return self.connection.recv(4096)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        page = _PAGES.get(path.rstrip("/"))
        if page is None:
            paths = "\n".join(_PAGES)
            self._send(_Answer(404, _TEXT, f"there is no {path} here; there is\n{paths}\n"))
        else:
            self._send(page(self._monitor))

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._send(_Answer(405, _TEXT, "there is nothing here but to read\n"), Allow="GET, HEAD")

    do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_POST

    def _send(self, answer: _Answer, **headers: str) -> None:
        body = answer.body.encode() if isinstance(answer.body, str) else answer.body
        self.send_response(answer.status)
        headers |= {"Content-Type": answer.content_type, "Content-Length": str(len(body))}
        for name, value in {**headers, "Cache-Control": "no-store"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        logger.trace("{}: {}", self._monitor.url, format % args)


# -- the pages


def _variables(monitor: Monitor) -> _Answer:
    return _Answer(200, "application/json", json.dumps(monitor.variables(), indent=2) + "\n")


def _metrics(monitor: Monitor) -> _Answer:
    try:
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
    except ImportError:
        hint = "this page needs prometheus-client: pip install 'tao-tcp[monitor]'\n"
        return _Answer(501, _TEXT, hint)
    registry = CollectorRegistry()
    registry.register(_Collector())
    return _Answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))


def _healthz(monitor: Monitor) -> _Answer:
    servers = [each for each in _snapshots() if each.kind == "server"]
    ill = [each for each in servers if each.state in ("stopping", "stopped")]
    if not any(each.state == "running" for each in servers):
        ill = servers  # those that were not started yet as well
    if not ill:
        return _Answer(200, _TEXT, "ok\n")
    lines = [f"{each.name} ({each.address or 'no address'}): {each.state}\n" for each in ill]
    return _Answer(503, _TEXT, "".join(lines))


_PAGES: Final[dict[str, Callable[[Monitor], _Answer]]] = {
    "/debug/vars": _variables,
    "/metrics": _metrics,
    "/healthz": _healthz,
}


class _Figure(NamedTuple):
    """How a field of a snapshot is called in Prometheus."""

    field: str
    name: str  # a counter's without _total, which the format adds
    meaning: str


_COUNTERS: Final = (
    _Figure("messages_in", "tao_messages_in", "Messages received and decoded."),
    _Figure("bytes_in", "tao_bytes_in", "Bytes received."),
    _Figure("messages_out", "tao_messages_out", "Messages wholly sent."),
    _Figure("bytes_out", "tao_bytes_out", "Bytes sent."),
    _Figure("handled", "tao_handled", "Messages and timer callbacks handled."),
    _Figure("handle_time", "tao_handle_seconds", "Seconds spent handling."),
    _Figure("errors", "tao_errors", "Exceptions of handlers, callbacks, codecs and sockets."),
    _Figure("undefined", "tao_undefined_messages", "Messages with an unregistered number."),
    _Figure("dropped", "tao_dropped_messages", "Messages a slow consumer did not get."),
    _Figure("unsent", "tao_unsent_messages", "Messages not sent before the connection ended."),
    _Figure("connections_total", "tao_connections", "Connections established."),
    _Figure("refused", "tao_refused_connections", "Connections turned away."),
    _Figure("accept_errors", "tao_accept_errors", "Failures to accept a connection."),
)
_GAUGES: Final = (
    _Figure("uptime", "tao_uptime_seconds", "Seconds since it was made."),
    _Figure("connections", "tao_open_connections", "Connections open now."),
    _Figure("workers", "tao_workers", "Size of the worker pool."),
    _Figure("workers_busy", "tao_workers_busy", "Workers that run a handler now."),
    _Figure("timers", "tao_timers", "Timers pending."),
)


class _Collector:
    """Gives prometheus-client the figures of the moment."""

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        snapshots = _snapshots()
        for family, figures in ((CounterMetricFamily, _COUNTERS), (GaugeMetricFamily, _GAUGES)):
            for figure in figures:
                metric = family(figure.name, figure.meaning, labels=["name"])
                for each in snapshots:
                    metric.add_metric([each.name], getattr(each, figure.field))
                yield metric
        states = GaugeMetricFamily("tao_state", "1 for its state.", labels=["name", "state"])
        for each in snapshots:
            states.add_metric([each.name, each.state], 1)
        yield states


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
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, port), family=family)
    except OSError as error:
        where = address_text((host, port))
        number = error.errno or errno.EINVAL
        raise OSError(number, f"cannot listen at {where}: {explain(error)}") from None
    sock.setblocking(False)
    return sock


def _shut(sock: socket.socket, how: int) -> None:
    try:
        sock.shutdown(how)
    except OSError:
        pass  # the peer was faster
