"""The send queue, interrupted at each bytecode, by an exception or a call of its own methods."""

from __future__ import annotations

import inspect
import itertools
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from tao.connection.backlog import Backlog
from tao.connection.send_queue import SendQueue
from tao.errors import ConnectionClosed, TaoError, WouldBlock
from tao.transport.stream import Transport
from tao.transport.tls_stream import TlsTransport
from tests.injection import Moment, opcodes
from tests.support import PATIENCE, recv_exactly, together, wait_until
from tests.tls_pairs import CLIENT, SERVER, shake_hands

pytestmark = pytest.mark.interrupted

MODULES = (
    "tao.connection.send_queue",
    "tao.connection.intake",
    "tao.connection.send_limits",
    "tao.connection.transmitter",
    "tao.connection.writer",
    "tao.connection.backlog",
    "tao.runtime.combining",
    "tao.transport.nonblocking",
    "tao.transport.stream",
    "tao.transport.tls_stream",
    "tao.runtime.wakeup",
)
KIB = 1024
# `make interrupt EACH=1` tries each bytecode; by default it is every so-manyth, for some seconds.
STEP = 1 if os.environ.get("EACH_BYTECODE") else 13


# So that not all tests try the same ones.
_offsets = itertools.count()


class Line:
    """A send queue with its writer on a real socket with small buffers, and the peer's socket."""

    def __init__(self, kind: type[Transport] = Transport, **options: object) -> None:
        self.kind = kind
        self.writers: list[threading.Thread] = []
        self.queue = SendQueue(8, self._start_writer, **options)  # type: ignore[arg-type]
        self.ends: list[Transport | socket.socket] = []
        self.connect()

    def _start_writer(self) -> None:
        writer = threading.Thread(target=self.queue.run_writer, name="test-writer", daemon=True)
        writer.start()
        self.writers.append(writer)

    def connect(self) -> None:
        ours, self.peer = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * KIB)
        self.peer.settimeout(PATIENCE)
        self.transport = self.kind(ours)
        self.ends += [self.transport, self.peer]
        self.queue.attach(self.transport)
        self.queue.open()

    def frames(self) -> list[int]:
        """Read to the end; return the first byte of each frame, all of which must be whole."""
        received = recv_exactly(self.peer, 2**30)
        found = []
        while received:
            size = int.from_bytes(received[1:4], "big")
            if len(received) < size:
                break  # cut at the end of the connection, which the peer notices
            assert received[:size] == frame(received[0], size)
            found.append(received[0])
            received = received[size:]
        return found

    def close(self) -> None:
        self.transport.abort()
        self.queue.stop()
        for writer in self.writers:
            writer.join(PATIENCE)
            assert not writer.is_alive()
        for end in self.ends:
            end.close()


def frame(number: int, size: int) -> bytes:
    return bytes([number]) + size.to_bytes(3, "big") + bytes([number]) * (size - 4)


def small(line: Line) -> None:
    line.queue.write(frame(2, 50))


def large(line: Line) -> None:
    """More than the kernel takes."""
    line.queue.write(frame(2, 60 * KIB))


def batch(line: Line) -> None:
    line.queue.collect()
    line.queue.write(frame(2, 50))
    line.queue.release()


def behind(line: Line) -> None:
    """While the writer is at work."""
    line.queue.write(frame(2, 60 * KIB))
    line.queue.write(frame(3, 50))


def in_time(line: Line) -> None:
    line.queue.write(frame(2, 50), PATIENCE)


def sealed(line: Line) -> None:
    line.queue.seal("over")


ACTIONS = [small, large, batch, behind, in_time, sealed]


@pytest.fixture
def interrupted() -> Callable[..., Iterator[tuple[Line, Moment]]]:
    """Gives a new line for each moment, and closes it."""

    def rounds(**options: object) -> Iterator[tuple[Line, Moment]]:
        for moment in opcodes(*MODULES, first=next(_offsets), step=STEP):
            line = Line(**options)
            try:
                yield line, moment
            finally:
                line.close()

    return rounds


@pytest.mark.parametrize("action", ACTIONS)
def test_an_exception_at_each_bytecode(
    interrupted: Callable[..., Iterator[tuple[Line, Moment]]], action: Callable[[Line], None]
) -> None:
    """Whatever bytecode of a write it hits, frames stay whole, in order, and none comes twice."""
    for line, moment in interrupted():
        line.queue.write(frame(1, 50))
        with moment.raising():
            action(line)
        with_after = together(lambda line=line: after(line), line.frames)[1]
        assert with_after == sorted(set(with_after)), moment
        assert with_after[:1] == [1] and set(with_after) <= {1, 2, 3, 9}, moment
        if line.queue.error is None and action is not sealed:
            assert with_after[-1] == 9, moment


