"""Exceptions and nested calls in the threads of a connection, at any bytecode.

Libraries for timeouts raise exceptions in threads that they do not own
(``PyThreadState_SetAsyncExc``). The interrupted connection ends with a reason, and nothing leaks.
"""

from __future__ import annotations

import gc
import itertools
import os
import socket
import sys
import threading
from contextlib import suppress
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest

from tao.client.client import ClientConn
from tao.connection.application import Application, ApplicationLink
from tao.connection.handling.block_watch import BlockWatch
from tao.connection.handling.dispatcher import Dispatcher
from tao.connection.handling.inbox import Inbox
from tao.connection.options.definitions import Reconnect, Settings
from tao.connection.reading_gate import ReadingGate
from tao.connection.sending.send_queue import SendQueue
from tao.errors import ConnectionClosed
from tao.runtime.context import Context
from tao.runtime.timing_wheel import TimingWheel
from tao.runtime.wakeup import Wakeup
from tao.server.server import Server
from tao.testing.memory import MemoryClient
from tao.wire.message import Registry
from tests.ends import MakeServer, Seen, Text, text
from tests.injection import Interruption, Moment, opcodes, raise_in
from tests.support import PATIENCE, ends, recv_exactly, wait_until

pytestmark = pytest.mark.interrupted

MODULES = (
    "tao.connection.handling.dispatcher",
    "tao.connection.handling.handler_runner",
    "tao.connection.core",
    "tao.connection.roles",
    "tao.connection.teardown",
    "tao.connection.greetings",
    "tao.connection.lifecycle",
    "tao.connection.receiving.reading",
    "tao.connection.handling.inbox",
    "tao.connection.sending.send_queue",
    "tao.client.reconnect",
    "tao.connection.sending.backlog",
    "tao.connection.shutdown",
    "tao.connection.handling.block_watch",
    "tao.connection.timers",
    "tao.connection.shared_reading.loop",
    "tao.connection.shared_reading.member",
    "tao.connection.shared_reading.roles",
    "tao.connection.handling.shared_dispatcher",
    "tao.connection.reading_gate",
    "tao.transport.poller",
)
# `make interrupt EACH=1` tries far more of the bytecodes.
STEP = 5 if os.environ.get("EACH_BYTECODE") else 61
AT_ONCE = Reconnect(initial=0.001, maximum=0.005)
_offsets = itertools.count()


@pytest.mark.parametrize("role", ["reader", "handler", "writer", "shared"])
def test_an_interrupted_thread_ends_its_connection(role: str) -> None:
    """At each bytecode: no thread is left, and the client no longer counts as open."""
    for moment in opcodes(*MODULES, first=next(_offsets), step=STEP):
        strike(moment, role)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("role", ["reader", "handler", "writer"])
def test_a_thread_interrupted_at_its_start(role: str) -> None:
    """Its connection ends as well, or the caller of ``start`` gets an exception."""
    modules = (
        "tao.runtime.thread_start",
        "tao.runtime.threads",
        "tao.runtime.native_threads",
        "tao.runtime.wakeup",
        *MODULES,
    )
    for moment in islice(opcodes(*modules, first=next(_offsets) % 2, step=2), 120):
        strike(moment, role)


def strike(moment: Moment, role: str) -> None:
    """Interrupt a thread of a client in this role, and check that the client ends with a reason."""
    options: Any = {"registry": Registry(), "drain_timeout": 0.3}
    if role == "shared":
        options["readers"] = "shared"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = ClientConn(listener.getsockname(), **options)
        size = 300_000 if role == "writer" else 1
        client.handler(Text, dispatch="pool" if role == "handler" else "inline")(
            lambda ctx, conn, size=size: conn.write(Text("x" * size))
        )
        name = f"tao-{role}-client-{client.net_id}"
        gc.collect()  # so that no finalizer of an earlier client is what is interrupted
        with moment.raising(thread="tao-reader-clients-1" if role == "shared" else name):
            try:
                client.start()
            except RuntimeError:
                assert role == "reader" and moment.struck, moment
                client.wait_closed(PATIENCE) or client.close()
            with listener.accept()[0] as peer, suppress(OSError):
                peer.settimeout(PATIENCE)
                peer.sendall(text("x") * 3)
                peer.shutdown(socket.SHUT_WR)
                while peer.recv(1 << 20):
                    pass
            assert client.wait_closed(PATIENCE), moment
    assert client.close_reason and client._core not in client._core.statistics.living(), moment


