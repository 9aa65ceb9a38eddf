"""The send queue, interrupted at each bytecode by an exception or a nested call."""

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

from tao.connection.sending.backlog import Backlog
from tao.connection.sending.burst import Burst
from tao.connection.sending.send_queue import SendQueue
from tao.errors import ConnectionClosed, TaoError, WouldBlock
from tao.transport.stream import Transport
from tao.transport.tls_stream import TlsTransport
from tests.injection import Moment, opcodes
from tests.support import PATIENCE, recv_exactly, together, wait_until, written_here
from tests.tls_pairs import CLIENT, SERVER, shake_hands

pytestmark = pytest.mark.interrupted

MODULES = (
    "tao.connection.sending.send_queue",
    "tao.connection.sending.admission",
    "tao.connection.sending.burst",
    "tao.connection.sending.send_limits",
    "tao.connection.sending.transmitter",
    "tao.connection.sending.writer",
    "tao.connection.sending.backlog",
    "tao.connection.sending.waiting_writes",
    "tao.runtime.combining",
    "tao.transport.nonblocking",
    "tao.transport.stream",
    "tao.transport.tls_stream",
    "tao.runtime.wakeup",
)
KIB = 1024
# `make interrupt EACH=1` tries each bytecode; by default a sample is tried, for some seconds.
STEP = 1 if os.environ.get("EACH_BYTECODE") else 13


# So that the tests do not all try the same ones.
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
        self.queue.attach(self.transport, written_here())
        self.queue.open()

    def frames(self) -> list[int]:
        """Read to the end; return the first byte of each frame. All frames must be complete."""
        received = recv_exactly(self.peer, 2**30)
        found = []
        while received:
            size = int.from_bytes(received[1:4], "big")
            if len(received) < size:
                break  # truncated by the end of the connection, which the peer notices
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
    """Write more than the kernel accepts."""
    line.queue.write(frame(2, 60 * KIB))


def batch(line: Line) -> None:
    line.queue.collect()
    line.queue.write(frame(2, 50))
    line.queue.release()


def behind(line: Line) -> None:
    """Write while the writer thread is busy."""
    line.queue.write(frame(2, 60 * KIB))
    line.queue.write(frame(3, 50))


def in_time(line: Line) -> None:
    line.queue.write(frame(2, 50), PATIENCE)


def burst(line: Line) -> None:
    """Send as a broadcast does."""
    Burst(frame(2, 50), [line.queue]).send()


def large_burst(line: Line) -> None:
    """Send more than the kernel accepts, as a broadcast does."""
    Burst(frame(2, 60 * KIB), [line.queue]).send()


def sealed(line: Line) -> None:
    line.queue.seal("over")


ACTIONS = [small, large, batch, burst, large_burst, behind, in_time, sealed]


@pytest.fixture
def interrupted() -> Callable[..., Iterator[tuple[Line, Moment]]]:
    """Yields a new line for each moment, and closes it."""

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
    """Whatever bytecode of a write is interrupted, frames stay complete, in order and unique."""
    for line, moment in interrupted():
        line.queue.write(frame(1, 50))
        with moment.raising():
            action(line)
        with_after = together(lambda line=line: after(line), line.frames)[1]
        assert with_after == sorted(set(with_after)), moment
        assert with_after[:1] == [1] and set(with_after) <= {1, 2, 3, 9}, moment
        if line.queue.error is None and action is not sealed:
            assert with_after[-1] == 9, moment


@pytest.mark.parametrize("size", [50, 60 * KIB])
def test_a_burst_for_several_queues_at_each_bytecode(size: int) -> None:
    """Wherever a broadcast is interrupted, no queue stays taken and each stays complete."""
    for moment in opcodes(*MODULES, first=next(_offsets), step=STEP):
        lines = [Line(), Line(), Line()]
        lines[1].queue.collect()  # so that this one cannot send at once
        with moment.raising():
            Burst(frame(2, size), [line.queue for line in lines]).send()
        lines[1].queue.release()
        for line in lines:
            got = together(lambda line=line: after(line), line.frames)[1]
            assert got in ([2, 9], [9], [2]) or line.queue.error is not None, moment
            if line.queue.error is None:
                assert got[-1] == 9 and (moment.struck or got == [2, 9]), moment
            line.close()


class Before(Transport):
    """A transport that raises in its second send, before the kernel has accepted bytes."""

    sends = 0

    def send(self, data: bytes | memoryview) -> int:
        self.sends += 1
        return self.interrupted(data) if self.sends == 2 else super().send(data)

    def interrupted(self, data: bytes | memoryview) -> int:
        raise KeyboardInterrupt


class After(Before):
    """... after it has accepted as many bytes as it can."""

    def interrupted(self, data: bytes | memoryview) -> int:
        Transport.send(self, data)
        raise KeyboardInterrupt


class Uncertain(Before):
    """... after it has accepted an unknown number of bytes."""

    def interrupted(self, data: bytes | memoryview) -> int:
        self._sock.send(data[:10])
        raise KeyboardInterrupt


