"""The load generator for machines without a C compiler: the same command line and result.

It is several times slower than ``load.c``, so watch the limit that is printed beside the figures.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import socket
import ssl
import struct
import sys
import time
from collections import deque
from collections.abc import Callable

RECEIVE_SIZE = 256 * 1024
PACE = 256  # connections opened between two that are seen to be served
STALLED = 5.0  # seconds


class Options:
    """The command line: ``MODE key=value ...``."""

    def __init__(self, words: list[str]) -> None:
        self.mode = words[0]
        given = dict(word.split("=", 1) for word in words[1:])
        self.port = int(given["port"])
        self.connections = int(given.get("connections", 1))
        self.window = int(given.get("window", 1))
        self.size = int(given.get("size", 64))
        self.tls = given.get("tls") == "1"
        self.touch = given.get("touch") == "1"
        self.cpu = int(given.get("cpu", -1))
        self.limit = int(given.get("limit", 0))
        self.seconds = float(given.get("seconds", 1.0))
        self.warmup = float(given.get("warmup", 0.2))


class Connection:
    """One client; ``pending`` bytes may be sent and are not yet."""

    def __init__(self, options: Options, index: int) -> None:
        plain = socket.socket()
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.settimeout(10)
        plain.bind((f"127.0.0.{1 + index % 64}", 0))
        plain.connect(("127.0.0.1", options.port))
        self.socket: socket.socket = plain
        if options.tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            self.socket = context.wrap_socket(plain)
        self.sent = self.pending = self.received = self.complete = 0
        self.since: deque[float] = deque()
        self.opened = time.monotonic()
        self.wants_writable = False


class LoadGenerator:
    """All connections and one epoll loop around them."""

    def __init__(self, options: Options) -> None:
        self.options = options
        value = bytes((i * 31) & 255 for i in range(8, options.size + 8))
        self.message = struct.pack("<iI", 1, options.size) + value
        copies = 2 + max(RECEIVE_SIZE, len(self.message) * options.window) // len(self.message)
        self.pattern = memoryview(self.message * min(copies, 2 + 16 * RECEIVE_SIZE))
        self.buffer = bytearray(RECEIVE_SIZE)
        self.view = memoryview(self.buffer)
        self.epoll = select.epoll()
        self.by_fd: dict[int, Connection] = {}
        self.latencies: list[float] = []
        self.counted = self.total = self.opened = 0
        self.draining = False
        self.last_progress = time.monotonic()

    def open_all(self) -> None:
        """Open the connections, no faster than the server accepts them."""
        options = self.options
        for index in range(options.connections):
            connection = Connection(options, index)
            pace = (index + 1) % PACE == 0 or index + 1 == options.connections
            if options.mode != "broadcast" and (pace or options.touch):
                self.round_trip(connection)
            self.by_fd[connection.socket.fileno()] = connection
        if options.mode == "broadcast":
            time.sleep(0.3)

    def round_trip(self, connection: Connection) -> None:
        """Send one message and wait for its echo."""
        connection.socket.sendall(self.message)
        left = len(self.message)
        while left:
            data = connection.socket.recv(left)
            if not data:
                sys.exit("load: the server closed a connection")
            left -= len(data)

    def allow(self, connection: Connection, count: int, at: float) -> None:
        """Let a connection send more messages."""
        if not self.draining:
            connection.since.extend([at] * count)
            connection.pending += count * len(self.message)
            self.send_pending(connection)

    def send_pending(self, connection: Connection) -> None:
        """Send what may be sent and fits."""
        size = len(self.message)
        try:
            while connection.pending:
                start = connection.sent % size
                sent = connection.socket.send(self.pattern[start : start + connection.pending])
                connection.sent += sent
                connection.pending -= sent
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        wants = connection.pending > 0
        if wants != connection.wants_writable:
            connection.wants_writable = wants
            events = select.EPOLLIN | (select.EPOLLOUT if wants else 0)
            self.epoll.modify(connection.socket.fileno(), events)

    def receive(self, connection: Connection) -> int:
        """Return the number of bytes that came, 0 at the end, -1 when there are none now."""
        try:
            return connection.socket.recv_into(self.buffer)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return -1

    def count(self, connection: Connection, came: int, since: deque[float], at: float) -> int:
        """Check and count bytes; return how many messages they complete."""
        start = connection.received % len(self.message)
        if self.view[:came] != self.pattern[start : start + came]:
            sys.exit("load: a reply differs from what was sent")
        connection.received += came
        complete = connection.received // len(self.message)
        fresh = complete - connection.complete
        connection.complete = complete
        for index in range(fresh):
            began = since.popleft() if since is connection.since else since[index]
            self.latencies.append(at - began)
        self.counted += fresh
        self.total += fresh
        self.last_progress = at
        return fresh

    def on_echo(self, connection: Connection) -> None:
        """Count what came back and send as many messages again."""
        while (came := self.receive(connection)) >= 0:
            if came == 0:
                sys.exit("load: the server closed a connection")
            at = time.monotonic()
            fresh = self.count(connection, came, connection.since, at)
            if fresh:
                self.allow(connection, fresh, at)
            if not (isinstance(connection.socket, ssl.SSLSocket) and connection.socket.pending()):
                return

    def on_broadcast(self, connection: Connection) -> None:
        """Count a delivery; the last of a window lets the sender send the next."""
        sender = next(reversed(self.by_fd.values()))
        came = self.receive(connection)
        if came < 0 or connection is sender:
            return
        if came == 0:
            sys.exit("load: the server closed a connection")
        at = time.monotonic()
        window = (len(self.by_fd) - 1) * self.options.window
        if self.count(connection, came, sender.since, at) and self.total % window == 0:
            sender.since.clear()
            self.allow(sender, self.options.window, at)

    def on_churn(self, connection: Connection) -> None:
        """After the echo close one half; after the server's half is closed, start again."""
        came = self.receive(connection)
        if came > 0:
            connection.received += came
            if connection.received == len(self.message):
                connection.socket.shutdown(socket.SHUT_WR)
        elif came == 0:
            self.last_progress = time.monotonic()
            self.latencies.append(self.last_progress - connection.opened)
            self.counted += 1
            self.total += 1
            del self.by_fd[connection.socket.fileno()]
            connection.socket.close()
            self.open_one()

    def open_one(self) -> None:
        """Start one cycle of connect, echo, close."""
        if self.draining or self.limit_reached():
            return
        connection = Connection(self.options, self.opened)
        self.opened += 1
        connection.socket.sendall(self.message)
        self.watch(connection)

    def watch(self, connection: Connection) -> None:
        """Make a connection non-blocking and wait for it."""
        connection.socket.setblocking(False)
        self.by_fd[connection.socket.fileno()] = connection
        self.epoll.register(connection.socket.fileno(), select.EPOLLIN)

    def loop_until(self, end: float, on_readable: Callable[[Connection], None]) -> None:
        """Serve events until a time, or until the limit is reached."""
        while (at := time.monotonic()) < end:
            if at - self.last_progress > STALLED:
                sys.exit("load: the server stalled")
            if self.limit_reached():
                return
            for fd, events in self.epoll.poll(min(end - at, 0.1)):
                connection = self.by_fd[fd]
                if events & select.EPOLLOUT:
                    self.send_pending(connection)
                if events & ~select.EPOLLOUT:
                    on_readable(connection)

    def start(self) -> Callable[[Connection], None]:
        """Send the first messages; return what handles the replies."""
        options = self.options
        if options.mode == "churn":
            for _ in range(options.connections):
                self.open_one()
            return self.on_churn
        self.open_all()
        for connection in self.by_fd.values():
            self.watch(connection)
        broadcast = options.mode == "broadcast"
        senders = list(self.by_fd.values())[-1 if broadcast else 0 :]
        for connection in senders:
            self.allow(connection, options.window, time.monotonic())
        return self.on_broadcast if broadcast else self.on_echo

    def run_for(self, seconds: float, on_readable: Callable[[Connection], None]) -> None:
        """Run for so long, and on until at least one message has come back."""
        self.loop_until(time.monotonic() + seconds, on_readable)
        while not self.counted and not self.limit_reached():
            self.loop_until(time.monotonic() + 0.01, on_readable)

    def limit_reached(self) -> bool:
        """Whether as many connections were made as were asked for."""
        return bool(self.options.limit and self.total >= self.options.limit)

    def measure(self) -> dict[str, float]:
        """Warm up, measure, let the last replies come in."""
        on_readable = self.start()
        self.run_for(self.options.warmup, on_readable)
        warmup, self.counted, began, cpu = self.counted, 0, time.monotonic(), _cpu_seconds()
        self.latencies.clear()
        self.run_for(self.options.seconds, on_readable)
        wall, messages = time.monotonic() - began, self.counted
        if not messages:
            sys.exit("load: no message came back")
        busy, self.draining = (_cpu_seconds() - cpu) / wall, True
        with contextlib.suppress(OSError):
            self.loop_until(time.monotonic() + 0.2, on_readable)
        ordered = sorted(self.latencies)
        figures = {"messages": messages, "warmup_messages": warmup, "seconds": wall}
        figures |= {"rate": messages / wall, "busy": busy}
        for name, share in (("p50_us", 0.5), ("p99_us", 0.99), ("p999_us", 0.999)):
            figures[name] = ordered[int(share * (len(ordered) - 1))] * 1e6
        return figures


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Run one load and print its figures."""
    generator = LoadGenerator(Options(sys.argv[1:]))
    if generator.options.cpu >= 0:
        os.sched_setaffinity(0, {generator.options.cpu})
    if generator.options.mode == "hold":
        generator.open_all()
        print(json.dumps({"open": generator.options.connections}), flush=True)
        sys.stdin.read()
        return
    print(json.dumps(generator.measure()))


if __name__ == "__main__":
    main()
