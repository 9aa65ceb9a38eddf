"""Connections without sockets: real ends with codec, dispatch and send queue, joined by two pipes.

A pipe holds a bounded number of bytes, so back-pressure works as with kernel buffers, only earlier
and always at the same byte.
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tao.client.client import ClientConn, ClientOptions
from tao.client.dialling import Reached, Source
from tao.connection.connection import core_of
from tao.connection.options.definitions import ClientSettings
from tao.connection.options.help import Shown, takes_options
from tao.errors import ConnectFailed, ServerClosed
from tao.safe_text import safe_str
from tao.server.connection import ServerConn
from tao.server.server import Server, server_core_of
from tao.transport.stream import Transport

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["MemoryClient", "MemoryPair", "MemoryTransport", "memory_pair", "memory_transports"]

# How long an end may take to begin reading, in seconds; generous, for machines under load.
_PATIENCE = 10.0

_numbers = itertools.count(1)


class _Pipe:
    """A bounded byte stream in one direction. Methods may be called from any thread."""

    __slots__ = ("_bytes", "_capacity", "_changed", "_ended", "_lock", "_unread")

    def __init__(self, capacity: int) -> None:
        self._capacity: int = capacity
        # Guards the fields below; the condition is notified when any of them changes.
        self._lock: Any = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._bytes = bytearray()
        self._ended: bool = False  # the writer has ended the stream
        self._unread: bool = False  # the reader has stopped reading

    @property
    def interrupted_here(self) -> bool:
        """Whether the calling thread has interrupted one of the methods."""
        return bool(self._lock._is_owned())

    def read(self, size: int) -> bytes:
        """Wait for bytes; return ``b""`` at the end, or if reading has been stopped."""
        with self._changed:
            while not (self._bytes or self._ended or self._unread):
                self._changed.wait()
            data = bytes(self._bytes[:size])
            del self._bytes[:size]
            self._changed.notify_all()
        return data

    def write(self, data: bytes | memoryview) -> int:
        """Write as many bytes as there is room for, without blocking; return their number."""
        with self._changed:
            if self._ended:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
            if self._unread:
                raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            taken = min(len(data), self._capacity - len(self._bytes))
            if taken:
                self._bytes += data[:taken]
                self._changed.notify_all()
        return taken

    @property
    def waiting(self) -> int:
        """The number of bytes in the pipe."""
        return len(self._bytes)

    def wait_room(self) -> None:
        """Wait until `write` accepts a byte or raises."""
        with self._changed:
            while len(self._bytes) >= self._capacity and not (self._ended or self._unread):
                self._changed.wait()

    def wait_end(self, timeout: float | None) -> bool:
        """Wait until writing is no longer possible; return whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: self._ended or self._unread, timeout)

    def end(self) -> None:
        """End the stream; the reader sees the end after the remaining bytes."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def leave(self) -> None:
        """Stop reading: later writes raise."""
        with self._changed:
            self._unread = True
            self._changed.notify_all()


class MemoryTransport(Transport):
    """One end of two pipes; see `Transport` for which thread calls what.

    Args:
        inward, outward: what this end reads from, and writes to.
    """

    __slots__ = ("_inward", "_outward", "in_use")

    bare = False
    close_ends = False

    def __init__(self, inward: _Pipe, outward: _Pipe) -> None:
        # Does not call the base class, which needs a socket.
        self.answers = []
        self._inward = inward
        self._outward = outward
        #: Set when reading begins, which a connection does once it is established, or when it is
        #: certain that it never will.
        self.in_use = threading.Event()

    @property
    def recv(self) -> Callable[[int], bytes]:
        self.in_use.set()
        return self._inward.read

    @property
    def descriptor(self) -> int:
        return -1

    def send(self, data: bytes | memoryview) -> int:
        return self._outward.write(data)

    def shutdown_write(self) -> bool:
        self._outward.end()
        return True

    def wait_writable(self) -> None:
        self._outward.wait_room()

    def wait_hung_up(self, timeout: float | None) -> bool:
        return self._outward.wait_end(timeout)

    def unacknowledged(self) -> int:
        return self._outward.waiting

    @property
    def peer_is_near(self) -> bool:
        return True

    @property
    def interrupted_here(self) -> bool:
        return any(pipe.interrupted_here for pipe in (self._inward, self._outward))

    def option(self, level: int, name: int, value: int | bytes | None, length: int) -> Any:
        raise OSError(errno.ENOTSOCK, "a connection in memory has no socket")

    def abort(self, *, reset: bool = False) -> None:
        self._outward.end()
        self._inward.leave()

    def reset(self) -> None:
        pass  # writes to a pipe that is no longer read raise

    def close(self) -> None:
        self.abort()
        self.in_use.set()

    def after_fork(self) -> None:
        pass  # both ends are this process's own copies


def memory_transports(capacity: int = 64 * 1024) -> tuple[MemoryTransport, MemoryTransport]:
    """Return the two ends of a connection in memory.

    ::

        from tao.testing import memory_transports

        near, far = memory_transports(capacity=4)
        assert near.send(b"hello") == 4 and near.send(b"o") == 0
        assert far.recv(100) == b"hell"
        assert near.send(b"o") == 1

    Args:
        capacity: how many bytes each pipe holds.

    Raises:
        TypeError, ValueError: it is not an int, or less than 1.
    """
    if not isinstance(capacity, int) or isinstance(capacity, bool):
        raise TypeError(f"capacity must be an int, not {capacity!r}")
    if capacity < 1:
        raise ValueError(f"capacity must be at least 1, not {capacity}")
    one, other = _Pipe(capacity), _Pipe(capacity)
    return MemoryTransport(one, other), MemoryTransport(other, one)


class MemorySource(Source):
    """The source of connections of a client in memory: a server of the same process.

    Args:
        server, capacity: as for `MemoryClient`.
    """

    polled = False

    def __init__(self, server: Server, capacity: int) -> None:
        memory_transports(capacity)  # validates it
        self._server = server
        self._capacity = capacity
        self.address = f"memory-{next(_numbers)}"
        # Both belong to the latest connection.
        self.server_conn: ServerConn | None = None
        self.far: MemoryTransport | None = None

    def next(self) -> Reached:
        core = server_core_of(self._server)
        if core.state == "new":
            core.acquire()
        if not core.serving:
            raise self._failure(f"the server is {core.state}")
        near, far = memory_transports(self._capacity)
        place = f"memory of {core.statistics.name}"

        def begin(conn: ServerConn) -> ServerConn:
            core_of(conn).start()
            return conn

        try:
            adopt = core.acceptor.adopt
            self.server_conn = adopt(self.address, lambda: (far, place), far.close, begin)
        except (ServerClosed, RuntimeError) as error:  # it just stopped, or has no thread
            raise self._failure(safe_str(error)) from error
        self.far = far
        return Reached(near, place, self.address)

    def _failure(self, why: str) -> ConnectFailed:
        return ConnectFailed(f"cannot connect to {self.address}: {why}")

    def __str__(self) -> str:
        return str(self.address)


class MemoryClient(ClientConn):
    """A client that connects to a server of the same process without sockets.

    Otherwise it is a normal `ClientConn`, which can be started, reconnect and be closed. The server
    counts and limits such connections like any others.

    Args:
        server: running, or new; a new one is set running without listening.
        capacity: see `memory_transports`.
        options: of the client. The codec is the server's unless given; there is no TLS.
    """

    @takes_options(ClientSettings, codec=Shown("the server's"))
    def __init__(
        self, server: Server, *, capacity: int = 64 * 1024, **options: Unpack[ClientOptions]
    ) -> None:
        if options.get("tls") is not None:
            raise ValueError("tls: a connection in memory cannot use TLS")
        options.setdefault("codec", server_core_of(server).settings.codec)
        self._memory = MemorySource(server, capacity)
        super().__init__(self._memory, **options)

    @property
    def server_conn(self) -> ServerConn | None:
        """The server's end of the latest connection, or None."""
        return self._memory.server_conn

    def wait_accepted(self, timeout: float = _PATIENCE) -> None:
        """Wait until the server's ``on_connect`` has returned and its end is established or closed.

        Raises:
            TimeoutError: ``on_connect`` has not returned within ``timeout`` seconds.
        """
        far = self._memory.far
        if far is not None and not far.in_use.wait(timeout):
            raise TimeoutError(f"the server's on_connect has not returned after {timeout} s")


