"""Limits for peers: rates, the time for a message, and the size of the send queue."""

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

from tao.connection.sending.send_queue import SendQueue
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
from tests.support import PATIENCE, ends, recv_exactly, wait_until, written_here

OpenEnd = Callable[..., End]

#: A rate so low that nothing passes during a test.
NEVER = 1e-6


class Clock:
    """A clock that moves only when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def numbers() -> tuple[Registry, Seen]:
    """Return a registry that collects numbers in the order in which they are handled."""
    registry, seen = Registry(), Seen()
    registry.handler(Number)(lambda ctx, conn: seen.add(ctx.message.value))
    return registry, seen


def limits(end: End) -> Any:
    return end.conn._core.reader.limits


# -- token buckets


def test_a_bucket_starts_full_and_refills() -> None:
    """Tokens return at the rate, up to the burst."""
    clock = Clock()
    bucket = TokenBucket(10, 5, clock)
    assert [bucket.take(3), bucket.take(3), bucket.take(3)] == [3, 2, 0]
    assert bucket.wait_for(2) == pytest.approx(0.2)
    clock.now += 0.25
    assert bucket.take(9) == 2
    clock.now += 3600
    assert bucket.take(9) == 5


def test_the_default_burst() -> None:
    """The burst is the rate times a second, but at least one token."""
    assert TokenBucket(2.5).burst == 2.5
    assert TokenBucket(0.1).burst == 1
    assert TokenBucket(0.1, 7).burst == 7


def test_lent_tokens_are_repaid_first() -> None:
    """A bucket may be overdrawn, and returns for how long."""
    clock = Clock()
    bucket = TokenBucket(100, 50, clock)
    assert bucket.lend(50) == 0
    assert bucket.lend(200) == pytest.approx(2)
    assert bucket.take(1) == 0
    clock.now += 1
    assert bucket.wait_for(0) == pytest.approx(1)
    clock.now += 1.5
    assert bucket.take(100) == 50


def test_the_longest_wait_is_for_the_burst() -> None:
    """A bucket never holds more than the burst."""
    clock = Clock()
    bucket = TokenBucket(10, 5, clock)
    bucket.take(5)
    assert bucket.wait_for(1000) == pytest.approx(0.5)


@pytest.mark.parametrize(("rate", "burst"), [(0, None), (-1, None), (1, 0), (1, 0.5)])
def test_invalid_buckets(rate: float, burst: float | None) -> None:
    """A rate or a burst with which nothing would pass is an error."""
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
    """This holds for any requests; after the announced wait, the tokens are available."""
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


def test_a_flood_of_warnings_is_one_line_per_second(log_lines: list[Any]) -> None:
    """The next line, or the end of the connection, reports how many lines were left out."""
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
    """A logger that records its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warning(self, text: str, *args: object) -> None:
        self.lines.append(text.format(*args))


def test_lines_left_out_are_counted() -> None:
    """A burst may pass, for lines that should all be logged."""
    clock, log = Clock(), Kept()
    floods = FloodLog(burst=2, clock=clock)
    for index in range(5):
        floods.warn(log, "line {}", index)
    clock.now += 1
    floods.warn(log, "line {}", 5)
    assert log.lines == ["line 0", "line 1", "line 5; 3 more such lines were left out"]


# -- accepting

BOTH = pytest.mark.parametrize("readers", ["own", "shared"])


@BOTH
def test_the_accept_rate(make_server: MakeServer, log_lines: list[Any], readers: str) -> None:
    """Connections above it wait in the listen backlog; a stop does not wait for them."""
    server, address = make_server(accept_rate=NEVER, accept_burst=3, readers=readers)
    socks = [socket.create_connection(address, PATIENCE) for _ in range(6)]
    wait_until(lambda: server.snapshot().accept_delays == 1)
    assert server.snapshot().connections == 3
    assert ends(server.stop)
    for sock in socks:
        sock.close()
    assert server.snapshot().connections_total <= 3
    told = [each["message"] for each in log_lines if "accept_rate" in each["message"]]
    assert told == ["connections above 1e-06 a second (accept_rate) wait in the listen backlog"]


@BOTH
def test_delayed_connections_are_accepted_later(make_server: MakeServer, readers: str) -> None:
    """A delayed connection is not refused."""
    server, address = make_server(accept_rate=500, accept_burst=1, readers=readers)
    server.handler(Text)(lambda ctx, conn: conn.write(ctx.message))
    socks = [socket.create_connection(address, PATIENCE) for _ in range(20)]
    for sock in socks:
        sock.sendall(text("x"))
    for sock in socks:
        assert recv_exactly(sock, 9) == text("x")
        sock.close()
    assert server.snapshot().refused == 0


