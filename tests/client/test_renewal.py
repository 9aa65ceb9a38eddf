"""Exceptions that nobody expects, in each thread of a client that reconnects: it comes back.

They cost the connection, as any other error does, and not the client.
"""

from __future__ import annotations

import itertools
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

import tao
from tao.client.back_off import BackOff
from tao.client.client import ClientConn
from tao.client.dialling import Dialler
from tao.client.renewal import Renewal
from tao.connection.connection import core_of
from tao.connection.handling.dispatcher import Dispatcher
from tao.connection.handling.handler_runner import HandlerRunner
from tao.connection.handling.shared_dispatcher import SharedDispatcher
from tao.connection.options.definitions import Reconnect
from tao.connection.readiness import Readiness
from tao.connection.receiving.reading import Reader
from tao.errors import TaoError
from tao.runtime.jobs import FutureJob
from tao.runtime.timing_wheel import TimingWheel
from tao.server.server import Server
from tao.transport.stream import Transport
from tao.wire.message import Registry
from tests.ends import MakeServer, Seen, Text
from tests.injection import Interruption, Moment, opcodes, raise_in
from tests.support import PATIENCE, wait_until
from tests.tls_pairs import CLIENT, SERVER

AT_ONCE = Reconnect(initial=0.001, maximum=0.005)
MODULES = (
    "tao.client.back_off",
    "tao.client.reconnect",
    "tao.client.renewal",
    "tao.connection.core",
    "tao.connection.greetings",
    "tao.connection.handling.dispatcher",
    "tao.connection.handling.handler_runner",
    "tao.connection.handling.inbox",
    "tao.connection.handling.shared_dispatcher",
    "tao.connection.lifecycle",
    "tao.connection.readiness",
    "tao.connection.receiving.reading",
    "tao.connection.roles",
    "tao.connection.sending.send_queue",
    "tao.connection.sending.writer",
    "tao.connection.sessions.stream",
    "tao.connection.shared_reading.member",
    "tao.connection.shared_reading.roles",
)
# `make interrupt EACH=1` tries far more of the bytecodes.
STEP = 7 if os.environ.get("EACH_BYTECODE") else 173
_offsets = itertools.count()


class Life:
    """A server that echoes, and a client of it that reconnects.

    Args:
        options: of the client.
    """

    def __init__(self, *, tls: bool = False, dispatch: Any = "inline", **options: Any) -> None:
        registry = Registry()
        registry.handler(Text)(lambda ctx, conn: conn.write(ctx.message))
        self.server = Server(
            registry=registry,
            drain_timeout=0.3,
            sessions=tao.Sessions() if options.get("session") else None,
            tls=SERVER if tls else None,
        )
        port = self.server.start(("127.0.0.1", 0))[1]
        self.came, self.errors, self.calls = list[str](), list[BaseException](), list[str]()
        self.client = ClientConn(
            ("localhost", port),
            registry=Registry(),
            reconnect=AT_ONCE,
            drain_timeout=0.3,
            tls=CLIENT if tls else None,
            on_connect=lambda conn: self.calls.append("on_connect"),
            on_close=lambda conn: self.calls.append("on_close"),
            on_error=lambda conn, error: self.errors.append(error),
            **options,
        )
        self.client.handler(Text, dispatch=dispatch)(
            lambda ctx, conn: self.came.append(ctx.message.text)
        )

    def __enter__(self) -> Life:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.client.close()
        assert core_of(self.client).finished.wait(PATIENCE)
        self.server.stop(PATIENCE)

    def echoes(self, text: str = "still here") -> None:
        """Write until the echo comes: what is under way when a connection is lost may be lost."""
        tries = itertools.count()

        def came() -> bool:
            if next(tries) % 100 == 0:
                with suppress(TaoError):
                    self.client.write(Text(text))
            return text in self.came

        wait_until(came)


