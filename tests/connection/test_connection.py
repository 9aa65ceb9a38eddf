"""A connection, at both ends: order, timers, heartbeats, errors, and every way it can end."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone

import pytest

from tao.connection.connection import Connection
from tao.errors import BadData, ConnectionClosed, WouldBlock
from tao.runtime.context import Context
from tao.runtime.timing_wheel import TimingWheel
from tao.testing import Clock
from tao.wire.codec import Batch, Codec
from tao.wire.message import HeartbeatMessage, Message, Registry
from tests.ends import End, Number, Seen, Text, frame, number, text
from tests.support import PATIENCE, ends, together, wait_until

OpenEnd = Callable[..., End]


def echo_registry() -> Registry:
    registry = Registry()

    @registry.handler(Text)
    def echo(ctx: Context, conn: object) -> None:
        conn.write(ctx.message)  # type: ignore[attr-defined]

    return registry


# -- messages


def test_a_message_is_handled_and_answered(open_end: OpenEnd) -> None:
    """A message reaches its handler, and the handler's reply reaches the peer."""
    end = open_end(registry=echo_registry())
    end.send(text("hello"))
    assert end.read(13) == text("hello")


def test_a_stream_in_single_bytes(open_end: OpenEnd) -> None:
    """A message is received in any pieces."""
    end = open_end(registry=echo_registry())
    for byte in text("slow"):
        end.send(bytes([byte]))
    assert end.read_text() == "slow"


def test_thousands_of_messages_at_once_stay_in_order(open_end: OpenEnd) -> None:
    """Messages are handled and answered in the order of their arrival."""
    end = open_end(registry=echo_registry(), queue_size=10_000)
    sender = threading.Thread(
        target=lambda: end.send(b"".join(text(f"{i:06}") for i in range(5000))), name="test-sender"
    )
    sender.start()
    assert [end.read_text() for _ in range(5000)] == [f"{i:06}" for i in range(5000)]
    sender.join()


def test_the_context_knows_message_connection_and_server(open_end: OpenEnd) -> None:
    """The context of a handler has the message, the connection and the server."""
    registry, seen = Registry(), Seen()
    registry.handler(Text)(lambda ctx, conn: seen.add((ctx.message.text, ctx.net_id, ctx.server)))
    end = open_end(registry=registry)
    end.send(text("x"))
    assert seen.wait() == [("x", end.conn.net_id, end.server)]


def test_on_message_gets_messages_without_a_handler(open_end: OpenEnd) -> None:
    """A registered number without a handler is passed to ``on_message``."""
    registry, seen = Registry(), Seen()
    registry.register(1, Text.deserialize)
    end = open_end(registry=registry, on_message=lambda m, conn: seen.add((m.text, conn)))
    end.send(text("x"))
    assert seen.wait() == [("x", end.conn)]


def test_an_unregistered_number_is_skipped(open_end: OpenEnd, log_lines: list[object]) -> None:
    """It is counted and logged once per number, and the connection stays open."""
    end = open_end(registry=echo_registry())
    end.send(frame(77, b"abc") + frame(-5) + frame(77, b"d" * 1000) + text("on"))
    assert end.read_text() == "on"
    assert end.conn._core.counts().undefined == 3
    told = [r for r in log_lines if "not registered" in r["message"]]  # type: ignore[index]
    assert len(told) == 2
    assert told[0]["extra"]["connection"] == end.conn.net_id  # type: ignore[index]


def test_unregistered_numbers_do_not_flood_the_log(
    open_end: OpenEnd, log_lines: list[object]
) -> None:
    """Log lines and memory are bounded, however many numbers a peer uses."""
    end = open_end(registry=echo_registry())
    end.send(b"".join(frame(n) for n in range(100, 600)) + text("on"))
    assert end.read_text() == "on"
    assert len([r for r in log_lines if "not registered" in r["message"]]) == 16  # type: ignore[index]


class JsonLines(Codec):
    """A codec of another kind: text in JSON lines."""

    def encode(self, message: Message) -> bytes:
        return message.serialize() + b"\n"

    def decoder(self, registry: Registry) -> JsonLinesDecoder:
        return JsonLinesDecoder(registry)