def test_interrupted_final_steps_are_repeated(make_server: MakeServer) -> None:
    """A reading thread repeats its final steps, so that no slot of the server is lost."""
    closed = Seen()
    server, address = make_server(registry=Registry(), on_close=lambda conn: closed.add(conn))
    with socket.create_connection(address, PATIENCE):
        wait_until(lambda: server.connections)
        (conn,) = server.connections
        end = conn._core.timers.end
        hits = iter([Interruption("one"), Interruption("two")])

        def struck() -> None:
            for error in hits:
                raise error
            end()

        conn._core.timers = _Proxy(conn._core.timers, end=struck)
        conn.close()
        assert conn.wait_closed(PATIENCE)
    wait_until(lambda: not server.connections)
    assert closed.wait() == [conn]


CALLING = (
    "tao.connection.core", "tao.connection.connection", "tao.server.connection",
    "tao.client.reconnect", "tao.client.client", "tao.connection.context_variables",
    "tao.connection.handling.slow_handlers", "tao.connection.lifecycle",
)  # fmt: skip


@pytest.fixture
def warnings_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The garbage collector closes a new socket that has no owner yet, and issues a warning."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)


class Pairs:
    """Callbacks that count; each successful ``on_connect`` must be followed by ``on_close``."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.options: dict[str, Any] = {
            "registry": Registry(),
            "drain_timeout": 0.3,
            "on_connect": lambda conn: self.calls.append("on_connect"),
            "on_close": lambda conn: self.calls.append("on_close"),
        }

    def whole(self) -> bool:
        return self.calls == ["on_connect", "on_close"] * (len(self.calls) // 2)


def test_on_connect_is_followed_by_one_on_close_on_a_server() -> None:
    """This holds at every bytecode of the connection's thread."""
    # The very first ones belong to a thread that is still starting.
    for moment in opcodes(*CALLING, "contextlib", first=60 + next(_offsets), step=7):
        pairs = Pairs()
        server = Server(**pairs.options)
        client = MemoryClient(server, registry=Registry(), drain_timeout=0.3)
        with moment.raising(thread="tao-reader-1"):
            client.start()
            conn = client.server_conn
            client.close()
            assert conn is not None and conn.wait_closed(PATIENCE), moment
        server.stop(PATIENCE)
        assert pairs.whole(), (moment, pairs.calls)
        assert pairs.calls or moment.struck
    assert moment.number > 200


@pytest.mark.usefixtures("warnings_not_kept")
def test_on_connect_is_followed_by_one_on_close_on_a_client() -> None:
    """This holds at every bytecode of the calls that connect and close, if they are repeated."""
    for moment in opcodes(*CALLING, first=next(_offsets), step=STEP):
        pairs = Pairs()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = ClientConn(listener.getsockname(), **pairs.options)
            with moment.raising():
                client.start()
                listener.accept()[0].close()
                client.close()
            with suppress(RuntimeError, ConnectionClosed):
                client.start()
            client.close()
        assert client.wait_closed(PATIENCE), moment
        assert pairs.whole() and pairs.calls, (moment, pairs.calls)


@pytest.mark.usefixtures("warnings_not_kept")
@pytest.mark.usefixtures("warnings_not_kept")
def test_on_connect_is_followed_by_one_on_close_when_reconnecting() -> None:
    """This holds at every bytecode of the thread that reconnects; no socket is left behind."""
    for moment in opcodes(*CALLING, first=40 + next(_offsets), step=STEP):
        pairs = Pairs()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(PATIENCE)
            client = ClientConn(listener.getsockname(), reconnect=AT_ONCE, **pairs.options)
            with moment.raising(thread=f"tao-reader-client-{client.net_id}"):
                client.start(keep_trying=True)
                wait_until(lambda c=client, p=pairs: p.calls or c.closed)
                wait_until(lambda c=client, p=pairs: _lose(listener, c) or len(p.calls) >= 3)
                client.close()
            assert client.wait_closed(PATIENCE), moment
        assert pairs.whole(), (moment, pairs.calls)
        if not moment.possible:
            gc.collect()  # a socket that was not closed


def _lose(listener: socket.socket, client: ClientConn) -> bool:
    """Close one accepted connection; return whether no more will follow."""
    listener.settimeout(0.01)
    with suppress(OSError):
        listener.accept()[0].close()
    return client.closed


class _Proxy:
    """An object with some of its methods replaced."""

    def __init__(self, behind: Any, **methods: Any) -> None:
        self._behind = behind
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._behind, name)


# -- workers and the timing wheel


class Host:
    """A connection for a dispatcher, which records its calls."""

    def __init__(self) -> None:
        self.context = Context()
        self.settings = SimpleNamespace(handler_warn_after=None)
        self.application: Any = None
        self.told: list[str] = []
        self.gate = ReadingGate()
        self.dispatcher: Any = None

    def start_handler(self) -> None:
        self.told.append("start")

    def drained(self) -> None:
        self.told.append("drained")

    def collapse(self, error: BaseException) -> None:
        self.told.append("collapsed")

    def report(self, error: BaseException, doing: str) -> None:
        self.told.append(doing)

    def undefined(self, number: int) -> None:
        pass

    def may_spill(self) -> bool:
        return False


