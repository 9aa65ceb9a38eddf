"""The public test helpers: servers, recording clients, memory, the clock and the plugin."""

from __future__ import annotations

import configparser
import inspect
import os
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

import tao
from tao import testing
from tao.client.client import ClientConn
from tao.connection.options.definitions import Reconnect
from tao.errors import ConnectFailed, ConnectionClosed, WouldBlock
from tao.runtime.context import background
from tao.server.server import Server, server_core_of
from tao.testing import (
    Clock,
    MemoryClient,
    RecordingClient,
    Unregistered,
    memory_pair,
    memory_transports,
    running,
    serving,
)
from tao.wire.message import Registry
from tests.ends import MakeServer, Number, Seen, Text, frame
from tests.support import PATIENCE, ends, together, wait_until

ROOT = Path(__file__).parents[2]


def echo(registry: Registry) -> Registry:
    """Make a registry reply to each text with the same text."""

    @registry.handler(Text)
    def answer(ctx: Any, conn: Any) -> None:
        conn.write(ctx.message)

    return registry


def echo_server(**options: Any) -> Server:
    return Server(registry=echo(Registry()), **options)


def failure(function: Callable[..., Any], *args: Any, **keywords: Any) -> str:
    """Return the text of a failed check."""
    with pytest.raises(AssertionError) as caught:
        function(*args, **keywords)
    return str(caught.value)


# -- the examples


def examples() -> list[Any]:
    found = []
    for name in testing.__all__:
        thing = getattr(testing, name)
        text = inspect.getdoc(thing) if callable(thing) else None
        for code in re.findall(r"^::\n\n((?:    .*\n|\n)+)", text or "", re.MULTILINE):
            found.append(pytest.param(textwrap.dedent(code), id=name))
    return found