@BOTH
def test_refusals_do_not_flood_the_log(
    make_server: MakeServer, log_lines: list[Any], readers: str
) -> None:
    """For a hundred refusals there are a few lines, which count the others."""
    server, address = make_server(max_connections=1, readers=readers)
    first = socket.create_connection(address, PATIENCE)
    wait_until(lambda: server.connections)
    server_core_of(server).statistics.floods._bucket.rate = NEVER
    for _ in range(100):
        with socket.create_connection(address, PATIENCE) as sock:
            assert sock.recv(1) == b""
    first.close()
    server.stop()
    assert server.snapshot().refused == 100
    told = [each["message"] for each in log_lines if each["level"].name == "WARNING"]
    assert "refused: max_connections is 1" in told[0]
    assert told[1:] == ["99 more lines about limits were left out at the end"]


# -- messages and bytes per second


def test_messages_above_the_rate_wait(open_end: OpenEnd, log_lines: list[Any]) -> None:
    """A burst passes, and the rest waits; the connection can be closed at any time."""
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


def test_delayed_messages_stay_in_order(open_end: OpenEnd) -> None:
    """A delay loses no message and does not change the order."""
    registry, seen = numbers()
    end = open_end(registry=registry, message_rate=5000, message_burst=3, byte_rate=1e9)
    end.send(b"".join(map(number, range(300))))
    assert seen.wait(300) == list(range(300))
    assert end.conn._core.counts().over_rate > 0


def test_order_when_a_delayed_reader_is_relieved(open_end: OpenEnd) -> None:
    """If a handler blocks within a delayed batch, the messages stay in order."""
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


def test_delayed_messages_are_reported_by_a_stop(make_server: MakeServer) -> None:
    """Messages that were read and delayed are handled, or reported as unhandled."""
    registry, seen = numbers()
    server, address = make_server(registry=registry, message_rate=NEVER, message_burst=5)
    with socket.create_connection(address, PATIENCE) as sock:
        sock.sendall(b"".join(map(number, range(100))))
        wait_until(lambda: server.snapshot().messages_in == 100 and len(seen.items) == 5)
        report = server.stop()
    unhandled = sum(count for _, count, _ in report.abandoned)  # none if it was not idle yet
    assert len(seen.items) + unhandled == 100 and report.clean is (unhandled == 0)


def test_too_many_messages_can_close_the_connection(open_end: OpenEnd) -> None:
    """With ``over_rate="close"``, messages within the rate are handled before the close."""
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
    """After the burst, reading pauses, so that TCP holds the peer back."""
    registry, seen = numbers()
    end = open_end(registry=registry, byte_rate=NEVER, byte_burst=48)
    end.send(b"".join(map(number, range(20))))
    wait_until(lambda: end.conn._core.counts().bytes_in == 96)
    wait_until(lambda: end.conn._core.gate.paused)
    assert seen.wait(6) == [0, 1, 2, 3, 4, 5]
    assert end.conn._core.counts().bytes_in == 96
    end.peer.close()
    assert ends(end.conn.close)


def test_too_many_bytes_can_close_the_connection(open_end: OpenEnd) -> None:
    """With ``over_rate="close"``, the connection is closed for too many bytes as well."""
    end = open_end(byte_rate=NEVER, byte_burst=10, over_rate="close")
    end.send(frame(77, bytes(100)))
    try:
        end.read_to_end()
    except ConnectionResetError:
        pass  # not all of it was read
    end.peer.close()
    assert end.conn.wait_closed(PATIENCE)
    assert end.conn.close_reason == "more than 1e-06 bytes a second came (byte_rate)"


def test_a_delayed_peer_is_not_idle(open_end: OpenEnd) -> None:
    """While reading pauses because of a rate, ``idle_timeout`` does not run."""
    registry, _ = numbers()
    end = open_end(registry=registry, message_rate=NEVER, message_burst=1, idle_timeout=3600)
    end.send(number(1) + number(2))
    wait_until(lambda: end.conn._core.gate.paused)
    wait_until(lambda: end.conn._core.lifecycle.open)
    for _ in range(3):
        end.conn._core.reader.last_received = 0.0  # no data for hours,
        end.conn._core.keep_alive._look_idle()  # and the timer fires
        assert end.conn._core.reader.last_received
    assert not end.conn.closed


def test_bad_data_after_delayed_messages(open_end: OpenEnd) -> None:
    """Messages before the bad data are handled, at their rate."""
    registry, seen = numbers()
    end = open_end(registry=registry, message_rate=2000, message_burst=1)
    end.send(b"".join(map(number, range(10))) + struct.pack("<iI", 1, 2**31))
    assert end.read_to_end() == b""
    assert seen.wait(10) == list(range(10))
    assert "announces 2147483648 bytes" in str(end.conn.close_reason)