def dispatcher_on(host: Host, wheel: TimingWheel) -> Dispatcher:
    registry = Registry()
    registry.handler(Text)(lambda ctx, conn: None)
    queue = SendQueue(8, lambda: None)
    host.application = Application(host, Settings(), registry)
    link = ApplicationLink(host.application)
    return Dispatcher(host, link, queue, BlockWatch(wheel), run=None, mode="inline", limit=8)


def free(dispatcher: Dispatcher) -> bool:
    """Return whether another thread can get the turn."""
    got: list[bool] = []
    ends(lambda: got.append(dispatcher._turn.acquire(False)) or dispatcher._turn.release())
    return got == [True]


@pytest.fixture
def wheel() -> Any:
    made = TimingWheel("test-wheel")
    yield made
    made.stop()


def test_an_interrupted_worker_releases_the_turn(wheel: TimingWheel) -> None:
    """At each bytecode of the report of its results."""
    for moment in opcodes(
        "tao.connection.handling.dispatcher", "tao.connection.handling.handler_runner"
    ):
        dispatcher = dispatcher_on(Host(), wheel)
        dispatcher._pending = 2
        with moment.raising():
            dispatcher.note_done(1)
        assert free(dispatcher), moment


def test_an_interrupted_worker_wakes_all_that_wait(wheel: TimingWheel) -> None:
    """At each bytecode of the report of its results, if that has told one of them."""
    for moment in opcodes("tao.connection.handling.dispatcher"):
        dispatcher = dispatcher_on(Host(), wheel)
        dispatcher._pending = 1
        waiting = [Wakeup(), Wakeup()]
        dispatcher._waiting += waiting
        with moment.raising():
            dispatcher.note_done(1)
        dispatcher._settle()  # as whatever ends the connection does
        assert dispatcher._pending or all(each.is_set() for each in waiting), moment


def test_a_second_exception_does_not_block_the_turn(wheel: TimingWheel) -> None:
    """At each bytecode with which a dispatcher handles a first one; the connection ends."""
    for moment in opcodes(
        "tao.connection.handling.dispatcher", "tao.connection.handling.handler_runner"
    ):
        host, hits = Host(), iter([KeyboardInterrupt])
        dispatcher = dispatcher_on(host, wheel)

        def strike(hits: Any = hits) -> None:
            for error in hits:
                raise error

        dispatcher._waiting.append(_Proxy(None, set=strike))  # type: ignore[arg-type]
        with moment.raising(), suppress(KeyboardInterrupt):
            dispatcher._settle()
        if moment.possible:
            assert free(dispatcher), moment
            assert "collapsed" in host.told or list(hits), moment


def test_what_was_posted_takes_its_turn(wheel: TimingWheel) -> None:
    """Also if that was interrupted at any bytecode, and nothing else happens; or it all ends."""
    for moment in opcodes("tao.connection.handling.dispatcher"):
        host = Host()
        dispatcher = dispatcher_on(host, wheel)
        with moment.raising():
            dispatcher.post(print)
        assert free(dispatcher), moment
        assert not dispatcher._posted or "collapsed" in host.told, moment
        assert not dispatcher.pending or {"start", "collapsed"} & {*host.told}, moment


def test_an_interrupted_watch_ends_the_connection(wheel: TimingWheel) -> None:
    """Or the reader was relieved or not; in each case the turn is free."""
    for moment in opcodes(
        "tao.connection.handling.dispatcher", "tao.connection.handling.handler_runner"
    ):
        host = Host()
        dispatcher = dispatcher_on(host, wheel)
        dispatcher._inline = True
        with moment.raising():
            dispatcher.relieve()
        assert free(dispatcher), moment
        whole = dispatcher._relieved and "start" in host.told
        assert whole or not dispatcher._relieved or "collapsed" in host.told, moment


def test_an_interrupted_watch_continues(wheel: TimingWheel) -> None:
    """After an interruption at each bytecode of a check, blocked handlers are still found."""
    for moment in opcodes("tao.connection.handling.block_watch"):
        watch, seen = BlockWatch(wheel), Seen()
        each: Any = _Proxy(None, look=lambda now, grace, seen=seen: seen.add(now))
        with moment.raising():
            watch.enter(each)
        watch.enter(each)
        count = len(seen.wait(1))
        raise_in(wheel.thread, Interruption)
        seen.wait(count + 5)
        watch.running.discard(each)


