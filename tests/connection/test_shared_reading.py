"""One thread reads many connections: what it does for each, and what none may do to the others."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import select
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from time import thread_time
from types import SimpleNamespace
from typing import Any, cast

import pytest

import tao
from tao.client.client import ClientConn
from tao.connection.connection import core_of
from tao.connection.handling.block_watch import watch_on
from tao.connection.shared_reading.loop import ReadingLoop
from tao.connection.shared_reading.member import NO_OUTBOX
from tao.connection.shared_reading.roles import SharedRoles
from tao.runtime.deadline import Deadline
from tao.runtime.timing_wheel import TimingWheel
from tao.server.connection import ServerConn
from tao.server.server import server_core_of
from tao.transport.poller import READABLE
from tao.wire.message import Registry
from tests.ends import MakeServer, Number, Seen, Text, number, text
from tests.injection import Interruption, opcodes
from tests.support import PATIENCE, recv_exactly, wait_until
from tests.tls_pairs import CLIENT, SERVER


def readers() -> list[str]:
    """The names of the threads that read."""
    return [each.name for each in threading.enumerate() if each.name.startswith("tao-reader")]


def echoing() -> Registry:
    registry = Registry()
    registry.handler(Number)(lambda ctx, conn: conn.write(ctx.message))
    return registry


def connected(address: Any, count: int) -> list[socket.socket]:
    return [socket.create_connection(address, PATIENCE) for _ in range(count)]


def answered(sock: socket.socket, value: int) -> bool:
    sock.sendall(number(value))
    return recv_exactly(sock, 16) == number(value)


def test_one_thread_reads_all_connections(make_server: MakeServer) -> None:
    """However many connections talk, one thread reads, and no connection has one of its own."""
    server, address = make_server(registry=echoing(), readers="shared")
    socks = connected(address, 50)
    for _ in range(5):
        assert all(answered(sock, i) for i, sock in enumerate(socks))
    assert readers() == ["tao-reader-servers-1"]
    assert not [each for each in threading.enumerate() if "handler" in each.name]
    for sock in socks:
        sock.close()
    wait_until(lambda: not server.connection_count)


def test_clients_of_a_process_share_their_reader(make_server: MakeServer) -> None:
    """All clients have one reading thread, which exists while there is such a client."""
    _, address = make_server(registry=echoing())
    seen, registry = Seen(), Registry()
    registry.handler(Number)(lambda ctx, conn: seen.add(ctx.message.value))
    options: Any = {"registry": registry, "readers": "shared"}
    clients = [ClientConn(address, **options).start() for _ in range(10)]
    for i, client in enumerate(clients):
        client.write(Number(i))
    assert sorted(seen.wait(10)) == list(range(10))
    assert [name for name in readers() if "clients" in name] == ["tao-reader-clients-1"]
    for client in clients:
        client.close()
    wait_until(lambda: not [name for name in readers() if "clients" in name])


def test_a_handler_that_blocks_holds_up_its_own_connection_only(make_server: MakeServer) -> None:
    """Others are read and answered meanwhile, by another thread; its own messages wait in order."""
    registry, entered, leave, seen = echoing(), threading.Event(), threading.Event(), Seen()

    @registry.handler(Text, dispatch="inline")
    def block(ctx: Any, conn: Any) -> None:
        seen.add(ctx.message.text)
        if ctx.message.text == "block":
            entered.set()
            leave.wait(PATIENCE)

    _, address = make_server(registry=registry, readers="shared")
    blocked, *others = connected(address, 5)
    blocked.sendall(text("block") + text("next"))
    assert entered.wait(PATIENCE)
    assert all(answered(sock, i) for i in range(3) for sock in others)
    blocked.sendall(text("last"))
    leave.set()
    assert seen.wait(3) == ["block", "next", "last"]
    assert answered(blocked, 7)
    for sock in (blocked, *others):
        sock.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs the watchdog's timers")
def test_a_handler_that_blocks_after_its_thread_had_no_turn(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watchdog may bark when the thread has not got to the connection yet."""
    barks, entered, leave, left = Seen(), threading.Event(), threading.Event(), threading.Event()
    bark, kick = ReadingLoop._look_after_leader, ReadingLoop._kick

    def note_bark(loop: ReadingLoop) -> None:
        bark(loop)
        barks.add(loop)

    def kick_and_lose_the_turn(loop: ReadingLoop, now: float) -> None:
        before = len(barks.items)
        kick(loop, now)
        barks.wait(before + 1)

    monkeypatch.setattr(ReadingLoop, "_look_after_leader", note_bark)
    monkeypatch.setattr(ReadingLoop, "_kick", kick_and_lose_the_turn)
    registry = echoing()

    @registry.handler(Text, dispatch="inline")
    def block(ctx: Any, conn: Any) -> None:
        entered.set()
        leave.wait(PATIENCE)
        left.set()

    _, address = make_server(registry=registry, readers="shared")
    blocked, other = connected(address, 2)
    assert answered(blocked, 1) and answered(other, 1)
    blocked.sendall(text("x"))
    assert entered.wait(PATIENCE)
    assert answered(other, 2) and not left.is_set()
    leave.set()
    assert answered(blocked, 3)
    for sock in (blocked, other):
        sock.close()