class JsonLinesDecoder:
    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._rest = b""

    def feed(self, data: bytes, batch: Batch) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if not line.startswith(b"{"):
                raise BadData(f"not a JSON object: {line!r}")
            batch.append((1, self._registry.lookup(1).deserialize(line)))


def test_a_codec_can_be_replaced(open_end: OpenEnd) -> None:
    """Newline-delimited JSON needs only a codec."""
    end = open_end(registry=echo_registry(), codec=JsonLines(), heartbeat=0.001)
    end.send(b'{"a": 1}\n{"b"')
    end.send(b": 2}\n")
    assert end.read(17) == b'{"a": 1}\n{"b": 2}'


def test_messages_before_bad_data_are_handled(open_end: OpenEnd) -> None:
    """Invalid data closes the connection with a reason, after the complete messages before it."""
    errors = Seen()
    end = open_end(registry=echo_registry(), codec=JsonLines(), on_error=lambda c, e: errors.add(e))
    end.send(b'{"a": 1}\nrubbish\n')
    assert end.read_to_end() == b'{"a": 1}\n'
    assert end.conn.close_reason == "protocol error: not a JSON object: b'rubbish'"
    assert [type(error) for error in errors.wait()] == [BadData]


def test_a_deserializer_that_raises_closes_the_connection(open_end: OpenEnd) -> None:
    """The error is passed to ``on_error``, and the reason names message and error."""
    errors = Seen()
    end = open_end(registry=echo_registry(), on_error=lambda c, e: errors.add(e))
    end.send(frame(1, b"\xff"))
    assert end.read_to_end() == b""
    (error,) = errors.wait()
    assert isinstance(error.__cause__, UnicodeDecodeError)
    assert "message 1 could not be deserialized" in str(end.conn.close_reason)


def test_an_oversized_message_is_refused_by_its_header(open_end: OpenEnd) -> None:
    """No value above the limit is read, and no memory is allocated for it."""
    end = open_end(registry=echo_registry())
    end.send(struct.pack("<iI", 1, 2**31))
    assert end.read_to_end() == b""
    assert "announces 2147483648 bytes, the limit is 8388608" in str(end.conn.close_reason)


def test_a_failing_decoder_closes_only_its_connection(open_end: OpenEnd) -> None:
    """Any exception of a codec is a protocol error of that connection."""

    class Broken(JsonLinesDecoder):
        def feed(self, data: bytes, batch: Batch) -> None:
            raise KeyError("oops")

    class BrokenCodec(JsonLines):
        def decoder(self, registry: Registry) -> JsonLinesDecoder:
            return Broken(registry)

    end = open_end(codec=BrokenCodec())
    end.send(b"x")
    assert end.read_to_end() == b""
    assert end.conn.close_reason == "protocol error: the decoder raised KeyError"


# -- writing


def test_a_serializer_that_fails_raises_in_write(open_end: OpenEnd) -> None:
    """The caller of ``write`` gets the exception, and nothing is sent."""

    class Bad:
        message_number = 1

        def __init__(self, value: object) -> None:
            self.value = value

        def serialize(self) -> bytes:
            if isinstance(self.value, Exception):
                raise self.value
            return self.value  # type: ignore[return-value]

    end = open_end()
    with pytest.raises(ZeroDivisionError):
        end.conn.write(Bad(ZeroDivisionError()))
    with pytest.raises(TypeError, match=r"Bad.serialize\(\) must return bytes, not str"):
        end.conn.write(Bad("text"))
    end.conn.write(Text("good"))
    assert end.read_text() == "good"


def test_twenty_threads_write_to_one_connection(open_end: OpenEnd) -> None:
    """Messages are not mixed, and those of each thread stay in order."""
    end = open_end(queue_size=50)

    def write(thread: int) -> None:
        for i in range(200):
            end.conn.write(Text(f"{thread} {i} " + "x" * (thread * 100)), timeout=PATIENCE)

    def read() -> list[str]:
        return [end.read_text() for _ in range(20 * 200)]

    *_, got = together(*(lambda thread=thread: write(thread) for thread in range(20)), read)
    for thread in range(20):
        own = [line.split() for line in got if line.startswith(f"{thread} ")]
        assert [int(parts[1]) for parts in own] == list(range(200))
        assert all(parts[2:] == ["x" * thread * 100] * bool(thread) for parts in own)


