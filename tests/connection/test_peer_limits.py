"""Limits on what peers may do: rates, the time for a message, and bytes that wait to be sent."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tao.connection.send_queue import SendQueue
from tao.errors import ConnectionClosed, WouldBlock
from tao.runtime.context import Context
from tao.runtime.log import logger
from tao.runtime.rate_limits import FloodLog, TokenBucket
from tao.server.server import Server, server_core_of
from tao.transport.stream import Transport
from tao.wire.codec import Batch, Codec
from tao.wire.message import Message, Registry
from tests.crowd import CROWD_PATIENCE, crowd
from tests.ends import End, MakeServer, Number, Seen, Text, frame, number, text
from tests.support import PATIENCE, ends, recv_exactly, wait_until

OpenEnd = Callable[..., End]

#: So few a second that during a test none comes.
NEVER = 1e-6


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def numbers() -> tuple[Registry, Seen]:
    """A registry that collects numbers in the order they are handled."""
    registry, seen = Registry(), Seen()
    registry.handler(Number)(lambda ctx, conn: seen.add(ctx.message.value))
    return registry, seen


def intake(end: End) -> Any:
    return end.conn._core.reader.intake


# -- token buckets


def test_a_bucket_is_full_at_first_and_fills_with_time() -> None:
    """What is taken comes back at the rate, up to the burst and not above."""
    clock = Clock()
    bucket = TokenBucket(10, 5, clock)
    assert [bucket.take(3), bucket.take(3), bucket.take(3)] == [3, 2, 0]
    assert bucket.wait_for(2) == pytest.approx(0.2)
    clock.now += 0.25
    assert bucket.take(9) == 2
    clock.now += 3600
    assert bucket.take(9) == 5


def test_the_burst_is_that_of_a_second() -> None:
    """Unless it is given; of a slow rate it is one token, or nothing would ever pass."""
    assert TokenBucket(2.5).burst == 2.5
    assert TokenBucket(0.1).burst == 1
    assert TokenBucket(0.1, 7).burst == 7


def test_what_is_lent_has_to_come_in_first() -> None:
    """A bucket may be overdrawn, and says for how long."""
    clock = Clock()
    bucket = TokenBucket(100, 50, clock)
    assert bucket.lend(50) == 0
    assert bucket.lend(200) == pytest.approx(2)
    assert bucket.take(1) == 0
    clock.now += 1
    assert bucket.wait_for(0) == pytest.approx(1)
    clock.now += 1.5
    assert bucket.take(100) == 50


def test_nobody_waits_for_more_than_the_burst() -> None:
    """More is never there at once."""
    clock = Clock()
    bucket = TokenBucket(10, 5, clock)
    bucket.take(5)
    assert bucket.wait_for(1000) == pytest.approx(0.5)


@pytest.mark.parametrize(("rate", "burst"), [(0, None), (-1, None), (1, 0), (1, 0.5)])
def test_what_is_no_bucket(rate: float, burst: float | None) -> None:
    """A rate or a burst that would let nothing through is an error."""
    with pytest.raises(ValueError, match=r"rate|burst"):
        TokenBucket(rate, burst)


@given(
    st.floats(0.1, 1000),
    st.integers(1, 100),
    st.lists(st.tuples(st.floats(0, 10), st.integers(1, 200))),
)
def test_no_more_passes_than_the_rate_and_a_burst(
    rate: float, burst: int, steps: list[tuple[float, int]]
) -> None:
    """Whatever is asked for and when; and who waits as long as told gets what he waited for."""
    clock = Clock()
    bucket = TokenBucket(rate, burst, clock)
    began, taken = clock.now, 0
    for wait, count in steps:
        clock.now += wait
        taken += bucket.take(count)
        assert taken <= burst + (clock.now - began) * rate + 1e-6
    clock.now += bucket.wait_for(1) * (1 + 1e-9) + 1e-9
    assert bucket.take(1) == 1


# -- warnings


def test_a_flood_of_warnings_is_one_line_a_second(log_lines: list[Any]) -> None:
    """The next line tells how many were left out, and the end does."""
    clock = Clock()
    floods = FloodLog(clock=clock)
    for index in range(100):
        floods.warn(logger.bind(x=1), "number {}", index)
    assert [each["message"] for each in log_lines] == ["number 0"]
    assert log_lines[0]["extra"] == {"x": 1}
    floods.flush()
    assert log_lines[1]["message"] == "99 more lines about limits were left out at the end"
    floods.flush()
    assert len(log_lines) == 2


class Kept:
    """A logger that keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warning(self, text: str, *args: object) -> None:
        self.lines.append(text.format(*args))


