"""Interrupted calls of a client: by an exception, a signal handler or a finalizer."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, cast

import pytest

from tao.client.client import ClientConn, connect
from tao.client.start_claim import StartClaim
from tao.connection.connection import core_of
from tao.connection.options.definitions import ServerSettings
from tao.connection.shared_reading.readers import client_readers
from tao.connection.teardown import Teardown
from tao.errors import ConnectionClosed
from tao.server.resources import Resources
from tao.server.server import Server
from tao.wire.message import Registry
from tests.ends import MakeServer, Seen, Text
from tests.injection import Interruption, Moment, opcodes
from tests.support import PATIENCE, ends, wait_until

MODULES = (
    "tao.client.client",
    "tao.client.reconnect",
    "tao.connection.core",
    "tao.connection.roles",
    "tao.connection.teardown",
    "tao.connection.greetings",
    "tao.connection.lifecycle",
)

# The garbage collector closes a socket that has no owner yet when an exception arrives. If the
# exception arrives in a finalizer, the interpreter prints it.
pytestmark = [
    pytest.mark.interrupted,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Run the garbage collector before leaks are counted."""
    yield
    gc.collect()


@pytest.fixture
def server(make_server: MakeServer) -> Server:
    """A server without handlers."""
    return make_server(max_connections=10_000)[0]


def client_of(server: Server, **options: Any) -> ClientConn:
    """Return a client with a short timeout, so that a close that waits for nothing fails."""
    return ClientConn(server.address, registry=Registry(), drain_timeout=1000, **options)


def test_an_exception_while_it_starts(server: Server) -> None:
    """After an interrupted ``start``, the client is closed, or ``start`` can be called again."""
    for moment in opcodes(*MODULES, step=2):
        client = client_of(server, on_connect=lambda conn: True, on_close=lambda conn: None)
        try:
            with moment.raising(Interruption):
                client.start()
        except Interruption:
            pass
        try:
            if not client.connected:
                client.start()
            assert client.connected, moment
        except ConnectionClosed as error:
            assert str(error) == "start() was interrupted", moment
        assert ends(client.close), moment
        assert client.wait_closed(PATIENCE), moment


def test_ctrl_c_in_on_connect(server: Server) -> None:
    """The exception reaches the caller of ``start`` unchanged; the client can be started again."""
    interrupt = [KeyboardInterrupt]

    def on_connect(conn: Any) -> bool:
        if interrupt:
            raise interrupt.pop()
        return True

    client = client_of(server, on_connect=on_connect)
    with pytest.raises(KeyboardInterrupt):
        client.start()
    client.start()
    client.close()


def test_an_exception_while_an_interrupted_start_is_given_up(server: Server) -> None:
    """After an interruption at any bytecode, closing the client does not block."""

    def on_connect(conn: Any) -> bool:
        raise KeyboardInterrupt

    for moment in opcodes("tao.client.reconnect"):
        client = client_of(server, on_connect=on_connect)
        with suppress(KeyboardInterrupt, Interruption), moment.raising(Interruption):
            client.start()
        assert ends(client.close), moment
        assert client.wait_closed(PATIENCE), moment


def test_an_exception_while_an_interrupted_close_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After another interruption at any bytecode, closing again ends a client with a timer."""
    finish = Teardown.finish
    for moment in opcodes("tao.client.reconnect"):
        client = ClientConn("/nowhere", registry=Registry(), drain_timeout=1000)
        client.run_after(0.0, lambda due, conn: None)
        wait_until(lambda client=client: client._core.roles.threads)
        interrupt = [KeyboardInterrupt]

        def interrupted(teardown: Teardown, interrupt: Any = interrupt) -> None:
            if interrupt:
                raise interrupt.pop()
            finish(teardown)

        def strike(moment: Moment = moment) -> None:
            if moment.possible:
                raise Interruption

        monkeypatch.setattr(Teardown, "finish", interrupted)
        with suppress(KeyboardInterrupt, Interruption), moment.calling(strike):
            client.close()
        interrupt.clear()
        client.close()
        assert not client._core.roles.threads_now()[0].is_alive(), moment
        assert client.wait_closed(0), moment


def test_an_exception_while_a_forgotten_client_is_ended() -> None:
    """The wheel's thread, which ends a client with nothing but a timer, may be struck anywhere."""
    for moment in opcodes("tao.client.reconnect", "tao.connection.roles"):
        with moment.raising(thread="tao-timing-wheel"):
            client: Any = ClientConn("/nowhere", registry=Registry(), drain_timeout=1000)
            core = client._core
            with suppress(ConnectionClosed):  # starting the thread of its timers was struck
                client.run_after(0.0, lambda due, conn: None)
            wait_until(lambda core=core: core.roles.threads or core.lifecycle.close_reason)
            del client
            wait_until(lambda core=core: core.wait_closed(0) or not core.roles.threads)


