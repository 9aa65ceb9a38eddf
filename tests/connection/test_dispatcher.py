"""The dispatcher: on which thread and in which order handlers run, and handlers that block."""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tao.connection.handling.handler_trust import TRUST_MOST, learn
from tao.runtime.context import Context
from tao.runtime.histogram import summed
from tao.server.server import Server
from tao.wire.message import Registration, Registry
from tests.ends import End, Number, Seen, Text, frame, number, text
from tests.support import PATIENCE, recv_exactly, together, wait_until

OpenEnd = Callable[..., End]


def role() -> str:
    """Return the role of the calling thread: ``reader``, ``handler`` or ``worker``."""
    return threading.current_thread().name.split("-")[1].split("_")[0]


def where(mode: str | None) -> tuple[Registry, Seen]:
    """Return a registry with handlers that record their thread and reply."""
    registry, seen = Registry(), Seen()

    @registry.handler(Number, dispatch=mode)
    def tell(ctx: Context, conn: Any) -> None:
        seen.add(role())
        conn.write(ctx.message)

    return registry, seen


def ask(end: End, times: int) -> None:
    """Send ``times`` messages, each after the reply to the previous one."""
    for i in range(times):
        end.send(number(i))
        assert end.read(16) == number(i)


# -- threads


def test_inline_always_runs_on_the_reader(open_end: OpenEnd) -> None:
    """``dispatch="inline"`` never uses another thread."""
    registry, seen = where("inline")
    ask(open_end(registry=registry), 10)
    assert set(seen.items) == {"reader"}


def test_pool_always_runs_on_the_workers(open_end: OpenEnd) -> None:
    """``dispatch="pool"`` never uses the reader; a client's only worker is its handler thread."""
    registry, seen = where("pool")
    end = open_end(registry=registry)
    ask(end, 20)
    assert set(seen.items) == {"worker" if end.server else "handler"}


def test_the_dispatch_of_a_connection_is_the_default(open_end: OpenEnd) -> None:
    """The option applies to handlers without a ``dispatch`` of their own."""
    registry, seen = where(None)
    ask(open_end(registry=registry, dispatch="inline"), 10)
    assert set(seen.items) == {"reader"}


def test_a_quick_handler_is_promoted_to_the_reader(open_end: OpenEnd) -> None:
    """It starts in the pool, and runs on the reader after a few quick runs."""
    registry, seen = where("auto")
    end = open_end(registry=registry)
    ask(end, 200)
    assert seen.items[0] != "reader"
    assert "reader" in seen.items  # on a busy machine, the last run may be slow


def test_a_slow_handler_stays_in_the_pool(open_end: OpenEnd) -> None:
    """It is never promoted."""
    registry, seen = Registry(), Seen()
    never = threading.Event()

    @registry.handler(Number)
    def slow(ctx: Context, conn: Any) -> None:
        seen.add(role())
        never.wait(0.002)
        conn.write(ctx.message)

    ask(open_end(registry=registry), 20)
    assert "reader" not in seen.items


def test_a_handler_that_becomes_slow_is_demoted(open_end: OpenEnd) -> None:
    """A promoted handler that blocks runs in the pool again."""
    registry, seen = Registry(), Seen()
    never = threading.Event()
    slow = threading.Event()

    @registry.handler(Number)
    def handle(ctx: Context, conn: Any) -> None:
        seen.add(role())
        if slow.is_set():
            never.wait(0.03)
        conn.write(ctx.message)

    end = open_end(registry=registry)
    ask(end, 100)
    slow.set()
    ask(end, 10)
    assert seen.items[-1] != "reader"


# -- handlers that block


def test_delays_of_a_busy_machine_are_ignored() -> None:
    """A run as long as the usual delay of a thread neither promotes nor demotes a handler."""
    entry = Registration(1, bytes)
    for _ in range(TRUST_MOST):
        learn(entry, 0.0, False, 0.0)
    learn(entry, 0.1, False, 0.2)
    assert entry.trust == TRUST_MOST
    learn(entry, 0.3, False, 0.2)
    assert entry.trust == TRUST_MOST // 2
    learn(entry, 0.1, False, 0.2)
    assert entry.trust == TRUST_MOST // 2
    learn(entry, 0.1, False, 0.0)
    assert entry.trust == TRUST_MOST // 4
    learn(entry, 0.0, True, 0.2)
    assert entry.trust == 0