@pytest.mark.parametrize("code", examples())
def test_an_example_runs(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code in the docstring runs."""
    monkeypatch.setattr("tao.server.server.default_registry", Registry())
    exec(compile(code, "example", "exec"), {"__name__": "example"})


def test_each_helper_has_an_example() -> None:
    """The docstring of each main helper has an example."""
    shown = {example.id for example in examples()}
    assert shown >= {"running", "serving", "RecordingClient", "memory_pair", "Clock"}


# -- running a server


def test_a_server_runs_for_the_length_of_a_block() -> None:
    """The server can be reached in the block, and is stopped afterwards."""
    server = echo_server()
    with running(server) as address:
        assert address == server.address and address[0] == "127.0.0.1"
        with RecordingClient(server) as client:
            client.send(Text("hello"))
            client.expect(Text, text="hello")
    assert not server.running


def test_an_unclean_shutdown_fails() -> None:
    """The error names a handler that does not end, and its connection, unless ``clean=False``."""
    for clean in (True, False):
        entered, release = threading.Event(), threading.Event()
        server = Server(registry=Registry(), drain_timeout=0.05)

        @server.handler(Text, dispatch="pool")
        def block(ctx: Any, conn: Any, entered: Any = entered, release: Any = release) -> None:
            entered.set()
            release.wait(PATIENCE)

        def use(server: Server = server, clean: bool = clean, entered: Any = entered) -> None:
            with running(server, clean=clean):
                client = RecordingClient(server)
                client.send(Text("x"))
                assert entered.wait(PATIENCE)

        try:
            if clean:
                text = failure(use)
                assert "not stop cleanly" in text and "1 messages not handled" in text
            else:
                use()
        finally:
            release.set()


def test_an_exception_of_the_block_takes_precedence() -> None:
    """The server is stopped, and the stop report does not hide the exception."""
    with pytest.raises(KeyError), serving(registry=Registry()) as server:
        raise KeyError
    assert not server.running


# -- the recording client


def test_expect_takes_messages_in_turn() -> None:
    """Each message is returned once, in order."""
    with serving(registry=echo(Registry())) as server, RecordingClient(server) as client:
        for word in ("one", "two", "three"):
            client.send(Text(word))
        assert client.expect(Text).text == "one"
        client.expect(Text, text="two")
        assert [message.text for message in client.wait_for(3)] == ["one", "two", "three"]
        assert client.wait_for(lambda message: message.text > "p").text == "two"
        client.expect(Text, text="three")


def test_the_errors_of_expect() -> None:
    """The error names the message that arrived, its attributes, or that none arrived."""
    with serving(registry=echo(Registry())) as server, RecordingClient(server) as client:
        client.send(Text("one"))
        client.send(Text("two"))
        text = failure(client.expect, Number)
        assert text == "expected a Number, but Text(text='one') came; before it: nothing"
        text = failure(client.expect, Text, text="TWO")
        assert text.startswith("expected Text(text='TWO'), but Text(text='two') came; before it: ")
        text = failure(client.expect, Text, timeout=0.01)
        assert "nothing more came within 0.01 s; received: Text(text='one'), Text(te" in text
        assert "5 messages, but it did not come" in failure(client.wait_for, 5, timeout=0.01)
        assert "<lambda> is true" in failure(client.wait_for, lambda message: 0, timeout=0.01)
        assert "after 0.01 s it has not" in failure(client.expect_closed, timeout=0.01)


def test_the_end_of_the_connection_ends_the_waiting() -> None:
    """A wait ends when the connection does, and the error has the close reason."""
    with serving(registry=echo(Registry())) as server, RecordingClient(server) as client:
        client.send(Text("last"))
        client.expect(Text)
        server.connections[0].close()
        text = failure(client.expect, Text)
        assert text.endswith("the connection ended: peer closed; received: Text(text='last')")
        assert client.expect_closed() == client.close_reason == "peer closed"
        assert client.closed and "1 received" in repr(client)


def test_messages_registered_later_are_known() -> None:
    """The server's messages are decoded without its handlers; others are recorded as bytes."""
    server = Server(registry=Registry())
    with running(server), RecordingClient(server) as client:
        conn = server.connections[0]
        conn.write(Text("unknown"))
        unknown = client.expect(Unregistered, message_number=1, data=b"unknown")
        echo(server.registry)
        assert "data=b'unknown'" in failure(client.wait_for, 2, timeout=0.01)
        conn.write(Text("known"))
        client.expect(Text, text="known")
        assert client.received[0] is unknown and not client.conn._core.counts().errors


def test_a_client_of_an_address() -> None:
    """The client knows the message classes that it is given."""
    with serving(
        registry=echo(Registry()), on_connect=lambda conn: conn.write(Number(7))
    ) as server:
        with RecordingClient(
            server.address, messages=[Text, Number], registry=Registry()
        ) as client:
            client.expect(Number, value=7)
            client.send_bytes(frame(1, b"by hand"))
            client.expect(Text, text="by hand")
        assert client.expect_closed() == "closed by this side"


def test_invalid_targets() -> None:
    """A server that does not listen, and memory without a server, are refused with a reason."""
    with pytest.raises(ValueError, match="does not listen"):
        RecordingClient(Server())
    with pytest.raises(TypeError, match="needs a Server"):
        RecordingClient(("127.0.0.1", 1), memory=True)


def test_a_long_record_is_abbreviated() -> None:
    """The error shows the last few messages, each shortened."""
    server = echo_server()
    with running(server), RecordingClient(server) as client:
        for number in range(20):
            client.send(Text(f"{number:03}" * 50))
        client.wait_for(20)
        text = failure(client.wait_for, 21, timeout=0.01)
        assert "15 messages, then Text(text='015015" in text and len(text) < 500


@pytest.mark.parametrize("address", [("", 0), ("0.0.0.0", 0), ("::1", 0), "unix"])
def test_a_client_connects_to_any_listening_address(address: Any, tmp_path: Path) -> None:
    """On return, the server has accepted the connection."""
    address = str(tmp_path / "socket") if address == "unix" else address
    with serving(address) as server, RecordingClient(server):
        assert server.connection_count == 1


def test_a_client_waits_for_on_connect() -> None:
    """It does not wait for a refusal, nor forever, nor with ``accepted=False``."""
    release = threading.Event()
    server = Server(registry=Registry(), on_connect=lambda conn: release.wait(PATIENCE))
    with running(server), RecordingClient(server, accepted=False):
        assert not server.connections
        with pytest.MonkeyPatch.context() as patch, pytest.raises(TimeoutError, match="on_connect"):
            patch.setattr("tao.testing.recording_client.PATIENCE", 0.01)
            RecordingClient(server)
        release.set()
    with serving(on_connect=lambda conn: False) as server, RecordingClient(server) as client:
        assert client.expect_closed() == "peer closed"


# -- memory


def test_a_memory_transport_takes_what_fits() -> None:
    """A write never blocks, returns 0 if the pipe is full, and keeps the order."""
    near, far = memory_transports(4)
    assert near.send(b"abcdef") == 4 and near.send(memoryview(b"ef")) == 0
    assert far.recv(3) == b"abc"
    assert near.send(memoryview(b"ef")) == 2
    assert far.recv(100) == b"def" and far.committed_bytes == 0
    assert near.peer_certificate is None and near.tls_version is None


def test_the_end_of_a_memory_stream() -> None:
    """Earlier data is read before the end; nothing can be sent after it."""
    near, far = memory_transports()
    near.send(b"last")
    assert near.shutdown_write()
    assert far.recv(10) == b"last" and far.recv(10) == b"" == far.recv(10)
    with pytest.raises(BrokenPipeError):
        near.send(b"more")
    assert far.send(b"reply") == 5 and near.recv(10) == b"reply"


@pytest.mark.parametrize("who", ["near", "far"])
def test_an_abort_in_memory_wakes_all_waiters(who: str) -> None:
    """An abort of either side wakes threads that wait in any call."""
    near, far = memory_transports(2)
    near.send(b"xx")
    aborted = near if who == "near" else far
    both = threading.Barrier(3)

    def wait_for(wait: Callable[[], object]) -> None:
        both.wait(PATIENCE)
        wait()

    def abort() -> None:
        both.wait(PATIENCE)
        aborted.abort()
        aborted.abort()

    assert ends(
        lambda: together(
            lambda: wait_for(near.wait_writable), lambda: wait_for(lambda: near.recv(9)), abort
        )
    )
    with pytest.raises(OSError, match=r"reset|[Bb]roken"):
        near.send(b"x")
    near.close()
    far.close()


def test_a_writer_in_memory_waits_for_room() -> None:
    """The writer is woken when the reader has made room."""
    near, far = memory_transports(2)
    near.send(b"xx")
    together(near.wait_writable, lambda: far.recv(1))
    assert near.send(b"yy") == 1


@pytest.mark.parametrize("capacity", [0, -1, True, 1.5, "1"])
def test_a_capacity_is_a_positive_number(capacity: Any) -> None:
    """Other values are refused at once, with an error that names the value."""
    with pytest.raises((TypeError, ValueError), match="capacity"):
        memory_transports(capacity)
    with pytest.raises((TypeError, ValueError), match="capacity"):
        MemoryClient(Server(), capacity=capacity)


@pytest.mark.parametrize("capacity", [1, 7, 64 * 1024])
def test_messages_go_both_ways_in_memory(capacity: int) -> None:
    """Messages are complete and in order with any capacity, and none is lost at the end."""
    seen = Seen()
    registry = Registry()
    registry.register(1, Text.deserialize, lambda ctx, conn: seen.add(ctx.message.text))
    words = [f"{number} " * (number % 5) for number in range(200)]
    with memory_pair(echo_server(), capacity=capacity, registry=registry) as pair:
        for word in words:
            pair.client.write(Text(word), timeout=PATIENCE)
        assert seen.wait(len(words)) == words
        assert pair.server.connections == [pair.conn]
        assert pair.conn.remote_address == pair.client.local_address
    assert pair.conn.close_reason == "peer closed" and not pair.server.running


def test_back_pressure_in_memory() -> None:
    """Pipe and queue of a peer that does not read fill up at the same message every time."""
    release = threading.Event()
    server = Server(registry=Registry(), queue_size=1)

    @server.handler(Text, dispatch="inline")
    def block(ctx: Any, conn: Any) -> None:
        release.wait(PATIENCE)

    with memory_pair(server, capacity=64, queue_size=4) as pair:
        with pytest.raises(WouldBlock):
            for _ in range(10_000):
                pair.client.write(Text("x" * 100))
        assert pair.client.send_queue_length == 4
        release.set()
        pair.client.write(Text("more"), timeout=PATIENCE)


def test_a_pair_on_a_running_server() -> None:
    """The server keeps running after the pair, and counts its connections like any others."""
    server = echo_server(max_connections=1)
    with running(server):
        with memory_pair(server) as pair:
            with memory_pair(server) as second, pytest.raises(LookupError):
                assert second.conn
            assert second.client.close_reason == "peer closed"
            assert pair.conn in server.connections
        assert server.running
        wait_until(lambda: not server.snapshot().connections)
    with pytest.raises(ConnectFailed, match="the server is stopped"):
        memory_pair(server)


def test_a_pair_without_a_server() -> None:
    """Without a server, a new one without handlers is used, and both ends can write."""
    with memory_pair(heartbeat=None, on_message=lambda message, conn: None) as pair:
        pair.conn.write(Text("x"))
        pair.client.write(Text("y"))
        pair.conn.close()
        assert pair.client.wait_closed(PATIENCE)
        assert pair.client.close_reason == "peer closed"


def test_on_connect_in_memory() -> None:
    """It may refuse, its messages are sent first, and a pair does not wait for it forever."""
    server = Server(registry=Registry(), on_connect=lambda conn: conn.write(Text("no")) or False)
    with RecordingClient(server, memory=True, messages=[Text]) as client:
        client.expect(Text, text="no")
        assert client.expect_closed() == "peer closed"
    assert server.stop().clean
    release = threading.Event()
    server = Server(registry=Registry(), on_connect=lambda conn: release.wait(PATIENCE))
    with running(server), MemoryClient(server) as waiting:
        with pytest.raises(TimeoutError, match="on_connect"):
            waiting.wait_accepted(0.01)
        release.set()
        waiting.wait_accepted()


def test_a_memory_client_reconnects() -> None:
    """With ``reconnect``, it makes another connection to the same server."""
    server, often = echo_server(), Reconnect(initial=0.001)
    with running(server), RecordingClient(server, memory=True, reconnect=often) as client:
        assert isinstance(client.conn, MemoryClient)
        client.conn.wait_accepted()
        first = client.conn.server_conn
        assert first is not None
        first.close()
        wait_until(lambda: client.conn.reconnects == 1)
        client.send(Text("again"))
        client.expect(Text, text="again")
        assert client.conn.server_conn is not first


def test_memory_does_not_support_tls() -> None:
    """The option raises an error."""
    with pytest.raises(ValueError, match="tls"):
        memory_pair(tls="anything")


# -- the clock


def test_a_clock_fires_timers_in_order() -> None:
    """Each timer fires at its time, periodic ones each time, and none earlier or later."""
    clock, calls = Clock(), []
    clock.run_after(3, lambda due: calls.append(("once", clock.now())))
    clock.run_every(2, lambda due: calls.append(("often", clock.now())))
    cancelled = clock.run_after(1, lambda due: calls.append(("never", clock.now())))
    assert clock.cancel(cancelled)
    clock.advance(1.5)
    assert calls == [] and clock.size == 2
    clock.advance(4.5)
    assert calls == [("often", 2), ("once", 3), ("often", 4), ("often", 6)]
    assert "6 s, 1 timers" in repr(clock)


def test_tenths_of_a_second_add_up() -> None:
    """A hundred steps of a tenth of a second are ten seconds, despite rounding errors."""
    clock, calls = Clock(), []
    clock.run_every(0.1, calls.append)
    clock.advance(10)
    assert len(calls) == 100
    for _ in range(100):
        clock.advance(0.1)
    assert len(calls) == 200


def test_callbacks_may_add_and_cancel_timers() -> None:
    """A timer added by a callback fires in the same step if it is due."""
    clock, calls = Clock(), []

    def first(due: datetime) -> None:
        clock.cancel(second)
        clock.run_after(1, lambda due: calls.append(clock.now()))
        raise ValueError("which stops nobody")

    clock.run_after(1, first)
    second = clock.run_after(1, lambda due: calls.append("cancelled"))
    clock.advance(5)
    assert calls == [2] and clock.now() == 5


def test_a_clock_has_a_time_of_day() -> None:
    """The time of day advances with the clock, and is passed to callbacks."""
    start, dues = datetime(2030, 1, 1, tzinfo=timezone.utc), []
    clock = Clock(start)
    clock.run_at(start + timedelta(hours=1), dues.append)
    clock.run_at((start - timedelta(hours=1)).timestamp(), dues.append)
    clock.advance(3599)
    assert dues == [start]
    clock.advance(1)
    assert dues == [start, start + timedelta(hours=1)]
    with pytest.raises(ValueError, match="time zone"):
        Clock(datetime(2030, 1, 1))  # noqa: DTZ001


def test_time_does_not_go_back() -> None:
    """A negative step and NaN are refused."""
    for seconds in (-1, float("nan")):
        with pytest.raises(ValueError, match="go back"):
            Clock().advance(seconds)


def test_one_clock_is_active_at_a_time() -> None:
    """A second clock is refused; after the block, another may follow, and real time is restored."""
    with Clock(), pytest.raises(RuntimeError, match="another clock"), Clock():
        pass
    with Clock() as clock, serving(registry=Registry()) as server:
        assert server_core_of(server).resources.wheel is clock
    with serving(registry=Registry()) as server:
        assert server_core_of(server).resources.wheel is not clock


def test_timers_of_connections_by_the_clock() -> None:
    """When ``advance`` returns, their callbacks have run once for each due time."""
    seen = Seen()
    with Clock() as clock, memory_pair(Server(registry=Registry())) as pair:
        pair.server.schedule(10, lambda due, conn: seen.add(("schedule", clock.now())))
        pair.client.run_every(4, lambda due, conn: seen.add(("client", clock.now())))
        pair.conn.run_at(clock.time_of_day() + 5, lambda due, conn: seen.add(("at", clock.now())))
        clock.advance(3)
        assert seen.items == []
        clock.advance(9)
        times = [("client", 4), ("at", 5), ("client", 8), ("schedule", 10), ("client", 12)]
        assert [(name, round(when, 6)) for name, when in seen.items] == times


def test_idle_connections_by_the_clock() -> None:
    """A connection is closed after this time without data, counted from the last data."""
    server = echo_server(idle_timeout=60, heartbeat=None)
    with Clock() as clock, running(server), RecordingClient(server) as client:
        for _ in range(5):
            clock.advance(59)
            client.send(Text("here"))
            client.expect(Text)
        clock.advance(59)
        assert not client.closed
        conn = server.connections[0]
        assert conn.last_heartbeat == pytest.approx(clock.time_of_day() - 59)
        clock.advance(1)
        assert conn.close_reason == "idle for 60 s"
        assert client.expect_closed() == "peer closed"


def test_heartbeats_by_the_clock() -> None:
    """A heartbeat is sent for each interval without other data, and keeps the peer alive."""
    server = Server(registry=Registry(), heartbeat=10, idle_timeout=15)
    with Clock() as clock, running(server), RecordingClient(server, heartbeat=10) as client:
        conn = server.connections[0]
        for beat in range(1, 21):
            clock.advance(10)
            wait_until(lambda beat=beat: client.heartbeats == beat)  # type: ignore[misc]
            wait_until(lambda beat=beat: conn._core.counts().messages_in == beat)  # type: ignore[misc]
        assert not client.closed and client.received == []


def test_a_stuck_peer_by_the_clock() -> None:
    """A connection to a peer that does not read is closed after ``write_timeout``."""
    release = threading.Event()
    registry = Registry()
    registry.register(
        1, Text.deserialize, lambda ctx, conn: release.wait(PATIENCE), dispatch="inline"
    )
    server = Server(registry=Registry(), write_timeout=5, drain_timeout=0.5)
    with (
        Clock() as clock,
        memory_pair(server, capacity=16, registry=registry, queue_size=1) as pair,
    ):
        for _ in range(20):
            pair.conn.write(Text("x" * 100))
        wait_until(lambda: pair.conn._core.send_queue.blocked)
        clock.advance(4.5)
        assert not pair.conn.closed
        clock.advance(5.5)
        wait_until(lambda: pair.conn.closed)
        assert pair.conn.close_reason == "the peer took nothing for 5 s"
        release.set()


def test_back_off_by_the_clock() -> None:
    """Each back-off is as long as configured, and takes no real time."""
    how = Reconnect(initial=1, factor=2, maximum=5, jitter=0)
    with Clock() as clock:
        with serving(registry=echo(Registry())) as server:
            client = MemoryClient(server, reconnect=how).start()
        for wait in (1, 2, 4, 5, 5):
            assert clock.wait_for_back_off() == [wait]
            clock.advance(wait - 0.5)
            assert clock.wait_for_back_off() == [0.5]
            clock.advance(0.5)
        assert clock.wait_for_back_off() == [5]
        with pytest.raises(TimeoutError, match="1 of 2 clients"):
            clock.wait_for_back_off(2, timeout=0.01)
        assert ends(client.close)  # it does not wait for the clock


def test_a_client_reconnects_by_the_clock(make_server: MakeServer) -> None:
    """The client dials again and connects when the clock reaches the end of the back-off."""
    server, address = make_server()
    with Clock() as clock, ClientConn(address, reconnect=Reconnect(initial=30, jitter=0)) as client:
        wait_until(lambda: server.connections)
        server.connections[0].close()
        assert clock.wait_for_back_off() == [30]
        clock.advance(30)
        assert client.wait_connected(PATIENCE) and client.reconnects == 1


def test_contexts_expire_by_the_clock() -> None:
    """A deadline is reached when the clock is advanced to it."""
    with Clock() as clock:
        context = background().with_timeout(5)
        clock.advance(4)
        assert not context.cancelled
        clock.advance(1)
        assert "deadline" in str(context.error)


def test_a_callback_that_does_not_return_is_reported() -> None:
    """``advance`` waits for the callbacks that it causes, but not forever."""
    entered, release = threading.Event(), threading.Event()
    with Clock() as clock, memory_pair(heartbeat=None) as pair:
        pair.client.run_after(1, lambda due, conn: (entered.set(), release.wait(PATIENCE)))
        with pytest.raises(TimeoutError, match="has not returned after"):
            clock.advance(1, patience=0.01)
        assert entered.wait(PATIENCE)
        release.set()
        clock.advance(0)


def test_discarded_callbacks_are_not_waited_for() -> None:
    """A closed connection discards its waiting callbacks, and ``advance`` notices that."""
    entered, release = threading.Event(), threading.Event()
    with Clock() as clock, memory_pair(Server(registry=Registry(), heartbeat=None)) as pair:
        pair.client.run_after(1, lambda due, conn: (entered.set(), release.wait(PATIENCE)))
        pair.client.run_after(2, lambda due, conn: pytest.fail("it was to be dropped"))
        stepping = threading.Thread(target=clock.advance, args=(1,), name="test-advance")
        stepping.start()
        assert entered.wait(PATIENCE)
        with pytest.raises(TimeoutError):
            clock._wait_for_calls(0.01)
        pair.client._core.begin_close("enough", drain=False)
        release.set()
        stepping.join(PATIENCE)
        clock.advance(5)
        with pytest.raises(ConnectionClosed):
            pair.client.run_after(1, lambda due, conn: None)


def test_no_callback_advances_the_clock() -> None:
    """``advance`` raises in a callback, because it would wait for itself."""
    errors = Seen()

    def advance(due: Any, conn: Any) -> None:
        with pytest.raises(RuntimeError) as caught:
            clock.advance(1)
        errors.add(str(caught.value))

    with Clock() as clock, memory_pair() as pair:
        pair.client.run_after(1, advance)
        clock.run_after(1, lambda due: advance(due, None))
        clock.advance(1)
    assert errors.items == ["a clock cannot be advanced from a handler or callback"] * 2


def test_blocking_handlers_are_relieved_in_real_time() -> None:
    """While the clock stands still, another thread continues to read."""
    server, both = Server(registry=Registry()), threading.Barrier(2)
    numbers = Seen()

    @server.handler(Text, dispatch="inline")
    def wait(ctx: Any, conn: Any) -> None:
        both.wait(PATIENCE)

    @server.handler(Number)
    def note(ctx: Any, conn: Any) -> None:
        numbers.add(ctx.message.value)

    with Clock(), memory_pair(server) as pair:
        pair.client.write(Text("block"))
        pair.client.write(Number(1))
        wait_until(lambda: pair.conn._core.counts().messages_in == 2)
        both.wait(PATIENCE)
        assert numbers.wait() == [1]


# -- the plugin

SUITE = """
import socket, threading
import pytest
import tao, tao.testing.pytest_plugin

class Line:
    message_number = 1
    def __init__(self, text): self.text = text
    def serialize(self): return self.text.encode()
    @classmethod
    def deserialize(cls, data): return cls(data.decode())

def test_all_of_them(tao_no_leaks, tao_clock, tao_server, tao_client):
    server = tao_server(idle_timeout=60)
    @server.handler(Line)
    def shout(ctx, conn):
        conn.write(Line(ctx.message.text.upper()))
    client = tao_client(server)
    client.send(Line("hello"))
    client.expect(Line, text="HELLO")
    tao_clock.advance(60)
    assert client.expect_closed() == "peer closed"

def test_a_server_that_is_there(tao_server, tao_client, tao_no_leaks):
    server = tao.Server()
    assert tao_server(server) is server
    tao_client(server.address)
    with pytest.raises(TypeError):
        tao_server(server, workers=3)

def test_a_leak(tao_no_leaks):
    tao.testing.pytest_plugin._PATIENCE = 0.05
    tao.kept = socket.socket()

def test_no_leak_any_more():
    tao.kept.close()

def test_a_thread_left_behind(tao_no_leaks):
    tao.kept = tao.Server()
    tao.kept.start(("127.0.0.1", 0))

def test_a_dirty_stop(tao_server, tao_client):
    server = tao_server(drain_timeout=0.05)
    entered, tao.release = threading.Event(), threading.Event()
    @server.handler(Line, dispatch="pool")
    def block(ctx, conn):
        entered.set()
        tao.release.wait(20)
    tao_client(server).conn.write(Line("x"))
    assert entered.wait(20)

def test_the_end():
    tao.kept.stop()
    tao.release.set()
"""


def python(*arguments: str, cwd: Path = ROOT) -> str:
    """Run Python and return its output, even if it failed."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=6 * PATIENCE,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200"},
        check=False,
    ).stdout


def test_the_fixtures(tmp_path: Path) -> None:
    """The fixtures work; leaks and unclean shutdowns are errors."""
    (tmp_path / "test_suite.py").write_text(SUITE, encoding="utf-8")
    # By the module's name, so that the test also works if tao is installed under another name.
    plugin = ("-p", "no:tao", "-p", "tao.testing.pytest_plugin", "-p", "no:cacheprovider")
    output = python("-m", "pytest", "-q", "-ra", *plugin, str(tmp_path), cwd=tmp_path)
    assert "7 passed, 3 errors" in output, output
    assert re.search(r"test_a_leak - AssertionError: sockets left behind", output)
    assert re.search(
        r"test_a_thread_left_behind - AssertionError: threads left behind: .*acceptor", output
    )
    assert re.search(r"test_a_dirty_stop - AssertionError: the server did not stop cleanly", output)


def test_the_plugin_costs_nothing_at_the_start() -> None:
    """With the plugin, pytest imports no module of tao that needs sockets or certificates."""
    code = "import sys, tao.testing.pytest_plugin\n"
    code += "print(sorted(m for m in sys.modules if m[:3] == 'tao'))"
    loaded = ["tao", "tao.runtime", "tao.runtime.log"]
    loaded += ["tao.testing", "tao.testing.pytest_plugin", "tao.version"]
    assert python("-c", code).strip() == str(loaded)


def test_every_name_is_there() -> None:
    """Every public name can be imported, although modules are imported only on first use."""
    code = "import tao; print(set(tao.__all__) <= set(dir(tao)), [tao.Server, tao.errors])"
    assert python("-c", code).startswith(
        "True [<class 'tao.server.server.Server'>, <module 'tao.errors'"
    )
    code = "from tao import *; from tao import testing; print(Server, WouldBlock, testing.running)"
    assert "WouldBlock" in python("-W", "error", "-c", code)
    assert not hasattr(tao, "no_such_name")
    assert all(getattr(tao, name) is getattr(tao.api, name) for name in tao.api.__all__)


def test_the_plugin_is_installed() -> None:
    """pytest finds the plugin by its entry point."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    assert setup["options.entry_points"]["pytest11"].strip() == "tao = tao.testing.pytest_plugin"