def test_the_end_of_stream_after_delayed_messages(open_end: OpenEnd) -> None:
    """Messages of a peer that sends a lot and closes are handled."""
    registry, seen = numbers()
    end = open_end(registry=registry, message_rate=2000, message_burst=1)
    end.send(b"".join(map(number, range(30))))
    end.peer.shutdown(socket.SHUT_WR)
    assert seen.wait(30) == list(range(30))
    wait_until(lambda: end.conn.close_reason == "peer closed")


def test_without_limits_there_is_no_overhead(open_end: OpenEnd) -> None:
    """Without these options, no object for limits exists."""
    assert limits(open_end(idle_timeout=60, handler_warn_after=1)) is None


# -- frame_timeout


@pytest.mark.parametrize("part", [b"\1", struct.pack("<iI", 1, 100) + b"x" * 99])
def test_an_incomplete_message(open_end: OpenEnd, part: bytes) -> None:
    """In the header or in the value: the connection is closed after ``frame_timeout``."""
    end = open_end(frame_timeout=0.02)
    end.send(part)
    assert end.read_to_end() == b""
    end.peer.close()
    assert end.conn.wait_closed(PATIENCE)
    reason = "a message that began was not whole after 0.02 s (frame_timeout)"
    assert end.conn.close_reason == reason
    assert end.conn._core.counts().frame_timeouts == 1


def test_a_few_bytes_do_not_extend_frame_timeout(open_end: OpenEnd) -> None:
    """A message that grows without becoming complete is late as well."""
    end = open_end(frame_timeout=0.05, idle_timeout=60)
    end.send(struct.pack("<iI", 1, 2**20))
    never = threading.Event()
    try:
        while not end.conn.closed:
            end.send(b"x")
            never.wait(0.001)
    except OSError:
        pass  # the connection is closed
    assert end.conn._core.counts().frame_timeouts == 1


def test_frame_timeout_does_not_run_between_messages(open_end: OpenEnd) -> None:
    """A silent peer starts no timer, and a complete message ends it."""
    registry, seen = numbers()
    end = open_end(registry=registry, frame_timeout=60)
    assert "frame" not in end.conn._core.timers._clocks
    for value in range(5):
        end.send(number(value)[:9])
        wait_until(lambda: limits(end)._begun is not None and limits(end)._armed)
        end.send(number(value)[9:])
        seen.wait(value + 1)
        limits(end)._arm(0.0)  # the timer fires now
        wait_until(lambda: not limits(end)._armed)
    assert limits(end)._begun is None
    assert not end.conn.closed


def test_pauses_in_reading_do_not_count(open_end: OpenEnd) -> None:
    """A message that is delayed by a rate is not late."""
    registry, seen = numbers()
    end = open_end(
        registry=registry, byte_rate=NEVER, byte_burst=20, frame_timeout=0.02, idle_timeout=60
    )
    end.send(number(1) + number(2))
    clocks = end.conn._core.timers._clocks
    wait_until(lambda: end.conn._core.gate.paused and "frame" in clocks)
    began = limits(end)._begun
    clock = clocks["frame"]
    limits(end)._begun = 0.0  # as if the message had begun long ago
    limits(end)._arm(0.0)
    before = clock.get()
    wait_until(lambda: clock.get() != before)  # it fired, and was postponed
    limits(end)._begun = began
    assert not end.conn.closed
    assert seen.wait(1)[0] == 1


class LinesCodec(Codec):
    """Text in lines, with a codec that has no ``pending``."""

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


def test_a_codec_without_pending_is_exempt(open_end: OpenEnd) -> None:
    """Without ``pending``, ``frame_timeout`` has no effect."""
    registry, seen = Registry(), Seen()
    registry.handler(Text)(lambda ctx, conn: seen.add(ctx.message.text))
    end = open_end(registry=registry, codec=LinesCodec(), frame_timeout=0.001)
    end.send(b"one\ntw")
    assert seen.wait(1) == ["one"]
    assert not limits(end)._armed
    end.send(b"o\n")
    assert seen.wait(2) == ["one", "two"]