def test_a_full_send_queue_raises_would_block(open_end: OpenEnd) -> None:
    """``write`` raises at once; all queued messages are delivered when the peer reads."""
    end = open_end(queue_size=4)
    message = Text("x" * 300_000)
    accepted = 0
    with pytest.raises(WouldBlock, match="4 messages wait"):
        while True:
            end.conn.write(message)
            accepted += 1
    assert end.conn.send_queue_length == 4
    with pytest.raises(WouldBlock):
        end.conn.write(message, timeout=0.01)
    assert all(len(end.read_text()) == 300_000 for _ in range(accepted))


def test_a_write_can_wait_for_room(open_end: OpenEnd) -> None:
    """With a timeout, ``write`` continues as soon as the peer reads."""
    end = open_end(queue_size=2)
    message = Text("x" * 100_000)
    done = Seen()

    def write() -> None:
        for i in range(200):
            end.conn.write(message, timeout=PATIENCE)
            done.add(i)

    _, got = together(write, lambda: [len(end.read_text()) for _ in range(200)])
    assert got == [100_000] * 200


# -- heartbeats and timeouts


def test_heartbeats_are_sent_on_an_idle_connection(open_end: OpenEnd) -> None:
    """A connection without other messages sends heartbeats with the time."""
    before = time.time_ns()
    end = open_end(heartbeat=0.01)
    for _ in range(3):
        kind, value = end.read_frame()
        assert kind == 0
        stamp = HeartbeatMessage.deserialize(value).timestamp
        assert before <= stamp <= time.time_ns()


@pytest.mark.parametrize("policy", ["raise", "drop_newest", "drop_oldest", "close"])
def test_heartbeats_do_not_displace_messages(open_end: OpenEnd, policy: str) -> None:
    """No heartbeat is queued for a peer that does not read, so queued messages stay."""
    end = open_end(heartbeat=0.02, queue_size=2, slow_consumer=policy)
    written = 0
    while end.conn.send_queue_length < 2:
        end.conn.write(Text("x" * 100_000))
        written += 1
    threading.Event().wait(0.3)
    assert (end.conn._core.counts().dropped, end.conn.closed) == (0, False)
    while written:
        kind, value = end.read_frame()
        written -= kind == 1 and len(value) == 100_000


def test_an_idle_peer_is_closed(open_end: OpenEnd) -> None:
    """A peer that sends nothing for ``idle_timeout`` is disconnected, with that reason."""
    closed = Seen()
    end = open_end(idle_timeout=0.05, on_close=lambda conn: closed.add(conn.close_reason))
    assert end.read_to_end() == b""
    end.peer.close()
    assert closed.wait() == ["idle for 0.05 s"]


def test_keep_alive_that_is_negotiated(open_end: OpenEnd) -> None:
    """A change holds from then on, for each of both by itself; None turns it off."""
    with Clock() as clock:
        end = open_end(heartbeat=30, idle_timeout=60)
        end.conn.set_keepalive(heartbeat=5)
        clock.advance(5)
        assert end.read_frame()[0] == 0
        end.conn.set_keepalive(heartbeat=None, idle_timeout=None)
        clock.advance(1000)
        assert not end.conn.closed
        end.conn.set_keepalive(idle_timeout=10)
        clock.advance(9)
        assert not end.conn.closed
        clock.advance(1)
        wait_until(lambda: end.conn.closed)
        assert end.conn.close_reason == "idle for 10 s"
        assert end.read_to_end() == b""


