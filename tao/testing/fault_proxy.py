"""A proxy that injects faults into connections, for tests of robustness.

It sits between a client and a server and forwards bytes as `Faults` says: delayed, split, merged,
slowly, corrupted, not at all, or up to a certain byte. The settings may be changed while it runs;
they are read again for each piece.

Each connection has two threads, one for each direction. They ``poll`` a socket together with the
end of the connection, so no socket is closed while a thread is blocked on it. The thread that
leaves last closes the sockets. Random choices come from generators seeded with the proxy's seed,
the number of the connection and the direction, so a run can be repeated as far as the timing of
threads allows.
"""

from __future__ import annotations

import random
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tao.runtime.deadline import Deadline
from tao.runtime.threads import gather, spawn
from tao.server.listening.binding import listen
from tao.server.listening.threaded_listener import ThreadedListener
from tao.transport.addresses import Address, Target, parse, resolve

__all__ = ["FaultProxy", "Faults"]

# The most bytes that are read and forwarded in one piece.
_PIECE = 64 * 1024
# How often a stalled direction checks whether its settings have changed, in seconds.
_TICK = 0.005
# How many pieces are sent a second if the rate is limited.
_PIECES_A_SECOND = 50
# How long connecting to the server may take, and joining a thread, in seconds.
_CONNECT_TIMEOUT, _JOIN_TIMEOUT = 10.0, 10.0
_NO_LINGER = struct.pack("ii", 1, 0)


@dataclass
class Faults:
    """The faults of one direction; by default bytes are forwarded unchanged.

    Offsets and byte counts start at the beginning of each connection.
    """

    #: Seconds to wait before each piece is forwarded.
    delay: float = 0.0
    #: Maximum bytes forwarded at once: each piece has a random size up to this. With 1, every byte
    #: is sent alone. None: as received.
    split: int | None = None
    #: Bytes to collect before forwarding them together; the rest follows at the end.
    merge: int = 0
    #: Bytes a second. None: unlimited.
    rate: float | None = None
    #: The byte at this offset arrives with all bits inverted.
    corrupt_at: int | None = None
    #: After this many bytes both sides see an orderly end.
    cut_after: int | None = None
    #: After this many bytes both sides see a reset. Data that they have not read may be lost.
    reset_after: int | None = None
    #: Read and discard all bytes and the end of the stream, unnoticed by the sender. If set in both
    #: directions, each side sees a peer that is alive but silent.
    swallow: bool = False
    #: Read nothing while this is set, so that the sender's buffers fill up.
    stall: bool = False

    def ends_after(self) -> int | None:
        """Return the number of bytes after which the connection is to end, or None."""
        return min((n for n in (self.cut_after, self.reset_after) if n is not None), default=None)


#: Returns the faults of a connection, to the server and to the client, by its number from 1.
Plan = Callable[[int], tuple[Faults, Faults]]