def test_what_was_left_out_is_counted() -> None:
    """And a burst may pass, for lines that one wants all of."""
    clock, log = Clock(), Kept()
    floods = FloodLog(burst=2, clock=clock)
    for index in range(5):
        floods.warn(log, "line {}", index)
    clock.now += 1
    floods.warn(log, "line {}", 5)
    assert log.lines == ["line 0", "line 1", "line 5; 3 more such lines were left out"]


# -- accepting


def test_accepting_keeps_to_its_rate(make_server: MakeServer, log_lines: list[Any]) -> None:
    """Above it, connections wait in the kernel; a stop does not wait for them."""
    server, address = make_server(accept_rate=NEVER, accept_burst=3)
    socks = [socket.create_connection(address, PATIENCE) for _ in range(6)]
    wait_until(lambda: server.snapshot().accept_delays == 1)
    assert server.snapshot().connections == 3
    assert ends(server.stop)
    for sock in socks:
        sock.close()
    assert server.snapshot().connections_total <= 3
    told = [each["message"] for each in log_lines if "accept_rate" in each["message"]]
    assert told == ["connections above 1e-06 a second (accept_rate) wait in the listen backlog"]


def test_who_had_to_wait_is_accepted_later(make_server: MakeServer) -> None:
    """A delay is no refusal."""
    server, address = make_server(accept_rate=500, accept_burst=1)
    server.handler(Text)(lambda ctx, conn: conn.write(ctx.message))
    socks = [socket.create_connection(address, PATIENCE) for _ in range(20)]
    for sock in socks:
        sock.sendall(text("x"))
    for sock in socks:
        assert recv_exactly(sock, 9) == text("x")
        sock.close()
    assert server.snapshot().refused == 0


def test_refusals_do_not_fill_the_log(make_server: MakeServer, log_lines: list[Any]) -> None:
    """Of a hundred that are refused at once the log has a few lines, which count the others."""
    server, address = make_server(max_connections=1)
    first = socket.create_connection(address, PATIENCE)
    wait_until(lambda: server.connections)
    server_core_of(server).tally.floods._bucket.rate = NEVER
    for _ in range(100):
        with socket.create_connection(address, PATIENCE) as sock:
            assert sock.recv(1) == b""
    first.close()
    server.stop()
    assert server.snapshot().refused == 100
    told = [each["message"] for each in log_lines if each["level"].name == "WARNING"]
    assert "refused: max_connections is 1" in told[0]
    assert told[1:] == ["99 more lines about limits were left out at the end"]


# -- messages and bytes a second


def test_messages_above_the_rate_wait(open_end: OpenEnd, log_lines: list[Any]) -> None:
    """A burst passes, the rest waits; the connection lives, and can be closed at any time."""
    registry, seen = numbers()
    end = open_end(registry=registry, message_rate=NEVER, message_burst=5, idle_timeout=60)
    end.send(b"".join(map(number, range(20))))
    wait_until(lambda: end.conn._core.gate.paused)
    assert seen.wait(5) == [0, 1, 2, 3, 4]
    assert (end.conn._core.counts().over_rate, end.conn._core.counts().messages_in) == (1, 20)
    assert not end.conn.closed
    told = [each["message"] for each in log_lines if "message_rate" in each["message"]]
    assert len(told) == 1 and "so it is held back" in told[0]
    end.peer.close()
    assert ends(end.conn.close)
    assert end.conn.wait_closed(PATIENCE)
    assert seen.items == [0, 1, 2, 3, 4]