def test_five_hundred_incomplete_messages(make_server: MakeServer, log_lines: list[Any]) -> None:
    """They do not prevent others from being served, and are closed after ``frame_timeout``."""
    server, address = make_server(frame_timeout=1.0)
    server.handler(Text)(lambda ctx, conn: conn.write(ctx.message))
    began = time.monotonic()
    with (
        crowd(address, 500, b"\1") as slow,
        socket.create_connection(address, CROWD_PATIENCE) as sock,
    ):
        sock.sendall(text("hello"))
        assert recv_exactly(sock, 13) == text("hello")
        # All are connected meanwhile, unless the first have timed out already.
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
    """Each refused message is an error of its writer, and few of them are logged."""
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


def test_limits_after_a_reconnection(make_server: MakeServer) -> None:
    """An incomplete message of the lost connection does not count."""
    from tao.client.client import ClientConn
    from tao.connection.options.definitions import Reconnect

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


# -- queue_bytes


class Line:
    """A send queue with its writer, and a peer that reads on request."""

    def __init__(self, limit: int = 100, **options: Any) -> None:
        self.box = SendQueue(limit, self._start_writer, **options)
        self.writers: list[threading.Thread] = []
        ours, self.peer = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.peer.settimeout(PATIENCE)
        self.transport = Transport(ours)
        self.box.attach(self.transport, written_here())

    def _start_writer(self) -> None:
        self.writers.append(threading.Thread(target=self.box.run_writer, name="test-writer"))
        self.writers[-1].start()

    def fill(self) -> int:
        """Write a large frame, and return how many of its bytes wait."""
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
    """Make a `Line`, which is closed afterwards."""
    made: list[Line] = []

    def make(limit: int = 100, **options: Any) -> Line:
        made.append(Line(limit, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


MakeLine = Callable[..., Line]


def test_a_single_frame_may_exceed_the_limit(line: MakeLine) -> None:
    """It is accepted if the queue is empty; then no other is until it has been sent."""
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


def test_queued_bytes_are_limited(line: MakeLine) -> None:
    """The limit is exact to the byte; an empty frame is always accepted."""
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


def test_queued_messages_are_limited_as_well(line: MakeLine) -> None:
    """The limit that is reached first applies."""
    it = line(3, limit_bytes=10**9)
    it.box.open()
    it.fill()
    it.box.write(b"x")
    it.box.write(b"x")
    with pytest.raises(WouldBlock):
        it.box.write(b"x")


def test_a_write_waits_for_bytes(line: MakeLine) -> None:
    """A write with a timeout waits for room in bytes as it does for messages."""
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
    """As many frames are dropped as necessary, but none that is partly sent."""
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
    """The frame that does not fit is dropped and counted."""
    it = line(limit_bytes=10, slow_consumer="drop_newest")
    it.box.open()
    it.fill()
    it.box.write(b"x")
    assert (it.box.dropped, it.box.waiting) == (1, 1)


def test_the_preface_has_its_own_room(line: MakeLine) -> None:
    """A full queue of a lost connection does not prevent ``on_connect`` from writing."""
    it = line(limit_bytes=1000, keep=True)
    writer = threading.Thread(target=lambda: it.box.write(b"x" * 1000), name="test-other")
    writer.start()
    writer.join()
    it.box.write(b"p" * 600)
    it.box.write(b"q" * 400)
    it.box.open()
    assert recv_exactly(it.peer, 2000) == b"p" * 600 + b"q" * 400 + b"x" * 1000


def test_collected_frames_count_too(line: MakeLine) -> None:
    """During a batch, replies are collected only up to the limit."""
    it = line(limit_bytes=8 * 1024)
    it.box.open()
    it.box.collect()
    for _ in range(10):
        it.box.write(b"x" * 1000)
    assert len(it.box._admission.frames) <= 2
    it.box.release()
    assert recv_exactly(it.peer, 10_000) == b"x" * 10_000


@pytest.mark.parametrize("policy", ["raise", "close"])
def test_queue_bytes_of_a_connection(open_end: OpenEnd, policy: str) -> None:
    """The option reaches the send queue, and ``slow_consumer`` applies."""
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
    """Other values are refused by name; None means no limit."""
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=name):
            Server(**{name: wrong})
    with pytest.raises(TypeError, match=name):
        Server(**{name: "1"})
    Server(**{name: None})


COUNTS = ["message_burst", "byte_burst", "accept_burst", "queue_bytes"]


@pytest.mark.parametrize("name", COUNTS)
def test_bursts_are_counts(name: str) -> None:
    """They are at least 1; None means the documented default."""
    with pytest.raises(ValueError, match=name):
        Server(**{name: 0})
    with pytest.raises(TypeError, match=name):
        Server(**{name: 1.5})
    Server(**{name: None})


def test_an_invalid_over_rate() -> None:
    """The error names the option."""
    with pytest.raises(ValueError, match="over_rate must be one of delay, close"):
        Server(over_rate="drop")