def test_an_interrupted_timer_fires_again(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception in the check of ``idle_timeout`` does not end the checks."""
    server, address = make_server(registry=Registry(), idle_timeout=0.1)
    with socket.create_connection(address, PATIENCE) as sock:
        wait_until(lambda: server.connections)
        (conn,) = server.connections
        hits = iter([Interruption()])
        drop = type(conn._core).drop

        def struck(*args: Any) -> None:
            for error in hits:
                raise error
            drop(*args)

        monkeypatch.setattr(type(conn._core), "drop", struck)
        assert recv_exactly(sock, 1) == b""
    assert "idle" in conn.close_reason


# -- events noted while another thread has the turn


def test_an_end_noted_during_a_dispatch_is_handled(wheel: TimingWheel) -> None:
    """At each bytecode: when all messages are handled, the connection is notified."""
    for moment in opcodes(
        "tao.connection.handling.dispatcher", "tao.connection.handling.handler_runner"
    ):
        host = Host()
        dispatcher = dispatcher_on(host, wheel)
        with moment.calling(lambda d=dispatcher: ends(d.finish)):
            dispatcher.dispatch([(1, Text("x"))])
        assert "drained" in host.told or not moment.struck, moment


def test_a_waiting_thread_is_woken_when_handlers_are_given_up(wheel: TimingWheel) -> None:
    """This holds even if it was noted while the reader had the turn."""
    for moment in opcodes(
        "tao.connection.handling.dispatcher", "tao.connection.handling.handler_runner"
    ):
        dispatcher = dispatcher_on(Host(), wheel)
        inbox, waits = Inbox(1), list[bool]()
        room = _Proxy(inbox, wait_for_room=lambda i=inbox, w=waits: w.append(i.full()))
        dispatcher._inbox, dispatcher._pending, dispatcher.runner.stuck = room, 1, True
        inbox.push([(1, Text("x"))])
        given_up = list[bool]()

        def give_up(d: Any = dispatcher, g: Any = given_up, w: Any = waits) -> None:
            g.append(ends(d.abandon) and not w)

        with moment.calling(give_up):
            dispatcher.dispatch([(1, Text("y"))])
        assert given_up != [True] or waits in ([], [False]), moment


@pytest.mark.parametrize("name", ["finish", "abandon", "stop", "relieve", "note_spill"])
def test_an_interrupted_call_lets_go_of_the_turn(wheel: TimingWheel, name: str) -> None:
    """Another thread would wait for it without end."""
    for moment in opcodes("tao.connection.handling.dispatcher", "tao.connection.handling.inbox"):
        dispatcher = dispatcher_on(Host(), wheel)
        dispatcher._inbox = Inbox(1)
        with moment.raising():
            getattr(dispatcher, name)()
        assert not dispatcher.interrupted_here, moment


# -- closing


def test_a_close_that_is_interrupted_ends_the_connection() -> None:
    """After any exception in it, the connection is open as before, or ends in time."""
    for moment in opcodes(
        "tao.connection.core",
        "tao.connection.roles",
        "tao.connection.teardown",
        "tao.connection.greetings",
        "tao.connection.lifecycle",
        "tao.connection.handling.dispatcher",
        "tao.connection.handling.handler_runner",
        "tao.connection.timers",
        step=7,
    ):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = ClientConn(listener.getsockname(), registry=Registry(), drain_timeout=0.1)
            client.start()
            with listener.accept()[0]:
                with moment.raising():
                    client._core.begin_close("closed by a test", drain=False)
                assert not client.closed or client.wait_closed(PATIENCE), moment
            client.close()


def test_a_close_during_a_write_sends_written_messages() -> None:
    """``close`` in a signal handler does not wait for the write that it has interrupted."""
    for moment in opcodes("tao.connection.sending.send_queue", step=5):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = ClientConn(listener.getsockname(), registry=Registry(), drain_timeout=2)
            client.start()
            with listener.accept()[0] as peer, moment.calling(client.close):
                written = _write(client, moment)
                assert recv_exactly(peer, len(text("x")) + 1) == text("x") * written, moment
            client.close()


def _write(client: ClientConn, moment: Moment) -> int:
    """Write, and close unless something else does; return how many messages were written."""
    try:
        client.write(Text("x"))
    except ConnectionError:
        return 0
    finally:
        if not moment.struck:
            threading.Thread(target=client.close).start()
    return 1


def test_a_handler_that_waits_for_room_does_not_delay_a_reconnection() -> None:
    """Its wait ends with the connection, because only the next one could make room."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        client = ClientConn(
            listener.getsockname(), registry=Registry(), reconnect=True, queue_size=4
        )

        @client.handler(Text)
        def flood(ctx: Context, conn: Any) -> None:
            for _ in range(20):
                conn.write(Text("x" * 1_000_000))

        with client.start():
            with listener.accept()[0] as peer:
                peer.sendall(text("go"))
                wait_until(lambda: client._core.send_queue.waiters)
            listener.accept()[0].close()