class Before(Transport):
    """Raises once, in the second of its sends, when the kernel has taken nothing."""

    sends = 0

    def send(self, data: bytes | memoryview) -> int:
        self.sends += 1
        return self.interrupted(data) if self.sends == 2 else super().send(data)

    def interrupted(self, data: bytes | memoryview) -> int:
        raise KeyboardInterrupt


class After(Before):
    """... when it has taken all that it can."""

    def interrupted(self, data: bytes | memoryview) -> int:
        Transport.send(self, data)
        raise KeyboardInterrupt


class Unknown(Before):
    """... when it has taken something of which nobody knows."""

    def interrupted(self, data: bytes | memoryview) -> int:
        self._sock.send(data[:10])
        raise KeyboardInterrupt


@pytest.mark.parametrize("kind", [Before, After, Unknown])
@pytest.mark.parametrize("action", [small, large, batch, behind])
def test_another_exception_at_each_bytecode(
    interrupted: Callable[..., Iterator[tuple[Line, Moment]]],
    action: Callable[[Line], None],
    kind: type[Transport],
) -> None:
    """Also while what a first one has interrupted is being put right."""
    for line, moment in interrupted(kind=kind):
        line.queue.write(frame(1, 50))
        with moment.raising(), suppress(KeyboardInterrupt):
            action(line)
        line.transport.sends = 2  # type: ignore[attr-defined]  # if it has not come so far
        if not moment.possible:
            continue
        got = together(lambda line=line: after(line), line.frames)[1]
        assert got == sorted(set(got)), moment
        assert got[:1] == [1] and set(got) <= {1, 2, 3, 9}, moment
        assert got[-1] == 9 or line.queue.error is not None, moment


def test_both_lanes_are_forgotten_at_each_bytecode() -> None:
    """What is repaired is right, also if the kernel has taken a preface together with the rest."""
    for moment in opcodes("tao.connection.backlog"):
        backlog = Backlog()
        backlog.append(b"preface", preface=True)
        backlog.append(b"rest", preface=False)
        backlog.journal = True
        with moment.raising():
            backlog.forget(11)
        if backlog.repair():
            backlog.forget(11)
        assert (len(backlog), backlog.offset, backlog.size) == (0, 0, 0), moment
        assert backlog.journal is None, moment


def submit(queue: SendQueue, frame: bytes) -> None:
    """Write a frame, in a moment at most, and take it back if it has not been sent."""
    tracked = queue.tracked(frame)
    queue.write(tracked, 0.001)
    queue.withdraw(tracked)


def after(line: Line) -> None:
    """Another thread writes and closes; it must not find anything locked, or broken in silence."""
    try:
        line.queue.write(frame(9, 50), PATIENCE)
    except ConnectionClosed:
        wait_until(lambda: line.queue.error is not None or line.queue.fin_sent)
    line.queue.seal("over")
    wait_until(lambda: line.queue.fin_sent or line.queue.error)


@pytest.mark.parametrize("action", [small, large, batch, behind, in_time])
def test_an_exception_and_the_next_transport(
    interrupted: Callable[..., Iterator[tuple[Line, Moment]]], action: Callable[[Line], None]
) -> None:
    """With keep, what the first connection did not get goes out on the next, and nothing twice."""
    for line, moment in interrupted(keep=True):
        line.queue.write(frame(1, 50))
        with moment.raising():
            action(line)
        line.transport.abort()
        first = line.frames()
        line.queue.detach()
        line.connect()
        second = together(lambda line=line: after(line), line.frames)[1]
        assert first + second == sorted({*first, *second}), (moment, first, second)
        assert first[0] == 1 and second[-1] == 9, moment


@pytest.mark.parametrize("action", [*ACTIONS, "give_up"])
@pytest.mark.parametrize("call", ["write", "seal", "give_up", "submit"])
def test_a_call_at_each_bytecode(
    interrupted: Callable[..., Iterator[tuple[Line, Moment]]],
    action: Callable[[Line], None] | str,
    call: str,
) -> None:
    """A signal handler or finalizer may write and close in the midst of a write: it never hangs."""
    for line, moment in interrupted():
        calls: dict[str, Callable[[], object]] = {
            "write": lambda line=line: line.queue.write(frame(8, 50)),
            "submit": lambda line=line: submit(line.queue, frame(8, 50)),
            "seal": lambda line=line: line.queue.seal("interrupted"),
            "give_up": lambda line=line: line.queue.give_up(OSError("interrupted")),
        }

        def quietly(what: Callable[[], object] = calls[call]) -> None:
            try:
                what()
            except TaoError:
                pass

        line.queue.write(frame(1, 50))
        with moment.calling(quietly):
            try:
                calls["give_up"]() if isinstance(action, str) else action(line)
            except TaoError:
                pass
        got = together(lambda line=line: after(line), line.frames)[1]
        assert len(got) == len(set(got)) and set(got) <= {1, 2, 3, 8, 9}, moment
        if call == "write" and action not in (sealed, "give_up") and moment.struck:
            assert 8 in got and got[-1] == 9, moment