@pytest.fixture(params=["own", "shared", "tls", "session"])
def life(request: pytest.FixtureRequest) -> Iterator[Callable[..., Life]]:
    """A function that makes a `Life` of each kind in turn."""
    made: list[Life] = []
    options: dict[str, Any] = {
        "own": {},
        "shared": {"readers": "shared"},
        "tls": {"tls": True},
        "session": {"session": True},
    }[request.param]

    def make(**more: Any) -> Life:
        made.append(Life(**options, **more))
        return made[-1]

    yield make
    for each in made:
        each.__exit__()


class Strikes:
    """A method that raises in the threads of clients, as many times as it is told to.

    Make it before the client starts, as a thread may hold the method.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: type, name: str) -> None:
        method = getattr(kind, name)
        self.to_come: list[type[BaseException]] = []

        def strike(*args: Any, **kwargs: Any) -> Any:
            thread = threading.current_thread().name
            if self.to_come and ("client" in thread or "helper" in thread):
                raise self.to_come.pop()("raised by a test")
            return method(*args, **kwargs)

        monkeypatch.setattr(kind, name, strike)


@pytest.mark.parametrize("error", [MemoryError, RuntimeError, Interruption])
@pytest.mark.parametrize("name", ["take", "dispatch"])
def test_an_unexpected_exception_costs_the_connection_not_the_client(
    life: Callable[..., Life],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    error: type[BaseException],
    request: pytest.FixtureRequest,
) -> None:
    """In the thread that reads: the client reconnects, with its timers, and tells of it."""
    if name == "dispatch":  # a session looks at its messages first, so they go another way
        name = "dispatch" if "session" in request.node.name else "dispatch_alone"
    kind = Reader if name == "take" else Dispatcher
    strikes, ticks, one = Strikes(monkeypatch, kind, name), Seen(), life()
    one.client.start().run_every(0.001, lambda due, conn: ticks.add(1))
    one.echoes("before")
    strikes.to_come.append(error)
    one.echoes()
    assert not strikes.to_come and not one.client.closed
    assert any(type(each) is error for each in one.errors)
    assert one.calls == ["on_connect", "on_close", "on_connect"] and one.client.reconnects == 1
    ticks.wait(len(ticks.items) + 3)


def test_an_exception_in_the_handling_thread(
    life: Callable[..., Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client reconnects, and what was received before does not hold up what comes."""
    strikes, one = Strikes(monkeypatch, Dispatcher, "_run_pending"), life(dispatch="pool")
    one.client.start()
    strikes.to_come.append(MemoryError)
    for number in range(20):
        one.client.write(Text(str(number)))
    one.echoes()
    assert not strikes.to_come and not one.client.closed