def test_keep_alive_that_on_connect_sets(open_end: OpenEnd) -> None:
    """It holds from the beginning, and the kernel's probes are set to it as well."""
    with Clock() as clock:
        end = open_end(on_connect=lambda conn: conn.set_keepalive(heartbeat=1, idle_timeout=20))
        clock.advance(1)
        assert end.read_frame()[0] == 0
        seconds = end.conn.socket_option(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)
        assert seconds == round(20 / 2 / 3)
        clock.advance(19)
        wait_until(lambda: end.conn.close_reason == "idle for 20 s")


@pytest.mark.parametrize("wrong", [0, -1, float("inf"), "5", True])
def test_what_keep_alive_cannot_be(open_end: OpenEnd, wrong: float) -> None:
    """It is refused by its name, and nothing is changed."""
    end = open_end()
    for name in ("heartbeat", "idle_timeout"):
        with pytest.raises((TypeError, ValueError), match=f"^{name} must be"):
            end.conn.set_keepalive(**{name: wrong})
    assert end.conn._core.keep_alive.idle_timeout is None


def test_a_heartbeat_keeps_a_connection_alive(open_end: OpenEnd) -> None:
    """A peer that sends only heartbeats is not idle."""
    with Clock() as clock:
        end = open_end(idle_timeout=60, heartbeat=None, registry=echo_registry())
        for _ in range(3):
            clock.advance(50)
            beat(end)
        end.send(text("here"))
        assert end.read_text() == "here"


def beat(end: End) -> None:
    """Send a heartbeat, and wait until it is received."""
    reader = end.conn._core.reader
    before = reader.last_received
    end.send(frame(0, struct.pack("<q", 0)))
    wait_until(lambda: reader.last_received > before)


def test_when_the_last_heartbeat_came(open_end: OpenEnd) -> None:
    """It is told as a time of day."""
    end = open_end()
    beat(end)
    assert abs(end.conn.last_heartbeat - time.time()) < PATIENCE