def test_all_that_waits_comes_in_order(open_end: OpenEnd) -> None:
    """Nothing is lost by a delay, and nothing overtakes."""
    registry, seen = numbers()
    end = open_end(registry=registry, message_rate=5000, message_burst=3, byte_rate=1e9)
    end.send(b"".join(map(number, range(300))))
    assert seen.wait(300) == list(range(300))
    assert end.conn._core.counts().over_rate > 0


def test_a_reader_that_is_relieved_leaves_what_waits(open_end: OpenEnd) -> None:
    """If a handler blocks in the midst of a batch that has to wait, order holds all the same."""
    registry, seen = Registry(), Seen()
    entered, leave = threading.Event(), threading.Event()

    @registry.handler(Number, dispatch="inline")
    def block_once(ctx: Context, conn: Any) -> None:
        if ctx.message.value == 2:
            entered.set()
            leave.wait(PATIENCE)
        seen.add(ctx.message.value)

    end = open_end(registry=registry, message_rate=2000, message_burst=2, byte_rate=1e6)
    end.send(b"".join(map(number, range(40))))
    assert entered.wait(PATIENCE)
    end.send(b"".join(map(number, range(40, 60))))
    wait_until(
        lambda: end.conn._core.counts().messages_in == 60 or end.conn._core.dispatcher.pending > 2
    )
    leave.set()
    assert seen.wait(60) == list(range(60))


def test_what_waits_when_the_server_stops_is_told_of(make_server: MakeServer) -> None:
    """Messages that were read, and held back by a rate, are handled or reported."""
    registry, seen = numbers()
    server, address = make_server(registry=registry, message_rate=NEVER, message_burst=5)
    with socket.create_connection(address, PATIENCE) as sock:
        sock.sendall(b"".join(map(number, range(100))))
        wait_until(lambda: server.snapshot().messages_in == 100 and len(seen.items) == 5)
        report = server.stop()
    ((_, unhandled, _),) = report.abandoned
    assert len(seen.items) + unhandled == 100 and not report.clean


def test_too_many_messages_may_end_the_connection(open_end: OpenEnd) -> None:
    """over_rate="close" handles what is within the rate, and then says what was exceeded."""
    registry, seen = numbers()
    end = open_end(registry=registry, message_rate=NEVER, message_burst=5, over_rate="close")
    end.send(b"".join(map(number, range(20))))
    assert end.read_to_end() == b""
    end.peer.close()
    assert end.conn.wait_closed(PATIENCE)
    assert end.conn.close_reason == "more than 1e-06 messages a second came (message_rate)"
    assert seen.items == [0, 1, 2, 3, 4]
    assert end.conn._core.counts().over_rate == 1


def test_bytes_above_the_rate_wait(open_end: OpenEnd) -> None:
    """Once the burst is used up nothing more is read, so that TCP holds the peer back."""
    registry, seen = numbers()
    end = open_end(registry=registry, byte_rate=NEVER, byte_burst=48)
    end.send(b"".join(map(number, range(20))))
    wait_until(lambda: end.conn._core.counts().bytes_in == 96)
    wait_until(lambda: end.conn._core.gate.paused)
    assert seen.wait(6) == [0, 1, 2, 3, 4, 5]
    assert end.conn._core.counts().bytes_in == 96
    end.peer.close()
    assert ends(end.conn.close)


def test_too_many_bytes_may_end_the_connection(open_end: OpenEnd) -> None:
    """over_rate="close" does the same for bytes."""
    end = open_end(byte_rate=NEVER, byte_burst=10, over_rate="close")
    end.send(frame(77, bytes(100)))
    try:
        end.read_to_end()
    except ConnectionResetError:
        pass  # as not all was read
    end.peer.close()
    assert end.conn.wait_closed(PATIENCE)
    assert end.conn.close_reason == "more than 1e-06 bytes a second came (byte_rate)"


