"""The send queue: order, wholeness and bounds, and what happens when the transport changes."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tao.connection.send_queue import SendQueue
from tao.errors import ConnectionClosed, WouldBlock
from tao.runtime.deadline import Deadline
from tao.transport.stream import Transport
from tao.transport.tls_stream import TlsTransport
from tests.support import PATIENCE, ends, recv_exactly, together, wait_until
from tests.tls_pairs import CLIENT, SERVER, shake_hands

# More than the small socket buffers of a `Line` take at once.
BIG = 100_000
KIB = 1024


class Watched(Transport):
    """A real transport that counts what it is asked for, and tells when it is waited for."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.sends = 0
        self.waited = threading.Event()

    def send(self, data: bytes | memoryview) -> int:
        self.sends += 1
        return super().send(data)

    def wait_writable(self) -> None:
        self.waited.set()
        super().wait_writable()


class Line:
    """A send queue with its writer, and the other end's socket, which reads only when told to."""

    def __init__(self, limit: int = 100, **options: Any) -> None:
        self.box = SendQueue(limit, self._start_writer, **options)
        self.writers: list[threading.Thread] = []
        self.transports: list[Transport] = []
        self.peers: list[socket.socket] = []

    def _start_writer(self) -> None:
        self.writers.append(threading.Thread(target=self.box.run_writer, name="test-writer"))
        self.writers[-1].start()

    def attach(self) -> Watched:
        """Give the send queue a new transport, in its preface yet."""
        ours, peer = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * KIB)
        peer.settimeout(PATIENCE)
        transport = Watched(ours)
        self.peers.append(peer)
        self.transports.append(transport)
        self.box.attach(transport)
        return transport

    def open(self) -> Watched:
        transport = self.attach()
        self.box.open()
        return transport

    def lose(self) -> None:
        """Take the transport away, as a client does."""
        self.transports[-1].abort()
        self.box.detach()

    def read(self, count: int) -> bytes:
        return recv_exactly(self.peers[-1], count)

    def read_to_end(self) -> bytes:
        return recv_exactly(self.peers[-1], 2**30)

    def block(self) -> bytes:
        """Send more than the kernel takes; return it."""
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
    """Makes a `Line`, which is closed afterwards."""
    made: list[Line] = []

    def make(limit: int = 100, **options: Any) -> Line:
        made.append(Line(limit, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


class Script(Transport):
    """Takes as many bytes as each step of a script says, 0 for a full socket; breaks at its end."""

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
    """While the kernel takes everything, nothing waits and no other thread is started."""
    it = line()
    transport = it.open()
    for frame in (b"one", b"two", b"three"):
        it.box.write(frame)
        assert it.box.waiting == 0
    assert it.read(11) == b"onetwothree"
    assert (transport.sends, it.writers) == (3, [])
    assert (it.box.frames_sent, it.box.bytes_sent) == (3, 11)


def test_queues_behind_what_the_kernel_does_not_take(line: MakeLine) -> None:
    """A peer that does not read makes frames wait; when it does, all arrive in order."""
    it = line()
    it.open()
    big = it.block()
    it.box.write(b"after")
    assert it.box.waiting == 2 and 0 < it.box.bytes_waiting < BIG + 5
    assert it.read(BIG + 5) == big + b"after"
    wait_until(lambda: not it.box.blocked)
    assert (it.box.waiting, it.box.bytes_waiting, len(it.writers)) == (0, 0, 1)


def test_one_writer_thread_for_all_times(line: MakeLine) -> None:
    """Blocking again wakes the writer thread there is; it does not start another."""
    it = line()
    it.open()
    for _ in range(3):
        it.block()
        assert len(it.read(BIG)) == BIG
        wait_until(lambda: not it.box.blocked)
    assert len(it.writers) == 1


def test_would_block_exactly_at_the_limit(line: MakeLine) -> None:
    """As many frames as the limit wait; one more raises and is not queued."""
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
    """A write with a timeout waits until the peer has read, and then is in its place."""
    it = line(limit=1)
    it.open()
    big = it.block()

    def read_once_it_waits() -> bytes:
        wait_until(lambda: it.box.waiters)
        return it.read(BIG + 4)

    _, received = together(lambda: it.box.write(b"next", PATIENCE), read_once_it_waits)
    assert received == big + b"next"


def test_waits_for_room_in_vain(line: MakeLine) -> None:
    """When the time is over, a write that waited for room raises; its frame was not queued."""
    it = line(limit=1)
    it.open()
    it.block()
    with pytest.raises(WouldBlock):
        it.box.write(b"never", 0.01)
    assert it.box.waiting == 1


def test_sealing_ends_waiting_for_room(line: MakeLine) -> None:
    """A write that waits for room is told at once when nothing may be written any more."""
    it = line(limit=1)
    it.open()
    it.block()

    def seal_once_it_waits() -> None:
        wait_until(lambda: it.box.waiters)
        it.box.seal("over")

    with pytest.raises(ConnectionClosed, match="over"):
        together(lambda: it.box.write(b"never", PATIENCE), seal_once_it_waits)


def test_twenty_threads_do_not_mix(line: MakeLine) -> None:
    """Frames of twenty threads arrive whole, and those of each thread in order."""
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


def test_large_frames_among_small(line: MakeLine) -> None:
    """Frames above and below what one send is given arrive in order, however they line up."""
    it = line()
    it.open()
    sizes = [BIG, 1, 300 * KIB, 7, 200 * KIB, 100 * KIB, 100 * KIB, 9, 256 * KIB, 3]
    frames = [bytes([number]) * size for number, size in enumerate(sizes)]
    for frame in frames:
        it.box.write(frame)
    assert it.box.blocked
    assert it.read(sum(sizes)) == b"".join(frames)


def test_an_empty_frame_is_nothing(line: MakeLine) -> None:
    """A frame without bytes is neither sent nor queued, and blocks nothing."""
    it = line()
    transport = it.open()
    it.box.write(b"")
    it.box.write(b"x")
    assert it.read(1) == b"x"
    assert (transport.sends, it.box.waiting, it.writers) == (1, 0, [])


def test_no_thread_to_be_had() -> None:
    """If the writer thread cannot be started, the next write tries again; nothing is lost."""
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


def test_a_batch_leaves_in_one_send(line: MakeLine) -> None:
    """What is collected leaves at release, all of it in one send."""
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


def test_flush_goes_on_collecting(line: MakeLine) -> None:
    """A flush sends what is there, and what follows is collected as before."""
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


def test_much_is_not_held_back() -> None:
    """Half a queue full of frames, or a frame of 16 KiB, takes along all that was collected."""
    box, transport = SendQueue(100, lambda: None), Script([2**20] * 8)
    box.attach(transport)
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
    """A queue full of what is held back is no full queue: it is sent to make room."""
    it = line(limit=4)
    transport = it.open()
    it.box.collect()
    for frame in (b"1", b"2", b"3", b"4"):
        it.box.write(frame)
    assert it.read(3) == b"123"
    assert (transport.sends, it.box.waiting) == (1, 1)


def test_collecting_while_blocked(line: MakeLine) -> None:
    """Where frames wait for the writer, nothing is held back from it, or sent past it."""
    it = line()
    it.open()
    it.box.collect()
    big = b"B" * BIG
    it.box.write(big)  # beyond 64 KiB: goes out, as far as the kernel takes it
    it.box.write(big)
    it.box.flush()
    it.box.release()
    it.box.collect()
    it.box.write(b"last")
    assert it.read(2 * BIG + 4) == big + big + b"last"


# -- the end


def test_seal_ends_after_the_last_byte(line: MakeLine) -> None:
    """A sealed send queue sends all that waits and then the end; nothing more may be written."""
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


def test_seal_sends_what_is_held_back(line: MakeLine) -> None:
    """Sealing in the midst of a batch sends what was collected, at once."""
    it = line()
    it.open()
    it.box.collect()
    it.box.write(b"held back")
    it.box.seal("over")
    assert it.box.fin_sent
    assert it.read_to_end() == b"held back"


def test_wait_sent_has_a_deadline(line: MakeLine) -> None:
    """Waiting for the end of what a peer does not read ends with the deadline."""
    it = line()
    it.open()
    it.block()
    it.box.seal("over")
    assert not it.box.wait_sent(Deadline(0.01))


@pytest.mark.parametrize("how", ["give_up", "detach"])
def test_wait_sent_ends_when_nothing_can_be_sent(line: MakeLine, how: str) -> None:
    """Who waits for the end is woken when the transport goes."""
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
    """A send queue given up ends its transport, takes nothing more and says why."""
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
    """The write that finds the transport broken raises, and its frame does not count as left."""
    it = line()
    it.open()
    it.peers[0].close()
    with pytest.raises(ConnectionClosed, match="peer closed"):
        it.box.write(b"lost")
    with pytest.raises(ConnectionClosed, match="peer closed"):
        it.box.write(b"lost too")
    assert it.box.stop() == (0, 0)


def test_what_was_held_back_counts_as_left(line: MakeLine) -> None:
    """A frame held back, whose writer knows nothing, is left; the one whose write raises is not."""
    it = line()
    it.open()
    it.box.collect()
    it.box.write(b"held back")
    it.peers[0].close()
    with pytest.raises(ConnectionClosed):
        it.box.write(b"told" * 4 * KIB)  # so long that it is not held back
    assert it.box.stop() == (1, 9)


def test_a_transport_that_breaks_in_the_midst_of_a_frame() -> None:
    """Also if a part of its frame is gone, the write raises and leaves nothing behind."""
    box, transport = SendQueue(10, lambda: None), Script([3])
    box.attach(transport)
    box.open()
    with pytest.raises(ConnectionClosed):
        box.write(b"frame")
    assert transport.got == b"fra" and box.stop() == (0, 0)


def test_the_end_finds_the_transport_broken() -> None:
    """A transport that breaks over the end is given up like any other; nobody waits for it."""

    class Reset(Script):
        def shutdown_write(self) -> bool:
            raise ConnectionResetError

    box = SendQueue(10, lambda: None)
    box.attach(Reset([]))
    box.open()
    box.seal("over")
    assert not box.wait_sent(Deadline(PATIENCE))


def test_stop_while_the_writer_waits(line: MakeLine) -> None:
    """After a stop no thread is in the transport, so it may be closed."""
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
    """With drop_newest a full queue keeps what it has, and counts what it does not take."""
    it = line(limit=2, slow_consumer="drop_newest")
    it.open()
    big = it.block()
    for frame in (b"2", b"3", b"4"):
        it.box.write(frame)
    assert (it.box.dropped, it.box.waiting) == (2, 2)
    it.box.seal("over")
    assert it.read_to_end() == big + b"2"


def test_drop_oldest(line: MakeLine) -> None:
    """With drop_oldest a full queue gives up its oldest frame, but none that has begun to leave."""
    it = line(limit=3, slow_consumer="drop_oldest")
    it.open()
    big = it.block()
    for frame in (b"2", b"3", b"4", b"5"):
        it.box.write(frame)
    assert (it.box.dropped, it.box.waiting) == (2, 3)
    it.box.seal("over")
    assert it.read_to_end() == big + b"45"


def test_drop_oldest_with_nothing_to_drop(line: MakeLine) -> None:
    """If all that waits has begun to leave, drop_oldest drops the new frame."""
    it = line(limit=1, slow_consumer="drop_oldest")
    it.open()
    big = it.block()
    it.box.write(b"2")
    assert (it.box.dropped, it.box.waiting) == (1, 1)
    it.box.seal("over")
    assert it.read_to_end() == big


def test_drop_oldest_of_a_backlog(line: MakeLine) -> None:
    """Without a transport the oldest frame goes first, since none has begun to leave."""
    it = line(limit=2, slow_consumer="drop_oldest", keep=True)
    for frame in (b"1", b"2", b"3"):
        it.box.write(frame)
    it.open()
    assert it.read(2) == b"23" and it.box.dropped == 1


def test_drop_oldest_leaves_encrypted_frames_alone() -> None:
    """Under TLS, frames of a record that is under way are not dropped: the stream stays whole."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * KIB)
    transport = TlsTransport(ours, CLIENT, server_side=False, server_hostname="localhost")
    peer = TlsTransport(theirs, SERVER, server_side=True)
    shake_hands(transport, peer)
    it = Line(limit=8, slow_consumer="drop_oldest")
    it.box.attach(transport)
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
    """With close, one frame too many ends the connection, with the reason."""
    it = line(limit=1, slow_consumer="close")
    transport = it.open()
    it.block()
    with pytest.raises(ConnectionClosed, match="send queue full"):
        it.box.write(b"2")
    assert transport.recv(1) == b"", "it is aborted"
    assert it.box.stop()[0] == 1


def test_close_without_a_transport(line: MakeLine) -> None:
    """Where there is nothing to close, a full backlog raises WouldBlock."""
    it = line(limit=1, slow_consumer="close", keep=True)
    it.box.write(b"1")
    with pytest.raises(WouldBlock):
        it.box.write(b"2")


# -- from one transport to the next

FRAMES = [b"a", b"bcd", b"ef", b"ghijk", b"l"]
STREAM = b"".join(FRAMES)


def rest_after(cut: int) -> bytes:
    """What is to be sent again if ``cut`` bytes of STREAM are gone: from a frame's first byte."""
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
    """Wherever a transport breaks, each frame is whole on the first or the second, on one alone."""
    box = SendQueue(100, lambda: None, keep=True)
    sizes = [min(step, cut - at) for at in range(0, cut, step)]
    first, second = Script(sizes if not collected else [cut] if cut else []), Script([2**20] * 9)
    box.attach(first)
    box.open()
    if collected:
        box.collect()
    for frame in FRAMES:
        box.write(frame)
    box.release()
    gone = len(first.got)
    assert STREAM.startswith(bytes(first.got))
    box.detach()
    box.attach(second)
    box.open()
    assert second.got == rest_after(gone)
    assert (box.waiting, box.bytes_waiting, box.frames_sent) == (0, 0, len(FRAMES))


@given(st.lists(st.lists(st.integers(0, 4), max_size=6), max_size=4))
def test_cuts_with_full_sockets(scripts: list[list[int]]) -> None:
    """The same over several transports, each full now and then, so that the writer has to go on."""
    it = Line(keep=True)
    for frame in FRAMES:
        it.box.write(frame)
    received = b""
    for steps in [*scripts, [2**20] * 9]:
        transport = Script(steps)
        it.box.attach(transport)
        it.box.open()
        wait_until(lambda transport=transport: transport.broken.is_set() or not it.box.waiting)
        it.box.detach()
        # What the next transport gets begins where the whole frames of this one end.
        received += bytes(transport.got)
        received = received[: len(STREAM) - len(rest_after(len(received)))]
    assert received == STREAM
    assert (it.box.frames_sent, it.box.bytes_waiting) == (len(FRAMES), 0)
    it.close()


def test_a_blocked_send_queue_changes_its_transport(line: MakeLine) -> None:
    """The writer that waits for a lost transport goes on with the next, again and again."""
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


def test_kept_without_a_transport(line: MakeLine) -> None:
    """What is written while there is no transport waits for it, up to the limit."""
    it = line(limit=2, keep=True)
    it.box.write(b"1")
    it.box.write(b"2")
    with pytest.raises(WouldBlock):
        it.box.write(b"3")
    it.open()
    assert it.read(2) == b"12"


def test_a_break_is_no_error_to_who_writes_if_kept(line: MakeLine) -> None:
    """With keep, the write that finds the transport broken is in the queue for the next."""
    it = line(keep=True)
    it.open()
    it.peers[0].close()
    it.box.write(b"later")
    assert isinstance(it.box.error, BrokenPipeError)
    it.box.detach()
    it.open()
    assert it.box.error is None
    assert it.read(5) == b"later"


def test_room_for_the_next_transport(line: MakeLine) -> None:
    """A write that waits for room outlasts the loss of one transport and gets it from the next."""
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


def test_the_preface_goes_first(line: MakeLine) -> None:
    """Until open, only what the attaching thread writes goes out; then the backlog, then others."""
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
    """A preface larger than the socket takes keeps its place, before and after open."""
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
    """What a lost transport did not take of its preface is dropped; the backlog stays."""
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
    """However much waits, who talks first on a new connection may; up to the limit too."""
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
    """drop_oldest takes from the backlog, not from what has to go ahead of it."""
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
    """Sealing before open sends the end only when the backlog has left, too."""
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
    """A preface that cannot be sent raises; a next transport may be tried all the same."""
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


def test_sealed_for_good(line: MakeLine) -> None:
    """What was closed on purpose stays so on the next transport."""
    it = line()
    it.open()
    it.box.give_up(TimeoutError("slow"))
    it.box.seal("closed by this side")
    it.box.detach()
    with pytest.raises(ConnectionClosed, match="slow"):
        it.box.write(b"x")


def test_stop_counts_what_is_left(line: MakeLine) -> None:
    """Stopping tells how many frames and bytes were never sent, and ends the writer."""
    it = line(keep=True)
    it.box.write(b"12345")
    it.box.write(b"678")
    assert it.box.stop() == (2, 8)
    assert ends(it.box.run_writer)
