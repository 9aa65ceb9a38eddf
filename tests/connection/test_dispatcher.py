"""Where handlers run, in which order, and what a handler that blocks must not do."""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tao.connection.handler_trust import TRUST_MOST, learn
from tao.runtime.context import Context
from tao.runtime.histogram import summed
from tao.server.server import Server
from tao.wire.message import Registration, Registry
from tests.ends import End, Number, Seen, Text, frame, number, text
from tests.support import PATIENCE, recv_exactly, together, wait_until

OpenEnd = Callable[..., End]


def role() -> str:
    """The part of the calling thread: ``reader``, ``handler`` or ``worker``."""
    return threading.current_thread().name.split("-")[1].split("_")[0]


def where(mode: str | None) -> tuple[Registry, Seen]:
    """A registry whose handlers tell which thread they run on, and answer."""
    registry, seen = Registry(), Seen()

    @registry.handler(Number, dispatch=mode)
    def tell(ctx: Context, conn: Any) -> None:
        seen.add(role())
        conn.write(ctx.message)

    return registry, seen


def ask(end: End, times: int) -> None:
    """Send so many messages, each after the answer to the one before."""
    for i in range(times):
        end.send(number(i))
        assert end.read(16) == number(i)


# -- which thread


def test_inline_always_runs_on_the_reader(open_end: OpenEnd) -> None:
    """dispatch="inline" never hands over."""
    registry, seen = where("inline")
    ask(open_end(registry=registry), 10)
    assert set(seen.items) == {"reader"}


def test_pool_always_runs_on_the_workers(open_end: OpenEnd) -> None:
    """dispatch="pool" never runs on the reader; a client's handling thread is its only worker."""
    registry, seen = where("pool")
    end = open_end(registry=registry)
    ask(end, 20)
    assert set(seen.items) == {"worker" if end.server else "handler"}


def test_a_connections_mode_holds_for_its_handlers(open_end: OpenEnd) -> None:
    """The option applies where the handler does not say otherwise."""
    registry, seen = where(None)
    ask(open_end(registry=registry, dispatch="inline"), 10)
    assert set(seen.items) == {"reader"}


def test_a_quick_handler_comes_to_run_on_the_reader(open_end: OpenEnd) -> None:
    """It starts in the pool and is trusted after a few quick runs."""
    registry, seen = where("auto")
    end = open_end(registry=registry)
    ask(end, 200)
    assert seen.items[0] != "reader"
    assert "reader" in seen.items  # the last may not be: on a busy machine it is slow at times


def test_a_slow_handler_stays_in_the_pool(open_end: OpenEnd) -> None:
    """It is never trusted."""
    registry, seen = Registry(), Seen()
    never = threading.Event()

    @registry.handler(Number)
    def slow(ctx: Context, conn: Any) -> None:
        seen.add(role())
        never.wait(0.002)
        conn.write(ctx.message)

    ask(open_end(registry=registry), 20)
    assert "reader" not in seen.items


def test_a_handler_that_turns_slow_goes_back_to_the_pool(open_end: OpenEnd) -> None:
    """A trusted handler that blocks is trusted no longer."""
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


def test_what_a_busy_machine_takes_is_not_held_against_a_handler() -> None:
    """A run no longer than threads have to wait anyway neither costs trust nor earns it."""
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
    """A registry with a handler that can be made to block, trusted from the start."""

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


def test_a_reader_that_blocks_is_relieved(open_end: OpenEnd) -> None:
    """While a handler blocks on the reading thread, the connection is read by another."""
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


def test_a_blocked_reader_sees_the_disconnect(open_end: OpenEnd) -> None:
    """The context of the blocked handler is cancelled when its peer goes."""
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


def test_a_handler_may_wait_for_what_is_read_later(open_end: OpenEnd) -> None:
    """A handler that blocks until a later message has been decoded does not dead-lock."""
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
    """Replies of a batch leave although a handler of the same batch blocks."""
    gate = Gate()
    end = open_end(registry=gate.registry)
    end.send(number(1) + number(2) + text("blocks") + number(3))
    assert end.read(32) == number(1) + number(2)
    assert gate.entered.wait(PATIENCE)
    gate.leave.set()
    assert end.read(16) == number(3)