def test_timers_whose_turn_is_struck(
    life: Callable[..., Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that fire once are called once all the same, and periodic ones go on."""
    strikes, one = Strikes(monkeypatch, Dispatcher, "_run_pending"), life()
    called, ticks, entered, leave = Seen(), Seen(), threading.Event(), threading.Event()

    def block(due: Any, conn: Any) -> None:
        entered.set()
        leave.wait(PATIENCE)

    one.client.start().run_after(0.0, block)
    assert entered.wait(PATIENCE)
    one.client.run_every(0.001, lambda due, conn: ticks.add(due))
    for number in range(3):
        one.client.run_after(0.0, lambda due, conn, number=number: called.add(number))
    wait_until(lambda: core_of(one.client).dispatcher.pending >= 5)
    strikes.to_come.append(MemoryError)
    leave.set()
    assert sorted(called.wait(3)) == [0, 1, 2]
    ticks.wait(len(ticks.items) + 3)
    assert not strikes.to_come and not one.client.closed
    assert len(called.items) == 3


def test_timers_that_wait_behind_a_handler_when_the_reader_is_struck(
    life: Callable[..., Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are called when the client is back, though the handling thread had taken them."""
    strikes, one = Strikes(monkeypatch, Reader, "take"), life()
    called, entered, leave = Seen(), [threading.Event() for _ in "12"], Seen()

    def block(number: int) -> None:
        entered[number].set()
        leave.wait(number + 1)

    one.client.start().run_after(0.0, lambda due, conn: block(0))
    assert entered[0].wait(PATIENCE)
    one.client.run_after(0.0, lambda due, conn: block(1))
    wait_until(lambda: core_of(one.client).dispatcher.pending == 2)
    one.client.run_after(0.0, lambda due, conn: called.add(conn))
    wait_until(lambda: core_of(one.client).dispatcher.pending == 3)
    leave.add(1)
    assert entered[1].wait(PATIENCE)
    wait_until(lambda: one.server.connections)
    strikes.to_come.append(MemoryError)
    one.server.broadcast(Text("x"))
    wait_until(lambda: not (strikes.to_come or one.client.connected))
    leave.add(2)
    assert called.wait(1) == [one.client]


@pytest.mark.parametrize("dispatch", ["inline", "pool"])
def test_a_worker_that_is_struck_before_it_begins(
    monkeypatch: pytest.MonkeyPatch, dispatch: str
) -> None:
    """What it was to do for a client costs a connection: reconnecting, and handling."""
    strikes = Strikes(monkeypatch, FutureJob, "perform")
    with Life(readers="shared", dispatch=dispatch) as one:
        one.client.start()
        one.echoes("before")
        for number in range(3):
            strikes.to_come.append(Interruption)
            for conn in one.server.connections:
                conn.abort()
            one.echoes(str(number))
        assert not strikes.to_come and not one.client.closed


def test_threads_that_have_ended_are_forgotten(
    life: Callable[..., Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many times the handling thread of a client is struck, it does not list more."""
    strikes, one = Strikes(monkeypatch, Dispatcher, "_run_pending"), life(dispatch="pool")
    one.client.start()
    for number in range(8):
        strikes.to_come.append(MemoryError)
        wait_until(lambda: _write(one.client) and not strikes.to_come)
        one.echoes(str(number))
    assert len(core_of(one.client).roles.threads_now()) <= 5


def _write(client: ClientConn) -> bool:
    with suppress(TaoError):
        client.write(Text("x"))
    return True


def test_an_idle_handling_thread_is_struck(life: Callable[..., Life]) -> None:
    """It is replaced, though it is struck when it takes the next message, or the reading role."""
    one = life(dispatch="pool")
    one.client.start()
    one.echoes("before")
    for thread in list(core_of(one.client).roles.threads):
        if "handler" in thread.name and isinstance(thread, threading.Thread):
            raise_in(thread, Interruption)
    one.echoes()
    assert not one.client.closed


@pytest.mark.parametrize("place", [(Dialler, "next"), (BackOff, "_delay")])
def test_an_exception_while_a_client_reconnects(
    life: Callable[..., Life], monkeypatch: pytest.MonkeyPatch, place: tuple[type, str]
) -> None:
    """It costs an attempt."""
    strikes, one = Strikes(monkeypatch, *place), life()
    one.client.start()
    one.echoes("before")
    strikes.to_come.append(MemoryError)
    for conn in one.server.connections:
        conn.abort()
    one.echoes()
    assert not strikes.to_come and not one.client.closed


def test_an_exception_in_the_first_attempt_in_the_background(
    life: Callable[..., Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs an attempt, too."""
    strikes, one = Strikes(monkeypatch, BackOff, "_delay"), life()
    strikes.to_come.append(MemoryError)
    one.client.start(keep_trying=True)
    one.echoes()
    assert not strikes.to_come and not one.client.closed


@pytest.mark.parametrize("tls", [False, True])
def test_an_exception_in_the_writing_thread(monkeypatch: pytest.MonkeyPatch, tls: bool) -> None:
    """Another one takes its place, and sends what waits by the next connection."""
    strikes = Strikes(monkeypatch, Transport, "wait_writable")
    with Life(tls=tls) as one:
        one.client.start()
        for _ in range(2):  # also the second of them
            strikes.to_come.append(MemoryError)
            wait_until(lambda: _fill(one.client) and not strikes.to_come)
            one.echoes()
            assert not one.client.closed


def _fill(client: ClientConn) -> bool:
    with suppress(TaoError):
        client.write(Text("x" * 4_000_000))
    return True


def test_exceptions_again_and_again(
    life: Callable[..., Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each costs a connection; in the end the client gives up, if its attempts are limited."""
    attempts = Reconnect(initial=0.001, maximum=0.002, attempts=4)
    monkeypatch.setattr("tests.client.test_renewal.AT_ONCE", attempts)
    strikes, one = Strikes(monkeypatch, Reader, "take"), life()
    one.client.start()
    strikes.to_come += [MemoryError] * 1000
    wait_until(lambda: _write(one.client) and one.client.closed)
    assert "gave up after 4 attempts" in (one.client.close_reason or "")


def test_a_close_while_a_handler_keeps_a_struck_client_from_reconnecting(
    life: Callable[..., Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client waits for the handler with its next connection, but not with its end."""
    strikes, one = Strikes(monkeypatch, Reader, "take"), life()
    entered, leave = threading.Event(), threading.Event()

    def block(due: Any, conn: Any) -> None:
        entered.set()
        leave.wait(PATIENCE)

    one.client.start().run_after(0.0, block)
    assert entered.wait(PATIENCE)
    wait_until(lambda: one.server.connections)
    strikes.to_come.append(MemoryError)
    one.server.broadcast(Text("x"))
    wait_until(lambda: not (strikes.to_come or one.client.connected))
    one.client.close()
    assert one.client.closed and core_of(one.client).finished.wait(PATIENCE)
    leave.set()


def test_a_connection_that_is_lost_before_it_is_read(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the borrower of the reading role has got the next one, the lender does not read it."""
    registry, dials = Registry(), list[int]()
    registry.handler(Text)(lambda ctx, conn: ctx.reply(ctx.message))
    server, address = make_server(registry=registry)
    lost, looked, lenders, reading = threading.Event(), threading.Event(), Seen(), set[int]()
    leave, has_lent, read = Renewal._leave_work, Readiness.has_lent_reading, Reader.read

    def dial() -> socket.socket:
        dials.append(len(dials))
        assert len(dials) < 3 or looked.wait(PATIENCE)
        return socket.create_connection(address)

    def lose(renewal: Renewal) -> None:
        leave(renewal)
        if len(dials) == 2 and not lost.is_set():
            lost.set()
            lenders.add(threading.current_thread())
            wait_until(lambda: server.connections)
            server.connections[0].abort()
            wait_until(lambda: not core.lifecycle.status.talking)

    def look(readiness: Readiness) -> bool:
        lent = has_lent(readiness)
        if lost.is_set() and not looked.is_set():
            looked.set()
            wait_until(lambda: core.reconnects == 2)
        return lent

    def note(reader: Reader) -> bool:
        reading.add(threading.get_ident())
        try:
            return read(reader)
        finally:
            reading.discard(threading.get_ident())

    monkeypatch.setattr(Renewal, "_leave_work", lose)
    monkeypatch.setattr(Readiness, "has_lent_reading", look)
    monkeypatch.setattr(Reader, "read", note)
    client = ClientConn(
        dial,
        registry=registry,
        reconnect=AT_ONCE,
        on_connect=lambda conn: len(dials) != 2 or conn.request(Text("login"), timeout=PATIENCE),
    )
    core = core_of(client)
    with client:
        wait_until(lambda: server.connections)
        server.connections[0].abort()
        lender = lenders.wait(1)[0]
        wait_until(lambda: not lender.is_alive() or lender.ident in reading)
        assert lender.ident not in reading
        assert client.request(Text("x"), timeout=PATIENCE).text == "x"


def test_a_thread_is_struck_that_the_connecting_one_does_not_wait_for(
    life: Callable[..., Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it does to the connection afterwards is made good by the next one."""
    one, struck, cleared = life(), threading.current_thread(), Seen()
    recover, core = Dispatcher.recover, core_of(one.client)

    def recover_slowly(dispatcher: Dispatcher) -> None:
        recover(dispatcher)
        if threading.current_thread() is struck and not cleared.items:
            cleared.add(True)
            for conn in one.server.connections:
                conn.abort()
            wait_until(lambda: core.renewal.doubt is None)

    monkeypatch.setattr(Dispatcher, "recover", recover_slowly)
    one.client.start()
    one.echoes("before")
    core.collapse(MemoryError("raised by a test"))
    assert cleared.items
    one.echoes()


def test_a_timer_that_posts_while_a_client_is_struck(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing counts as pending afterwards that is not there any more."""
    with Life(readers="shared") as one:
        core, here = core_of(one.client), threading.current_thread()
        stopping, stop = threading.Event(), SharedDispatcher.stop
        inbox: Any = SharedDispatcher.inbox

        def post_slowly(dispatcher: SharedDispatcher) -> Any:
            found = inbox.fget(dispatcher)
            if threading.current_thread() is here and not stopping.is_set():
                threading.Thread(target=core.roles.struck, args=[MemoryError("a test")]).start()
                assert stopping.wait(PATIENCE)
                with suppress(AssertionError):  # it has to wait for this thread
                    wait_until(lambda: core.renewal.doubt is None, timeout=0.1)
            return found

        def note_stop(dispatcher: SharedDispatcher, **options: Any) -> None:
            stopping.set()
            stop(dispatcher, **options)

        monkeypatch.setattr(SharedDispatcher, "inbox", property(post_slowly))
        monkeypatch.setattr(SharedDispatcher, "stop", note_stop)
        one.client.start()
        one.echoes("before")
        core.dispatcher.post(bool)
        one.echoes()
        wait_until(lambda: core.dispatcher.idle)


def test_an_exception_between_a_wait_and_its_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait is forgotten: nothing would end it before the client is closed."""
    run_clock, struck = TimingWheel.run_clock, Seen()

    def strike(wheel: TimingWheel, *args: Any) -> Any:
        if sys._getframe(1).f_code.co_name == "_wait_aside" and not struck.items:
            struck.add(True)
            raise MemoryError("raised by a test")
        return run_clock(wheel, *args)

    monkeypatch.setattr(TimingWheel, "run_clock", strike)
    with Life(readers="shared") as one:
        one.client.start()
        one.echoes("before")
        for conn in one.server.connections:
            conn.abort()
        one.echoes()
        assert struck.items and not core_of(one.client).back_off.waits


def test_a_server_connection_ends_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected exception in a server's thread closes that connection."""
    monkeypatch.setattr(HandlerRunner, "run_inline", _raise)
    with Life() as one:
        one.client.start()
        wait_until(lambda: one.server.connections)
        (conn,) = one.server.connections
        one.client.write(Text("x"))
        assert conn.wait_closed(PATIENCE) and "raised by a test" in (conn.close_reason or "")


def _raise(*args: Any) -> Any:
    raise MemoryError("raised by a test")


@pytest.mark.interrupted
@pytest.mark.parametrize("role", ["reader", "handler", "writer", "leader"])
@pytest.mark.parametrize("kind", ["plain", "tls", "session"])
def test_a_client_comes_back_from_any_bytecode(role: str, kind: str) -> None:
    """After an exception at any bytecode of one of its threads."""
    for moment in opcodes(*MODULES, first=next(_offsets), step=STEP):
        strike_client(moment, role, kind)


def strike_client(moment: Moment, role: str, kind: str) -> None:
    options: dict[str, Any] = {"readers": "shared"} if role == "leader" else {}
    if kind == "session":
        options["session"] = True
    dispatch = "pool" if role == "handler" else "inline"
    with Life(tls=kind == "tls", dispatch=dispatch, **options) as one:
        name = f"tao-{role}-client-{one.client.net_id}"
        with moment.raising(thread="tao-reader-clients-1" if role == "leader" else name):
            try:
                one.client.start()
            except RuntimeError:
                assert role == "reader" and moment.struck, moment
                return
            for _ in range(3):
                one.client.write(Text("x" * (4_000_000 if role == "writer" else 1)), PATIENCE)
            wait_until(lambda: len(one.came) >= 3 or moment.struck)
            one.echoes()
        assert not one.client.closed, (moment, one.client.close_reason)
