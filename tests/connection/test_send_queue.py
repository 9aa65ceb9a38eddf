"""The send queue: order, completeness, limits, and changes of the transport."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tao.connection.sending.send_queue import SendQueue
from tao.errors import ConnectionClosed, WouldBlock
from tao.runtime.combining import Combiner
from tao.runtime.deadline import Deadline
from tao.transport.stream import Transport
from tao.transport.tls_stream import TlsTransport
from tests.support import PATIENCE, ends, recv_exactly, together, wait_until, written_here
from tests.tls_pairs import CLIENT, SERVER, shake_hands

# More than the small socket buffers of a `Line` hold.
BIG = 100_000
KIB = 1024


class Watched(Transport):
    """A real transport that counts its calls, and signals when it is waited for."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.sends = 0
        self.waited = threading.Event()
        self.meanwhile: Callable[[], object] = bool  # called during the next send

    def send(self, data: bytes | memoryview) -> int:
        self.sends += 1
        meanwhile, self.meanwhile = self.meanwhile, bool
        meanwhile()
        return super().send(data)

    def wait_writable(self) -> None:
        self.waited.set()
        super().wait_writable()


class Line:
    """A send queue with its writer, and the peer's socket, which is read only on request."""

    def __init__(self, limit: int = 100, **options: Any) -> None:
        self.box = SendQueue(limit, self._start_writer, **options)
        self.writers: list[threading.Thread] = []
        self.transports: list[Transport] = []
        self.peers: list[socket.socket] = []

    def _start_writer(self) -> None:
        self.writers.append(threading.Thread(target=self.box.run_writer, name="test-writer"))
        self.writers[-1].start()

    def attach(self) -> Watched:
        """Give the send queue a new transport, which is still in its preface."""
        ours, peer = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * KIB)
        peer.settimeout(PATIENCE)
        transport = Watched(ours)
        self.peers.append(peer)
        self.transports.append(transport)
        self.box.attach(transport, written_here())
        return transport

    def open(self) -> Watched:
        transport = self.attach()
        self.box.open()
        return transport

    def lose(self) -> None:
        """Remove the transport, as a client does."""
        self.transports[-1].abort()
        self.box.detach()

    def read(self, count: int) -> bytes:
        return recv_exactly(self.peers[-1], count)

    def read_to_end(self) -> bytes:
        return recv_exactly(self.peers[-1], 2**30)

    def block(self) -> bytes:
        """Send more than the kernel accepts; return it."""
        frame = b"B" * BIG
        self.box.write(frame)
        assert self.box.blocked
        return frame

    def close(self) -> None:
        for transport in self.transports:
            transport.abort()
        self.box.stop()
        for writer in self.writers:
            writer.join(PATIENCE)
            assert not writer.is_alive()
        for end in (*self.transports, *self.peers):
            end.close()