def test_an_exception_at_each_bytecode_under_tls() -> None:
    """Under TLS a frame arrives whole and once, or the connection is given up and says why."""
    for moment in opcodes(*MODULES, first=next(_offsets), step=STEP):
        ours, theirs = socket.socketpair()
        transport = TlsTransport(ours, CLIENT, server_side=False, server_hostname="localhost")
        peer = TlsTransport(theirs, SERVER, server_side=True)
        shake_hands(transport, peer)
        queue = SendQueue(8, lambda: None)
        queue.attach(transport)
        queue.open()
        with moment.raising():
            queue.write(frame(1, 20 * KIB))
        try:
            queue.write(frame(2, 50))
        except ConnectionClosed:
            assert queue.error is not None, moment
        queue.seal("over")
        received = b""
        try:
            while data := peer.recv(64 * KIB):
                received += data
        except ConnectionClosed:
            pass
        possible = (b"", frame(1, 20 * KIB), frame(2, 50), frame(1, 20 * KIB) + frame(2, 50))
        assert received in possible or (
            queue.error is not None and frame(1, 20 * KIB).startswith(received)
        ), moment
        queue.stop()
        for end in (transport, peer):
            end.abort()
            end.close()


@pytest.mark.parametrize("name", ["send", "shutdown_write", "peer_certificate"])
def test_the_lock_of_tls_is_let_go_of(name: str) -> None:
    """Whatever bytecode is hit, and also if an error has come before."""
    for broken in (False, True):
        for moment in opcodes("tao.transport.nonblocking", "tao.transport.tls_stream"):
            ours, theirs = socket.socketpair()
            transport = TlsTransport(ours, CLIENT, server_side=False, server_hostname="localhost")
            peer = TlsTransport(theirs, SERVER, server_side=True)
            shake_hands(transport, peer)
            transport._certificate = None
            if broken:
                transport.abort()
            with moment.raising(), suppress(OSError):
                transport.send(b"x") if name == "send" else getattr(transport, name)
                if name == "shutdown_write":
                    transport.shutdown_write()
            assert not transport.interrupted_here or not moment.possible, moment
            for end in (transport, peer):
                end.abort()
                end.close()


def test_what_transport_send_raises_after_a_part_was_taken() -> None:
    """If nobody knows what the kernel took, the connection is given up; the frame is not mixed."""

    class Interrupting(Transport):
        def send(self, data: bytes | memoryview) -> int:
            if len(data) > 1000:
                self._sock.send(data[:1000])
                raise KeyboardInterrupt
            return super().send(data)

    line = Line(keep=True)
    line.queue.detach()
    ours, theirs = socket.socketpair()
    line.queue.attach(Interrupting(ours))
    line.queue.open()
    with pytest.raises(KeyboardInterrupt):
        line.queue.write(frame(1, 5000))
    line.queue.write(frame(2, 50))
    assert isinstance(line.queue.error, ConnectionAbortedError)
    line.queue.detach()
    line.connect()
    line.queue.seal("over")
    assert line.frames() == [1, 2]
    line.close()
    ours.close()
    theirs.close()


def test_a_full_queue_never_makes_an_interrupting_call_wait() -> None:
    """A write with a timeout raises at once if it interrupts the write that could make room."""
    line = Line()
    line.queue.write(frame(1, 60 * KIB))
    for _ in range(7):
        line.queue.write(b"x")
    line.queue._combiner.turn.acquire()
    with pytest.raises(WouldBlock):
        line.queue.write(b"x", PATIENCE)
    line.queue._combiner.turn.release()
    line.close()


@pytest.mark.parametrize("action", [small, large, batch, behind, in_time])
def test_a_stack_that_is_full(action: Callable[[Line], None]) -> None:
    """Wherever the interpreter's recursion limit hits a write, the queue goes on afterwards."""
    depth, limit = len(inspect.stack(0)), sys.getrecursionlimit()
    for more in range(3, 25):
        line = Line()
        line.queue.write(frame(1, 50))
        try:
            sys.setrecursionlimit(depth + more)
            action(line)
        except RecursionError:
            pass
        finally:
            sys.setrecursionlimit(limit)
        got = together(lambda line=line: after(line), line.frames)[1]
        assert got[0] == 1 and got == sorted(set(got)), more
        if line.queue.error is None:
            assert got[-1] == 9, more
        line.close()