def test_who_is_held_back_is_not_idle(open_end: OpenEnd) -> None:
    """While nothing is read because of a rate, the peer cannot be heard."""
    registry, _ = numbers()
    end = open_end(registry=registry, message_rate=NEVER, message_burst=1, idle_timeout=3600)
    end.send(number(1) + number(2))
    wait_until(lambda: end.conn._core.gate.paused)
    for _ in range(3):
        end.conn._core.reader.last_received = 0.0  # for hours nothing came, and the clock goes off
        end.conn._core.keep_alive._set("idle", 0.0)
        wait_until(lambda: end.conn._core.reader.last_received)
    assert not end.conn.closed


def test_a_protocol_error_comes_after_what_waits(open_end: OpenEnd) -> None:
    """Messages before the broken place are handled, at their rate."""
    registry, seen = numbers()
    end = open_end(registry=registry, message_rate=2000, message_burst=1)
    end.send(b"".join(map(number, range(10))) + struct.pack("<iI", 1, 2**31))
    assert end.read_to_end() == b""
    assert seen.wait(10) == list(range(10))
    assert "announces 2147483648 bytes" in str(end.conn.close_reason)


def test_the_peers_end_comes_after_what_waits(open_end: OpenEnd) -> None:
    """Who sends much and goes has it handled."""
    registry, seen = numbers()
    end = open_end(registry=registry, message_rate=2000, message_burst=1)
    end.send(b"".join(map(number, range(30))))
    end.peer.shutdown(socket.SHUT_WR)
    assert seen.wait(30) == list(range(30))
    wait_until(lambda: end.conn.close_reason == "peer closed")


def test_without_limits_there_is_no_intake(open_end: OpenEnd) -> None:
    """Who sets none of the options pays for none."""
    assert intake(open_end(idle_timeout=60, handler_warn_after=1)) is None


# -- the time for a message


@pytest.mark.parametrize("part", [b"\1", struct.pack("<iI", 1, 100) + b"x" * 99])
def test_a_message_that_does_not_become_whole(open_end: OpenEnd, part: bytes) -> None:
    """Whether in the header or in the body: after frame_timeout the connection is closed."""
    end = open_end(frame_timeout=0.02)
    end.send(part)
    assert end.read_to_end() == b""
    end.peer.close()
    assert end.conn.wait_closed(PATIENCE)
    reason = "a message that began was not whole after 0.02 s (frame_timeout)"
    assert end.conn.close_reason == reason
    assert end.conn._core.counts().frame_timeouts == 1


def test_a_byte_now_and_then_is_not_enough(open_end: OpenEnd) -> None:
    """A message that grows, but does not become whole, is no better than one that does not."""
    end = open_end(frame_timeout=0.05, idle_timeout=60)
    end.send(struct.pack("<iI", 1, 2**20))
    never = threading.Event()
    try:
        while not end.conn.closed:
            end.send(b"x")
            never.wait(0.001)
    except OSError:
        pass  # it is closed
    assert end.conn._core.counts().frame_timeouts == 1


def test_between_messages_there_is_no_hurry(open_end: OpenEnd) -> None:
    """The clock is not set for a peer that is silent, and forgets a message that is whole."""
    registry, seen = numbers()
    end = open_end(registry=registry, frame_timeout=60)
    assert "frame" not in end.conn._core.timers._clocks
    for value in range(5):
        end.send(number(value)[:9])
        wait_until(lambda: intake(end)._begun is not None and intake(end)._armed)
        end.send(number(value)[9:])
        seen.wait(value + 1)
        intake(end)._arm(0.0)  # the clock goes off now
        wait_until(lambda: not intake(end)._armed)
    assert intake(end)._begun is None
    assert not end.conn.closed


