"""Concurrent events: each pair of events that may coincide, many times, at both ends.

All tests check that nothing hangs, that each established connection has one ``on_close``, that
accepted messages arrive, and (by a fixture of every test) that no thread and no socket leaks.
"""

from __future__ import annotations

import gc
import os
import random
import socket
import struct
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tao.client.client import ClientConn
from tao.connection.connection import Connection
from tao.connection.handling.inbox import TAKE_OVER, Inbox
from tao.connection.options.definitions import Reconnect
from tao.errors import (
    ConnectFailed,
    ConnectionClosed,
    ServerClosed,
    TaoError,
    TooManyTimers,
    WouldBlock,
)
from tao.runtime.context import Context, background
from tao.runtime.threads import as_tao_thread
from tao.runtime.timing_wheel import shared_wheel
from tao.runtime.worker_pool import WorkerPool
from tao.server.connection import ServerConn, ServerConnCore
from tao.server.listening.threaded_listener import ThreadedListener
from tao.server.server import Server, server_core_of
from tao.wire.codec import TypeLengthValueCodec
from tao.wire.message import HEARTBEAT, Registry
from tests.ends import OWN_READERS, End, MakeServer, Number, Seen, Text, number, text
from tests.support import PATIENCE, ends, recv_exactly, together, wait_until
from tests.tls_pairs import CLIENT, SERVER

OpenEnd = Callable[..., End]

AT_ONCE = Reconnect(initial=0.001, maximum=0.005)


def seeds(count: int) -> range:
    """Return seeds; ``PAIRS`` in the environment multiplies their number, see `make pairs`."""
    return range(count * int(os.environ.get("PAIRS", "1")))


class Gate:
    """A handler of `Text` that blocks until it is released; `Number` gets a reply."""

    def __init__(self, dispatch: str = "inline") -> None:
        self.registry = Registry()
        self.entered, self.leave = threading.Event(), threading.Event()
        self.handled = Seen()
        self.registry.handler(Text, dispatch=dispatch)(self._wait)
        self.registry.handler(Number, dispatch="inline")(self._answer)

    def _wait(self, ctx: Context, conn: Any) -> None:
        self.entered.set()
        self.leave.wait(2 * PATIENCE)  # longer than a test waits for others
        self.handled.add(ctx.message.text)

    def _answer(self, ctx: Context, conn: Any) -> None:
        self.handled.add(ctx.message.value)
        try:
            conn.write(ctx.message)
        except TaoError:
            pass


def hang_up(end: End) -> None:
    try:
        end.peer.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the other side was faster


def over(conn: Connection, closed: Seen) -> None:
    """Check that a connection ends, with one ``on_close``."""
    assert conn.wait_closed(PATIENCE), f"{conn!r} does not end"
    assert closed.items == [conn.net_id]


# -- close and other events


@pytest.mark.parametrize("seed", seeds(60))
def test_close_and_write(open_end: OpenEnd, seed: int) -> None:
    """Messages that ``write`` accepts during ``close`` arrive in order; others raise."""
    end = open_end()
    accepted: list[int] = []

    def write() -> None:
        try:
            for i in range(100):
                end.conn.write(Number(i))
                accepted.append(i)
        except ConnectionClosed:
            pass

    def read() -> bytes:
        with end.peer:
            return end.read_to_end()

    _, _, received = together(write, end.conn.close, read)
    assert received == b"".join(map(number, accepted))


@pytest.mark.parametrize("seed", seeds(40))
def test_closes_from_both_sides(open_end: OpenEnd, seed: int) -> None:
    """The connection ends once, whichever side is first."""
    closed = Seen()
    end = open_end(on_close=lambda conn: closed.add(conn.net_id))
    together(end.conn.close, end.conn.close, lambda: hang_up(end))
    over(end.conn, closed)


@pytest.mark.parametrize("seed", seeds(40))
def test_a_timer_and_close(open_end: OpenEnd, seed: int) -> None:
    """Timers that fall due or are set while the connection ends do not survive it."""
    closed = Seen()
    end = open_end(on_close=lambda conn: closed.add(conn.net_id))
    for _ in range(5):
        end.conn.run_every(0.0005, lambda due, conn: conn.cancel_timer(0))

    def make() -> None:
        with pytest.raises(ConnectionClosed):
            while True:
                end.conn.run_after(0, lambda due, conn: None)

    together(make, end.conn.close, lambda: hang_up(end))
    over(end.conn, closed)
    assert not end.conn._core.timers
    wait_until(lambda: end.conn._core.dispatcher.pending == 0)  # the last one has just returned