@pytest.mark.parametrize("kind", [Before, After, Uncertain])
@pytest.mark.parametrize("action", [small, large, batch, burst, large_burst, behind])
def test_a_second_exception_at_each_bytecode(
    interrupted: Callable[..., Iterator[tuple[Line, Moment]]],
    action: Callable[[Line], None],
    kind: type[Transport],
) -> None:
    """It may interrupt the repair after a first one."""
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
    """The repair is correct even if the kernel has accepted the preface and other frames."""
    for moment in opcodes("tao.connection.sending.backlog"):
        backlog = Backlog()
        backlog.append([b"preface"], preface=True)
        backlog.append([b"rest"], preface=False)
        backlog.journal = True
        with moment.raising():
            backlog.forget(11)
        if backlog.repair():
            backlog.forget(11)
        assert (len(backlog), backlog.offset, backlog.size) == (0, 0, 0), moment
        assert backlog.journal is None, moment


def submit(queue: SendQueue, frame: bytes) -> None:
    """Write a frame with a short timeout, and withdraw it if it has not been sent."""
    tracked = queue.tracked(frame)
    queue.write(tracked, 0.001)
    queue.withdraw(tracked)


def after(line: Line) -> None:
    """Let another thread write and close; it must not meet a lock or undetected damage."""
    try:
        line.queue.write(frame(9, 50), PATIENCE)
    except ConnectionClosed:
        wait_until(lambda: line.queue.error is not None or line.queue.fin_sent)
    line.queue.seal("over")
    wait_until(lambda: line.queue.fin_sent or line.queue.error)


@pytest.mark.parametrize("action", [small, large, batch, burst, large_burst, behind, in_time])
def test_an_exception_and_the_next_transport(
    interrupted: Callable[..., Iterator[tuple[Line, Moment]]], action: Callable[[Line], None]
) -> None:
    """With ``keep``, frames that the first connection did not deliver are sent once on the next."""
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
    """A signal handler or finalizer may write and close during a write without a deadlock."""
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
    """Under TLS a frame arrives completely and once, or the connection ends with a reason."""
    for moment in opcodes(*MODULES, first=next(_offsets), step=STEP):
        ours, theirs = socket.socketpair()
        transport = TlsTransport(ours, CLIENT, server_side=False, server_hostname="localhost")
        peer = TlsTransport(theirs, SERVER, server_side=True)
        shake_hands(transport, peer)
        queue = SendQueue(8, lambda: None)
        queue.attach(transport, written_here())
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
def test_the_tls_lock_is_released(name: str) -> None:
    """It is released at whatever bytecode an exception occurs, even after an earlier error."""
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


def test_the_lock_of_a_transport_is_released() -> None:
    """After an interrupted abort, the next one ends the connection, and the lock is free."""
    for moment in opcodes("tao.transport.stream"):
        ours, theirs = socket.socketpair()
        transport = Transport(ours)
        with moment.raising():
            transport.abort()
        assert not transport.interrupted_here or not moment.possible, moment
        transport.abort()
        theirs.settimeout(PATIENCE)
        assert theirs.recv(1) == b"" or not moment.possible, moment
        transport.close()
        theirs.close()


def test_an_uncertain_send_ends_the_connection() -> None:
    """If the number of accepted bytes is unknown, the connection is given up."""

    class Interrupting(Transport):
        def send(self, data: bytes | memoryview) -> int:
            if len(data) > 1000:
                self._sock.send(data[:1000])
                raise KeyboardInterrupt
            return super().send(data)

    line = Line(keep=True)
    line.queue.detach()
    ours, theirs = socket.socketpair()
    line.queue.attach(Interrupting(ours), written_here())
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
    line.queue.combiner.turn.acquire()
    with pytest.raises(WouldBlock):
        line.queue.write(b"x", PATIENCE)
    line.queue.combiner.turn.release()
    line.close()


@pytest.mark.parametrize("action", [small, large, batch, burst, large_burst, behind, in_time])
def test_a_recursion_error_at_any_depth(action: Callable[[Line], None]) -> None:
    """Wherever the recursion limit interrupts a write, the queue works afterwards."""
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


@pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest"])
def test_a_dropped_frame_is_counted_at_each_bytecode(policy: str) -> None:
    """Of those that threads have noted, each waits or is counted, and waits only once."""
    for moment in opcodes("tao.connection.sending.admission", "tao.connection.sending.backlog"):
        queue = SendQueue(4, lambda: None, slow_consumer=policy, keep=True)
        for number in range(3):
            queue.write(bytes([number]))
        note(queue, 3, 4, 5)
        with moment.raising():
            queue.flush()
        queue.flush()
        left = queue.transmitter.backlog.frames
        assert len(set(left)) == len(left) == queue.waiting, moment
        assert len(left) + queue.dropped >= 6, moment
        assert moment.struck or len(left) + queue.dropped == 6


def note(queue: SendQueue, *numbers: int) -> None:
    """Write while another thread has the turn, which leaves the frames to the next that has it."""
    held, free, turn = threading.Event(), threading.Event(), queue.combiner.turn

    def hold() -> None:
        with turn:
            held.set()
            free.wait(PATIENCE)

    holder = threading.Thread(target=hold, name="test-holder")
    holder.start()
    assert held.wait(PATIENCE)
    for number in numbers:
        queue.write(bytes([number]))
    free.set()
    holder.join()