def test_time_in_which_nothing_is_read_does_not_count(open_end: OpenEnd) -> None:
    """A message that waits in the kernel because of a rate is not late."""
    registry, seen = numbers()
    end = open_end(
        registry=registry, byte_rate=NEVER, byte_burst=20, frame_timeout=0.02, idle_timeout=60
    )
    end.send(number(1) + number(2))
    wait_until(lambda: end.conn._core.gate.paused)
    began = intake(end)._begun
    clock = end.conn._core.timers._clocks["frame"]
    intake(end)._begun = 0.0  # as if a message had been waited for since long ago
    intake(end)._arm(0.0)
    before = clock.get()
    wait_until(lambda: clock.get() != before)  # it went off, and was put off
    intake(end)._begun = began
    assert not end.conn.closed
    assert seen.wait(1)[0] == 1


class LinesCodec(Codec):
    """Text in lines, by a codec that says nothing of what it holds."""

    def encode(self, message: Message) -> bytes:
        return message.serialize() + b"\n"

    def decoder(self, registry: Registry) -> LinesDecoder:
        return LinesDecoder(registry)


class LinesDecoder:
    def __init__(self, registry: Registry) -> None:
        self.registry, self.rest = registry, b""

    def feed(self, data: bytes, batch: Batch) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        batch += [(1, self.registry.lookup(1).deserialize(line)) for line in lines]


def test_a_codec_that_says_nothing_is_exempt(open_end: OpenEnd) -> None:
    """Without ``pending`` there is nothing to go by."""
    registry, seen = Registry(), Seen()
    registry.handler(Text)(lambda ctx, conn: seen.add(ctx.message.text))
    end = open_end(registry=registry, codec=LinesCodec(), frame_timeout=0.001)
    end.send(b"one\ntw")
    assert seen.wait(1) == ["one"]
    assert not intake(end)._armed
    end.send(b"o\n")
    assert seen.wait(2) == ["one", "two"]


def test_five_hundred_that_begin_and_stop(make_server: MakeServer, log_lines: list[Any]) -> None:
    """They keep nobody from being served, and are gone after frame_timeout."""
    server, address = make_server(frame_timeout=1.0)
    server.handler(Text)(lambda ctx, conn: conn.write(ctx.message))
    began = time.monotonic()
    with (
        crowd(address, 500, b"\1") as slow,
        socket.create_connection(address, CROWD_PATIENCE) as sock,
    ):
        sock.sendall(text("hello"))
        assert recv_exactly(sock, 13) == text("hello")
        # They are there all the while, unless it took so long that the first are gone already.
        there = server.snapshot().connections
        assert there == 501 or time.monotonic() - began > 1.0
        for each in slow:
            assert each.recv(1) == b""
            each.close()
        wait_until(lambda: server.snapshot().connections == 1, CROWD_PATIENCE)
    assert server.snapshot().frame_timeouts == 500
    server.stop()
    told = [each for each in log_lines if each["level"].name == "WARNING"]
    assert 1 <= len(told) < 100


def test_a_peer_that_does_not_read_does_not_flood_the_log(
    make_server: MakeServer, log_lines: list[Any]
) -> None:
    """Each message for which it has no room is an error of its writer, and few are logged."""
    server, address = make_server(queue_size=1)
    large = Text("x" * 1_000_000)
    server.handler(Text)(lambda ctx, conn: server.unicast(1, large))
    with (
        socket.create_connection(address, PATIENCE),
        socket.create_connection(address, PATIENCE) as sock,
    ):
        wait_until(lambda: server.connection_count == 2)
        sock.sendall(text("more") * 300)
        wait_until(lambda: server.snapshot().handled == 300)
    errors = server.snapshot().error_kinds["WouldBlock"]
    assert errors > 100
    told = [each for each in log_lines if "the send queue is full" in each["message"]]
    assert 1 <= len(told) < errors / 5