def test_setting_the_clock_affects_no_heartbeat(
    open_end: OpenEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The times of heartbeats do not jump with the time of day."""
    end = open_end(registry=echo_registry())
    before = end.conn.last_heartbeat
    for step in (3600, -7200):
        changed = staticmethod(lambda step=step: time.time() + step)
        monkeypatch.setattr(TimingWheel, "time_of_day", changed)
        assert end.conn.last_heartbeat == before
        end.send(text("here"))
        assert end.read_text() == "here"
        assert 0 < end.conn.last_heartbeat - before < PATIENCE
        assert 0 <= end.conn.idle_time < PATIENCE
        before = end.conn.last_heartbeat


def test_a_slow_handler_does_not_make_a_peer_idle(open_end: OpenEnd) -> None:
    """While a handler blocks, the peer's heartbeats are received."""
    registry = Registry()
    entered, leave = threading.Event(), threading.Event()

    @registry.handler(Text)
    def block(ctx: Context, conn: object) -> None:
        entered.set()
        leave.wait(PATIENCE)
        conn.write(Text("alive"))  # type: ignore[attr-defined]

    with Clock() as clock:
        end = open_end(registry=registry, idle_timeout=60, heartbeat=None)
        end.send(text("x"))
        assert entered.wait(PATIENCE)
        for _ in range(3):
            clock.advance(50)
            beat(end)
        leave.set()
        assert end.read_text() == "alive"


def test_a_long_batch_does_not_make_a_peer_idle(open_end: OpenEnd) -> None:
    """Handling a batch may take longer than ``idle_timeout``."""
    registry = Registry()
    registry.handler(Number, dispatch="inline")(lambda ctx, conn: time.sleep(0.002))
    registry.handler(Text)(lambda ctx, conn: conn.write(ctx.message))
    end = open_end(registry=registry, idle_timeout=0.3)
    end.send(b"".join(map(number, range(400))) + text("alive"))
    assert end.read_text() == "alive"


def test_a_peer_that_does_not_read_is_disconnected(open_end: OpenEnd) -> None:
    """``write_timeout`` closes the connection."""
    closed = Seen()
    end = open_end(write_timeout=0.05, on_close=lambda conn: closed.add(conn.close_reason))
    with pytest.raises((WouldBlock, ConnectionClosed)):
        while True:
            end.conn.write(Text("x" * 100_000))
    assert closed.wait() == ["the peer took nothing for 0.05 s"]


def test_a_slow_consumer_can_be_disconnected(open_end: OpenEnd) -> None:
    """With ``slow_consumer="close"``, a full send queue closes the connection with a reason."""
    closed, errors = Seen(), Seen()
    end = open_end(
        slow_consumer="close",
        queue_size=3,
        on_close=lambda conn: closed.add(conn.close_reason),
        on_error=lambda conn, error: errors.add(str(error)),
    )
    with pytest.raises(ConnectionClosed, match="send queue full: the peer reads too slowly"):
        while True:
            end.conn.write(Text("x" * 100_000))
    assert closed.wait() == ["send queue full: the peer reads too slowly"]
    assert "3 messages" in errors.wait(2)[1]


@pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest"])
def test_messages_for_a_slow_consumer_can_be_dropped(open_end: OpenEnd, policy: str) -> None:
    """Dropped messages are complete and counted; the others arrive in order."""
    end = open_end(slow_consumer=policy, queue_size=3)
    for i in range(200):
        end.conn.write(Text(f"{i:03}" + "x" * 100_000))
    dropped = end.conn._core.counts().dropped
    got = [int(end.read_text()[:3]) for _ in range(200 - dropped)]
    assert dropped > 0
    assert got == sorted(got)
    assert (got[-1] == 199) is (policy == "drop_oldest")


# -- timers


def test_timers_fire_with_the_time_and_the_connection(open_end: OpenEnd) -> None:
    """The callbacks of ``run_at``, ``run_after`` and ``run_every`` get the due time."""
    end, seen = open_end(), Seen()
    soon = datetime.now(timezone.utc) + timedelta(milliseconds=5)
    end.conn.run_at(soon, lambda due, conn: seen.add(("at", due, conn)))
    end.conn.run_after(0, lambda due, conn: seen.add(("after", due, conn)))
    timer = end.conn.run_every(0.005, lambda due, conn: seen.add(("every", due, conn)))
    found = seen.wait(8)
    assert end.conn.cancel_timer(timer)
    assert not end.conn.cancel_timer(timer)
    assert {kind for kind, *_ in found} == {"at", "after", "every"}
    assert all(due.tzinfo and conn is end.conn for _, due, conn in found)


def test_timers_run_between_handlers(open_end: OpenEnd) -> None:
    """A callback never runs concurrently with a handler of its connection."""
    registry, seen = Registry(), Seen()
    entered, leave = threading.Event(), threading.Event()

    @registry.handler(Text)
    def block(ctx: Context, conn: object) -> None:
        entered.set()
        leave.wait(PATIENCE)
        seen.add("handler")

    end = open_end(registry=registry)
    end.send(text("x"))
    assert entered.wait(PATIENCE)
    end.conn.run_after(0, lambda due, conn: seen.add("timer"))
    wait_until(lambda: end.conn._core.dispatcher.pending >= 2)
    assert seen.items == []
    leave.set()
    assert seen.wait(2) == ["handler", "timer"]


def test_a_slow_timer_is_not_queued_twice(open_end: OpenEnd) -> None:
    """A periodic callback that waits to run is not queued again."""
    end = open_end()
    entered, leave = threading.Event(), threading.Event()

    def slow(due: datetime, conn: object) -> None:
        entered.set()
        leave.wait(PATIENCE)

    end.conn.run_every(0.001, slow)
    assert entered.wait(PATIENCE)
    leave.wait(0.05)
    assert end.conn._core.dispatcher.pending <= 2
    leave.set()


def test_a_timer_that_raises_reaches_on_error(open_end: OpenEnd) -> None:
    """The exception is passed to ``on_error``, and a periodic timer continues."""
    errors = Seen()
    end = open_end(on_error=lambda conn, error: errors.add(type(error)))
    end.conn.run_every(0.001, lambda due, conn: 1 // 0)
    assert errors.wait(2)[:2] == [ZeroDivisionError] * 2


def test_timers_end_with_the_connection(open_end: OpenEnd) -> None:
    """After the end no timer fires, and none can be set."""
    end = open_end()
    timer = end.conn.run_every(1000, lambda due, conn: None)
    assert len(end.conn._core.timers) == 1
    end.peer.close()
    assert end.conn.wait_closed(PATIENCE)
    assert len(end.conn._core.timers) == 0
    assert not end.conn._core.wheel.cancel(timer)
    with pytest.raises(ConnectionClosed, match="peer closed"):
        end.conn.run_after(1, lambda due, conn: None)
    with pytest.raises(TypeError, match="callback must be callable"):
        end.conn.run_after(1, None)  # type: ignore[arg-type]


# -- values and names


def test_values_and_name(open_end: OpenEnd) -> None:
    """A connection stores values, and its repr shows its name."""
    end = open_end()
    end.conn.set_value("user", 42)
    end.conn.name = "probe"
    assert (end.conn.value("user"), end.conn.value("other")) == (42, None)
    assert end.conn.local_address == end.peer.getpeername()
    assert end.conn.peer_certificate is None
    assert end.conn.tls_version is None
    assert "probe 127.0.0.1:" in repr(end.conn)
    assert "open" in repr(end.conn)


# -- errors in user code


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()])
def test_a_handler_that_raises(
    open_end: OpenEnd, log_lines: list[object], error: BaseException
) -> None:
    """It is logged with its traceback and passed to ``on_error``; the connection stays open."""
    registry, errors = echo_registry(), Seen()

    @registry.handler(Number)
    def fail(ctx: Context, conn: object) -> None:
        raise error

    end = open_end(registry=registry, on_error=lambda conn, error: errors.add((conn, error)))
    end.send(number(1) + text("on"))
    assert end.read_text() == "on"
    assert errors.wait() == [(end.conn, error)]
    assert end.conn._core.counts().errors == 1
    logged = [r for r in log_lines if r["exception"]]  # type: ignore[index]
    assert logged[0]["exception"].value is error  # type: ignore[index]


