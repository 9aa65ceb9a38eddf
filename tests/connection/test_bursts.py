"""Shared reading: what handlers of several connections write leaves together, and soon."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import tao
from tao.connection.connection import core_of
from tao.connection.sending.send_queue import SendQueue
from tao.connection.shared_reading.loop import ReadingLoop
from tao.connection.shared_reading.member import NO_OUTBOX, Member
from tao.server.connection import ServerConn
from tao.server.server import server_core_of
from tao.transport.stream import Transport
from tests.ends import MakeServer, Seen, Text, text
from tests.injection import Moment, opcodes
from tests.support import PATIENCE, recv_exactly, wait_until, written_here

# `make interrupt EACH=1` tries far more of the bytecodes.
STEP = 3 if os.environ.get("EACH_BYTECODE") else 29
_offsets = itertools.count()


class Holder:
    """A member of a loop that keeps the leader busy."""

    took = take_break = end_break = turn = look = bool
    outbox = NO_OUTBOX

    def __init__(self) -> None:
        self.there, self.go = threading.Event(), threading.Event()

    def hold(self) -> None:
        self.there.set()
        self.go.wait(PATIENCE)

    def struck(self, error: BaseException) -> None:
        self.there.set()


def loop_of(conn: ServerConn) -> ReadingLoop:
    roles: Any = core_of(conn).roles
    return roles._loop  # type: ignore[no-any-return]


@contextlib.contextmanager
def held(loop: ReadingLoop) -> Iterator[None]:
    """Keep the leader busy in a ``with`` block, so that what comes meanwhile is ready at once."""
    holder: Any = Holder()
    loop.call_soon(holder, holder.hold)
    assert holder.there.wait(PATIENCE)
    try:
        yield
    finally:
        holder.go.set()


@contextlib.contextmanager
def connected(server: tao.Server, address: Any, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        connect = lambda: stack.enter_context(socket.create_connection(address, PATIENCE))  # noqa: E731
        socks = [connect() for _ in range(count)]
        wait_until(lambda: len(server.connections) == count)
        yield socks


def has_come(server: tao.Server, sock: socket.socket) -> bool:
    """Return whether what was sent into a socket waits at the server, so that it is ready."""
    (conn,) = (each for each in server.connections if each.remote_address == sock.getsockname())
    transport = core_of(conn).transport
    return transport is not None and transport.wait_readable(0)


@pytest.mark.parametrize("watchdog", [True, False])
def test_replies_leave_though_a_later_handler_blocks(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch, watchdog: bool
) -> None:
    """They are not kept waiting by the connections that have their turns after that."""
    if not watchdog:  # as where the kernel has no such timers
        monkeypatch.setattr("tao.connection.shared_reading.loop.new_watchdog", lambda *_: None)
    server, address = make_server(readers="shared")
    entered, leave = threading.Event(), threading.Event()

    @server.handler(Text, dispatch="inline")
    def answer(ctx: Any, conn: ServerConn) -> None:
        conn.write(ctx.message)
        if ctx.message.text == "block":
            entered.set()
            leave.wait(PATIENCE)

    with connected(server, address, 4) as (*quick, blocking):
        monkeypatch.setattr("tao.connection.shared_reading.loop.SOON", PATIENCE)
        with held(loop_of(server.connections[0])):
            for sock in (*quick, blocking):
                sock.sendall(text("block" if sock is blocking else "quick"))
                wait_until(lambda: has_come(server, sock))  # noqa: B023
        assert entered.wait(PATIENCE)
        for sock, expected in [*((each, "quick") for each in quick), (blocking, "block")]:
            assert recv_exactly(sock, len(text(expected))) == text(expected)
        leave.set()


def test_a_reply_precedes_what_is_written_afterwards(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By any thread, while the reply waits for the other turns of its round."""
    # However slow the machine is, the reply still waits when the next turn comes.
    monkeypatch.setattr("tao.connection.shared_reading.loop.SOON", PATIENCE)
    monkeypatch.setattr(Member, "flush", bool)
    server, address = make_server(readers="shared")
    collected, written = Seen(), threading.Event()

    @server.handler(Text, dispatch="inline")
    def answer(ctx: Any, conn: ServerConn) -> None:
        if ctx.message.text == "wait":  # in the same round, on another connection
            collected.add(sum(len(core_of(each).send_queue.noted) for each in server.connections))
            written.wait(PATIENCE)
        else:
            conn.write(Text("reply"))

    with connected(server, address, 2) as (first, second):
        first.sendall(text("who am I?"))
        recv_exactly(first, len(text("reply")))
        (conn,) = (each for each in server.connections if core_of(each).send_queue.frames_sent)
        with held(loop_of(conn)):
            for sock, question in ((first, "a question"), (second, "wait")):
                sock.sendall(text(question))
                wait_until(lambda: has_come(server, sock))  # noqa: B023
        assert collected.wait() == [1]
        conn.write(Text("news"))
        written.set()
        both = text("reply") + text("news")
        assert recv_exactly(first, len(both)) == both