def test_handlers_that_block_one_after_another(make_server: MakeServer) -> None:
    """Each takes a reading thread out of service for as long as it blocks, and never the last."""
    registry, leave, seen = echoing(), threading.Event(), Seen()

    @registry.handler(Text, dispatch="inline")
    def block(ctx: Any, conn: Any) -> None:
        seen.add(ctx.message.text)
        leave.wait(PATIENCE)

    _, address = make_server(registry=registry, readers="shared")
    *blocked, other = connected(address, 6)
    for i, sock in enumerate(blocked):
        sock.sendall(text(str(i)))
        assert seen.wait(i + 1)
        assert answered(other, i)
    leave.set()
    assert all(answered(sock, 1) for sock in blocked)
    wait_until(lambda: readers() == ["tao-reader-servers-1"])
    for sock in (*blocked, other):
        sock.close()


def test_without_another_thread_the_blocking_connection_ends(
    make_server: MakeServer, no_thread: Callable[[str], None]
) -> None:
    """If none can take over the reading, that is the reason; the others are served afterwards."""
    registry, entered, leave = echoing(), threading.Event(), threading.Event()

    @registry.handler(Text, dispatch="inline")
    def block(ctx: Any, conn: Any) -> None:
        entered.set()
        leave.wait(PATIENCE)

    server, address = make_server(registry=registry, readers="shared")
    blocked, other = connected(address, 2)
    assert answered(blocked, 1) and answered(other, 1)
    no_thread("tao-reader")
    (conn,) = [each for each in server.connections if each.remote_address == blocked.getsockname()]
    blocked.sendall(text("x"))
    assert entered.wait(PATIENCE)
    wait_until(lambda: conn.closed)
    assert conn.close_reason == "error: can't start new thread"
    leave.set()
    assert answered(other, 2)
    blocked.close()
    other.close()


def test_silent_handshakes_cost_no_thread(make_server: MakeServer) -> None:
    """Peers that say nothing, or stop after a byte, hold no thread; others are served meanwhile."""
    certificate = tao.self_signed_certificate("localhost")
    server, address = make_server(
        registry=echoing(), readers="shared", tls=certificate.server_config()
    )
    silent = connected(address, 100)
    for sock in silent[:50]:
        sock.sendall(b"\x16")
    core = server_core_of(server)
    wait_until(lambda: len(core.acceptor.connections) == 100)
    wait_until(lambda: len(threading.enumerate()) < 20)
    seen, registry = Seen(), Registry()
    registry.handler(Number)(lambda ctx, conn: seen.add(ctx.message.value))
    options: Any = {"registry": registry, "server_hostname": "localhost"}
    with tao.connect(address, tls=certificate.client_config(), **options) as client:
        client.write(Number(5))
        assert seen.wait(1) == [5]
    for sock in silent:
        sock.close()
    wait_until(lambda: not core.acceptor.connections)