def test_callbacks_that_raise_do_not_prevent_the_end(
    open_end: OpenEnd, log_lines: list[object]
) -> None:
    """Exceptions of ``on_error`` and ``on_close`` are logged, and the connection still ends."""

    def fail(*_: object) -> None:
        raise RuntimeError("callback")

    end = open_end(on_error=fail, on_close=fail)
    end.peer.close()
    assert end.conn.wait_closed(PATIENCE)
    messages = [r["message"] for r in log_lines]  # type: ignore[index]
    assert "error in on_close" in messages
    assert "on_error raised" in messages


# -- ends


def test_the_peer_closes(open_end: OpenEnd) -> None:
    """``on_close`` is called once, ``ctx`` is cancelled, and ``write`` raises with the reason."""
    closed = Seen()
    end = open_end(on_close=lambda conn: closed.add(conn.close_reason))
    context = end.conn.context
    end.peer.close()
    assert end.conn.wait_closed(PATIENCE)
    assert closed.items == ["peer closed"]
    assert str(context.error) == "peer closed"
    assert end.conn.closed
    with pytest.raises(ConnectionClosed, match="peer closed"):
        end.conn.write(Text("x"))


def test_the_peer_closes_within_a_message(open_end: OpenEnd) -> None:
    """Complete messages are handled; ``on_error`` and the reason report the truncation."""
    closed, errors = Seen(), Seen()
    end = open_end(
        on_close=lambda conn: closed.add(conn.close_reason),
        on_error=lambda conn, error: errors.add(str(error)),
        on_message=lambda message, conn: None,
    )
    end.peer.sendall(text("whole") + text("torn")[:-1])
    end.peer.close()
    assert end.conn.wait_closed(PATIENCE)
    assert closed.items == ["protocol error: the peer closed 11 bytes into a message"]
    assert errors.items == ["the peer closed 11 bytes into a message"]