def test_a_reply_that_waits_is_sent_when_the_connection_is_closed(make_server: MakeServer) -> None:
    """By another connection's handler, in the same round."""
    server, address = make_server(readers="shared")

    @server.handler(Text, dispatch="inline")
    def answer(ctx: Any, conn: ServerConn) -> None:
        if ctx.message.text == "close":
            for each in server.connections:
                each.close("a test")
        else:
            conn.write(ctx.message)

    with connected(server, address, 2) as (first, second):
        with held(loop_of(server.connections[0])):
            first.sendall(text("a question"))
            second.sendall(text("close"))
        assert recv_exactly(first, 1000) == text("a question")
        assert recv_exactly(second, 1000) == b""


class Growing(list[bytes]):
    """Frames to which one is added once they have been counted."""

    counted = False

    def __len__(self) -> int:
        count = super().__len__()
        if not self.counted:
            self.counted = True
            self.append(b"another")
        return count


class Fleeting(list[bytes]):
    """Frames that are gone when they are taken."""

    def pop(self, index: Any = -1) -> bytes:
        self.clear()
        raise IndexError


@pytest.mark.parametrize(
    ("kind", "expected"), [(Fleeting, b"next"), (Growing, b"replyanothernext")]
)
@pytest.mark.parametrize("send", [lambda box: box.send_collected(1.0), SendQueue.release])
def test_other_threads_change_what_is_noted_meanwhile(
    send: Callable[[SendQueue], object], kind: type[list[bytes]], expected: bytes
) -> None:
    """Just before it would be sent, one may drop the oldest frame, or note another one."""
    ours, peer = socket.socketpair()
    transport, box = Transport(ours), SendQueue(4, bool, slow_consumer="drop_oldest")
    box.attach(transport, written_here())
    box.open()
    box.collect()
    box.write(b"reply")
    box.noted = box._admission.frames = kind(box.noted)
    box.collecting = 0
    send(box)
    assert box.error is None and not box.waiting and not box.bytes_waiting
    box.write(b"next")
    assert recv_exactly(peer, len(expected)) == expected
    for each in (transport, peer):
        each.close()


@pytest.mark.interrupted
@pytest.mark.parametrize("module", ["shared_reading.member", "shared_reading.loop", "sending"])
def test_a_struck_leader_leaves_no_reply_behind(module: str, make_server: MakeServer) -> None:
    """At any bytecode: each connection gets its reply, or ends."""
    names = [f"tao.connection.{module}"]
    if module == "sending":
        names = ["tao.connection.sending.send_queue", "tao.connection.sending.transmitter"]
    for moment in opcodes(*names, first=next(_offsets) % STEP, step=STEP):
        strike(moment, make_server)


def answer_or_abort(ctx: Any, conn: ServerConn) -> None:
    try:
        conn.write(ctx.message)
    except BaseException:
        conn.abort()
        raise


def strike(moment: Moment, make_server: Callable[..., tuple[tao.Server, Any]]) -> None:
    with moment.raising(thread="tao-reader-servers-1"):
        server, address = make_server(readers="shared")
        server.handler(Text, dispatch="inline")(answer_or_abort)
        readers: Any = server_core_of(server).resources.readers
        with contextlib.ExitStack() as stack:
            connect = lambda: stack.enter_context(socket.create_connection(address, PATIENCE))  # noqa: E731
            socks = [connect() for _ in range(4)]
            wait_until(lambda: len(server.connections) == 4 or moment.struck)
            with held(readers.next_loop()):
                for sock in socks:
                    sock.sendall(text("hi"))
            for sock in socks:
                with contextlib.suppress(ConnectionResetError):
                    assert recv_exactly(sock, len(text("hi"))) in (text("hi"), b""), moment
    server.stop(PATIENCE)