def test_a_handshake_that_takes_too_long_ends(make_server: MakeServer, log_lines: Any) -> None:
    """After ``handshake_timeout`` a silent peer is disconnected, and that is the reason."""
    certificate = tao.self_signed_certificate("localhost")
    _, address = make_server(
        readers="shared", tls=certificate.server_config(), handshake_timeout=0.05
    )
    with socket.create_connection(address, PATIENCE) as silent:
        silent.sendall(b"\x16")
        assert silent.recv(1) == b""
    wait_until(lambda: any("not done after 0.05 s" in each["message"] for each in log_lines))


@pytest.mark.parametrize("mode", ["auto", "pool", "inline"])
def test_a_flood_is_handled_in_order(make_server: MakeServer, mode: Any) -> None:
    """Ten thousand messages of each of four peers are handled once each, in order."""
    registry, seen = Registry(), {}
    done = threading.Semaphore(0)

    @registry.handler(Number, dispatch=mode)
    def note(ctx: Any, conn: Any) -> None:
        seen.setdefault(conn.net_id, []).append(ctx.message.value)
        if ctx.message.value == 9_999:
            done.release()

    _, address = make_server(registry=registry, readers="shared")
    socks = connected(address, 4)
    data = b"".join(map(number, range(10_000)))
    senders = [threading.Thread(target=sock.sendall, args=(data,)) for sock in socks]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join(PATIENCE)
        assert done.acquire(timeout=PATIENCE)
    assert list(seen.values()) == [list(range(10_000))] * 4
    for sock in socks:
        sock.close()


@pytest.mark.parametrize("readers", ["own", "shared"])
def test_a_turn_takes_no_more_than_is_handled_quickly(
    make_server: MakeServer, readers: Any
) -> None:
    """One connection that sends as fast as it can keeps the others waiting for some 2 ms."""
    registry, sizes, messages, least = Registry(), [], 1000, 1e-4

    def compute(ctx: tao.Context, conn: tao.Connection) -> None:
        end = thread_time() + least
        while thread_time() < end:
            pass

    def count(batch: Any) -> Any:
        sizes.append(len(batch))
        return batch

    def connect(conn: tao.Connection) -> None:
        conn._core.reader.watch(count)

    registry.handler(Text, dispatch="inline")(compute)
    _, address = make_server(registry=registry, readers=readers, on_connect=connect)
    with socket.create_connection(address, PATIENCE) as sock:
        sock.sendall(text("x" * 1024) * messages)
        wait_until(lambda: sum(sizes) == messages)
    assert max(sizes) <= 64
    # Once it is known how long they take, some 20 of at least 100 us each.
    assert max(sizes[6:]) <= 25


def test_a_flood_beside_others_is_read_to_its_end(make_server: MakeServer) -> None:
    """A peer that sends without a pause has breaks while another talks, and loses nothing by it."""
    registry, seen = echoing(), list[int]()

    @registry.handler(Text, dispatch="inline")
    def note(ctx: tao.Context, conn: tao.Connection) -> None:
        seen.append(int(ctx.message.text))

    _, address = make_server(registry=registry, readers="shared")
    data = b"".join(text(str(each)) for each in range(30_000))
    with socket.create_connection(address, PATIENCE) as flooding:
        sender = threading.Thread(target=flooding.sendall, args=(data,))
        with socket.create_connection(address, PATIENCE) as talking:
            sender.start()
            wait_until(lambda: answered(talking, 1) and len(seen) == 30_000)
        sender.join(PATIENCE)
    assert seen == list(range(30_000))


def test_several_threads_divide_the_connections(make_server: MakeServer) -> None:
    """With ``reader_threads`` each reads its share."""
    server, address = make_server(registry=echoing(), readers="shared", reader_threads=3)
    socks = connected(address, 9)
    assert all(answered(sock, i) for i, sock in enumerate(socks))
    assert sorted(readers()) == [f"tao-reader-servers-{i}" for i in (1, 2, 3)]
    shared = server_core_of(server).resources.readers
    assert shared is not None
    shares = [
        sum(isinstance(each, SharedRoles) for each in loop.members.values())
        for loop in shared.loops
    ]
    assert shares == [3, 3, 3]
    for sock in socks:
        sock.close()


