"""The load generator of ``tao bench``: connections, one loop for all of them, and latencies.

One thread serves all connections with a selector, which costs less than a thread for each. A send
takes as many messages as the window allows from a prepared block; a receive takes all data
available. Received data is compared with the data sent, in one step for any number of messages. It
is split into messages only where it differs: a server may send other replies, and heartbeats.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
import struct
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

from tao.cli.common import Address, Failed
from tao.cli.dialling import reach
from tao.runtime.deadline import Deadline
from tao.transport.addresses import address_text
from tao.transport.error_text import explain
from tao.wire.message import HEARTBEAT

__all__ = ["Counter", "Histogram", "Load", "ReplyCounter"]

_HEADER = struct.Struct("<iI")
_RECV_SIZE = 256 * 1024
# The size of the prepared block of messages, in bytes; a larger one would only cost memory.
_BLOCK_SIZE = 256 * 1024
# How long connecting may take, and how long all connections may be silent, in seconds.
_STALLED = 5.0
# How long to wait for outstanding replies at the end, in seconds.
_LINGER = 1.0
# The longest wait of the loop before it checks the clock, in seconds.
_TICK = 0.1
# Raised when nothing can be received or sent at the moment.
_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Histogram:
    """A histogram of durations, with buckets no wider than 1/32 of their values.

    As in HdrHistogram (Gil Tene), each power of two is divided into the same number of buckets.
    """

    def __init__(self) -> None:
        self._classes: dict[int, int] = {}
        self.count: int = 0
        self.total: float = 0.0  # of all durations, in seconds
        self.longest: float = 0.0

    def add(self, seconds: float, count: int) -> None:
        """Count ``count`` durations of the same length."""
        nanoseconds = int(seconds * 1e9)
        shift = max(0, nanoseconds.bit_length() - 6)
        index = (shift << 6) + (nanoseconds >> shift)
        self._classes[index] = self._classes.get(index, 0) + count
        self.count += count
        self.total += seconds * count
        self.longest = max(self.longest, seconds)

    def percentile(self, share: float) -> float:
        """Return the seconds that a share (0 to 1) of all durations did not exceed."""
        left = share * self.count
        for index in sorted(self._classes):
            left -= self._classes[index]
            if left <= 0:
                return min(_end_of(index) / 1e9, self.longest)
        return self.longest

    def bars(self) -> list[tuple[float, int]]:
        """Return pairs of an upper bound in seconds, each twice the previous one, and a count."""
        bars: dict[int, int] = {}
        for index, count in self._classes.items():
            power = (_end_of(index) - 1).bit_length()
            bars[power] = bars.get(power, 0) + count
        if not bars:
            return []
        return [(2**power / 1e9, bars.get(power, 0)) for power in range(min(bars), max(bars) + 1)]


def _end_of(index: int) -> int:
    """Return the upper bound of a bucket in nanoseconds."""
    return ((index & 63) + 1) << (index >> 6)


class Counter(Protocol):
    """Counts the messages that come on one connection."""

    def feed(self, data: memoryview) -> int:
        """Return the number of messages that ``data`` completes."""


class ReplyCounter:
    """Counts the messages in a stream, without heartbeats.

    Args:
        frame: the expected message, repeated.
        pattern: the result of `pattern_of` for it, shared by all counters.
    """

    def __init__(self, frame: bytes, pattern: bytes) -> None:
        self._size: int = len(frame)
        self._pattern: bytes = pattern
        self._beats: bool = _HEADER.unpack_from(frame)[0] == HEARTBEAT
        self._offset: int = 0  # within a message that matches so far
        # After a message that differs: the beginning of a header, or the missing bytes of a value,
        # and whether that message counts.
        self._head: bytes = b""
        self._skip: int = 0
        self._counts: bool = True

    @staticmethod
    def pattern_of(frame: bytes) -> bytes:
        """Return enough repeated messages to match a received piece that begins at any offset."""
        return frame * (2 + _RECV_SIZE // len(frame))

    def feed(self, data: memoryview) -> int:
        """Return the number of messages that ``data``, at most 256 KiB, completes."""
        if self._head or self._skip:
            return self._cut(bytes(data))
        if self._pattern.startswith(data, self._offset):
            count, self._offset = divmod(self._offset + len(data), self._size)
            return count
        begun, self._offset = self._pattern[: self._offset], 0
        return self._cut(begun + data)

    def _cut(self, data: bytes) -> int:
        """Count message by message."""
        if self._skip > len(data):
            self._skip -= len(data)
            return 0
        count = int(self._counts) if self._skip else 0
        at, self._skip = self._skip, 0
        data, self._head = self._head + data, b""  # the head is empty if a value is skipped
        while at + _HEADER.size <= len(data):
            number, length = _HEADER.unpack_from(data, at)
            at += _HEADER.size + length
            self._counts = number != HEARTBEAT or self._beats
            if at > len(data):
                self._skip = at - len(data)
                return count
            count += self._counts
        self._head = data[at:]
        return count


class _Client:
    """One connection."""

    def __init__(self, sock: socket.socket, counter: Counter) -> None:
        self.sock = sock
        self.counter = counter
        self.offset: int = 0  # within the message being sent
        self.pending: int = 0  # bytes that may be sent now
        self.blocked: bool = False  # whether the socket buffer is full
        self.since: deque[tuple[float, int]] = deque()  # send time and count of messages in flight

    def more(self) -> bool:
        """Return whether TLS has buffered data that the selector does not report."""
        return isinstance(self.sock, ssl.SSLSocket) and self.sock.pending() > 0


class Load:
    """Connections that are kept busy. Use it in a ``with`` block, which closes them.

    Args:
        address: of the server.
        tls: the context for TLS connections, or None.
        server_name: the name in the server's certificate; None: the host connected to.
        frame: the encoded message.
        window: how many messages are in flight on each connection.
        make_counter: makes what counts the replies of a connection; None: those of the default
            framing are counted.
    """

    def __init__(
        self,
        address: Address,
        tls: ssl.SSLContext | None,
        server_name: str | None,
        frame: bytes,
        window: int,
        make_counter: Callable[[], Counter] | None = None,
    ) -> None:
        self._address = address
        self._tls = tls
        self._server_name = server_name
        self._frame = frame
        self._window: int = window
        if make_counter is None:
            make_counter = partial(ReplyCounter, frame, ReplyCounter.pattern_of(frame))
        self._make_counter: Callable[[], Counter] = make_counter
        # Sending may begin at any offset in a message, so one message more is needed.
        self._block = memoryview(frame * (1 + max(1, min(window, _BLOCK_SIZE // len(frame)))))
        self._buffer = memoryview(bytearray(_RECV_SIZE))
        self._selector = selectors.DefaultSelector()
        self._clients: list[_Client] = []
        self._sending: bool = True
        self._last_came: float = 0.0
        #: The latencies of all replies.
        self.latencies = Histogram()
        #: Bytes sent and received.
        self.bytes_out: int = 0
        self.bytes_in: int = 0

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._selector.close()
        for client in self._clients:
            client.sock.close()

    @property
    def tls_version(self) -> str | None:
        """The version of TLS in use, or None."""
        sock = self._clients[0].sock if self._clients else None
        return sock.version() if isinstance(sock, ssl.SSLSocket) else None

    def connect(self) -> None:
        """Open another connection, and check that the server replies to a message on it.

        Raises:
            Failed: the connection failed, or there is no reply.
        """
        where = address_text(self._address)
        try:
            sock = self._reach()
        except (OSError, ValueError) as error:  # ValueError: the host is not a valid name
            raise Failed(f"cannot connect to {where}: {explain(error)}") from error
        client = _Client(sock, self._make_counter())
        self._clients.append(client)
        try:
            deadline = Deadline(_STALLED)  # for the reply, whatever else is received before it
            sock.sendall(self._frame)
            count = 0
            while not count:
                if deadline.expired:
                    raise TimeoutError
                sock.settimeout(deadline.remaining() or 0.001)
                count = client.counter.feed(self._receive(client))
        except TimeoutError:
            raise Failed(
                f"{where}: no reply within {_STALLED:g} s; does the server answer that message?"
            ) from None
        except OSError as error:
            raise Failed(f"{where}: {explain(error)}") from error
        if count > 1:
            raise self._too_many()
        sock.settimeout(0)
        self._selector.register(sock, selectors.EVENT_READ, client)

    def run(self, seconds: float, tell: Callable[[float, int], object]) -> float:
        """Keep the connections busy for ``seconds``, and return the actual duration.

        Args:
            seconds: how long.
            tell: called a few times per second with the seconds passed and the replies so far.

        Raises:
            Failed: a connection was lost, or the server has stopped replying.
        """
        begin = now = self._last_came = time.monotonic()
        self.bytes_in = self.bytes_out = 0
        try:
            for client in self._clients:
                self._allow(client, self._window, now)
        except OSError as error:
            raise self._lost(error) from error
        told = begin
        while now < begin + seconds:
            self._step(min(_TICK, begin + seconds - now))
            now = time.monotonic()
            if now - self._last_came > _STALLED:
                raise Failed(f"no reply for {_STALLED:g} s, after {self.latencies.count}")
            if now - told >= _TICK:
                told = now
                tell(now - begin, self.latencies.count)
        return max(now - begin, 1e-6)

    def finish(self) -> None:
        """Wait briefly for outstanding replies, because closing earlier would cause a reset."""
        self._sending = False
        end = time.monotonic() + _LINGER
        with contextlib.suppress(Failed):
            while any(client.since for client in self._clients) and time.monotonic() < end:
                self._step(_TICK)

    def _reach(self) -> socket.socket:
        sock = reach(self._address, _STALLED)
        sock.settimeout(_STALLED)
        try:
            if isinstance(self._address, str):
                return self._with_tls(sock, None)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return self._with_tls(sock, self._address[0])
        except BaseException:
            sock.close()
            raise

    def _with_tls(self, sock: socket.socket, host: str | None) -> socket.socket:
        if self._tls is None:
            return sock
        return self._tls.wrap_socket(sock, server_hostname=self._server_name or host)

    # -- the loop

    def _step(self, timeout: float) -> None:
        """Wait for ready sockets, and send and receive on them."""
        try:
            for key, events in self._selector.select(timeout):
                if events & selectors.EVENT_WRITE:
                    self._send(key.data)
                if events & selectors.EVENT_READ:
                    self._take(key.data)
        except OSError as error:
            raise self._lost(error) from error

    def _allow(self, client: _Client, count: int, now: float) -> None:
        """Let a connection send ``count`` more messages."""
        client.since.append((now, count))
        client.pending += count * len(self._frame)
        if not client.blocked:
            self._send(client)

    def _send(self, client: _Client) -> None:
        try:
            while client.pending:
                start = client.offset
                sent = client.sock.send(self._block[start : start + client.pending])
                self.bytes_out += sent
                client.pending -= sent
                client.offset = (start + sent) % len(self._frame)
        except _NOT_NOW:
            pass
        blocked = client.pending > 0
        if blocked != client.blocked:
            client.blocked = blocked
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if blocked else 0)
            self._selector.modify(client.sock, events, client)

    def _take(self, client: _Client) -> None:
        """Receive the available data, and send as many messages as were answered."""
        try:
            count = client.counter.feed(self._receive(client))
            while client.more():
                count += client.counter.feed(self._receive(client))
        except _NOT_NOW:
            return
        if not count:
            return
        now = self._last_came = time.monotonic()
        left, since = count, client.since
        while left:
            if not since:
                raise self._too_many()
            then, waiting = since.popleft()
            answered = min(left, waiting)
            left -= answered
            self.latencies.add(now - then, answered)
            if answered < waiting:
                since.appendleft((then, waiting - answered))
        if self._sending:
            self._allow(client, count, now)

    def _receive(self, client: _Client) -> memoryview:
        """Return received data, in a buffer that is reused.

        Raises:
            OSError: there is no data, or the stream has ended.
        """
        size = client.sock.recv_into(self._buffer)
        if not size:
            raise ConnectionAbortedError("peer closed")
        self.bytes_in += size
        return self._buffer[:size]

    def _lost(self, error: OSError) -> Failed:
        return Failed(f"connection lost: {explain(error)}, after {self.latencies.count} replies")

    def _too_many(self) -> Failed:
        where = address_text(self._address)
        return Failed(f"{where}: more than one reply to a message; this is not an echo server")
