"""Stopping a server: it meets its timeout, its report is correct, and it may be interrupted."""

from __future__ import annotations

import gc
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any

import pytest

from tao.connection.connection import core_of
from tao.connection.handling.dispatcher import Dispatcher
from tao.errors import ServerClosed
from tao.runtime.context import Context
from tao.runtime.threads import in_tao_thread
from tao.server.connection import ServerConn
from tao.server.membership.cluster_member import ClusterMember
from tao.server.server import Server, server_core_of
from tao.server.stopping import Stopping
from tao.transport.stream import Transport
from tao.wire.message import Registry
from tests.ends import MakeServer, Text, text
from tests.injection import interrupting, opcodes
from tests.programs import LONG
from tests.support import PATIENCE, ends, recv_exactly, took, wait_until

#: The tolerance beyond the timeout, on a machine under load.
MOMENT = 0.9


class Stuck:
    """A server with a handler that does not return before the end of the ``with`` block."""

    def __init__(self, make_server: MakeServer, **options: Any) -> None:
        self.server, address = make_server(dispatch="pool", **options)
        self.entered, self.leave = threading.Event(), threading.Event()

        @self.server.handler(Text)
        def stick(ctx: Context, conn: ServerConn) -> None:
            self.entered.set()
            self.leave.wait(PATIENCE)

        self.sock = socket.create_connection(address)
        self.sock.sendall(text("x"))
        assert self.entered.wait(PATIENCE)

    def __enter__(self) -> Stuck:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.leave.set()
        self.sock.close()


def test_a_stop_takes_no_longer_than_its_timeout(make_server: MakeServer) -> None:
    """Whatever blocks, the stop ends in time; aborted connections take only a moment more."""
    with Stuck(make_server) as stuck:
        started = monotonic()
        assert took(lambda: stuck.server.stop(0.2)) < 0.2 + MOMENT
        assert monotonic() - started >= 0.2
        report = stuck.server.stop()
        assert report.finished and not report.clean and "tao-worker_0" in report.threads


def test_a_stop_without_time_can_be_clean(make_server: MakeServer) -> None:
    """``stop(0)`` does not report idle workers and threads that are about to end."""
    server, _ = make_server()
    server_core_of(server).resources.pool.run(int)
    assert server.stop(0).clean


def test_what_has_not_ended_at_the_deadline_does_so_later(make_server: MakeServer) -> None:
    """Also if the thread that reads it gets no time before: no socket stays open."""
    server, address = make_server(readers="shared")
    socks = [socket.create_connection(address, PATIENCE) for _ in range(3)]
    wait_until(lambda: len(server.connections) == len(socks))
    conns, go_on = server.connections, threading.Event()
    core_of(conns[0]).gate.call_back(lambda: go_on.wait(PATIENCE))
    assert not server.stop(0).clean
    go_on.set()
    for sock in socks:
        assert recv_exactly(sock, 1) == b""
        sock.close()
    assert all(conn.wait_closed(PATIENCE) for conn in conns)


def test_a_context_callback_does_not_delay_the_stop(make_server: MakeServer) -> None:
    """A slow callback is reported like any other thread that has not ended."""
    server, _ = make_server()
    gate = threading.Event()
    server.context.after_cancel(lambda: gate.wait(PATIENCE))
    assert took(lambda: server.stop(0.1)) < 0.1 + MOMENT
    assert server.stop().threads == ["tao-after-cancel"]
    gate.set()


def test_a_stop_after_an_interrupted_one(make_server: MakeServer) -> None:
    """Ctrl-C in ``stop`` ends the wait, not the stop; the next call returns its report."""
    with Stuck(make_server, drain_timeout=PATIENCE) as stuck:
        with interrupting(lambda: server_core_of(stuck.server).stopping.done.waiters):
            stuck.server.stop()
        assert stuck.server.state == "stopping"
        stuck.leave.set()
        assert stuck.server.stop().clean


def test_a_shorter_stop_shortens_a_longer_one(make_server: MakeServer) -> None:
    """A second call with a shorter timeout shortens the stop."""
    with Stuck(make_server) as stuck:
        patient = threading.Thread(target=stuck.server.stop, args=[PATIENCE])
        patient.start()
        wait_until(lambda: not stuck.server.running)
        assert took(lambda: stuck.server.stop(0.1)) < 0.1 + MOMENT
        patient.join(PATIENCE / 2)
        assert not patient.is_alive() and len(stuck.server.stop().abandoned) == 1


def test_an_unfinished_stop_is_not_clean(make_server: MakeServer) -> None:
    """A handler that stops its own server gets a report of the remaining work."""
    server, address = make_server()
    reports: list[Any] = []
    server.handler(Text)(lambda ctx, conn: reports.append(conn.context.server.stop()))
    with socket.create_connection(address) as sock:
        sock.sendall(text("x"))
        wait_until(lambda: reports)
    assert not reports[0].finished and not reports[0].clean
    assert [(type(conn), left) for conn, *left in reports[0].abandoned] == [(ServerConn, [1, 0])]
    assert server.stop().clean


@pytest.mark.parametrize("readers", ["own", "shared"])
@pytest.mark.parametrize("place", [(Stopping, "_drain"), (ClusterMember, "close")])
def test_a_stop_that_always_fails_gives_all_back(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch, place: Any, readers: str
) -> None:
    """Nobody waits for ever, connections are ended, and nothing is held that others share."""

    def fail(*_: Any) -> None:
        raise MemoryError

    server, address = make_server(readers=readers)
    core = server_core_of(server)
    core.resources.pool.run(int)
    with socket.create_connection(address, PATIENCE):
        wait_until(lambda: server.connections)
        conn = server.connections[0]
        with monkeypatch.context() as patch:
            patch.setattr(*place, fail)
            report = server.stop(PATIENCE)
        assert not report.finished and server.state == "stopped"
        assert not core.resources.give_back.alive and core.resources.pool.stopped
        assert conn.wait_closed(PATIENCE)
    with pytest.raises(OSError):
        socket.create_connection(address, PATIENCE)