@pytest.mark.parametrize("seed", seeds(40))
def test_a_handler_and_the_end(open_end: OpenEnd, seed: int) -> None:
    """A handler that writes during the end gets an exception, and ``on_close`` follows it."""
    happened = Seen()
    registry = Registry()

    @registry.handler(Number, dispatch=random.Random(seed).choice(["inline", "pool"]))
    def answer(ctx: Context, conn: Any) -> None:
        try:
            conn.write(ctx.message)
        except ConnectionClosed:
            pass
        happened.add("handled")

    end = open_end(registry=registry, on_close=lambda conn: happened.add("closed"))
    end.send(b"".join(map(number, range(50))))
    together(end.conn.close if seed % 2 else lambda: None, lambda: hang_up(end))
    assert end.conn.wait_closed(PATIENCE)
    assert happened.items.count("closed") == 1 and happened.items[-1] == "closed"


def test_close_drops_waiting_messages(open_end: OpenEnd) -> None:
    """During a batch, ``close`` lets only the current message finish."""
    gate = Gate()
    end = open_end(registry=gate.registry)
    end.send(text("a") + text("b") + text("c"))
    assert gate.entered.wait(PATIENCE)
    closing = threading.Thread(target=end.conn.close, name="test-close")
    closing.start()
    wait_until(lambda: end.conn.closed)
    end.peer.shutdown(socket.SHUT_WR)  # not before, as all is handled if the peer ends first
    gate.leave.set()
    closing.join()
    assert end.conn.wait_closed(PATIENCE)
    assert gate.handled.items == ["a"]


