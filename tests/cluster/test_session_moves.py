"""Sessions that move from one server to another; here both are in one process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

import tao
from tao.cluster.sessions import handover as session_handover
from tao.connection.connection import core_of
from tao.server.server import server_core_of
from tests.cluster.moving import Moving
from tests.ends import Number, Seen, Text
from tests.hostile import Wicked
from tests.session_pairs import READERS, write_all
from tests.support import PATIENCE, together, wait_until


@READERS
def test_a_session_moves(move: Callable[..., Moving], readers: str) -> None:
    """What both have written arrives once; each process is told of its part of the life."""
    it = move(readers)
    write_all(it.conn, 5)
    write_all(it.client, 5)
    it.drain()
    wait_until(lambda: it.heir.connections and it.client.session.connected)
    write_all(it.heir.connections[0], 5)
    write_all(it.client, 5)
    assert it.at_server.wait(10) == it.at_client.wait(10) == [*range(5)] * 2
    assert (it.old.items, it.new.wait(2)) == (["connect", "save"], ["load", "resume"])
    assert it.client_events.items == ["connect", "resume"]
    it.client.close()
    assert it.new.wait(3) == ["load", "resume", "close"]


@READERS
def test_a_session_that_is_just_beginning(move: Callable[..., Moving], readers: str) -> None:
    """It moves, too, once on_connect has returned."""
    begun, go_on = Seen(), threading.Event()

    def connect(conn: tao.ServerConn) -> None:
        begun.add(conn)
        if conn.net_id > 1:
            go_on.wait(PATIENCE)

    it = move(readers, on_connect=connect)
    other = tao.ClientConn(it.proxy.address, session=True, reconnect=True)
    with other:
        begun.wait(2)

        def finish() -> None:
            it.new.wait(1)  # the first session has moved
            go_on.set()

        together(it.drain, finish)
        assert it.old.items == ["save", "save"]
        assert it.new.items.count("load") == 2
        assert other.session is not None


@READERS
def test_what_is_on_its_way(move: Callable[..., Moving], readers: str) -> None:
    """What the client has not received, and what it has written meanwhile, is not lost."""
    it = move(readers)
    it.proxy.to_client.swallow = True
    write_all(it.conn, 200)
    it.proxy.refuse()
    it.proxy.reset()
    write_all(it.client, 200)
    it.proxy.to_client.swallow = False
    it.drain()
    it.proxy.accept()
    assert it.at_server.wait(200) == it.at_client.wait(200) == [*range(200)]
    assert it.old.items == ["connect", "save"]


@READERS
def test_a_client_that_does_not_come(move: Callable[..., Moving], readers: str) -> None:
    """The session ends in the new process, after the time that it has anyway."""
    it = move(readers, linger=0.3)
    it.proxy.refuse()
    it.proxy.reset()
    it.drain()
    assert it.new.wait(3) == ["load", ("lost", []), "close"]
    assert it.old.items == ["connect", "save"]


@READERS
def test_a_handler_is_finished(move: Callable[..., Moving], readers: str) -> None:
    """The session moves when it has returned, with what it has written."""
    begun, go_on = Seen(), threading.Event()

    def slow(ctx: Any, conn: Any) -> None:
        begun.add(conn)
        go_on.wait(PATIENCE)
        conn.write(Number(2))

    it = move(readers, on_text=slow)
    it.client.write(Text(""))
    begun.wait()
    stream: Any = core_of(it.conn).transport

    def finish() -> None:
        wait_until(lambda: stream.frozen)
        assert it.old.items == ["connect"]
        go_on.set()

    together(it.drain, finish)
    assert it.at_client.wait(1) == [2]
    assert it.old.items == ["connect", "save"]


@READERS
def test_a_request_of_the_server(move: Callable[..., Moving], readers: str) -> None:
    """The session moves when the reply has come."""
    it = move(readers)
    asked, go_on = Seen(), threading.Event()

    def answer(ctx: Any, conn: Any) -> None:
        asked.add(conn)
        go_on.wait(PATIENCE)
        ctx.reply(Number(2))

    it.client.handler(Text)(answer)
    conn = it.conn

    def finish() -> None:
        asked.wait()
        wait_until(lambda: not it.server.addresses)
        assert it.old.items == ["connect"]
        go_on.set()

    def ask() -> Any:
        return conn.request(Text(""), timeout=PATIENCE).value

    def replace() -> None:
        asked.wait()
        it.drain()

    assert together(ask, replace, finish)[0] == 2
    assert it.new.wait(2) == ["load", "resume"]


@READERS
def test_a_request_of_the_client(move: Callable[..., Moving], readers: str) -> None:
    """The session moves when it is answered, and the reply with it."""
    asked = Seen()

    def defer(ctx: Any, conn: Any) -> None:
        ctx.defer()
        asked.add((ctx, conn))

    it = move(readers, on_text=defer)

    def ask() -> Any:
        return it.client.request(Text(""), timeout=PATIENCE).value

    def answer() -> None:
        ctx, conn = asked.wait()[0]
        stream: Any = core_of(conn).transport
        wait_until(lambda: stream.frozen)
        assert it.old.items == ["connect"]
        ctx.reply(Number(3))

    def replace() -> None:
        asked.wait()
        it.drain()

    assert together(ask, replace, answer)[0] == 3
    assert it.old.items == ["connect", "save"]


@READERS
def test_a_connection_that_is_closed_first(move: Callable[..., Moving], readers: str) -> None:
    """It does not move, but ends in order."""
    begun, go_on = Seen(), threading.Event()

    def slow(ctx: Any, conn: Any) -> None:
        begun.add(conn)
        go_on.wait(PATIENCE)
        conn.write(Number(2))
        conn.close("said so")

    it = move(readers, on_text=slow)
    it.client.write(Text(""))
    stream: Any = core_of(begun.wait()[0]).transport

    def finish() -> None:
        wait_until(lambda: stream.frozen)
        go_on.set()

    together(it.drain, finish)
    assert it.at_client.wait() == [2]
    assert it.old.items == ["connect", "resume", "close"]
    wait_until(lambda: it.client_events.items[1:] == ["resume", "close", "connect"])


@READERS
@pytest.mark.parametrize("why", ["identity", "max_connections", "no load", "gone"])
def test_a_process_that_refuses(move: Callable[..., Moving], readers: str, why: str) -> None:
    """The old process tells that the session is lost, and the client is told as well."""
    new: dict[str, Any] = {"max_connections": 1} if why == "max_connections" else {}
    if why == "no load":
        new["sessions"] = tao.Sessions()
    it = move(readers, new)
    it.conn.identify("it")
    port: Any = server_core_of(it.heir).session_port
    with tao.ClientConn(it.heir_address) as other:
        other.write(Number(1))
        wait_until(lambda: it.heir.connections)
        it.heir.connections[0].identify("it")
        if why == "gone":
            port.close()
        it.drain()
        assert it.old.wait(4) == ["connect", "save", ("lost", []), "close"]
        assert set(it.new.items) == {"connect"}
    assert it.client_events.wait(3)[:3] == ["connect", ("lost", []), "close"]


@READERS
@pytest.mark.parametrize("kind", [ValueError, SystemExit, GeneratorExit, KeyboardInterrupt])
@pytest.mark.parametrize("what", ["save", "load"])
def test_a_function_that_raises_ends_the_session(
    move: Callable[..., Moving],
    readers: str,
    what: str,
    kind: type[BaseException],
    log_lines: list[Any],
) -> None:
    """Whatever save or load raises is reported; the old process tells that it is lost, and why."""
    errors = Seen()

    class Failing(Moving):
        def save(self, conn: tao.ServerConn) -> bytes:
            if what == "save":
                raise kind
            return super().save(conn)

        def load(self, conn: tao.ServerConn, data: bytes) -> None:
            raise kind

    note = {"on_error": lambda conn, error: errors.add(type(error))}
    it = move(readers, note, kind=Failing, **note)
    it.drain()
    saved = [] if what == "save" else ["save"]
    assert it.old.wait(3 + len(saved)) == ["connect", *saved, ("lost", []), "close"]
    assert errors.wait()[0] is kind
    why = [line["message"] for line in log_lines if "does not move" in line["message"]]
    assert len(why) == 1 and why[0].endswith(f"{what} failed")
    assert it.client_events.wait(3)[:3] == ["connect", ("lost", []), "close"]


@READERS
def test_a_session_moves_with_names_of_any_class(move: Callable[..., Moving], readers: str) -> None:
    """They are plain ones from when they are given, or from when they leave the process."""
    it = move(readers)
    it.conn.join(Wicked("room"))
    it.conn.identify(Wicked("it"))
    it.conn.name = Wicked("its name")
    it.drain()
    wait_until(lambda: it.heir.connections)
    conn = it.heir.connections[0]
    assert (conn.groups, conn.identity, conn.name) == ({"room"}, "it", "its name")


@READERS
def test_a_process_that_hangs(
    move: Callable[..., Moving], readers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old process tells that the session is lost; the new one closes what it has loaded."""
    monkeypatch.setattr(session_handover, "_PATIENCE", 1.0)
    go_on = threading.Event()

    class Hanging(Moving):
        def load(self, conn: tao.ServerConn, data: bytes) -> None:
            go_on.wait(PATIENCE)
            super().load(conn, data)

    it = move(readers, kind=Hanging)
    it.proxy.to_client.swallow = True
    write_all(it.conn, 3)
    it.proxy.refuse()
    it.proxy.reset()
    it.proxy.to_client.swallow = False
    it.drain()
    it.proxy.accept()
    assert it.old.wait(4) == ["connect", "save", ("lost", [0, 1, 2]), "close"]
    go_on.set()
    assert it.new.wait(2)[:2] == ["load", "close"]
    assert it.client_events.wait(3)[:3] == ["connect", ("lost", []), "close"]


@READERS
def test_a_login_is_not_repeated(move: Callable[..., Moving], readers: str) -> None:
    """The connection is ready in the new process as soon as it is loaded."""
    options: dict[str, Any] = {"login": (Text,)}
    client, ready = {"on_connect": lambda conn: conn.write(Text("me"))}, Seen()
    it = move(readers, options, client, lambda ctx, conn: ready.add(conn.ready()), **options)
    ready.wait()
    it.drain()
    it.client.write(Number(1))
    assert it.at_server.wait() == [1]
    assert it.new.wait(2) == ["load", "resume"]