def test_a_client_that_is_forgotten_while_a_timer_fires() -> None:
    """At whatever bytecode it is dropped, the thread that is started for its timers ends."""
    for moment in opcodes("tao.connection.timers", first=6, step=2):
        clients: list[Any] = []

        def drop(clients: Any = clients) -> None:
            for timer in list(clients[0]._core.timers._timers):
                clients[0].cancel_timer(timer)
            clients.clear()
            gc.collect()

        with moment.calling(drop, thread="tao-timing-wheel"):
            clients.append(ClientConn("/nowhere", registry=Registry(), drain_timeout=1000))
            core = clients[0]._core
            with suppress(IndexError):  # dropped already
                clients[0].run_after(0.0, lambda due, conn: None)
            wait_until(lambda core=core: not len(core.timers))
        clients.clear()
        for thread in core.roles.threads_now():  # another thread may be about to start it
            wait_until(lambda thread=thread: thread.ident and not thread.is_alive())
        del core
        # Only a new thread of the wheel can be interrupted in the next round.
        wait_until(lambda: gc.collect() >= 0 and "tao-timing-wheel" not in names_of_threads())


def names_of_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def test_a_signal_handler_that_closes(server: Server) -> None:
    """A signal handler may close the client during ``start`` or ``close`` without a deadlock."""
    for moment in opcodes(*MODULES, step=2):
        client = client_of(server)
        with moment.calling(client.close):
            try:
                client.start()
                client.close()
            except ConnectionClosed as error:
                assert str(error) == "closed by this side", moment
        assert client.wait_closed(PATIENCE), moment
        assert not client.connected


@pytest.mark.parametrize("readers", ["own", "shared"])
def test_a_close_right_after_the_start_waits(
    server: Server, readers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the thread that ``start`` has started has not done anything yet."""
    hand_over, over, may_begin = StartClaim.hand_over, threading.Event(), threading.Event()

    def late(*args: Any) -> None:
        may_begin.wait(PATIENCE)
        hand_over(*args)

    def let_begin() -> None:
        wait_until(lambda: client._core.finished.waiting or over.is_set())
        may_begin.set()

    monkeypatch.setattr(StartClaim, "hand_over", late)
    client = client_of(server, readers=readers).start()
    helper = threading.Thread(target=let_begin)
    helper.start()
    client.close()
    closed = client._core.finished.is_set()
    over.set()
    helper.join()
    assert closed and client.wait_closed(PATIENCE)


def test_an_exception_while_it_closes(server: Server) -> None:
    """A second ``close`` completes an interrupted one, whether or not the client was started."""
    for started in (True, False):
        for moment in opcodes(*MODULES, step=2):
            client = client_of(server)
            if started:
                client.start()
            try:
                with moment.raising(Interruption):
                    client.close()
            except Interruption:
                pass
            assert ends(client.close), moment
            assert client.wait_closed(PATIENCE), moment


def test_a_finalizer_that_finds_a_forgotten_client(server: Server) -> None:
    """The garbage collector may finalize a client during any operation of another client."""
    forgotten: list[ClientConn] = []
    modules = (
        *MODULES,
        "tao.runtime.timing_wheel",
        "tao.connection.timers",
        "tao.connection.sending.send_queue",
        "tao.runtime.context",
    )
    for moment in opcodes(*modules, step=11):
        forgotten.append(connect(server.address, registry=Registry()))
        core = forgotten[0]._core
        with moment.calling(forgotten.clear), client_of(server) as client:
            client.run_after(1000, lambda due, conn: None)
            client.write(Text("x"))
        forgotten.clear()
        assert core.wait_closed(PATIENCE), moment
    wait_until(lambda: threading.active_count() < 50)


def test_an_exception_while_it_gets_shared_readers() -> None:
    """At many bytecodes with which a client is made: its readers are given back."""
    for moment in opcodes("tao.connection.shared_reading.readers", step=3):
        with moment.raising():
            ClientConn(("127.0.0.1", 1), registry=Registry(), readers="shared")
        gc.collect()
        assert not any(each.users for each in client_readers._current.values()), moment


def test_a_client_gives_its_readers_back_whatever_is_raised_before() -> None:
    """Each last step is taken, also after one that has failed."""
    client = ClientConn(("127.0.0.1", 1), registry=Registry(), readers="shared")
    core = core_of(client)
    give_back = core._give_back

    def struck() -> None:
        give_back()
        raise Interruption

    core._give_back = cast("Any", struck)
    with pytest.raises(Interruption):
        core.leave_owner()
    assert not any(each.users for each in client_readers._current.values())
    core._give_back = give_back


def test_an_exception_while_a_server_gets_shared_readers() -> None:
    """At many bytecodes with which a server gets what it needs: no thread of it is left."""
    settings = ServerSettings(readers="shared", workers=1)
    modules = ("tao.server.resources", "tao.connection.shared_reading.readers")
    for moment in opcodes(*modules, step=7):
        owner = Seen()
        with moment.raising():
            Resources(owner, settings)
        del owner
        wait_until(lambda: gc.collect() >= 0 and not _of_servers())


def test_an_exception_while_a_server_that_was_dropped_is_cleared_away() -> None:
    """At many bytecodes with which its threads are told to end: they all do."""
    settings = ServerSettings(readers="shared", reader_threads=2, workers=1)
    modules = ("tao.connection.shared_reading.readers", "tao.connection.shared_reading.loop")
    for moment in opcodes(*modules, step=3):
        owner = Seen()
        resources = Resources(owner, settings)
        with moment.raising():
            resources.give_back()
        wait_until(lambda: not _of_servers())


def _of_servers() -> list[str]:
    return [name for name in names_of_threads() if "servers" in name]