def test_close_waits_for_a_running_handler(
    open_end: OpenEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``on_close`` waits up to ``drain_timeout`` for it, although the peer is silent."""
    monkeypatch.setattr("tao.connection.shutdown._LINGER", 0.05)
    gate = Gate()
    happened = gate.handled
    end = open_end(registry=gate.registry, on_close=lambda conn: happened.add("closed"))
    end.send(text("a"))
    assert gate.entered.wait(PATIENCE)
    ended = Seen()
    closing = threading.Thread(target=lambda: ended.add(end.conn.close()), name="test-close")
    closing.start()
    assert not end.conn._core.finished.wait(0.5)  # longer than the wait for a silent peer
    gate.leave.set()
    closing.join()
    assert happened.wait(2) == ["a", "closed"]


def test_callbacks_may_call_any_method(open_end: OpenEnd) -> None:
    """``close``, ``write``, waits and timers in any callback neither hang nor prevent the end."""
    enough = threading.Event()

    def meddle(conn: Any, *_: object) -> None:
        for attempt in (
            lambda: conn.write(Text("x")),
            lambda: conn.run_after(0, lambda due, conn: meddle(conn)),
            lambda: conn.context.after_cancel(lambda: meddle(conn)),
        ):
            try:
                attempt()
            except ConnectionClosed:
                pass
        if enough.is_set():
            conn.close()

    registry = Registry()
    registry.handler(Text)(lambda ctx, conn: meddle(conn) or 1 / 0)
    end = open_end(registry=registry, on_connect=meddle, on_close=meddle, on_error=meddle)
    enough.set()
    end.send(text("x") * 5)
    wait_until(lambda: end.conn.closed)
    hang_up(end)
    assert end.conn.wait_closed(PATIENCE)


# -- taking over the reading


@pytest.mark.parametrize("seed", seeds(12))
@pytest.mark.parametrize("event", ["hang_up", "close", "leave", "flood"])
def test_other_events_during_a_take_over(open_end: OpenEnd, event: str, seed: int) -> None:
    """Meanwhile the connection may end, or more data may arrive than there is room for."""
    gate, closed = Gate(), Seen()
    end = open_end(
        registry=gate.registry, queue_size=4, on_close=lambda conn: closed.add(conn.net_id)
    )
    end.conn.run_every(0.001, lambda due, conn: None)
    end.send(text("x"))
    assert gate.entered.wait(PATIENCE)
    if seed % 2:
        # Unless it runs concurrently with the reader because a timer delayed it.
        wait_until(
            lambda: end.conn._core.dispatcher._relieved or not end.conn._core.dispatcher._inline
        )
    happen = {
        "hang_up": lambda: hang_up(end),
        "close": lambda: end.conn._core.begin_close("test", drain=False),
        "leave": lambda: None,
        "flood": lambda: [end.send(number(i)) for i in range(20)],
    }[event]
    together(happen, gate.leave.set)
    if event == "flood":
        assert recv_exactly(end.peer, 320) == b"".join(map(number, range(20)))
        assert gate.handled.items == ["x", *range(20)]
    together(end.conn.close, lambda: hang_up(end))
    over(end.conn, closed)


def test_bad_data_during_a_take_over(open_end: OpenEnd) -> None:
    """The new reading thread decodes nothing after bad data."""
    gate, closed = Gate(), Seen()
    end = open_end(registry=gate.registry, on_close=lambda conn: closed.add(conn.net_id))
    end.send(text("x") + struct.pack("<iI", 2, 2**31))
    assert gate.entered.wait(PATIENCE)
    wait_until(lambda: end.conn.closed)
    end.send(number(1))
    gate.leave.set()
    over(end.conn, closed)
    assert gate.handled.items == ["x"]
    assert (end.conn.close_reason or "").startswith("protocol error: message 2 announces")


@pytest.mark.parametrize("open_end", OWN_READERS, indirect=True)
def test_a_callback_during_a_take_over(open_end: OpenEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Timers of a `Clock` run on another thread than the watch, and may run in between."""
    gate = Gate()
    end = open_end(registry=gate.registry)
    push = Inbox.push

    def late(inbox: Inbox, batch: Any) -> None:
        if batch[0][0] is TAKE_OVER:
            posting.start()
            posting.join(0.2)
        push(inbox, batch)

    posting = threading.Thread(
        target=end.conn._core.dispatcher.post,
        args=(lambda: gate.handled.add("due"),),
        name="test-post",
    )
    monkeypatch.setattr(Inbox, "push", late)
    end.send(text("x"))
    assert gate.entered.wait(PATIENCE)
    wait_until(lambda: end.conn._core.dispatcher.pending == 3)
    end.send(number(1))
    wait_until(lambda: end.conn._core.dispatcher.pending == 4)
    gate.leave.set()
    assert end.read(16) == number(1)
    assert gate.handled.items == ["x", "due", 1]


def test_timers_wait_for_a_blocking_handler(open_end: OpenEnd) -> None:
    """Timers due before and after the take-over run afterwards, once each."""
    gate = Gate()
    end = open_end(registry=gate.registry)
    end.send(text("x"))
    assert gate.entered.wait(PATIENCE)
    for i in range(30):
        end.conn.run_after(i / 1000, lambda due, conn, i=i: gate.handled.add(i))
    wait_until(lambda: end.conn._core.dispatcher.pending > 30)
    gate.leave.set()
    assert gate.handled.wait(31) == ["x", *range(30)]


def test_a_handler_that_outlives_its_connection(open_end: OpenEnd) -> None:
    """When it returns after ``drain_timeout``, it finds the connection closed."""
    gate, closed = Gate(), Seen()
    end = open_end(
        registry=gate.registry, drain_timeout=0.05, on_close=lambda conn: closed.add(conn.net_id)
    )
    end.send(text("x") + number(1))
    assert gate.entered.wait(PATIENCE)
    end.conn.close()
    wait_until(end.conn._core.finished.is_set)
    assert closed.items == [end.conn.net_id]
    assert end.conn._core.stuck
    gate.leave.set()
    wait_until(lambda: not any(thread.is_alive() for thread in end.conn._core.stuck))
    assert gate.handled.items == ["x"] and closed.items == [end.conn.net_id]


def test_a_full_inbox_does_not_prevent_the_end(open_end: OpenEnd) -> None:
    """A reader that waits for room behind a handler that never returns still ends."""
    gate, closed = Gate("pool"), Seen()
    end = open_end(
        registry=gate.registry,
        queue_size=1,
        drain_timeout=0.05,
        on_close=lambda conn: closed.add(conn.net_id),
    )
    end.send(text("x"))
    assert gate.entered.wait(PATIENCE)
    end.send(number(1))
    wait_until(lambda: end.conn._core.dispatcher.inbox.full())
    end.send(number(2))
    wait_until(lambda: end.conn._core.gate.paused)
    end.conn.close()
    wait_until(end.conn._core.finished.is_set)
    assert closed.items == [end.conn.net_id]
    gate.leave.set()


def test_a_cancelled_timer_does_not_run(open_end: OpenEnd) -> None:
    """A periodic callback that waits behind the handler that cancels it is skipped."""
    gate, ran = Gate(), Seen()
    end = open_end(registry=gate.registry)
    end.send(text("x"))
    assert gate.entered.wait(PATIENCE)
    timer = end.conn.run_every(0.001, lambda due, conn: ran.add(due))
    wait_until(lambda: end.conn._core.dispatcher.pending > 1)
    assert end.conn.cancel_timer(timer)
    gate.leave.set()
    end.send(number(1))
    assert end.read(16) == number(1)
    assert not ran.items


# -- reconnecting


@pytest.mark.parametrize("seed", seeds(25))
def test_reconnect_and_close(make_server: MakeServer, seed: int) -> None:
    """A client of a server that always disconnects can be closed at any moment."""
    _, address = make_server(on_connect=lambda conn: conn.close())
    closed = Seen()
    client = ClientConn(
        address, registry=Registry(), reconnect=AT_ONCE, on_close=lambda conn: closed.add(1)
    )
    client.start(keep_trying=True)
    wait_until(lambda: client.reconnects >= seed % 4)
    together(client.close, client.close)
    assert client.wait_closed(PATIENCE)
    assert len(closed.items) == client.snapshot().connections_total


def test_a_late_idle_timeout_does_not_affect_the_next_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The idle timer of a lost connection may fire while the client dials again."""
    server = Server(registry=Registry())
    server.registry.handler(Text)(lambda ctx, conn: conn.write(ctx.message))
    address = server.start(("127.0.0.1", 0))
    seen = Seen()
    registry = Registry()
    registry.handler(Text)(lambda ctx, conn: seen.add(ctx.cancelled))
    client = ClientConn(address, registry=registry, reconnect=AT_ONCE, idle_timeout=60).start()
    core = client._core
    dial = core.dial

    def slowly() -> Any:
        transport = dial()
        client._core.reader.last_received -= 100
        client._core.keep_alive._look_idle()
        return transport

    monkeypatch.setattr(core, "dial", slowly)
    wait_until(lambda: server.connections)
    server.connections[0].close()
    wait_until(lambda: client.reconnects)
    client.write(Text("hello"))
    assert seen.wait() == [False]
    client.close()
    server.stop()


def test_concurrent_losses_cause_one_reconnection(make_server: MakeServer) -> None:
    """Several threads notice the same loss; the client reconnects once, and loses no message."""
    received = Seen()
    server, address = make_server()
    server.registry.handler(Number)(lambda ctx, conn: received.add(ctx.message.value))
    client = ClientConn(address, registry=Registry(), reconnect=AT_ONCE).start()

    def lost() -> bool:
        return client._core.lifecycle.status.disconnect_reason is not None

    for i in range(40):
        assert client.wait_connected(PATIENCE)
        together(
            lambda: client._core.drop("lost"),
            lambda: client._core.drop("lost"),
            lambda: [conn.close() for conn in server.connections],
        )
        before = len(received.items)
        while len(received.items) == before:
            # A lost connection counts as connected until the client's thread has noticed the loss.
            wait_until(lambda: client.connected and not lost())
            client.write(Number(i))
            wait_until(lambda b=before: len(received.items) > b or lost())
    client.close()


def test_waiting_for_a_connection_during_close() -> None:
    """``wait_connected`` returns after a close, even if the loss was noticed before it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = ClientConn(listener.getsockname(), registry=Registry(), reconnect=AT_ONCE).start()
        peer, _ = listener.accept()

    def lose() -> None:
        """Lose the connection on a thread of tao's, with a user callback that closes."""
        with as_tao_thread():
            client.context.after_cancel(lambda: client.close() or client.wait_closed(PATIENCE))
            client._core.drop("lost")

    assert ends(lose)
    assert client._core.finished.wait(PATIENCE)
    assert ends(client.wait_connected) and not client.connected
    peer.close()


def test_all_contexts_of_a_client_are_cancelled(make_server: MakeServer) -> None:
    """Each context that a callback has seen is cancelled, in order, including refused attempts."""
    _, address = make_server()
    happened = Seen()

    def on_connect(conn: ClientConn) -> bool:
        attempt = len(contexts)
        contexts.append(conn.context)
        conn.context.after_cancel(lambda: happened.add(attempt))
        return attempt == 3

    client = ClientConn(address, registry=Registry(), reconnect=AT_ONCE, on_connect=on_connect)
    before = client.context
    contexts: list[Context] = []
    client.start(keep_trying=True)
    assert client.wait_connected(PATIENCE)
    assert happened.items == [0, 1, 2] and contexts[0] is before
    assert len(set(contexts)) == 4 and client.context is contexts[3]
    client.close()
    assert happened.wait(4) == [0, 1, 2, 3]


def test_close_does_not_wait_forever_for_a_timer() -> None:
    """During back-off, a callback that does not return delays the end by ``drain_timeout``."""
    listener = socket.create_server(("127.0.0.1", 0))
    entered, leave = threading.Event(), threading.Event()
    client = ClientConn(
        listener.getsockname(),
        registry=Registry(),
        reconnect=Reconnect(initial=60, maximum=60),
        drain_timeout=0.1,
    ).start()
    peer, _ = listener.accept()
    listener.close()
    peer.close()
    wait_until(lambda: not client._core.lifecycle.open)
    client.run_after(0, lambda due, conn: entered.set() or leave.wait(PATIENCE))
    assert entered.wait(PATIENCE)
    client.close()
    assert client._core.finished.is_set()
    leave.set()


def test_a_client_may_close_in_all_its_callbacks(make_server: MakeServer) -> None:
    """Even in callbacks that ``start`` calls on the user's thread, ``close`` does not deadlock."""
    _, address = make_server()
    for refuse in (True, False):

        def on_connect(conn: ClientConn, refuse: bool = refuse) -> None:
            conn.close()
            if refuse:
                raise ValueError("no")

        client = ClientConn(
            address,
            registry=Registry(),
            drain_timeout=PATIENCE,
            on_connect=on_connect,
            on_close=lambda conn: conn.close(),
            on_error=lambda conn, error: conn.close(),
        )

        def start(client: ClientConn = client) -> None:
            with pytest.raises(ConnectionClosed):
                client.start()

        assert ends(start)
        assert client.wait_closed(PATIENCE)


def test_close_in_on_error_of_a_new_client() -> None:
    """``close`` reports unsent messages to ``on_error``, which may call ``close``."""
    client = ClientConn(
        ("127.0.0.1", 1),
        registry=Registry(),
        reconnect=True,
        drain_timeout=PATIENCE,
        on_error=lambda conn, error: conn.close(),
    )
    client.write(Text("never sent"))
    assert ends(client.close)
    assert client._core.finished.is_set()


@pytest.mark.parametrize("seed", seeds(40))
def test_start_and_close_and_close(make_server: MakeServer, seed: int) -> None:
    """A client closed during ``start`` ends once, whether or not it started, and counts once."""
    _, address = make_server()
    closed = Seen()
    client = ClientConn(address, registry=Registry(), on_close=lambda conn: closed.add(1))

    def start() -> None:
        try:
            client.start()
        except ConnectionClosed:
            pass

    ended = Seen()
    client._core.statistics.ended = lambda conn, threads=(): ended.add(conn)  # type: ignore[method-assign]
    together(start, client.close, client.close)
    assert client.wait_closed(PATIENCE)
    assert len(closed.items) == client.snapshot().connections_total
    assert ended.items == [client._core]


def test_a_client_that_is_never_closed_releases_the_wheel() -> None:
    """A client that was never started and never closed leaves nothing behind."""
    users = len(shared_wheel._users)
    forgotten = weakref.ref(ClientConn(("127.0.0.1", 1), registry=Registry()))
    gc.collect()
    assert forgotten() is None and len(shared_wheel._users) == users


def test_an_error_during_dialling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any failing call is a failed attempt, and leaves no socket behind."""

    class Gone(socket.socket):
        def getpeername(self) -> Any:
            raise OSError(107, "not connected")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(socket, "socket", Gone)
        client = ClientConn(listener.getsockname(), registry=Registry())
        with pytest.raises(ConnectFailed, match="not connected"):
            client.start()
        monkeypatch.undo()
        client.close()


# -- stop and other events


def own_port() -> socket.socket:
    """Return a socket that reserves a port for this test, even after its server has stopped."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    return sock


@pytest.mark.parametrize("timeout", [None, 0])
@pytest.mark.parametrize("seed", seeds(12))
def test_stop_during_an_accept(make_server: MakeServer, seed: int, timeout: float | None) -> None:
    """Connections that arrive during the stop are served or closed, never left open."""
    opened, closed = Seen(), Seen()
    place = own_port()
    server, address = make_server(
        place.getsockname(), on_connect=lambda conn: opened.add(conn), on_close=closed.add
    )
    socks: list[socket.socket] = []

    def dial() -> None:
        try:
            for _ in range(5):
                socks.append(socket.create_connection(address, PATIENCE))
        except OSError:
            pass

    together(dial, dial, lambda: server.stop(timeout))
    for sock in socks:
        with sock:
            try:
                # The kernel may drop a connection that arrives while a listener closes. The peer
                # learns that only when it sends data; on an open connection it would not.
                sock.send(b"?")
                assert sock.recv(1) == b""
            except OSError as error:
                assert not isinstance(error, TimeoutError), "kept"
    place.close()
    wait_until(lambda: not server_core_of(server).acceptor.connections)
    assert len(closed.items) == server.snapshot().connections_total <= len(opened.items)


def test_an_acceptor_that_sees_the_stop_early(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An acceptor that refuses a connection before it is told to stop does not break the stop."""
    server, address = make_server()
    making = threading.Event()
    original, stop = ServerConn.__init__, ThreadedListener.stop

    def slowly(conn: ServerConn, *args: Any) -> None:
        making.set()
        wait_until(lambda: not server.running)
        original(conn, *args)

    def late(listener: ThreadedListener) -> None:
        wait_until(lambda: not server_core_of(server).acceptor.admission)
        stop(listener)

    monkeypatch.setattr(ServerConn, "__init__", slowly)
    monkeypatch.setattr(ThreadedListener, "stop", late)
    with socket.create_connection(address, PATIENCE) as sock:
        assert making.wait(PATIENCE)
        assert server.stop().clean and server.state == "stopped"
        assert sock.recv(1) == b""


@pytest.mark.parametrize("tls", [None, SERVER], ids=["plain", "tls"])
@pytest.mark.parametrize("seed", range(5))
def test_a_connection_accepted_while_stopping(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch, seed: int, tls: Any
) -> None:
    """A connection of an acceptor that the stop did not wait for is closed as well."""
    server, address = make_server(tls=tls)
    making, stopped = threading.Event(), threading.Event()
    original = ServerConn.__init__

    def slowly(conn: ServerConn, *args: Any) -> None:
        making.set()
        assert stopped.wait(PATIENCE)
        original(conn, *args)

    monkeypatch.setattr(ServerConn, "__init__", slowly)
    with socket.create_connection(address, PATIENCE) as sock:
        assert making.wait(PATIENCE)
        assert server.stop(timeout=0).threads
        stopped.set()
        assert sock.recv(1) == b""
    wait_until(lambda: not server_core_of(server).acceptor.admission)


@pytest.mark.parametrize("timeout", [None, 0])
def test_stop_during_a_handshake(make_server: MakeServer, timeout: float | None) -> None:
    """A peer that is silent in the handshake does not delay the stop."""
    server, address = make_server(tls=SERVER)
    with socket.create_connection(address, PATIENCE):
        wait_until(lambda: server_core_of(server).acceptor.connections)
        assert ends(lambda: server.stop(timeout))
        wait_until(lambda: not server_core_of(server).acceptor.connections)


@pytest.mark.parametrize("timeout", [None, 0])
@pytest.mark.parametrize("seed", seeds(10))
def test_stop_at_any_moment_of_a_handshake(
    make_server: MakeServer, seed: int, timeout: float | None
) -> None:
    """The client is either served completely or gets an error."""
    opened, closed = Seen(), Seen()
    server, address = make_server(tls=SERVER, on_connect=opened.add, on_close=closed.add)
    pause = random.Random(seed).uniform(0, 0.01)

    def dial() -> None:
        client = ClientConn(("localhost", address[1]), tls=CLIENT, registry=Registry())
        try:
            client.start()
            assert client.wait_closed(PATIENCE), "kept"
        except (ConnectFailed, ConnectionClosed):
            pass  # such as HandshakeFailed: the stop was faster
        finally:
            client.close()

    def stop() -> None:
        threading.Event().wait(pause)  # at any moment of the handshakes
        server.stop(timeout)

    together(dial, dial, stop)
    wait_until(lambda: not server_core_of(server).acceptor.connections)
    assert len(closed.items) == len(opened.items)


@pytest.mark.parametrize("timeout", [None, 0])
def test_stop_during_on_connect(make_server: MakeServer, timeout: float | None) -> None:
    """If ``on_connect`` returns after the stop has timed out, its connection is released."""
    asked, answer = threading.Event(), threading.Event()
    server, address = make_server(
        on_connect=lambda conn: asked.set() or answer.wait(PATIENCE), drain_timeout=0.2
    )
    with socket.create_connection(address, PATIENCE) as sock:
        assert asked.wait(PATIENCE)
        assert not server.stop(timeout).clean
        answer.set()
        wait_until(lambda: not server_core_of(server).acceptor.connections)
        assert sock.recv(1) == b""


def test_all_blocked_callbacks_share_one_deadline(make_server: MakeServer) -> None:
    """Ten ``on_close`` that do not return delay a stop no longer than one."""
    leave = threading.Event()
    server, address = make_server(on_close=lambda conn: leave.wait(PATIENCE))
    socks = [socket.create_connection(address, PATIENCE) for _ in range(10)]
    wait_until(lambda: server.connection_count == 10)
    stopping = threading.Thread(target=server.stop, args=(0,), name="test-stop")
    stopping.start()
    stopping.join(4)
    assert not stopping.is_alive()
    leave.set()
    for sock in socks:
        sock.close()


@pytest.mark.parametrize("seed", seeds(15))
def test_broadcast_during_stop(make_server: MakeServer, seed: int) -> None:
    """The result of the broadcast is correct: its recipients got the message."""
    server, address = make_server()
    socks = [socket.create_connection(address, PATIENCE) for _ in range(4)]
    wait_until(lambda: server.connection_count == 4)

    def say() -> int:
        return sum(server.broadcast(Number(i)).queued for i in range(50))

    def read(sock: socket.socket) -> int:
        with sock:
            return len(recv_exactly(sock, 1 << 20))

    said, _, *received = together(say, server.stop, *(partial(read, sock) for sock in socks))
    assert sum(received) == 16 * said


@pytest.mark.parametrize("seed", seeds(15))
def test_schedule_cancel_and_connect(make_server: MakeServer, seed: int) -> None:
    """A cancelled schedule runs on no connection, whenever it is cancelled."""
    server, address = make_server()
    socks: list[socket.socket] = []

    def dial() -> None:
        for _ in range(4):
            socks.append(socket.create_connection(address, PATIENCE))

    def schedule() -> None:
        for _ in range(50):
            assert server.cancel_schedule(server.schedule(60, lambda due, conn: None))

    together(dial, schedule, schedule)
    wait_until(lambda: server.connection_count == 4)
    wait_until(lambda: not any(conn._core.timers for conn in server.connections))
    for sock in socks:
        sock.close()


def test_a_schedule_cancelled_while_a_connection_applies_it(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it is cancelled between lookup and setting of the timer, the timer is removed."""
    server, address = make_server()
    schedule = server.schedule(60, lambda due, conn: None)
    follow = ServerConnCore.follow

    def late(core: ServerConnCore, *args: Any) -> None:
        server.cancel_schedule(schedule)
        follow(core, *args)
        done.add(len(core.timers))

    done = Seen()
    monkeypatch.setattr(ServerConnCore, "follow", late)
    with socket.create_connection(address, PATIENCE):
        assert done.wait() == [0]


def test_concurrent_stop_and_start() -> None:
    """One of them is first, and the server does not listen afterwards."""
    for _ in range(40):
        server = Server(registry=Registry())

        def start(server: Server = server) -> None:
            try:
                server.start(("127.0.0.1", 0))
            except ServerClosed:
                pass

        together(start, start, server.stop, server.stop)
        server.stop()
        assert server.state == "stopped" and not server.running
        with pytest.raises(ServerClosed):
            server.start(("127.0.0.1", 0))


def test_stop_with_two_threads_in_serve_forever() -> None:
    """Both threads return."""
    server = Server(registry=Registry())
    ready = Seen()
    serve = partial(server.serve_forever, ("127.0.0.1", 0), ready=ready.add)

    def stop() -> None:
        ready.wait(2)
        server.stop()

    assert ends(lambda: together(serve, serve, stop))
    assert not server_core_of(server).doorbells


def test_stop_from_everywhere(make_server: MakeServer) -> None:
    """Callbacks, timers, cancellations and other threads may stop a server at the same time."""
    for _ in range(10):
        server = Server(registry=Registry(), on_close=lambda conn: conn.context.server.stop())
        server.registry.handler(Text)(lambda ctx, conn: ctx.server.stop())
        server.schedule(0.001, lambda due, conn, server=server: server.stop())
        server.context.after_cancel(server.stop)
        with socket.create_connection(server.start(("127.0.0.1", 0)), PATIENCE) as sock:
            sock.sendall(text("x"))
            assert recv_exactly(sock, 1) == b""
        assert ends(server.stop)


def test_a_failing_heartbeat(open_end: OpenEnd) -> None:
    """``on_error`` is called each time, and heartbeats resume when the codec works again."""

    class Failing(TypeLengthValueCodec):
        failures = 2

        def heartbeat(self, nanoseconds: int) -> bytes:
            self.failures -= 1
            return super().heartbeat(nanoseconds) if self.failures < 0 else bytes(1 // 0)

    errors = Seen()
    end = open_end(
        codec=Failing(), heartbeat=0.02, on_error=lambda conn, error: errors.add(type(error))
    )
    assert end.read_frame()[0] == HEARTBEAT
    assert errors.items == [ZeroDivisionError] * 2


def test_a_full_timing_wheel_and_stop(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Internal timers of the shutdown have room even if the user's timers fill the wheel."""
    server, address = make_server(idle_timeout=60)
    socks = [socket.create_connection(address, PATIENCE) for _ in range(3)]
    wait_until(lambda: server.connection_count == 3)
    client = ClientConn(address, registry=Registry()).start()
    monkeypatch.setattr(shared_wheel.wheel, "_max_pending", 30)
    with pytest.raises(TooManyTimers):
        while True:
            client.run_after(60, lambda due, conn: None)
    socks.append(socket.create_connection(address, PATIENCE))
    wait_until(lambda: server.connection_count == 5)
    report = server.stop()
    assert server.state == "stopped" and report.drained == 5
    client.close()
    for sock in socks:
        sock.close()


# -- threads that cannot be started


@pytest.mark.parametrize("open_end", OWN_READERS, indirect=True)
def test_no_thread_for_a_handler(open_end: OpenEnd, no_thread: Callable[[str], None]) -> None:
    """A connection without its second thread ends with a reason, and releases everything."""
    closed, errors = Seen(), Seen()
    gate = Gate("pool")
    gate.leave.set()
    end = open_end(
        registry=gate.registry,
        on_close=lambda conn: closed.add(conn.net_id),
        on_error=lambda conn, error: errors.add(str(error)),
    )
    no_thread("tao-handler")
    end.send(text("x"))
    over(end.conn, closed)
    assert errors.items == ["can't start new thread"]
    assert end.conn.close_reason == "error: can't start new thread"


@pytest.mark.parametrize("open_end", OWN_READERS, indirect=True)
def test_no_thread_to_relieve_the_reader(
    open_end: OpenEnd, no_thread: Callable[[str], None]
) -> None:
    """A reader that cannot be relieved does not wait forever."""
    closed, gate = Seen(), Gate()
    end = open_end(registry=gate.registry, on_close=lambda conn: closed.add(conn.net_id))
    no_thread("tao-handler")
    end.send(text("x"))
    wait_until(lambda: end.conn.closed)
    gate.leave.set()
    over(end.conn, closed)


@pytest.mark.parametrize("open_end", OWN_READERS, indirect=True)
def test_no_thread_for_a_timer(open_end: OpenEnd, no_thread: Callable[[str], None]) -> None:
    """The connection ends, and the wheel continues."""
    closed, fired = Seen(), threading.Event()
    end = open_end(on_close=lambda conn: closed.add(conn.net_id))
    no_thread("tao-handler")
    end.conn.run_after(0, lambda due, conn: None)
    over(end.conn, closed)
    wheel = shared_wheel.acquire("test")
    wheel.run_after(0, lambda due: fired.set())
    assert fired.wait(PATIENCE)
    shared_wheel.release("test")


@pytest.mark.parametrize("open_end", OWN_READERS, indirect=True)
def test_no_thread_for_a_writer(open_end: OpenEnd, no_thread: Callable[[str], None]) -> None:
    """A connection to a slow reader cannot be served then, and ``write`` raises."""
    closed = Seen()
    end = open_end(queue_size=1000, on_close=lambda conn: closed.add(conn.net_id))
    no_thread("tao-writer")
    with pytest.raises(ConnectionClosed, match="can't start new thread"):
        for _ in range(1000):  # far more than the kernel accepts
            end.conn.write(Text("x" * 100_000))
    over(end.conn, closed)


def test_no_thread_for_a_client(make_server: MakeServer, no_thread: Callable[[str], None]) -> None:
    """``start`` raises, and leaves nothing behind."""
    _, address = make_server()
    no_thread("tao-reader-client")
    closed = Seen()
    for keep_trying in (False, True):
        client = ClientConn(address, registry=Registry(), reconnect=True, on_close=closed.add)
        with pytest.raises(RuntimeError):
            client.start(keep_trying)
        assert client._core.finished.is_set()
    assert len(closed.items) == 1  # the other one had not been established


def test_no_thread_for_a_server(no_thread: Callable[[str], None]) -> None:
    """``start`` raises and leaves nothing behind; ``stop`` needs no thread of its own."""
    server = Server(registry=Registry())
    no_thread("tao-acceptor")
    with pytest.raises(RuntimeError):
        server.start(("127.0.0.1", 0))
    assert server.address is None
    no_thread("tao-stopper")
    server.start(("127.0.0.1", 0))
    with as_tao_thread(), pytest.raises(RuntimeError):
        server.stop()
    assert server.running
    assert server.stop().clean and not server.running


def test_no_thread_for_a_worker(no_thread: Callable[[str], None]) -> None:
    """A job for which no worker can be started is not run later."""
    done = Seen()
    pool = WorkerPool(2, name="tao-some")
    no_thread("tao-some")
    with pytest.raises(RuntimeError):
        pool.submit(done.add, "first")
    no_thread("none of them")
    assert pool.run(done.add, "second") is None
    assert done.items == ["second"]
    pool.stop()


# -- all at once


@pytest.mark.parametrize("seed", seeds(3))
def test_traffic_with_frequent_thread_switches(
    make_server: MakeServer, switching: None, seed: int
) -> None:
    """Replies keep their order with quick, slow and blocking handlers, timers and writers."""
    chance = random.Random(seed)
    server, address = make_server(queue_size=64)

    @server.handler(Number)
    def answer(ctx: Context, conn: Any) -> None:
        if chance.random() < 0.01:
            ctx.wait(0.006)
        conn.write(ctx.message, timeout=PATIENCE)

    server.schedule(0.001, lambda due, conn: None)
    registry, seen = Registry(), [Seen(), Seen()]
    registry.handler(Number)(lambda ctx, conn: seen[conn.value("index")].add(ctx.message.value))

    def talk(index: int) -> None:
        with ClientConn(address, registry=registry, queue_size=64) as client:
            client.set_value("index", index)
            for i in range(300):
                client.write(Number(i), timeout=PATIENCE)
            assert seen[index].wait(300) == list(range(300))

    together(lambda: talk(0), lambda: talk(1))


@pytest.mark.parametrize("seed", seeds(30))
def test_ends_with_frequent_thread_switches(open_end: OpenEnd, switching: None, seed: int) -> None:
    """Messages, timers, writes and closes in any order lead to one end."""
    chance = random.Random(seed)
    closed, gate = Seen(), Gate(chance.choice(["inline", "pool"]))
    end = open_end(
        registry=gate.registry, queue_size=4, on_close=lambda conn: closed.add(conn.net_id)
    )

    def write() -> None:
        try:
            for i in range(30):
                end.conn.write(Number(i))
        except (ConnectionClosed, WouldBlock):
            pass

    def feed() -> None:
        try:
            end.send(number(1) * 3 + text("x") + number(2) * 10)
        except OSError:
            pass

    def tick() -> None:
        try:
            end.conn.run_every(0.0005, lambda due, conn: None)
        except ConnectionClosed:
            pass

    acts = [write, feed, tick, gate.leave.set, end.conn.close, lambda: hang_up(end)]
    chance.shuffle(acts)
    together(*acts)
    over(end.conn, closed)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_timers_work_after_a_fork() -> None:
    """A child of a process with a running wheel has its own wheel."""
    wheel = shared_wheel.acquire("test")
    ticked = threading.Event()
    wheel.run_after(0, lambda due: ticked.set())
    assert ticked.wait(PATIENCE)
    child = os.fork()
    if not child:  # no code of the test may continue in the child
        context = background().with_timeout(0.01)
        os._exit(0 if context.wait(PATIENCE) else 1)
    _, status = os.waitpid(child, 0)
    shared_wheel.release("test")
    assert os.waitstatus_to_exitcode(status) == 0