class Gate:
    """A registry with a handler that can block, and is promoted from the start."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.entered = threading.Event()
        self.leave = threading.Event()
        self.seen = Seen()

        @self.registry.handler(Text, dispatch="inline")
        def gate(ctx: Context, conn: Any) -> None:
            self.entered.set()
            self.leave.wait(PATIENCE)
            self.seen.add(ctx.message.text)

        @self.registry.handler(Number, dispatch="inline")
        def echo(ctx: Context, conn: Any) -> None:
            self.seen.add(ctx.message.value)
            conn.write(ctx.message)


def test_a_blocked_reader_is_relieved(open_end: OpenEnd) -> None:
    """While a handler blocks on the reading thread, another thread reads."""
    gate = Gate()
    end = open_end(registry=gate.registry)
    end.send(text("x"))
    assert gate.entered.wait(PATIENCE)
    before = end.conn._core.reader.last_received
    for _ in range(3):
        end.send(frame(0, struct.pack("<q", 1)))
        wait_until(lambda before=before: end.conn._core.reader.last_received > before)
        before = end.conn._core.reader.last_received
    gate.leave.set()
    end.send(number(1))
    assert end.read(16) == number(1)


def test_a_disconnect_is_noticed_while_the_reader_is_blocked(open_end: OpenEnd) -> None:
    """The context of the blocked handler is cancelled."""
    registry, seen = Registry(), Seen()

    @registry.handler(Text, dispatch="inline")
    def wait(ctx: Context, conn: Any) -> None:
        seen.add("waiting")
        seen.add(ctx.wait(PATIENCE))

    end = open_end(registry=registry)
    end.send(text("x"))
    seen.wait(1)
    end.peer.close()
    assert seen.wait(2) == ["waiting", True]
    assert end.conn.wait_closed(PATIENCE)


def test_a_handler_may_wait_for_a_later_message_to_be_read(open_end: OpenEnd) -> None:
    """Blocking until a later message has been decoded causes no deadlock."""
    registry = Registry()
    decoded = threading.Event()

    def deserialize(data: bytes) -> Number:
        decoded.set()
        return Number.deserialize(data)

    registry.register(2, deserialize, lambda ctx, conn: None)

    @registry.handler(Text, dispatch="inline")
    def wait(ctx: Context, conn: Any) -> None:
        conn.write(Text("came" if decoded.wait(PATIENCE) else "did not come"))

    end = open_end(registry=registry)
    end.send(text("x"))
    end.send(number(1))
    assert end.read_text() == "came"


def test_a_reply_does_not_wait_for_a_later_handler(open_end: OpenEnd) -> None:
    """Replies of a batch are sent even if a later handler of the batch blocks."""
    gate = Gate()
    end = open_end(registry=gate.registry)
    end.send(number(1) + number(2) + text("blocks") + number(3))
    assert end.read(32) == number(1) + number(2)
    assert gate.entered.wait(PATIENCE)
    gate.leave.set()
    assert end.read(16) == number(3)


def test_a_reply_does_not_wait_for_the_same_handler(open_end: OpenEnd) -> None:
    """This holds even if the same handler has replied and now blocks."""
    registry = Registry()
    leave = threading.Event()

    @registry.handler(Number, dispatch="inline")
    def third_blocks(ctx: Context, conn: Any) -> None:
        if ctx.message.value == 3:
            leave.wait(PATIENCE)
        conn.write(ctx.message)

    end = open_end(registry=registry)
    end.send(b"".join(map(number, range(1, 6))))
    assert end.read(32) == number(1) + number(2)
    leave.set()
    assert end.read(48) == number(3) + number(4) + number(5)


def test_order_during_a_blocked_handler(open_end: OpenEnd) -> None:
    """Messages and timers that arrive meanwhile wait, and keep their order."""
    gate = Gate()
    end = open_end(registry=gate.registry)
    end.send(text("gate") + number(0))
    assert gate.entered.wait(PATIENCE)
    for i in range(1, 50):
        end.send(number(i))
    dispatcher = end.conn._core.dispatcher
    wait_until(lambda: dispatcher.pending >= 50 and dispatcher.inbox.waiting >= 49)
    end.conn.run_after(0, lambda due, conn: gate.seen.add("timer"))
    wait_until(lambda: dispatcher.pending >= 51)
    gate.leave.set()
    assert gate.seen.wait(52) == ["gate", *range(50), "timer"]


def test_nothing_is_stuck_before_a_handler_runs(open_end: OpenEnd) -> None:
    """A thread that had no turn before its first handler is still looked after in that."""
    gate = Gate()
    end = open_end(registry=gate.registry)
    runner = end.conn._core.runner
    for now in (1e9, 2e9):
        runner.look(now, 0.0)
    assert not runner.stuck
    end.send(text("gate"))
    assert gate.entered.wait(PATIENCE)
    wait_until(lambda: runner.stuck)
    gate.leave.set()


def test_other_connections_continue_while_one_blocks() -> None:
    """A blocking handler, inline or in the pool, does not delay other connections."""
    gate = Gate()
    with Server(registry=gate.registry, workers=1) as server:
        address = server.start(("127.0.0.1", 0))
        with (
            socket.create_connection(address) as blocked,
            socket.create_connection(address) as free,
        ):
            blocked.sendall(text("x"))
            assert gate.entered.wait(PATIENCE)
            for i in range(100):
                free.sendall(number(i))
                assert recv_exactly(free, 16) == number(i)
            gate.leave.set()


def test_a_full_inbox_pauses_reading(open_end: OpenEnd) -> None:
    """While a handler blocks, at most ``queue_size`` messages and one batch are read."""
    gate = Gate()
    end = open_end(registry=gate.registry, queue_size=10)
    end.send(text("gate"))
    assert gate.entered.wait(PATIENCE)
    end.peer.settimeout(0.5)
    sent = 0
    block = number(7) * 1000
    for _ in range(int(2 * PATIENCE)):
        with pytest.raises(TimeoutError):
            while True:
                sent += end.peer.send(block)
        if end.conn._core.gate.paused:
            break  # else the reader has had no turn
    end.peer.settimeout(PATIENCE)
    assert end.conn._core.gate.paused
    assert end.conn._core.dispatcher.pending < sent / 16
    reader = end.conn._core.reader
    before = reader.last_received
    end.conn.set_keepalive(idle_timeout=0.01)
    wait_until(lambda: reader.last_received > before)  # nothing came, but that is no silence
    assert not end.conn.closed
    gate.leave.set()
    end.peer.close()


# -- order


@pytest.mark.parametrize("mode", ["inline", "auto", "pool"])
def test_a_blocking_run_is_measured_separately(open_end: OpenEnd, mode: str) -> None:
    """In the latencies it counts by itself, even within a batch of quick runs."""
    registry = Registry()
    entered, gate = threading.Event(), threading.Event()

    @registry.handler(Number)
    def one_blocks(ctx: Context, conn: Any) -> None:
        if ctx.message.value == 10:
            entered.set()
            assert gate.wait(PATIENCE)

    end = open_end(registry=registry, dispatch=mode)
    end.send(b"".join(number(i) for i in range(20)))
    dispatcher = end.conn._core.dispatcher
    assert entered.wait(PATIENCE)
    wait_until(lambda: dispatcher.runner.stuck)
    gate.wait(0.1)
    gate.set()
    wait_until(lambda: dispatcher.runner.handled == 20)
    latency = summed(end.conn._core.statistics.latencies.copies()[Number.message_number])
    assert latency.count == 20
    assert latency.most > 0.09 and latency.p90 < latency.most / 2
    assert dispatcher.runner.busy_time > 0.09


@pytest.mark.parametrize("seed", [1, 2])
def test_order_during_promotions_and_relief(open_end: OpenEnd, seed: int) -> None:
    """100 000 messages, some of which block, keep their order on whatever thread they run."""
    count = 100_000
    rng = random.Random(seed)
    blocking = set(rng.sample(range(count), 12))
    registry = Registry()
    never = threading.Event()
    handled: list[int] = []
    roles = set()

    def handle(ctx: Context, conn: Any) -> None:
        value = ctx.message.value
        if value in blocking:
            never.wait(0.02)
        handled.append(value)
        if value % 50 == 0:
            roles.add(role())
        conn.write(ctx.message, timeout=PATIENCE)

    registry.handler(Number)(handle)
    end = open_end(registry=registry)

    def send() -> None:
        sent = 0
        while sent < count:
            step = rng.choice([1, 3, 50, 700])
            wait_until(lambda behind=sent - 1000: len(handled) > behind)
            end.send(b"".join(map(number, range(sent, min(count, sent + step)))))
            sent += step

    _, replies = together(send, lambda: end.read(16 * count))
    assert handled == list(range(count))
    assert replies == b"".join(map(number, range(count)))
    assert "reader" in roles
    assert len(roles) >= 2


def test_order_with_timers_and_many_connections() -> None:
    """The messages of each connection stay in order under load on all connections."""
    registry = Registry()
    last: dict[int, int] = {}
    wrong: list[Any] = []

    @registry.handler(Number)
    def check(ctx: Context, conn: Any) -> None:
        if ctx.message.value != last.get(ctx.net_id or 0, -1) + 1:
            wrong.append((ctx.net_id, ctx.message.value))
        last[ctx.net_id or 0] = ctx.message.value

    inside: set[int] = set()

    def tick(due: object, conn: Any) -> None:
        if conn.net_id in inside:
            wrong.append(conn.net_id)
        inside.add(conn.net_id)
        inside.discard(conn.net_id)

    with Server(registry=registry) as server:
        address = server.start(("127.0.0.1", 0))
        server.schedule(0.001, tick)

        def drive() -> None:
            with socket.create_connection(address, PATIENCE) as sock:
                for i in range(0, 5000, 10):
                    sock.sendall(b"".join(map(number, range(i, i + 10))))

        together(*[drive] * 10)
        wait_until(lambda: sum(last.values()) == 10 * 4999)
    assert not wrong


# -- the block watch


def watching(end: End) -> int:
    """How many timers there are, except the one of a shared listener."""
    core = end.conn._core
    looks = end.server is not None and core.settings.readers == "shared"
    return core.wheel.size - looks


def test_the_watch_stops_when_idle(open_end: OpenEnd) -> None:
    """Soon after the last message, no timer for blocked handlers is left."""
    registry, _ = where("inline")
    end = open_end(registry=registry, heartbeat=None)
    ask(end, 50)
    wait_until(lambda: watching(end) == 0)


def test_the_watch_stops_for_a_known_blocked_handler(open_end: OpenEnd) -> None:
    """A handler that is known to block is not checked again."""
    gate = Gate()
    end = open_end(registry=gate.registry, heartbeat=None, handler_warn_after=None)
    end.send(text("x"))
    assert gate.entered.wait(PATIENCE)
    wait_until(lambda: watching(end) == 0)
    gate.leave.set()