def test_a_reconnected_client_begins_anew(make_server: MakeServer) -> None:
    """What the lost transport had begun is forgotten."""
    from tao.client.client import ClientConn
    from tao.connection.options import Reconnect

    registry, seen = numbers()
    ups = Seen()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        client = ClientConn(
            listener.getsockname(),
            registry=registry,
            reconnect=Reconnect(initial=0.001),
            message_rate=NEVER,
            message_burst=3,
            frame_timeout=60,
            on_connect=ups.add,
        ).start()
        first, _ = listener.accept()
        with first:
            first.sendall(number(1) + number(2)[:5])
            seen.wait(1)
        with listener.accept()[0] as second:
            ups.wait(2)
            second.sendall(number(3) + number(4) + number(5))
            assert seen.wait(3) == [1, 3, 4]
            wait_until(lambda: client._core.gate.paused)
        assert ends(client.close)


# -- bytes that wait to be sent


class Line:
    """A send queue with its writer, and a peer that reads when told to."""

    def __init__(self, limit: int = 100, **options: Any) -> None:
        self.box = SendQueue(limit, self._start_writer, **options)
        self.writers: list[threading.Thread] = []
        ours, self.peer = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.peer.settimeout(PATIENCE)
        self.transport = Transport(ours)
        self.box.attach(self.transport)

    def _start_writer(self) -> None:
        self.writers.append(threading.Thread(target=self.box.run_writer, name="test-writer"))
        self.writers[-1].start()

    def fill(self) -> int:
        """Write a large frame, and return how many bytes of it wait."""
        self.box.write(b"B" * 100_000)
        assert self.box.blocked
        return self.box.bytes_waiting

    def close(self) -> None:
        self.transport.abort()
        self.box.stop()
        for writer in self.writers:
            writer.join(PATIENCE)
        self.transport.close()
        self.peer.close()


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


MakeLine = Callable[..., Line]


def test_one_frame_may_be_larger_than_the_limit(line: MakeLine) -> None:
    """If nothing else waits; but then nothing more is taken until it is gone."""
    it = line(limit_bytes=1000)
    it.box.open()
    left = it.fill()
    assert left > 1000
    with pytest.raises(WouldBlock, match=f"1 messages wait with {left} bytes"):
        it.box.write(b"x")
    assert len(recv_exactly(it.peer, 100_000)) == 100_000
    wait_until(lambda: not it.box.blocked)
    it.box.write(b"x" * 10)
    assert recv_exactly(it.peer, 10) == b"x" * 10


def test_bytes_that_wait_are_limited(line: MakeLine) -> None:
    """What fits to the byte is taken, a byte more is not; an empty frame always is."""
    it = line(limit_bytes=200_000)
    it.box.open()
    room = 200_000 - it.fill()
    it.box.write(b"x" * (room - 5))
    with pytest.raises(WouldBlock):
        it.box.write(b"y" * 6)
    it.box.write(b"z" * 5)
    it.box.write(b"")
    assert it.box.bytes_waiting == 200_000
    assert len(recv_exactly(it.peer, 100_000 + room)) == 100_000 + room


def test_messages_are_still_limited_too(line: MakeLine) -> None:
    """Whichever limit is reached first."""
    it = line(3, limit_bytes=10**9)
    it.box.open()
    it.fill()
    it.box.write(b"x")
    it.box.write(b"x")
    with pytest.raises(WouldBlock):
        it.box.write(b"x")


def test_a_write_waits_for_bytes_to_leave(line: MakeLine) -> None:
    """With a timeout, as for messages."""
    it = line(limit_bytes=100_000)
    it.box.open()
    it.fill()
    with pytest.raises(WouldBlock):
        it.box.write(b"x" * 99_000, timeout=0.001)
    done = Seen()
    writer = threading.Thread(
        target=lambda: done.add(it.box.write(b"x" * 99_000, timeout=PATIENCE)), name="test-write"
    )
    writer.start()
    assert len(recv_exactly(it.peer, 199_000)) == 199_000
    done.wait()
    writer.join()