@pytest.mark.parametrize("place", [Transport.send, Dispatcher._advance])
def test_a_stop_does_not_wait_for_the_call_that_it_interrupts(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch, place: Callable[..., Any]
) -> None:
    """A signal handler's stop returns when only the connection is left whose call it interrupts.

    When the interrupted write or close has continued, the connection ends gracefully.
    """
    server, address = make_server()
    reports, name = list[Any](), place.__name__

    def interrupt(*args: Any) -> Any:
        if not (in_tao_thread() or reports):
            reports.append(None)
            assert not conn.wait_closed()
            reports.append(server.stop(LONG))
        return place(*args)

    def call() -> None:
        conn.write(Text("x" * 100_000))
        conn.close()

    with socket.create_connection(address, PATIENCE) as sock, socket.create_connection(address):
        wait_until(lambda: server.connection_count == 2)
        conn = server.conn(1) or pytest.fail("it is gone")
        monkeypatch.setattr(Transport if name == "send" else Dispatcher, name, interrupt)
        assert ends(call)
        ((left, *counts),) = reports[1].abandoned
        assert left is conn and not reports[1].finished
        assert counts == [0, int(name == "send")]
        assert recv_exactly(sock, 200_000) == text("x" * 100_000)
    assert server.stop(PATIENCE).finished


def test_an_interrupted_abort_delays_no_other_connection(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler's stop ends all connections except the one being aborted."""
    server, address = make_server()
    reports, shut_down = list[Any](), socket.socket.shutdown

    def interrupt(sock: socket.socket, how: int) -> None:
        if not (in_tao_thread() or reports):
            reports.append(server.stop(PATIENCE))
        shut_down(sock, how)

    with socket.create_connection(address), socket.create_connection(address):
        wait_until(lambda: server.connection_count == 2)
        conn = server.conn(1) or pytest.fail("it is gone")
        monkeypatch.setattr(socket.socket, "shutdown", interrupt)
        assert ends(conn.abort)
        assert [left[0] for left in reports[0].abandoned] == [conn]
    assert server.stop(PATIENCE).finished


# -- interrupted at any bytecode

CALLS: dict[str, Callable[[Server], object]] = {
    "start": lambda server: server.start(("127.0.0.1", 0)),
    "stop": lambda server: server.stop(PATIENCE),
    "broadcast": lambda server: server.broadcast(Text("x")),
    "schedule": lambda server: server.cancel_schedule(server.schedule(1, lambda due, conn: None)),
    "snapshot": lambda server: server.snapshot(),
    "addresses": lambda server: (server.address, server.connections, server.conn(1)),
}


@pytest.fixture
def warnings_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The garbage collector closes a new socket that has no owner yet, and issues a warning.

    pytest would keep the warning, and with it references to all objects of that moment.
    """
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)


INNER = {
    "stop": CALLS["stop"],
    "others": lambda server: [CALLS[each](server) for each in ("broadcast", "schedule")],
}
MODULES = (
    "tao.server.server",
    "tao.server.core",
    "tao.server.state",
    "tao.server.listening.accepting",
    "tao.server.listening.listeners",
    "tao.server.schedules",
    "tao.server.stopping",
    "tao.server.connection",
    "tao.server.resources",
    "tao.server.listening.listener",
)


@pytest.mark.usefixtures("warnings_not_kept")
@pytest.mark.parametrize("inner", ["stop", "others"])
@pytest.mark.parametrize("outer", CALLS)
def test_any_call_may_interrupt_another(outer: str, inner: str) -> None:
    """A signal handler or finalizer may make any call at each bytecode, without a deadlock."""

    def try_both() -> None:
        for moment in opcodes(*MODULES):
            server = Server(registry=Registry())
            server.start(("127.0.0.1", 0))
            with moment.calling(lambda server=server: INNER[inner](server)):
                try:
                    CALLS[outer](server)
                except ServerClosed:
                    assert outer == "start" and inner == "stop", moment
            assert server.stop(PATIENCE).clean and not server_core_of(server).schedules, moment
            assert outer == "start" or len(server_core_of(server).listeners.all) == 1, moment
        gc.collect()

    with ThreadPoolExecutor(1, "test-outer") as pool:
        pool.submit(try_both).result(LONG)


@pytest.mark.interrupted
@pytest.mark.usefixtures("warnings_not_kept")
@pytest.mark.parametrize("call", CALLS)
def test_an_exception_at_any_bytecode_of_a_call(call: str) -> None:
    """The server continues to work, and its stop is clean, without open sockets."""
    for moment in opcodes(*MODULES):
        server = Server(registry=Registry())
        address = server.start(("127.0.0.1", 0))
        with moment.raising():
            CALLS[call](server)
        if call != "stop":
            socket.create_connection(address).close()
        assert server.stop(PATIENCE).clean and server.state == "stopped", moment
        assert all(listener.closed.is_set() for listener in server_core_of(server).listeners.all), (
            moment
        )
    gc.collect()


@pytest.mark.interrupted
def test_an_exception_at_any_bytecode_of_the_stopper(log_lines: list[Any]) -> None:
    """The stop is restarted, by itself or by the next caller; it is always completed."""
    for moment in opcodes("tao.server.stopping"):
        server = Server(registry=Registry())
        server.start(("127.0.0.1", 0))
        with moment.raising(thread="tao-stopper"):
            server.stop(PATIENCE)
        assert server.stop(PATIENCE).clean and server.state == "stopped", moment