def test_many_close_at_once(make_server: MakeServer) -> None:
    """Hundreds of peers that leave together are gone soon, and a newcomer is answered meanwhile."""
    closed = Seen()
    server, address = make_server(
        registry=echoing(), readers="shared", on_close=lambda conn: closed.add(conn.net_id)
    )
    socks = connected(address, 300)
    assert all(answered(sock, 1) for sock in socks)
    for sock in socks:
        sock.close()
    with socket.create_connection(address, PATIENCE) as newcomer:
        assert answered(newcomer, 2)
    assert len(set(closed.wait(301))) == 301
    wait_until(lambda: not server.connection_count)


def test_clients_that_are_away_hold_no_thread() -> None:
    """Many clients that wait before they dial again have no thread, and come back one by one."""
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        address = reserved.getsockname()
    soon = tao.Reconnect(initial=0.05, maximum=0.05)
    clients = [
        ClientConn(address, registry=Registry(), readers="shared", reconnect=soon)
        for _ in range(100)
    ]
    for client in clients:
        client.start(keep_trying=True)
    wait_until(lambda: all(client._core.back_off.paused for client in clients[:5]))
    late = tao.Server(registry=Registry())
    late.start(address)
    assert all(client.wait_connected(PATIENCE) for client in clients)
    assert len([each for each in threading.enumerate() if "helper" in each.name]) <= 64
    for client in clients:
        client.close()
    late.stop()


def test_a_client_that_is_away_closes_at_once() -> None:
    """A close ends the wait before the next attempt."""
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        address = reserved.getsockname()
    patient = tao.Reconnect(initial=3600, maximum=3600)
    client = ClientConn(address, registry=Registry(), readers="shared", reconnect=patient)
    client.start(keep_trying=True)
    wait_until(lambda: client._core.back_off.paused)
    client.close()
    assert client.wait_closed(PATIENCE)


def test_the_end_of_a_tls_stream_may_come_with_data(make_server: MakeServer) -> None:
    """A peer that ends its TLS stream in the same packet as its last message gets reply and end."""
    certificate = tao.self_signed_certificate("localhost")
    _, address = make_server(registry=echoing(), readers="shared", tls=certificate.server_config())
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    machine = certificate.client_config().wrap_bio(incoming, outgoing, False, "localhost")
    with socket.create_connection(address, PATIENCE) as sock:
        speak(sock, machine.do_handshake, incoming, outgoing)
        machine.write(number(5))
        with contextlib.suppress(ssl.SSLWantReadError):
            machine.unwrap()
        received = speak(sock, lambda: machine.read(100), incoming, outgoing)
        assert received == number(5)
        with pytest.raises(ssl.SSLZeroReturnError):
            speak(sock, lambda: machine.read(100), incoming, outgoing)


def speak(
    sock: socket.socket,
    step: Callable[[], Any],
    incoming: ssl.MemoryBIO,
    outgoing: ssl.MemoryBIO,
) -> Any:
    """Do a step of TLS until nothing is missing, and return its result."""
    while True:
        try:
            result = step()
        except ssl.SSLWantReadError:
            sock.sendall(outgoing.read())
            incoming.write(sock.recv(65536))
            continue
        sock.sendall(outgoing.read())
        return result


# -- what meets in an unlucky moment


def test_a_connection_that_opens_after_the_stop_ends(make_server: MakeServer) -> None:
    """A stop does not wait for ``on_connect`` for ever; the connection ends once that returns."""
    entered, leave, closed = threading.Event(), threading.Event(), Seen()

    def wait(conn: Any) -> None:
        entered.set()
        leave.wait(PATIENCE)

    server, address = make_server(readers="shared", on_connect=wait, on_close=closed.add)
    with socket.create_connection(address, PATIENCE) as peer:
        assert entered.wait(PATIENCE)
        assert len(server.stop(0.05).abandoned) == 1
        leave.set()
        with contextlib.suppress(ConnectionResetError):
            assert peer.recv(1) == b""
    assert closed.wait(1)[0].wait_closed(PATIENCE)