def test_dropping_the_oldest_for_bytes(line: MakeLine) -> None:
    """As many go as it takes, but never what has begun to leave."""
    it = line(limit_bytes=100_100, slow_consumer="drop_oldest")
    it.box.open()
    it.fill()
    room = 100_100 - it.box.bytes_waiting
    part = room // 10
    for index in range(10):
        it.box.write(bytes([index]) * part)
    it.box.write(b"n" * part * 3)
    assert it.box.dropped == 3
    it.box.write(b"never fits" * 100_000)
    assert it.box.dropped == 4
    expected = b"".join(bytes([index]) * part for index in range(3, 10)) + b"n" * part * 3
    assert recv_exactly(it.peer, 100_000 + 10 * part)[100_000:] == expected


def test_dropping_the_newest_for_bytes(line: MakeLine) -> None:
    """The frame that does not fit is dropped, and counted."""
    it = line(limit_bytes=10, slow_consumer="drop_newest")
    it.box.open()
    it.fill()
    it.box.write(b"x")
    assert (it.box.dropped, it.box.waiting) == (1, 1)


def test_a_preface_has_room_of_its_own(line: MakeLine) -> None:
    """A full queue of a lost connection does not keep on_connect from talking on the next."""
    it = line(limit_bytes=1000, keep=True)
    writer = threading.Thread(target=lambda: it.box.write(b"x" * 1000), name="test-other")
    writer.start()
    writer.join()
    it.box.write(b"p" * 600)
    it.box.write(b"q" * 400)
    it.box.open()
    assert recv_exactly(it.peer, 2000) == b"p" * 600 + b"q" * 400 + b"x" * 1000


def test_collected_frames_count_too(line: MakeLine) -> None:
    """During a batch, replies gather only as far as the limit allows."""
    it = line(limit_bytes=8 * 1024)
    it.box.open()
    it.box.collect()
    for _ in range(10):
        it.box.write(b"x" * 1000)
    assert len(it.box._intake.frames) <= 2
    it.box.release()
    assert recv_exactly(it.peer, 10_000) == b"x" * 10_000


@pytest.mark.parametrize("policy", ["raise", "close"])
def test_queue_bytes_of_a_connection(open_end: OpenEnd, policy: str) -> None:
    """The option reaches the send queue, and slow_consumer says what happens."""
    end = open_end(queue_bytes=500_000, queue_size=10_000, slow_consumer=policy)
    with pytest.raises((WouldBlock, ConnectionClosed)) as caught:
        while True:
            end.conn.write(Text("x" * 10_000))
    assert end.conn._core.send_queue.bytes_waiting <= 500_000
    if policy == "raise":
        assert isinstance(caught.value, WouldBlock)
    else:
        assert "send queue full: the peer reads too slowly" in str(caught.value)


# -- options


RATES = ["message_rate", "byte_rate", "accept_rate", "frame_timeout", "handler_warn_after"]


@pytest.mark.parametrize("name", RATES)
def test_rates_are_positive_numbers(name: str) -> None:
    """Anything else is an error that names the option; None means no limit."""
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=name):
            Server(**{name: wrong})
    with pytest.raises(TypeError, match=name):
        Server(**{name: "1"})
    Server(**{name: None})


COUNTS = ["message_burst", "byte_burst", "accept_burst", "queue_bytes"]


@pytest.mark.parametrize("name", COUNTS)
def test_bursts_are_counts(name: str) -> None:
    """From one on; None means what the documentation says."""
    with pytest.raises(ValueError, match=name):
        Server(**{name: 0})
    with pytest.raises(TypeError, match=name):
        Server(**{name: 1.5})
    Server(**{name: None})


def test_over_rate_is_one_of_two() -> None:
    """A wrong word is an error that names the option."""
    with pytest.raises(ValueError, match="over_rate must be one of delay, close"):
        Server(over_rate="drop")