@pytest.fixture
def line() -> Iterator[Callable[..., Line]]:
    """Make a `Line`, which is closed afterwards."""
    made: list[Line] = []

    def make(limit: int = 100, **options: Any) -> Line:
        made.append(Line(limit, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


class Script(Transport):
    """Accepts as many bytes as each step of a script says, 0 if full; breaks at its end."""

    def __init__(self, steps: list[int]) -> None:
        self.answers = []
        self.steps = list(steps)
        self.got = bytearray()
        self.broken = threading.Event()

    def send(self, data: bytes | memoryview) -> int:
        if not self.steps:
            raise ConnectionResetError
        taken = min(self.steps.pop(0), len(data))
        self.got += data[:taken]
        return taken

    def wait_writable(self) -> None:
        pass

    def abort(self) -> None:
        self.broken.set()


MakeLine = Callable[..., Line]


# -- sending at once, and queueing


def test_sends_at_once_when_idle(line: MakeLine) -> None:
    """While the kernel accepts everything, nothing is queued and no thread is started."""
    it = line()
    transport = it.open()
    for frame in (b"one", b"two", b"three"):
        it.box.write(frame)
        assert it.box.waiting == 0
    assert it.read(11) == b"onetwothree"
    assert (transport.sends, it.writers) == (3, [])
    assert (it.box.frames_sent, it.box.bytes_sent) == (3, 11)


def test_queues_frames_that_the_kernel_does_not_accept(line: MakeLine) -> None:
    """Frames to a peer that does not read wait; when it reads, all arrive in order."""
    it = line()
    it.open()
    big = it.block()
    it.box.write(b"after")
    assert it.box.waiting == 2 and 0 < it.box.bytes_waiting < BIG + 5
    assert it.read(BIG + 5) == big + b"after"
    wait_until(lambda: not it.box.blocked)
    assert (it.box.waiting, it.box.bytes_waiting, len(it.writers)) == (0, 0, 1)


def test_one_writer_thread(line: MakeLine) -> None:
    """A second blockage wakes the existing writer thread, and starts no other."""
    it = line()
    it.open()
    for _ in range(3):
        it.block()
        assert len(it.read(BIG)) == BIG
        wait_until(lambda: not it.box.blocked)
    assert len(it.writers) == 1


def test_would_block_exactly_at_the_limit(line: MakeLine) -> None:
    """The limit is exact; one frame more raises, and is not queued."""
    it = line(limit=3)
    it.open()
    big = it.block()
    it.box.write(b"2")
    it.box.write(b"3")
    with pytest.raises(WouldBlock, match="3 messages wait"):
        it.box.write(b"4")
    assert it.box.waiting == 3
    assert it.read(BIG + 2) == big + b"23"


def test_waits_for_room(line: MakeLine) -> None:
    """A write with a timeout waits until the peer has read, and keeps its position."""
    it = line(limit=1)
    it.open()
    big = it.block()

    def read_once_it_waits() -> bytes:
        wait_until(lambda: it.box.waiters)
        return it.read(BIG + 4)

    _, received = together(lambda: it.box.write(b"next", PATIENCE), read_once_it_waits)
    assert received == big + b"next"


def test_a_wait_for_room_times_out(line: MakeLine) -> None:
    """``write`` raises after the timeout, and its frame is not queued."""
    it = line(limit=1)
    it.open()
    it.block()
    with pytest.raises(WouldBlock):
        it.box.write(b"never", 0.01)
    assert it.box.waiting == 1


def test_sealing_ends_a_wait_for_room(line: MakeLine) -> None:
    """A waiting write raises at once when the queue is sealed."""
    it = line(limit=1)
    it.open()
    it.block()

    def seal_once_it_waits() -> None:
        wait_until(lambda: it.box.waiters)
        it.box.seal("over")

    with pytest.raises(ConnectionClosed, match="over"):
        together(lambda: it.box.write(b"never", PATIENCE), seal_once_it_waits)


@pytest.mark.parametrize(("limit", "noted"), [(1, 0), (8, 7)])
def test_what_is_just_being_sent_holds_nobody_up(
    line: MakeLine, limit: int, noted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a frame that fills a small queue meanwhile, nor what other threads have noted."""
    asked, run = threading.Event(), Combiner.run
    it = line(limit=limit)
    transport, waits = it.open(), threading.Thread(target=it.box.wait_uncrowded)

    def crowd() -> None:
        together(lambda: [it.box.write(b"x") for _ in range(noted)])
        waits.start()
        wait_until(lambda: it.box.waiters or asked.is_set())

    monkeypatch.setattr(Combiner, "run", lambda *args: (asked.set(), run(*args))[1])
    transport.meanwhile = crowd
    it.box.write(b"first")
    waits.join(PATIENCE)
    assert not (waits.is_alive() or it.box.crowded)


def test_noted_frames_do_not_block_a_write(line: MakeLine) -> None:
    """A frame that needs an empty queue is sent although other frames are noted meanwhile."""
    it = line(limit_bytes=2 * 16 * KIB)
    transport = it.open()
    it.box.collect()
    it.box.write(b"collected")
    transport.meanwhile = lambda: together(lambda: it.box.write(b"noted"))
    came_back = ends(lambda: it.box.write(b"B" * BIG))
    it.box.seal("over")
    assert came_back
    assert it.read_to_end() == b"collected" + b"B" * BIG + b"noted"


def test_twenty_threads_do_not_mix(line: MakeLine) -> None:
    """Frames of twenty threads arrive complete, and those of each thread in order."""
    it = line(limit=50)
    it.open()
    threads, each = 20, 100

    def body(who: int, index: int) -> bytes:
        return bytes([who]) * ((who * 977 + index * index * 31) % 9000)

    def write(who: int) -> None:
        for index in range(each):
            data = body(who, index)
            it.box.write(struct.pack("<BHI", who, index, len(data)) + data, PATIENCE)

    def read() -> None:
        expected = [0] * threads
        for _ in range(threads * each):
            who, index, length = struct.unpack("<BHI", it.read(7))
            assert index == expected[who]
            assert it.read(length) == body(who, index)
            expected[who] += 1

    together(read, *(lambda who=who: write(who) for who in range(threads)))
    wait_until(lambda: it.box.frames_sent == threads * each)


def test_large_and_small_frames(line: MakeLine) -> None:
    """Frames above and below the size of one send arrive in order in any combination."""
    it = line()
    it.open()
    sizes = [BIG, 1, 300 * KIB, 7, 200 * KIB, 100 * KIB, 100 * KIB, 9, 256 * KIB, 3]
    frames = [bytes([number]) * size for number, size in enumerate(sizes)]
    for frame in frames:
        it.box.write(frame)
    assert it.box.blocked
    assert it.read(sum(sizes)) == b"".join(frames)


def test_an_empty_frame_has_no_effect(line: MakeLine) -> None:
    """A frame without bytes is neither sent nor queued, and blocks nothing."""
    it = line()
    transport = it.open()
    it.box.write(b"")
    it.box.write(b"x")
    assert it.read(1) == b"x"
    assert (transport.sends, it.box.waiting, it.writers) == (1, 0, [])


def test_no_thread_for_the_writer() -> None:
    """If the writer thread cannot be started, the next write tries again; no frame is lost."""
    failures = [RuntimeError("can't start new thread")]
    it = Line()
    start, it.box.transmitter.writer._start = it.box.transmitter.writer._start, lambda: None

    def start_at_last() -> None:
        if failures:
            raise failures.pop()
        start()

    it.box.transmitter.writer._start = start_at_last
    it.open()
    with pytest.raises(RuntimeError):
        it.box.write(b"1" * BIG)
    it.box.write(b"2")
    assert it.read(BIG + 1) == b"1" * BIG + b"2"
    it.close()


# -- collecting


def test_a_batch_is_sent_at_once(line: MakeLine) -> None:
    """Collected frames are sent at release, in one send."""
    it = line()
    transport = it.open()
    it.box.collect()
    for number in range(50):
        it.box.write(b"%02d" % number)
    assert (transport.sends, it.box.waiting) == (0, 50)
    it.box.release()
    assert (transport.sends, it.box.waiting) == (1, 0)
    assert it.read(100) == b"".join(b"%02d" % number for number in range(50))
    it.box.write(b"x")
    assert transport.sends == 2, "nothing is collected any more"


def test_flush_continues_to_collect(line: MakeLine) -> None:
    """A flush sends the collected frames, and later ones are collected as before."""
    it = line()
    transport = it.open()
    it.box.collect()
    it.box.flush()
    it.box.write(b"one")
    it.box.flush()
    assert it.read(3) == b"one"
    it.box.write(b"two")
    assert (transport.sends, it.box.waiting) == (1, 1)
    it.box.release()
    it.box.release()
    assert it.read(3) == b"two"


def test_large_batches_are_sent_early() -> None:
    """Half a queue of frames, or a frame of 16 KiB, sends all collected frames."""
    box, transport = SendQueue(100, lambda: None), Script([2**20] * 8)
    box.attach(transport, written_here())
    box.open()
    box.collect()
    for _ in range(50):
        box.write(b"x" * (16 * KIB - 1))
    assert not transport.got
    assert box.waiting == 50
    box.write(b"x")
    assert len(transport.got) == 50 * (16 * KIB - 1) + 1
    box.write(b"y")
    box.write(b"z" * 16 * KIB)
    assert transport.got.endswith(b"xyz" + b"z" * (16 * KIB - 1))


def test_full_while_collecting(line: MakeLine) -> None:
    """If collected frames fill the queue, they are sent to make room."""
    it = line(limit=4)
    transport = it.open()
    it.box.collect()
    for frame in (b"1", b"2", b"3", b"4"):
        it.box.write(frame)
    assert it.read(3) == b"123"
    assert (transport.sends, it.box.waiting) == (1, 1)


def test_collecting_while_blocked(line: MakeLine) -> None:
    """While frames wait for the writer, none is collected, and none overtakes them."""
    it = line()
    it.open()
    it.box.collect()
    big = b"B" * BIG
    it.box.write(big)  # above 64 KiB, it is sent as far as the kernel accepts it
    it.box.write(big)
    it.box.flush()
    it.box.release()
    it.box.collect()
    it.box.write(b"last")
    assert it.read(2 * BIG + 4) == big + big + b"last"


# -- the end


def test_seal_ends_after_the_last_byte(line: MakeLine) -> None:
    """All frames are sent, then the end of the stream; no more frames are accepted."""
    it = line()
    it.open()
    big = it.block()
    it.box.write(b"last")
    it.box.seal("closed by this side")
    it.box.seal("another reason")
    with pytest.raises(ConnectionClosed, match="closed by this side"):
        it.box.write(b"too late")
    assert not it.box.fin_sent
    assert it.read_to_end() == big + b"last"
    assert it.box.wait_sent(Deadline(PATIENCE)) and it.box.fin_sent
    assert it.box.stop() == (0, 0)


def test_seal_sends_collected_frames(line: MakeLine) -> None:
    """Sealing within a batch sends the collected frames at once."""
    it = line()
    it.open()
    it.box.collect()
    it.box.write(b"held back")
    it.box.seal("over")
    assert it.box.fin_sent
    assert it.read_to_end() == b"held back"


def test_wait_sent_has_a_deadline(line: MakeLine) -> None:
    """Waiting for a peer that does not read ends at the deadline."""
    it = line()
    it.open()
    it.block()
    it.box.seal("over")
    assert not it.box.wait_sent(Deadline(0.01))


@pytest.mark.parametrize("how", ["give_up", "detach"])
def test_wait_sent_ends_when_nothing_can_be_sent(line: MakeLine, how: str) -> None:
    """A waiting thread is woken when the transport is lost."""
    it = line()
    it.open()
    it.block()
    it.box.seal("over")

    def break_off() -> None:
        wait_until(lambda: it.box.waiters)
        if how == "give_up":
            it.box.give_up(TimeoutError("too slow"))
        else:
            it.lose()

    assert together(lambda: it.box.wait_sent(Deadline(PATIENCE)), break_off)[0] is False
    assert not it.box.fin_sent


def test_give_up(line: MakeLine) -> None:
    """A send queue that is given up aborts its transport, refuses frames, and has the reason."""
    it = line()
    transport = it.open()
    it.block()
    assert transport.waited.wait(PATIENCE)
    it.box.write(b"2")
    it.box.give_up(TimeoutError("the peer took nothing"))
    it.box.give_up(OSError("another"))
    with pytest.raises(ConnectionClosed, match="the peer took nothing"):
        it.box.write(b"3")
    assert str(it.box.error) == "the peer took nothing" and not it.box.blocked
    assert transport.recv(1) == b""
    frames, size = it.box.stop()
    assert frames == 2 and 0 < size < BIG + 1


def test_a_broken_transport_raises_and_forgets(line: MakeLine) -> None:
    """The write that meets the broken transport raises, and its frame does not count as unsent."""
    it = line()
    it.open()
    it.peers[0].close()
    with pytest.raises(ConnectionClosed, match="peer closed"):
        it.box.write(b"lost")
    with pytest.raises(ConnectionClosed, match="peer closed"):
        it.box.write(b"lost too")
    assert it.box.stop() == (0, 0)


def test_collected_frames_count_as_unsent(line: MakeLine) -> None:
    """A collected frame counts as unsent, unless its own write raises."""
    it = line()
    it.open()
    it.box.collect()
    it.box.write(b"held back")
    it.peers[0].close()
    with pytest.raises(ConnectionClosed):
        it.box.write(b"told" * 4 * KIB)  # too long to be collected
    assert it.box.stop() == (1, 9)


def test_a_transport_that_breaks_within_a_frame() -> None:
    """Even if a part of the frame was sent, the write raises, and nothing is left in the queue."""
    box, transport = SendQueue(10, lambda: None), Script([3])
    box.attach(transport, written_here())
    box.open()
    with pytest.raises(ConnectionClosed):
        box.write(b"frame")
    assert transport.got == b"fra" and box.stop() == (0, 0)


def test_a_transport_that_breaks_at_the_end() -> None:
    """It is given up like any other, and no thread waits for it."""

    class Reset(Script):
        def shutdown_write(self) -> bool:
            raise ConnectionResetError

    box = SendQueue(10, lambda: None)
    box.attach(Reset([]), written_here())
    box.open()
    box.seal("over")
    assert not box.wait_sent(Deadline(PATIENCE))


def test_stop_while_the_writer_is_blocked(line: MakeLine) -> None:
    """After a stop no thread uses the transport, so it may be closed."""
    it = line()
    transport = it.open()
    it.block()
    assert transport.waited.wait(PATIENCE)
    transport.abort()
    frames, _ = it.box.stop()
    transport.close()
    assert frames == 1 and not it.box.transmitter.writer._polling
    it.writers[0].join(PATIENCE)
    assert not it.writers[0].is_alive()


# -- slow consumers


def test_drop_newest(line: MakeLine) -> None:
    """A full queue keeps its frames, and counts those that it refuses."""
    it = line(limit=2, slow_consumer="drop_newest")
    it.open()
    big = it.block()
    for frame in (b"2", b"3", b"4"):
        it.box.write(frame)
    assert (it.box.dropped, it.box.waiting) == (2, 2)
    it.box.seal("over")
    assert it.read_to_end() == big + b"2"


def test_drop_oldest(line: MakeLine) -> None:
    """A full queue drops its oldest frame that is not partly sent."""
    it = line(limit=3, slow_consumer="drop_oldest")
    it.open()
    big = it.block()
    for frame in (b"2", b"3", b"4", b"5"):
        it.box.write(frame)
    assert (it.box.dropped, it.box.waiting) == (2, 3)
    it.box.seal("over")
    assert it.read_to_end() == big + b"45"


def test_drop_oldest_if_all_frames_are_partly_sent(line: MakeLine) -> None:
    """If no queued frame can be dropped, the new one is."""
    it = line(limit=1, slow_consumer="drop_oldest")
    it.open()
    big = it.block()
    it.box.write(b"2")
    assert (it.box.dropped, it.box.waiting) == (1, 1)
    it.box.seal("over")
    assert it.read_to_end() == big


def test_drop_oldest_of_a_backlog(line: MakeLine) -> None:
    """Without a transport, the oldest frame is dropped, because none is partly sent."""
    it = line(limit=2, slow_consumer="drop_oldest", keep=True)
    for frame in (b"1", b"2", b"3"):
        it.box.write(frame)
    it.open()
    assert it.read(2) == b"23" and it.box.dropped == 1


def test_drop_oldest_keeps_encrypted_frames() -> None:
    """Under TLS, frames of a partly sent record are not dropped, so the stream stays valid."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * KIB)
    transport = TlsTransport(ours, CLIENT, server_side=False, server_hostname="localhost")
    peer = TlsTransport(theirs, SERVER, server_side=True)
    shake_hands(transport, peer)
    it = Line(limit=8, slow_consumer="drop_oldest")
    it.box.attach(transport, written_here())
    it.box.open()
    it.box.collect()
    frames = [bytes([65 + number]) * 4000 for number in range(20)]
    for frame in frames[:4]:
        it.box.write(frame)
    it.box.release()
    assert it.box.blocked
    for frame in frames[4:]:
        it.box.write(frame)
    it.box.seal("over")
    received = bytearray()
    while data := peer.recv(64 * KIB):
        received += data
    whole = [bytes(received[at : at + 4000]) for at in range(0, len(received), 4000)]
    assert whole == [frame for frame in frames if frame in whole] and it.box.dropped
    assert whole[:3] == frames[:3] and whole[-1] == frames[-1]
    assert len(whole) + it.box.dropped == len(frames)
    it.transports, it.peers = [transport, peer], []
    it.close()


def test_close_a_slow_consumer(line: MakeLine) -> None:
    """With ``"close"``, one frame above the limit ends the connection with that reason."""
    it = line(limit=1, slow_consumer="close")
    transport = it.open()
    it.block()
    with pytest.raises(ConnectionClosed, match="send queue full"):
        it.box.write(b"2")
    assert transport.recv(1) == b"", "it is aborted"
    assert it.box.stop()[0] == 1


def test_close_without_a_transport(line: MakeLine) -> None:
    """Without a connection to close, a full backlog raises WouldBlock."""
    it = line(limit=1, slow_consumer="close", keep=True)
    it.box.write(b"1")
    with pytest.raises(WouldBlock):
        it.box.write(b"2")


# -- changes of the transport

FRAMES = [b"a", b"bcd", b"ef", b"ghijk", b"l"]
STREAM = b"".join(FRAMES)


def rest_after(cut: int) -> bytes:
    """Return the bytes to send again if ``cut`` bytes are sent: from the start of a frame."""
    gone = 0
    for index, frame in enumerate(FRAMES):
        if gone + len(frame) > cut:
            return b"".join(FRAMES[index:])
        gone += len(frame)
    return b""


@pytest.mark.parametrize("collected", [False, True])
@pytest.mark.parametrize("step", range(1, len(STREAM) + 1))
@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_a_cut_anywhere(cut: int, step: int, collected: bool) -> None:
    """Wherever a transport breaks, each frame is complete on exactly one of the transports."""
    box = SendQueue(100, lambda: None, keep=True)
    sizes = [min(step, cut - at) for at in range(0, cut, step)]
    first, second = Script(sizes if not collected else [cut] if cut else []), Script([2**20] * 9)
    box.attach(first, written_here())
    box.open()
    if collected:
        box.collect()
    for frame in FRAMES:
        box.write(frame)
    box.release()
    gone = len(first.got)
    assert STREAM.startswith(bytes(first.got))
    box.detach()
    box.attach(second, written_here())
    box.open()
    assert second.got == rest_after(gone)
    assert (box.waiting, box.bytes_waiting, box.frames_sent) == (0, 0, len(FRAMES))


@given(st.lists(st.lists(st.integers(0, 4), max_size=6), max_size=4))
def test_cuts_with_full_sockets(scripts: list[list[int]]) -> None:
    """The same over several transports with full sockets, so that the writer has to continue."""
    it = Line(keep=True)
    for frame in FRAMES:
        it.box.write(frame)
    received = b""
    for steps in [*scripts, [2**20] * 9]:
        transport = Script(steps)
        it.box.attach(transport, written_here())
        it.box.open()
        wait_until(lambda transport=transport: transport.broken.is_set() or not it.box.waiting)
        it.box.detach()
        # The next transport starts after the complete frames of this one.
        received += bytes(transport.got)
        received = received[: len(STREAM) - len(rest_after(len(received)))]
    assert received == STREAM
    assert (it.box.frames_sent, it.box.bytes_waiting) == (len(FRAMES), 0)
    it.close()


def test_a_blocked_send_queue_changes_its_transport(line: MakeLine) -> None:
    """The writer that waits for a lost transport continues with the next, repeatedly."""
    it = line(keep=True)
    frames = [bytes([number]) * BIG for number in range(3)]
    for frame in frames:
        it.box.write(frame)
    for _ in range(30):
        transport = it.open()
        assert transport.waited.wait(PATIENCE)
        it.lose()
    it.open()
    assert it.read(3 * BIG) == b"".join(frames)
    assert len(it.writers) == 1


def test_frames_are_kept_without_a_transport(line: MakeLine) -> None:
    """Frames written without a transport wait for the next one, up to the limit."""
    it = line(limit=2, keep=True)
    it.box.write(b"1")
    it.box.write(b"2")
    with pytest.raises(WouldBlock):
        it.box.write(b"3")
    it.open()
    assert it.read(2) == b"12"


def test_a_broken_transport_is_no_error_with_keep(line: MakeLine) -> None:
    """With ``keep``, the frame of the write that meets the broken transport stays queued."""
    it = line(keep=True)
    it.open()
    it.peers[0].close()
    it.box.write(b"later")
    assert isinstance(it.box.error, BrokenPipeError)
    it.box.detach()
    it.open()
    assert it.box.error is None
    assert it.read(5) == b"later"


def test_a_wait_for_room_continues_on_the_next_transport(line: MakeLine) -> None:
    """A write that waits for room continues after the loss, and succeeds on the next transport."""
    it = line(limit=1, keep=True)
    it.open()
    it.block()

    def change() -> bytes:
        wait_until(lambda: it.box.waiters)
        it.lose()
        it.open()
        return it.read(BIG + 4)

    _, received = together(lambda: it.box.write(b"next", PATIENCE), change)
    assert received == b"B" * BIG + b"next"


@pytest.mark.parametrize("blocked", [False, True])
def test_parting(line: MakeLine, blocked: bool) -> None:
    """What waits is sent, then the end; what is written later waits for the next transport."""
    it = line(keep=True)
    transport = it.open()
    before = it.block() if blocked else b""
    it.box.write(b"last")
    it.box.part(transport)
    if blocked:
        it.box.write(b" one")  # before the end is sent
    assert it.read_to_end() == before + (b"last one" if blocked else b"last")
    wait_until(lambda: it.box.over)
    it.box.collect()
    it.box.write(b"next")
    it.box.release()
    assert (it.box.waiting, it.box.crowded, it.box.fin_sent) == (1, False, False)
    it.lose()
    it.box.part(it.open())
    assert it.read_to_end() == b"next"


def test_parting_and_other_ends(line: MakeLine) -> None:
    """Nothing happens to another transport; after a seal, and with one, it is the last end."""
    it = line(keep=True)
    old = it.open()
    it.lose()
    it.open()
    it.box.part(old)
    it.box.write(b"on")
    assert it.read(2) == b"on"
    it.box.part(it.transports[-1])
    assert it.read_to_end() == b""
    it.box.seal("closed")
    assert it.box.wait_sent(Deadline(PATIENCE)) is False and it.box.over
    with pytest.raises(ConnectionClosed):
        it.box.write(b"late")


def test_the_preface_goes_first(line: MakeLine) -> None:
    """Until ``open``, only the attaching thread sends; then the backlog follows, then others."""
    it = line(keep=True)
    it.box.write(b"backlog ")
    it.attach()
    it.box.write(b"hello ")
    together(lambda: it.box.write(b"other "))
    it.box.write(b"again ")
    assert it.read(12) == b"hello again "
    it.box.open()
    it.box.write(b"after")
    assert it.read(19) == b"backlog other after"


def test_a_blocked_preface_goes_first(line: MakeLine) -> None:
    """A preface larger than the socket buffer keeps its position, before and after ``open``."""
    it = line(keep=True)
    backlog = b"b" * 3 * BIG
    it.box.write(backlog)
    transport = it.attach()
    preface = b"P" * BIG
    it.box.write(preface)
    it.box.write(b"more")
    assert it.box.blocked and transport.waited.wait(PATIENCE)
    assert it.read(BIG + 4) == preface + b"more"
    wait_until(lambda: not it.box.blocked)
    assert it.box.waiting == 1, "the backlog waits for open"
    it.box.write(preface)
    it.box.open()
    assert it.read(4 * BIG) == preface + backlog


def test_the_preface_is_not_sent_again(line: MakeLine) -> None:
    """Unsent frames of a lost transport's preface are dropped; the backlog stays."""
    it = line(keep=True)
    it.box.write(b"backlog")
    it.attach()
    it.box.write(b"P" * BIG)
    it.box.write(b"more")
    it.lose()
    assert (it.box.waiting, it.box.bytes_waiting) == (1, 7)
    it.open()
    assert it.read(7) == b"backlog"


def test_a_full_backlog_leaves_room_for_the_preface(line: MakeLine) -> None:
    """However full the backlog is, the preface of a new connection has its own limit."""
    it = line(limit=2, keep=True)
    it.box.write(b"1")
    it.box.write(b"2")
    it.attach()
    it.box.write(b"login")
    with pytest.raises(WouldBlock):
        together(lambda: it.box.write(b"3"))
    assert it.read(5) == b"login"
    it.block()
    it.box.write(b"more")
    with pytest.raises(WouldBlock):
        it.box.write(b"too much")
    it.box.open()
    assert it.read(BIG + 6) == b"B" * BIG + b"more12"


def test_the_preface_is_never_dropped(line: MakeLine) -> None:
    """``drop_oldest`` drops frames of the backlog, not of the preface."""
    it = line(limit=2, slow_consumer="drop_oldest", keep=True)
    it.box.write(b"1")
    it.box.write(b"2")
    it.attach()
    it.block()
    it.box.write(b"more")
    together(lambda: it.box.write(b"3"))
    it.box.open()
    assert it.read(BIG + 6) == b"B" * BIG + b"more23"
    assert it.box.dropped == 1


def test_sealed_in_the_preface(line: MakeLine) -> None:
    """If it is sealed before ``open``, the end of stream follows the backlog."""
    it = line(keep=True)
    it.box.write(b"backlog")
    it.attach()
    it.box.write(b"hello ")
    it.box.seal("over")
    assert not it.box.fin_sent
    it.box.open()
    assert it.box.fin_sent
    assert it.read_to_end() == b"hello backlog"


def test_a_preface_over_a_broken_transport(line: MakeLine) -> None:
    """A preface that cannot be sent raises; another transport can be attached."""
    it = line()
    it.box.write(b"backlog")
    it.attach()
    it.peers[0].close()
    with pytest.raises(ConnectionClosed):
        it.box.write(b"hello")
    it.box.detach()
    it.attach()
    it.box.write(b"hello ")
    it.box.open()
    assert it.read(13) == b"hello backlog"


def test_a_sealed_queue_stays_sealed(line: MakeLine) -> None:
    """It stays sealed on the next transport."""
    it = line()
    it.open()
    it.box.give_up(TimeoutError("slow"))
    it.box.seal("closed by this side")
    it.box.detach()
    with pytest.raises(ConnectionClosed, match="slow"):
        it.box.write(b"x")


def test_stop_counts_unsent_frames(line: MakeLine) -> None:
    """``stop`` returns the number of unsent frames and bytes, and ends the writer."""
    it = line(keep=True)
    assert it.box.transmitter.writer  # as if it had been needed
    it.box.write(b"12345")
    it.box.write(b"678")
    assert it.box.stop() == (2, 8)
    assert ends(it.box.run_writer)
