"""A seal and a write in two threads: what was accepted is sent before the end, or was refused.

One thread is stopped before each bytecode of a call, while other threads do theirs to the end.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from tao.connection.sending.backlog import move
from tao.connection.sending.send_queue import SendQueue
from tao.errors import ConnectionClosed
from tao.runtime.combining import Busy
from tao.transport.stream import Transport
from tests.injection import opcodes
from tests.support import PATIENCE, recv_exactly, together, written_here

pytestmark = pytest.mark.interrupted

MODULES = (
    "tao.connection.sending.send_queue",
    "tao.connection.sending.admission",
    "tao.connection.sending.transmitter",
    "tao.runtime.combining",
)


class Line:
    """A send queue on a real socket, and what its peer receives."""

    def __init__(self, limit: int = 8, slow_consumer: str = "raise") -> None:
        self.queue = SendQueue(limit, lambda: None, slow_consumer=slow_consumer)
        ours, self._peer = socket.socketpair()
        self._peer.settimeout(PATIENCE)
        self._transport = Transport(ours)
        self.queue.attach(self._transport, written_here())
        self.accepted = b""
        self.given_back: Callable[[], object] = bool

    def write(self, frame: bytes) -> None:
        """Write, and note whether that was accepted."""
        try:
            self.queue.write(frame)
        except ConnectionClosed:
            return
        self.accepted += frame

    def received(self) -> bytes:
        """Read to the end."""
        return recv_exactly(self._peer, 1000)

    def leave(self) -> None:
        """Seal, and close the transport if nothing else is to be sent into it."""
        with suppress(Busy):
            if self.queue.leave_at_once("over"):
                self._transport.close()
                return
        self.queue.seal("over")

    def close(self) -> None:
        self._transport.abort()
        self.queue.stop()
        self._transport.close()
        self._peer.close()

    @contextmanager
    def turn_elsewhere(self) -> Iterator[None]:
        """Have another thread hold the turn, until `given_back` is called or the block ends."""
        held, over = threading.Event(), threading.Event()

        def hold() -> None:
            held.set()
            assert over.wait(PATIENCE)

        holder = threading.Thread(target=self.queue.combiner.run, args=(hold,))
        holder.start()
        assert held.wait(PATIENCE)

        def give_back() -> None:
            over.set()
            holder.join(PATIENCE)

        self.given_back = give_back
        try:
            yield
        finally:
            give_back()


def write(line: Line) -> None:
    line.write(b"ours ")


def flush(line: Line) -> None:
    line.queue.catch_up()


def write_noted(line: Line) -> None:
    """Write while another thread has the turn."""
    with line.turn_elsewhere():
        line.write(b"ours ")


def write_collected(line: Line) -> None:
    line.queue.collect()
    line.write(b"ours ")
    line.queue.release()


def write_patiently(line: Line) -> None:
    try:
        line.queue.write(b"ours ", PATIENCE)
    except ConnectionClosed:
        return
    line.accepted += b"ours "


def end_preface(line: Line) -> None:
    line.queue.open()


def seal(line: Line) -> None:
    line.queue.seal("over")


def leave(line: Line) -> None:
    line.leave()


def write_and_seal(line: Line) -> None:
    line.write(b"theirs ")
    line.queue.seal("over")


def collect_and_write(line: Line) -> None:
    """Collect, and write from another thread."""
    line.queue.collect()
    together(lambda: line.write(b"theirs "))


@pytest.mark.parametrize("call", [seal, leave, write_and_seal])
@pytest.mark.parametrize(
    "action", [write, flush, write_noted, write_collected, write_patiently, end_preface]
)
def test_what_was_accepted_is_sent_before_the_end(
    action: Callable[[Line], None], call: Callable[[Line], None]
) -> None:
    """Sealed by another thread at any bytecode, a queue sends what it accepted, and then ends."""
    for moment in opcodes(*MODULES):
        line = Line()
        if action is not end_preface:
            line.queue.open()

        def meanwhile(line: Line = line) -> None:
            line.given_back()
            together(lambda: call(line))

        with moment.calling(meanwhile):
            action(line)
        line.queue.seal("over")
        received = line.received()
        assert sorted(received.split()) == sorted(line.accepted.split()), moment
        assert line.queue.error is None and line.queue.fin_sent, moment
        line.close()


@pytest.mark.parametrize("end", [seal, leave])
@pytest.mark.parametrize("call", [write, collect_and_write, end_preface])
def test_what_comes_during_a_seal_is_sent_before_the_end(
    call: Callable[[Line], None], end: Callable[[Line], None]
) -> None:
    """... nor is lost what is accepted while another thread is at any bytecode of the seal."""
    for moment in opcodes(*MODULES):
        line = Line()
        if call is not end_preface:
            line.queue.open()
        with moment.calling(lambda line=line: together(lambda: call(line))):
            end(line)
        line.queue.release()
        line.queue.open()
        received = line.received()
        assert sorted(received.split()) == sorted(line.accepted.split()), moment
        assert line.queue.error is None and line.queue.fin_sent, moment
        line.close()


@pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest"])
def test_a_full_queue_drops_what_its_policy_says_also_of_noted_frames(policy: str) -> None:
    """While another thread has the turn, frames are only noted; there is a limit for these, too."""
    line = Line(limit=3, slow_consumer=policy)
    with line.turn_elsewhere():
        for number in range(5):
            line.queue.write(b"%d" % number)
    line.queue.seal("done")
    assert line.received() == {"drop_oldest": b"234", "drop_newest": b"012"}[policy]
    assert line.queue.dropped == 2
    line.close()


def test_noted_frames_are_moved_while_others_drop_the_oldest() -> None:
    """Each frame is moved once or dropped, in order, and none is lost."""
    source: list[bytes] = []
    target: list[bytes] = []
    dropped, over = [], threading.Event()

    def note() -> None:
        for number in range(20_000):
            if len(source) >= 3:
                with suppress(IndexError):
                    dropped.append(source.pop(0))
            source.append(b"%d" % number)
        over.set()

    noting = threading.Thread(target=note, name="test-noting")
    noting.start()
    while not over.is_set() or source:
        before = len(target)
        assert move(source, target) == len(target) - before
    noting.join()
    moved = [int(each) for each in target]
    assert moved == sorted(moved)
    assert sorted([*moved, *map(int, dropped)]) == list(range(20_000))