def test_the_peer_resets(open_end: OpenEnd) -> None:
    """A reset differs from a graceful end, and is passed to ``on_error``."""
    closed, errors = Seen(), Seen()
    end = open_end(
        on_close=lambda conn: closed.add(conn.close_reason),
        on_error=lambda conn, error: errors.add(type(error)),
    )
    end.peer.sendall(text("x")[:1])
    wait_until(lambda: end.conn._core.counts().bytes_in)
    end.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.peer.close()
    assert closed.wait() == ["connection reset by peer"]
    assert errors.items == [ConnectionResetError]


def test_a_half_closed_peer_gets_its_replies(open_end: OpenEnd) -> None:
    """Messages before the peer's end of stream are handled and answered."""
    end = open_end(registry=echo_registry(), queue_size=5000)
    end.send(b"".join(text(f"{i:04}") for i in range(1000)))
    end.peer.shutdown(socket.SHUT_WR)
    assert end.read_to_end() == b"".join(text(f"{i:04}") for i in range(1000))


def test_close_delivers_written_messages(open_end: OpenEnd) -> None:
    """All messages that ``write`` accepted arrive if the peer reads them."""
    end = open_end(queue_size=100_000)
    payload = "x" * 5000
    for i in range(2000):
        end.conn.write(Text(f"{i} {payload}"))
    closer = threading.Thread(target=end.conn.close, name="test-closer")
    closer.start()
    data = end.read_to_end()
    assert data == b"".join(text(f"{i} {payload}") for i in range(2000))
    end.peer.close()
    closer.join()
    assert end.conn.wait_closed(PATIENCE)
    assert end.conn.close_reason == "closed by this side"


def test_close_with_a_reason(open_end: OpenEnd) -> None:
    """``close_reason`` is the given reason, also in ``on_close``; only the first one counts."""
    closed = Seen()
    end = open_end(on_close=lambda conn: closed.add(conn.close_reason))
    for wrong, error in ((7, TypeError), (None, TypeError), ("", ValueError)):
        with pytest.raises(error, match="reason of a close must"):
            end.conn.close(wrong)  # type: ignore[arg-type]
    assert not end.conn.closed
    end.conn.close("the licence has expired")
    end.conn.close("too late")
    with pytest.raises(ConnectionClosed, match=r"^the licence has expired$"):
        end.conn.write(Text("x"))
    assert closed.wait() == [end.conn.close_reason] == ["the licence has expired"]


def test_state(open_end: OpenEnd) -> None:
    """Handlers share it; it is separate from the values."""
    end, other = open_end(), open_end()
    assert vars(end.conn.state) == {} and end.conn.state is end.conn.state
    end.conn.state.user = "ann"

    @end.registry.handler(Text)
    def answer(ctx: Context, conn: Connection) -> None:
        conn.write(Text(conn.state.user))

    end.send(text("?"))
    assert end.read_text() == "ann"
    assert (end.conn.value("user"), vars(other.conn.state)) == (None, {})


def test_close_twice_and_from_many_threads(open_end: OpenEnd) -> None:
    """The connection ends once, with one ``on_close``."""
    closed = Seen()
    end = open_end(on_close=lambda conn: closed.add(conn.close_reason))
    end.peer.close()
    together(*[end.conn.close] * 8)
    assert end.conn.wait_closed(PATIENCE)
    end.conn.close()
    assert len(closed.items) == 1


def test_a_handler_may_close_its_connection(open_end: OpenEnd) -> None:
    """``close`` returns in a handler, and earlier messages of the handler arrive."""
    registry, after = Registry(), Seen()

    @registry.handler(Text)
    def goodbye(ctx: Context, conn: object) -> None:
        conn.write(Text("bye"))  # type: ignore[attr-defined]
        conn.close()  # type: ignore[attr-defined]
        after.add(ctx.cancelled)

    end = open_end(registry=registry)
    end.send(text("x") + text("never handled"))
    assert end.read_to_end() == text("bye")
    assert after.wait() == [True]
    end.peer.close()
    assert end.conn.wait_closed(PATIENCE)
    assert len(after.items) == 1


def test_a_peer_that_does_not_close_is_waited_for_briefly(open_end: OpenEnd) -> None:
    """After this side's end of stream, the peer has a moment to close; then the connection ends."""
    end = open_end()
    assert ends(end.conn.close)
    assert end.conn.wait_closed(PATIENCE)