class MemoryPair:
    """Both ends of a connection in memory; made by `memory_pair`.

    At the end of its ``with`` block the client and then the server's end are closed. The server is
    stopped if the pair has set it running.
    """

    def __init__(self, server: Server, client: MemoryClient, owns_server: bool) -> None:
        self.server: Server = server
        self.client: MemoryClient = client
        self._owns_server = owns_server

    @property
    def conn(self) -> ServerConn:
        """The server's end.

        Raises:
            LookupError: the server refused the connection.
        """
        conn = self.client.server_conn
        if conn is None:
            raise LookupError("the server refused the connection")
        return conn

    def close(self) -> None:
        """Close the client, wait until the server's end has ended, and stop the server."""
        self.client.close()
        if self.client.server_conn is not None:
            self.client.server_conn.wait_closed(_PATIENCE)
        if self._owns_server:
            self.server.stop()

    def __enter__(self) -> MemoryPair:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


@takes_options(ClientSettings, codec=Shown("the server's"))
def memory_pair(
    server: Server | None = None, *, capacity: int = 64 * 1024, **options: Unpack[ClientOptions]
) -> MemoryPair:
    """Connect a client to a server in memory and wait until both ends are established.

    ::

        import queue
        import tao
        from tao.testing import memory_pair

        class Line:
            message_number = 1

            def __init__(self, text):
                self.text = text

            def serialize(self):
                return self.text.encode()

            @classmethod
            def deserialize(cls, data):
                return cls(data.decode())

        server = tao.Server()

        @server.handler(Line)
        def shout(ctx, conn):
            conn.write(Line(ctx.message.text.upper()))

        lines = queue.Queue()
        registry = tao.Registry()
        registry.register(1, Line.deserialize, lambda ctx, conn: lines.put(ctx.message.text))
        with memory_pair(server, capacity=1, registry=registry) as pair:
            pair.client.write(Line("hello"))
            assert lines.get(timeout=10) == "HELLO"
            assert pair.conn.remote_address == pair.client.local_address

    Args:
        server: with its handlers; new or running. None: a new one without handlers.
        capacity: how many bytes each direction buffers. With 1, every byte arrives alone.
        options: of the client, as for `ClientConn`.

    Raises:
        ConnectFailed: the server has been stopped.
        TimeoutError: the server's ``on_connect`` does not return.
    """
    server = Server() if server is None else server
    pair = MemoryPair(
        server, MemoryClient(server, capacity=capacity, **options), server.state == "new"
    )
    try:
        pair.client.start()
        pair.client.wait_accepted()
    except BaseException:
        pair.close()
        raise
    return pair