def test_more_callbacks_block_than_there_are_helpers(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop in the meantime leaves no connection open that waits for a helper."""
    monkeypatch.setattr("tao.connection.shared_reading.readers._HELPERS", 1)
    certificate = tao.self_signed_certificate("localhost")
    leave = threading.Event()
    server, address = make_server(
        readers="shared",
        tls=certificate.server_config(),
        on_connect=lambda conn: leave.wait(PATIENCE),
    )
    options: Any = {"registry": Registry(), "server_hostname": "localhost"}
    clients = [tao.connect(address, tls=certificate.client_config(), **options) for _ in range(4)]
    wait_until(lambda: len(server_core_of(server).acceptor.connections) == 4)
    conns = list(server_core_of(server).acceptor.connections.values())
    assert len(server.stop(0.05).abandoned) == 4
    leave.set()
    assert all(conn.wait_closed(PATIENCE) for conn in conns)
    assert all(client.wait_closed(PATIENCE) for client in clients)


def test_replies_are_read_while_no_worker_is_free(make_server: MakeServer) -> None:
    """Messages that wait for a worker do not keep the reply to a request from being read."""
    registry, entered, leave = Registry(), threading.Event(), threading.Event()
    registry.handler(Number, dispatch="inline")(lambda ctx, conn: None)

    @registry.handler(Text, dispatch="pool")
    def block(ctx: Any, conn: Any) -> None:
        if ctx.message.text == "block":
            entered.set()
            leave.wait(2 * PATIENCE)

    server, address = make_server(registry=registry, readers="shared", workers=1)
    answering: Any = {"registry": Registry(), "requests": True}
    with (
        socket.create_connection(address, PATIENCE) as blocking,
        tao.connect(address, **answering) as client,
    ):
        client.handler(Number)(lambda ctx, conn: ctx.reply(ctx.message))
        blocking.sendall(text("block"))
        assert entered.wait(PATIENCE)
        wait_until(lambda: len(server.connections) == 2)
        (conn,) = (each for each in server.connections if not each.unhandled)
        client.write(Text("waits for a worker"))
        wait_until(lambda: conn.unhandled == 1)
        client.write(Number(1))
        wait_until(lambda: conn.unhandled == 2)
        assert conn.request(Number(2), timeout=PATIENCE).value == 2
        leave.set()


class SlowLoop:
    """A loop whose poller is slow to change; it notes what happens."""

    def __init__(self) -> None:
        self.members: dict[int, Any] = {}
        self.stopped = False
        self.events: list[str] = []
        self.meanwhile: Callable[[], object] = bool

    def change(self, descriptor: int, before: int, now: int) -> None:
        self.meanwhile()
        self.events.append(f"from {before} to {now}")


def test_a_descriptor_is_given_up_once_nothing_uses_it() -> None:
    """A change under way on another thread would hit the connection that gets it next."""
    loop, gone = SlowLoop(), threading.Event()
    transport = SimpleNamespace(descriptor=5, receive_now=None, buffers=False)
    reader = SimpleNamespace(go_on=lambda transport: True, early=b"")
    host: Any = SimpleNamespace(transport=transport, reader=reader, send_queue=NO_OUTBOX)
    roles = SharedRoles(host, "1", cast("Any", loop), cast("Any", SimpleNamespace(start=bool)))
    roles.listen()

    def leave() -> None:
        roles.leave()
        loop.events.append("gone")
        gone.set()

    def meanwhile() -> None:
        loop.meanwhile = bool
        threading.Thread(target=leave).start()
        gone.wait(0.05)

    loop.meanwhile = meanwhile
    roles.gate.pause("a test")
    assert gone.wait(PATIENCE)
    assert loop.events == ["from 0 to 1", "from 1 to 0", "gone"] and not loop.members


class Turns:
    """A member of a loop that loses the lead in its turn, and is interrupted then."""

    took = take_break = end_break = bool
    outbox = NO_OUTBOX

    def __init__(self, loop: ReadingLoop) -> None:
        self.loop = loop
        self.errors = Seen()

    def turn(self, events: int = 0, now: float = 0.0) -> None:
        self.loop.vacate_lead()
        self.loop.pass_lead()
        raise Interruption

    def struck(self, error: BaseException) -> None:
        self.errors.add(error)
        if len(self.errors.items) == 1:
            raise Interruption  # another one

    def look(self, now: float, grace: float) -> None:
        pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_who_was_relieved_still_answers_for_its_connection() -> None:
    """An exception that ends the turn later, and another one after that, end that connection."""
    wheel = TimingWheel()
    loop = ReadingLoop("tao-reader-test")
    loop.start(watch_on(wheel))
    members = [Turns(loop), Turns(loop)]
    for member in members:
        loop.call_soon(member, member.turn)
    assert all(len(member.errors.wait(2)) == 2 for member in members)
    assert not loop.stop(Deadline(PATIENCE))
    wheel.stop()


class Caller:
    """A member of a loop that does nothing by itself."""

    took = take_break = end_break = turn = look = struck = bool
    outbox = NO_OUTBOX


def leads(loop: ReadingLoop) -> bool:
    """Return whether a thread of the loop does what it is asked for."""
    called = threading.Event()
    loop.call_soon(cast("Any", Caller()), called.set)
    return called.wait(PATIENCE)


def relieve(loop: ReadingLoop) -> None:
    """Have another thread lead, as a call blocks the one that does."""
    held, go = threading.Event(), threading.Event()
    try:
        loop.call_soon(cast("Any", Caller()), lambda: held.set() or go.wait(PATIENCE))
        assert held.wait(PATIENCE)
        loop.vacate_lead()
        loop.pass_lead()
    finally:
        go.set()


@pytest.mark.interrupted
def test_an_interrupted_change_of_the_leader_can_be_repeated() -> None:
    """At any bytecode: from a thread to a new one, and from that to one that follows."""
    wheel = TimingWheel()
    for moment in opcodes("tao.connection.shared_reading.loop"):
        loop = ReadingLoop("tao-reader-test")
        loop.start(watch_on(wheel))
        with moment.raising():
            relieve(loop)
            wait_until(lambda loop=loop: loop._followers)
            relieve(loop)
        loop.pass_lead()
        assert leads(loop), moment
        assert not loop.stop(Deadline(PATIENCE)), moment
    wheel.stop()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs the watchdog's timers")
def test_a_start_that_fails_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, no_thread: Callable[[str], None]
) -> None:
    """Neither a watchdog nor a poller, whichever of the two cannot be had; it can be repeated."""
    wheel, loop = TimingWheel(), ReadingLoop("tao-reader-test")
    with monkeypatch.context() as patch:
        patch.setattr("tao.connection.shared_reading.loop.new_poller", _no_descriptor)
        with pytest.raises(OSError, match="files"):
            loop.start(watch_on(wheel))
    assert not [each for each in threading.enumerate() if each.name == "tao-watchdog-test"]
    no_thread("tao-watchdog")
    with pytest.raises(RuntimeError, match="new thread"):
        loop.start(watch_on(wheel))
    monkeypatch.undo()
    loop.start(watch_on(wheel))
    assert not loop.stop(Deadline(PATIENCE))
    wheel.stop()


def _no_descriptor() -> Any:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class Guest:
    """A member of a loop that notes its turn, and leaves."""

    outbox = NO_OUTBOX

    def __init__(self, loop: ReadingLoop, turns: Seen, sock: socket.socket) -> None:
        self.loop, self.turns, self.sock = loop, turns, sock
        loop.members[sock.fileno()] = self
        loop.change(sock.fileno(), 0, READABLE)

    def turn(self, events: int, now: float = 0.0) -> None:
        self.loop.change(self.sock.fileno(), READABLE, 0)
        self.turns.add(self)

    def took(self, seconds: float) -> bool:
        return False

    take_break = end_break = bool

    def struck(self, error: BaseException) -> None:
        pass

    def look(self, now: float, grace: float) -> None:
        pass


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="others do not tell an end from data")
def test_those_that_end_are_served_last() -> None:
    """One that has sent something does not wait for hundreds whose peers have closed."""
    wheel, turns, go = TimingWheel(), Seen(), threading.Event()
    loop = ReadingLoop("tao-reader-test")
    loop.start(watch_on(wheel))
    pairs = [socket.socketpair() for _ in range(300)]
    first, held = Guest(loop, turns, pairs[0][0]), threading.Event()
    loop.call_soon(first, lambda: held.set() or go.wait(PATIENCE))
    assert held.wait(PATIENCE)
    for _, far in pairs[1:-1]:
        far.close()
    guests = [Guest(loop, turns, near) for near, _ in pairs[1:]]
    pairs[-1][1].send(b"x")
    go.set()
    assert turns.wait(len(guests))[0] is guests[-1]
    assert not loop.stop(Deadline(PATIENCE))
    wheel.stop()
    for near, far in pairs:
        near.close()
        far.close()


class Holder(Caller):
    """One that may keep the leader for long."""

    def look(self, now: float, grace: float) -> None:
        pass


@contextlib.contextmanager
def held_up(loop: ReadingLoop) -> Iterator[None]:
    """Have the leader of a loop wait for the end of a ``with`` block."""
    held, go = threading.Event(), threading.Event()
    try:
        loop.call_soon(cast("Any", Holder()), lambda: held.set() or go.wait(PATIENCE))
        assert held.wait(PATIENCE)
        yield
    finally:
        go.set()


def loop_of(server: tao.Server) -> Any:
    """The loop that reads the connections of a server."""
    found: Any = server_core_of(server).resources.readers
    return found.loops[0]


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="others do not tell an end from data")
def test_those_that_end_are_taken_out_of_the_poller_once(make_server: MakeServer) -> None:
    """Each of a crowd that leaves waits for its end outside of it, and ends there."""
    server, address = make_server(registry=echoing(), readers="shared")
    socks = connected(address, 200)
    assert all(answered(sock, i) for i, sock in enumerate(socks))
    loop, changes = loop_of(server), Seen()
    change = loop.change
    loop.change = lambda descriptor, before, now: (
        changes.add(now) or change(descriptor, before, now)
    )
    with held_up(loop):
        for sock in socks:
            sock.close()
    wait_until(lambda: len(loop.members) == 1)  # the listener
    assert changes.items == [0] * len(socks)


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="others do not tell an end from data")
def test_all_that_came_before_an_end_is_handled(make_server: MakeServer) -> None:
    """Also of a crowd that leaves, if it takes more than one receive."""
    handled, registry = Seen(), Registry()
    registry.handler(Number, dispatch="inline")(lambda ctx, conn: handled.add(ctx.message.value))
    server, address = make_server(registry=registry, readers="shared")
    socks = connected(address, 100)
    wait_until(lambda: server.connection_count == len(socks))
    with held_up(loop_of(server)):
        for sock in socks:
            sock.sendall(b"".join(map(number, range(600))))
            sock.close()
    assert sorted(handled.wait(600 * len(socks))) == sorted([*range(600)] * len(socks))
    wait_until(lambda: not server.connection_count)


def test_what_came_with_a_handshake_is_read_in_spite_of_a_break(make_server: MakeServer) -> None:
    """The poller cannot tell of it: the peer's first message may come with its Finished."""
    handled = Seen()

    def rest(conn: ServerConn) -> None:
        core: Any = core_of(conn)
        core.roles.take_break()  # as after a handshake that took long

    server, address = make_server(readers="shared", tls=SERVER, on_connect=rest)

    @server.handler(Text, dispatch="inline")
    def note(ctx: Any, conn: ServerConn) -> None:
        core: Any = core_of(conn)
        core.roles.end_break()
        handled.add(ctx.message.text)

    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = CLIENT.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with socket.create_connection(address, PATIENCE) as sock:
        while not _shakes_hands(client):
            sock.sendall(outgoing.read())
            incoming.write(sock.recv(65536))
        client.write(text("first"))
        sock.sendall(outgoing.read())
        assert handled.wait() == ["first"]


def _shakes_hands(client: ssl.SSLObject) -> bool:
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


@pytest.mark.interrupted
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupted_start_loses_no_thread_and_no_descriptor() -> None:
    """What a start has made can be found by the end, wherever an exception struck."""

    def descriptors() -> list[str]:
        gc.collect()  # what an exception has struck while it was made is garbage
        return os.listdir("/proc/self/fd")

    wheel, before = TimingWheel(), descriptors()
    watch = watch_on(wheel)
    for moment in opcodes("tao.connection.shared_reading.loop", "tao.runtime.watchdog"):
        loop = ReadingLoop("tao-reader-struck")
        with moment.raising():
            loop.start(watch)
        loop.retire()
        assert not loop.stop(Deadline(PATIENCE)), moment
        del loop
        wait_until(lambda: descriptors() == before)
    wheel.stop()