class FaultProxy:
    """Forwards connections to a server, with faults. Methods may be called from any thread.

    Args:
        target: the server's address, in any form; read for each connection.
        to_server: the faults of bytes that clients send.
        to_client: the faults of bytes that the server sends.
        plan: returns separate faults for each connection, in place of these two.
        seed: of all random choices.
    """

    def __init__(
        self,
        target: Address,
        *,
        to_server: Faults | None = None,
        to_client: Faults | None = None,
        plan: Plan | None = None,
        seed: int = 0,
    ) -> None:
        parse(target)  # validates it
        self.target: Any = target
        #: The faults of connections without a plan; may be changed or replaced at any time.
        self.to_server: Faults = to_server or Faults()
        self.to_client: Faults = to_client or Faults()
        self.plan = plan
        self.seed = seed
        # Guards the fields below.
        self._lock = threading.Lock()
        self._count: int = 0
        self._links: dict[int, _Link] = {}  # until both threads have left
        self._threads: list[list[threading.Thread]] = []  # of each connection
        # Guards the fields below; held while a listener's thread ends.
        self._switching = threading.Lock()
        self._listener: ThreadedListener | None = None
        self._hang_up: bool = False
        # Keeps the port while it is not listened at.
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", 0))
        #: The address that clients connect to.
        self.address: tuple[str, int] = self._place.getsockname()
        self.accept()

    @property
    def accepted(self) -> int:
        """How many connections were accepted, including those that were reset at once."""
        return self._count

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._links)

    def refuse(self, hang_up: bool = False) -> None:
        """Accept no connections until `accept`; existing ones go on.

        Args:
            hang_up: connections are accepted and reset at once, rather than refused.
        """
        with self._switching:
            self._hang_up = hang_up
            if not hang_up:
                self._stop_listening()

    def accept(self) -> None:
        """Accept connections (again), at the same address."""
        with self._switching:
            self._hang_up = False
            if self._listener is None:
                self._listener = ThreadedListener(
                    listen(self.address, 128), self._admit, lambda: None
                )
                self._listener.start()

    def cut(self) -> None:
        """End all present connections gracefully, after the bytes that have arrived."""
        for link in self._living():
            link.end()

    def reset(self) -> None:
        """Reset all current connections."""
        for link in self._living():
            link.end(reset=True)

    def close(self) -> None:
        """Close all connections and wait for the threads; closing twice is harmless."""
        with self._switching:
            self._stop_listening()
            self._place.close()
        self.cut()
        with self._lock:
            pairs, self._threads = self._threads, []
        gather([thread for pair in pairs for thread in pair], Deadline(_JOIN_TIMEOUT))

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # -- inside

    def _living(self) -> list[_Link]:
        with self._lock:
            return list(self._links.values())

    def _stop_listening(self) -> None:
        """Stop the listener. Needs _switching."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.stop()
            listener.join(Deadline(_JOIN_TIMEOUT))

    def _admit(self, sock: socket.socket, address: object, found: object) -> None:
        """Begin to forward a connection. Called on the listener's thread."""
        self._count += 1
        number = self._count
        if self._hang_up:
            _close(sock, reset=True)
            return
        try:
            faults = None if self.plan is None else self.plan(number)
        except BaseException:
            _close(sock, reset=True)
            raise
        link = _Link(number, sock, self.target, lambda: self._forget(number))
        if faults is None:
            link.pump(lambda: self.to_server, lambda: self.to_client, self.seed)
        else:
            there, back = faults
            link.pump(lambda: there, lambda: back, self.seed)
        with self._lock:
            self._links[number] = link
            # In pairs, because a second thread that is not alive may be about to start.
            alive = [pair for pair in self._threads if any(each.is_alive() for each in pair)]
            self._threads = [*alive, link.threads]
        if self._hang_up:  # since a moment ago: `refuse` may have looked for links before this one
            link.end(reset=True)  # type: ignore[unreachable]  # says mypy, but threads
        link.threads[0].start()

    def _forget(self, number: int) -> None:
        with self._lock:
            self._links.pop(number, None)


class _Over(Exception):
    """Raised in a thread when its connection is to end."""


class _SinkGone(Exception):
    """What a stream is forwarded to has closed or reset its end."""


class _Link:
    """One connection through the proxy: two sockets, two threads, one end.

    Args:
        number: of the connection.
        near: the client's socket.
        target: the server's address.
        forget: called when both sockets are closed.
    """

    def __init__(
        self, number: int, near: socket.socket, target: Any, forget: Callable[[], None]
    ) -> None:
        self._number = number
        self._target = target
        self._sockets = [near]  # and the server's, once connected
        self._forget = forget
        #: When the first has ended, the second has either started or never will.
        self.threads: list[threading.Thread] = []
        # Guards the fields below.
        self._lock = threading.Lock()
        self._left: int = 0  # threads that have left
        self._over: bool = False
        self._reset: bool = False
        # Readable once it is over; closed, like the others, by the thread that leaves last.
        self._bell, self._ring = socket.socketpair()

    def pump(
        self, to_server: Callable[[], Faults], to_client: Callable[[], Faults], seed: int
    ) -> None:
        """Make the threads that forward bytes; the caller starts the first one."""
        there, back = (
            _Pump(self, faults, random.Random(f"{seed}-{self._number}-{way}"))
            for faults, way in ((to_server, "there"), (to_client, "back"))
        )
        self.threads = [
            spawn(self._begin, there, back, name=f"tao-fault-there-{self._number}"),
            spawn(back.run, name=f"tao-fault-back-{self._number}"),
        ]

    def _begin(self, there: _Pump, back: _Pump) -> None:
        """Connect to the server and forward bytes; if that fails, reset the client."""
        near = self._sockets[0]
        try:
            far = _connected(self._target)
            self._sockets.append(far)
            for sock in self._sockets:
                sock.setblocking(False)
                if sock.family != socket.AF_UNIX:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except (OSError, TypeError, ValueError):
            self.end(reset=True)
            self.leave()
            self.leave()  # for the second, which never starts
            return
        there.source, there.sink = back.sink, back.source = near, far
        self.threads[1].start()
        there.run()

    def end(self, *, reset: bool = False) -> None:
        """Make both threads leave; the first call decides how the connection ends."""
        with self._lock:
            if not self._over:
                self._over, self._reset = True, reset
                self._ring.close()

    def leave(self) -> None:
        """Leave, as one of the two threads; the last one closes the sockets."""
        with self._lock:
            self._left += 1
            last = self._left == 2
            if last:
                self._over = True
        if last:
            for sock in self._sockets:
                _close(sock, self._reset)
            self._bell.close()
            self._ring.close()
            self._forget()

    @property
    def half_left(self) -> bool:
        """Whether one of the two threads has left."""
        return self._left > 0

    def wait(
        self, timeout: float | None, sock: socket.socket | None = None, event: int = 0
    ) -> bool:
        """Wait up to ``timeout`` seconds for ``event`` of a socket; return whether it happened.

        Raises:
            _Over: the connection is to end.
        """
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        if sock is not None:
            poll.register(sock, event)
        ready = poll.poll(None if timeout is None else timeout * 1000)
        if self._over:
            raise _Over
        return bool(ready)