def test_a_reply_does_not_wait_within_a_run_of_one_kind(open_end: OpenEnd) -> None:
    """Also if it is the same handler that answers and then blocks."""
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


def test_order_holds_around_a_handler_that_blocks(open_end: OpenEnd) -> None:
    """What comes meanwhile, timers included, waits for its turn and keeps it."""
    gate = Gate()
    end = open_end(registry=gate.registry)
    end.send(text("gate") + number(0))
    assert gate.entered.wait(PATIENCE)
    for i in range(1, 50):
        end.send(number(i))
    wait_until(lambda: end.conn._core.dispatcher.pending >= 40)
    end.conn.run_after(0, lambda due, conn: gate.seen.add("timer"))
    wait_until(lambda: end.conn._core.dispatcher.pending >= 41)
    gate.leave.set()
    assert gate.seen.wait(52) == ["gate", *range(50), "timer"]


def test_other_connections_go_on_while_one_blocks() -> None:
    """A handler that blocks, inline or in the pool, delays nobody else."""
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


def test_a_full_inbox_pushes_back(open_end: OpenEnd) -> None:
    """While a handler blocks, no more than queue_size messages and one batch are taken in."""
    gate = Gate()
    end = open_end(registry=gate.registry, queue_size=10, idle_timeout=0.5)
    end.send(text("gate"))
    assert gate.entered.wait(PATIENCE)
    end.peer.settimeout(1)
    sent = 0
    block = number(7) * 1000
    with pytest.raises(TimeoutError):
        while True:
            sent += end.peer.send(block)
    end.peer.settimeout(PATIENCE)
    assert end.conn._core.dispatcher.pending < sent / 16
    assert end.conn._core.gate.paused
    gate.leave.set()
    end.peer.close()


# -- order


@pytest.mark.parametrize("mode", ["inline", "auto", "pool"])
def test_one_that_blocks_does_not_hide_among_quick_ones(open_end: OpenEnd, mode: str) -> None:
    """In the latencies it counts by itself, also in the midst of a run of one kind."""
    registry = Registry()
    gate = threading.Event()

    @registry.handler(Number)
    def one_blocks(ctx: Context, conn: Any) -> None:
        if ctx.message.value == 10:
            assert gate.wait(PATIENCE)

    end = open_end(registry=registry, dispatch=mode)
    end.send(b"".join(number(i) for i in range(20)))
    dispatcher = end.conn._core.dispatcher
    wait_until(lambda: dispatcher.runner.stuck)
    gate.wait(0.1)
    gate.set()
    wait_until(lambda: dispatcher.runner.handled == 20)
    latency = summed(end.conn._core.tally.latencies.copies()[Number.message_number])
    assert latency.count == 20
    assert latency.most > 0.09 and latency.p90 < latency.most / 2
    assert dispatcher.runner.busy_time > 0.09


@pytest.mark.parametrize("seed", [1, 2])
def test_order_over_promotion_demotion_and_relief(open_end: OpenEnd, seed: int) -> None:
    """100 000 messages of which some block, in the order they came, whatever thread runs them."""
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
    """Under load on all connections, each one's messages stay in order."""
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


# -- the watch


def test_the_watch_sleeps_when_nothing_runs(open_end: OpenEnd) -> None:
    """Soon after the last message no timer is left that looks for blocked handlers."""
    registry, _ = where("inline")
    end = open_end(registry=registry, heartbeat=None)
    ask(end, 50)
    wait_until(lambda: end.conn._core.wheel.size == 0)


def test_the_watch_sleeps_while_a_known_handler_blocks(open_end: OpenEnd) -> None:
    """A handler that was found to block costs no further looks."""
    gate = Gate()
    end = open_end(registry=gate.registry, heartbeat=None, handler_warn_after=None)
    end.send(text("x"))
    assert gate.entered.wait(PATIENCE)
    wait_until(lambda: end.conn._core.wheel.size == 0)
    gate.leave.set()