def test_a_peer_that_does_not_read_is_aborted(open_end: OpenEnd) -> None:
    """Messages not delivered within ``drain_timeout`` are counted and reported."""
    errors = Seen()
    end = open_end(drain_timeout=0.1, on_error=lambda conn, error: errors.add(str(error)))
    with pytest.raises(WouldBlock):
        while True:
            end.conn.write(Text("x" * 100_000))
    end.conn.close()
    assert end.conn.wait_closed(PATIENCE)
    assert "messages" in errors.wait()[-1]
    assert "could not be sent: closed by this side" in errors.items[-1]
    assert end.conn._core.counts().unsent > 0


def test_a_handler_that_never_returns_does_not_prevent_the_end(open_end: OpenEnd) -> None:
    """After ``drain_timeout``, the connection is closed while the handler still runs."""
    registry = Registry()
    entered, leave = threading.Event(), threading.Event()

    @registry.handler(Text)
    def stuck(ctx: Context, conn: object) -> None:
        entered.set()
        leave.wait(PATIENCE)

    closed = Seen()
    end = open_end(registry=registry, drain_timeout=0.1, on_close=lambda conn: closed.add(1))
    end.send(text("x"))
    assert entered.wait(PATIENCE)
    end.conn.close()
    assert closed.wait() == [1]
    leave.set()


def test_a_disconnect_cancels_the_context_of_a_handler(open_end: OpenEnd) -> None:
    """A handler that waits for its context is woken when the peer disconnects."""
    registry, seen = Registry(), Seen()

    @registry.handler(Text)
    def wait(ctx: Context, conn: object) -> None:
        seen.add("waiting")
        seen.add(ctx.wait(PATIENCE))

    end = open_end(registry=registry)
    end.send(text("x"))
    seen.wait(1)
    end.peer.close()
    assert seen.wait(2) == ["waiting", True]


def test_close_during_writes(open_end: OpenEnd) -> None:
    """Concurrent writes either succeed or raise; all accepted messages arrive."""
    end = open_end(queue_size=10_000)
    go = threading.Event()

    def write() -> int:
        count = 0
        try:
            while True:
                end.conn.write(Text("x"), timeout=PATIENCE)
                count += 1
                if count > 50:
                    go.set()
        except ConnectionClosed:
            return count

    def close() -> int:
        go.wait(PATIENCE)
        end.conn.close()
        return 0

    def read() -> int:
        data = end.read_to_end()
        end.peer.close()
        return len(data) // len(text("x"))

    *written, _, received = together(write, write, write, write, close, read)
    assert sum(written) == received


# -- on_connect


def test_on_connect_writes_first(open_end: OpenEnd) -> None:
    """Messages written by ``on_connect`` arrive first."""

    def greet(conn: object) -> bool:
        conn.write(Text("welcome"))  # type: ignore[attr-defined]
        return True

    end = open_end(on_connect=greet)
    end.conn.write(Text("second"))
    assert [end.read_text(), end.read_text()] == ["welcome", "second"]


def test_on_close_follows_the_last_handler(open_end: OpenEnd) -> None:
    """No handler of a connection runs after its ``on_close``."""
    registry, seen = Registry(), Seen()
    registry.handler(Number)(lambda ctx, conn: seen.add(ctx.message.value))
    end = open_end(registry=registry, on_close=lambda conn: seen.add("closed"))
    end.send(b"".join(number(i) for i in range(500)))
    end.peer.close()
    assert seen.wait(501) == [*range(500), "closed"]


def test_the_read_size_shrinks_again(open_end: OpenEnd) -> None:
    """After large messages, a connection returns to small reads when messages are small."""
    registry = Registry()
    registry.handler(Text)(lambda ctx, conn: None)
    end = open_end(registry=registry)
    reader = end.conn._core.reader
    reader.recv_size = 256 * 1024
    end.send(text("") * 16_000)
    wait_until(lambda: end.conn._core.runner.handled == 16_000)
    assert reader.recv_size <= 16 * 1024