class _Pump:
    """One direction of a connection; `run` is its thread.

    Args:
        link: the connection.
        faults: returns the current settings.
        chance: makes the random choices.
    """

    source: socket.socket
    sink: socket.socket

    def __init__(self, link: _Link, faults: Callable[[], Faults], chance: random.Random) -> None:
        self._link = link
        self._faults = faults
        self._chance = chance
        self._passed: int = 0  # bytes of the stream processed so far

    def run(self) -> None:
        """Forward the stream, as the settings say."""
        try:
            self._end_if_due()
            while data := self._gather():
                for piece in self._pieces(data):
                    self._deliver(piece)
            if not self._faults().swallow:
                self.sink.shutdown(socket.SHUT_WR)
        except _SinkGone:
            self._discard()  # what the sink had sent is still forwarded, then its end or its reset
        except _Over:
            pass
        except OSError:  # one side is gone, so reset the other
            self._link.end(reset=True)
        finally:
            self._link.leave()

    def _discard(self) -> None:
        """Read on while the other direction is forwarded.

        Its sink may read nothing before what it sends is taken.
        """
        try:
            while not self._link.half_left:
                ready = self._link.wait(_TICK, self.source, select.POLLIN)
                if ready and not self.source.recv(_PIECE):
                    return
        except (_Over, OSError):
            pass

    def _gather(self) -> bytes:
        """Wait for data to forward together; return ``b""`` at the end of the stream."""
        data = bytearray()
        while True:
            if data and len(data) >= self._faults().merge:
                return bytes(data)
            if self._faults().stall:
                self._link.wait(_TICK)
            elif self._link.wait(_TICK if data else None, self.source, select.POLLIN):
                if self._faults().stall:
                    continue  # set during the wait
                piece = self.source.recv(_PIECE)
                if not piece:
                    return bytes(data)  # if not empty, the next call finds the end again
                data += piece

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        """Split the data into pieces."""
        start = 0
        while start < len(data):
            faults = self._faults()
            size = len(data)
            if faults.split is not None:
                size = self._chance.randint(1, faults.split)
            if faults.rate is not None:
                size = min(size, max(1, int(faults.rate / _PIECES_A_SECOND)))
            yield data[start : start + size]
            start += size

    def _deliver(self, piece: bytes) -> None:
        """Forward one piece."""
        faults = self._faults()
        if faults.delay:
            self._link.wait(faults.delay)
        limit = faults.ends_after()
        if limit is not None:
            piece = piece[: max(0, limit - self._passed)]
        if faults.corrupt_at is not None and 0 <= faults.corrupt_at - self._passed < len(piece):
            changed = bytearray(piece)
            changed[faults.corrupt_at - self._passed] ^= 0xFF
            piece = bytes(changed)
        self._passed += len(piece)
        if not faults.swallow:
            self._send(piece)
        self._end_if_due()
        if faults.rate is not None:
            self._link.wait(len(piece) / faults.rate)

    def _send(self, piece: bytes) -> None:
        rest = memoryview(piece)
        while rest:
            try:
                rest = rest[self.sink.send(rest) :]
            except BlockingIOError:
                self._link.wait(None, self.sink, select.POLLOUT)
            except OSError as error:
                raise _SinkGone from error

    def _end_if_due(self) -> None:
        faults = self._faults()
        limit = faults.ends_after()
        if limit is not None and self._passed >= limit:
            self._link.end(reset=limit == faults.reset_after)
            raise _Over


def _connected(address: Any) -> socket.socket:
    """Return a socket connected to an address, or to the first reachable one of a name."""
    *others, last = resolve(parse(address))
    for each in others:
        try:
            return _connected_to(each)
        except OSError:
            continue
    return _connected_to(last)


def _connected_to(target: Target) -> socket.socket:
    sock = socket.socket(target.family, socket.SOCK_STREAM)
    try:
        sock.settimeout(_CONNECT_TIMEOUT)
        sock.connect(target.address)
    except BaseException:
        sock.close()
        raise
    return sock


def _close(sock: socket.socket, reset: bool) -> None:
    """Close a socket, gracefully or by a reset."""
    try:
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        else:
            sock.shutdown(socket.SHUT_WR)
            sock.setblocking(False)
            # Unread data would make the kernel reset the connection.
            while sock.recv(_PIECE):
                pass
    except OSError:
        pass  # the peer has closed already, or there is no more data
    sock.close()
